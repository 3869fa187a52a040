"""The section of `calotype sweep`: the distance from real pictures over sampling steps and guidance."""

from __future__ import annotations

from calotype.evaluation.results import SWEEP_FILE, Cell, SweepResult, read_result
from calotype.report.format import UNKNOWN, count, guidance, interval
from calotype.report.html import Html, aside, bullets, section, strip, table, tag
from calotype.report.plot import Series, plot
from calotype.run import Run

NEVER_FID = "Distances use EfficientNet-Lite0 features, so they are not FID; smaller is better, at equal n only."


def sweep_section(run: Run) -> Html | None:
    result = read_result(run.folder / SWEEP_FILE, SweepResult)
    if result is None:
        stale = (run.folder / SWEEP_FILE).exists()
        note = aside(f"{SWEEP_FILE} is of another version; run `calotype sweep` again.")
        return section("Sampling steps and guidance", note) if stale else None
    grid = {(guidance(cell.sampling), cell.steps): cell for cell in result.cells}
    steps = sorted({cell.steps for cell in result.cells})
    rows = [
        (name, *(distance(grid.get((name, each)), result.best) for each in steps))
        for name in dict.fromkeys(name for name, _ in grid)
    ]
    lines = plot("FD-Lite0 over sampling steps", "FD-Lite0", sweep_lines(result), "steps", "Real: other real pictures.")
    return section(
        "Sampling steps and guidance",
        tag("p", result.why),
        table(("FD-Lite0", *(f"{each} steps" for each in steps)), rows),
        aside(conditions(result)),
        bullets(result.notes),
        strip([lines], "plots"),
    )


def distance(cell: Cell | None, best: Cell) -> str:
    return UNKNOWN if cell is None else interval(cell.fd_lite0) + ("\u00a0✓" if cell == best else "")


def sweep_lines(result: SweepResult) -> list[Series]:
    """A line over steps for each guidance, and one at the distance between real pictures."""
    points: dict[str, list[tuple[float, float]]] = {}
    for cell in sorted(result.cells, key=lambda cell: cell.steps):
        points.setdefault(guidance(cell.sampling), []).append((float(cell.steps), cell.fd_lite0.estimate.value))
    floor, steps = result.floor.get("fd_lite0"), [float(cell.steps) for cell in result.cells]
    points["real"] = [(end, floor.estimate.value) for end in (min(steps), max(steps))]
    return [Series(name, line, marked=True) for name, line in points.items()]


def conditions(result: SweepResult) -> str:
    return (
        f"Each cell: n = {count(result.n)} pictures of {count(result.size)} px with the same seeds, against as many "
        "real pictures (validation pictures if there are enough). Other real pictures come to "
        f"{interval(result.floor.get('fd_lite0'))}. Kernel distance of the chosen cell (✓): "
        f"{interval(result.best.kernel_distance)}. Before the sweep the model used "
        f"{result.before.get('steps', UNKNOWN)} steps, {guidance(result.before)}. In square brackets: 95% intervals. "
        f"{NEVER_FID}"
    )
