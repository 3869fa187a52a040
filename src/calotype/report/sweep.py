"""The section of `calotype sweep`: the distance from real pictures over sampling steps and guidance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from calotype.report.format import UNKNOWN, count, guidance, interval, sample_sizes
from calotype.report.html import Html, aside, bullets, section, strip, table, tag
from calotype.report.plot import Series, plot
from calotype.run import Run, read_mapping
from calotype.tables import number, within

Cell = dict[str, Any]
Grid = dict[tuple[str, int], Cell]
"""By guidance and steps."""
NEVER_FID = "Distances use EfficientNet-Lite0 features, so they are not FID; smaller is better, at equal n only."


def sweep(run: Run) -> Html | None:
    found = read_mapping(run.folder / "sweep.json")
    cells = [cell for cell in found.get("cells") or [] if isinstance(cell, dict)]
    if not cells:
        return None
    grid: Grid = {place_of(cell): cell for cell in cells}
    best = place_of(within(found, "best"))
    steps = sorted({steps for _, steps in grid})
    rows = [
        (name, *(distance(grid.get((name, count)), (name, count) == best) for count in steps))
        for name in dict.fromkeys(name for name, _ in grid)
    ]
    drawn = plot("FD-Lite0 over sampling steps", "FD-Lite0", lines(grid, found), "steps", "Real: other real pictures.")
    return section(
        "Sampling steps and guidance",
        tag("p", str(found.get("why") or "")),
        table(("FD-Lite0", *(f"{count} steps" for count in steps)), rows),
        aside(conditions(found)),
        bullets(map(str, found.get("notes") or [])),
        strip([drawn], "plots"),
    )


def place_of(cell: Cell) -> tuple[str, int]:
    return guidance(within(cell, "sampling") or cell), int(cell.get("steps") or 0)


def distance(cell: Cell | None, chosen: bool) -> str:
    return UNKNOWN if cell is None else interval(within(cell, "fd_lite0")) + ("\u00a0✓" if chosen else "")


def lines(grid: Grid, found: Mapping[str, Any]) -> list[Series]:
    """A line over steps for each guidance, and one at the distance between real pictures."""
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, steps), cell in sorted(grid.items(), key=lambda entry: entry[0][1]):
        points.setdefault(name, []).append((float(steps), float(cell["fd_lite0"]["value"])))
    if (floor := number(within(found, "floor", "fd_lite0").get("value"))) is not None:
        all_steps = [float(steps) for _, steps in grid]
        points["real"] = [(min(all_steps), floor), (max(all_steps), floor)]
    return [Series(name, line, marked=True) for name, line in points.items()]


def conditions(found: Mapping[str, Any]) -> str:
    before, best = within(found, "before"), within(found, "best")
    return (
        f"Each cell: n = {sample_sizes(found.get('n'))} pictures of {count(number(found.get('size')))} px with the "
        f"same seeds, against as many real pictures (validation pictures if there are enough). Other real pictures "
        f"come to {interval(within(found, 'floor', 'fd_lite0'))}. Kernel distance of the chosen cell (✓): "
        f"{interval(within(best, 'kernel_distance'))}. Before the sweep the model used {before.get('steps', UNKNOWN)} "
        f"steps, {guidance(before)}. In square brackets: 95% intervals. {NEVER_FID}"
    )
