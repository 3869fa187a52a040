"""What was measured on a finished model: sections that are there where their files are."""

from __future__ import annotations

from typing import Any

from calotype.report.folder import Run
from calotype.report.markup import Html, figure, picture, section, table, tag
from calotype.report.measures import figure_of, interval
from calotype.report.plot import Series
from calotype.report.words import UNKNOWN, count, guidance_in_words
from calotype.run import Event
from calotype.tables import number, within

NEAREST_BYTES = 300_000
MOST_DEEP = 4
NEVER_FID = "Distances are of EfficientNet-Lite0 features and are never FID; smaller is better, at equal n only."


def how_many(n: Any) -> str:
    """One number, or one a side."""
    sides = n if isinstance(n, list) else [n]
    return ", ".join(count(side) for one in sides if (side := number(one)) is not None)


def the_sweep(run: Run) -> Html | None:
    """Guidance by steps, with the distance from real pictures in each cell."""
    sweep, cells = run.sweep, [one for one in run.sweep.get("cells") or [] if isinstance(one, dict)]
    if not cells:
        return None
    all_steps = sorted({one["steps"] for one in cells})
    grid = {(guided_as(one), one["steps"]): one for one in cells}
    best = within(sweep, "best")
    rows = [
        (guidance, *(cell(grid.get((guidance, steps)), best) for steps in all_steps))
        for guidance in dict.fromkeys(map(guided_as, cells))
    ]
    heads = ("FD-Lite0", *(f"{steps} steps" for steps in all_steps))
    drawn = figure_of("FD-Lite0 by guidance", "FD-Lite0", lines(grid, sweep), "steps", "Real: other real pictures.")
    return section(
        "Steps and guidance", tag("p", str(sweep.get("why") or "")), table(heads, rows, "figures"),
        tag("p", conditions(sweep), class_="note"), *(tag("p", str(one)) for one in sweep.get("notes") or []),
        tag("div", drawn, class_="plots"),
    )  # fmt: skip


def guided_as(one: Event) -> str:
    return guidance_in_words(within(one, "sampling") or one)


def cell(one: Event | None, best: Event) -> str:
    if one is None:
        return UNKNOWN
    chosen = (guided_as(one), one["steps"]) == (guided_as(best), best.get("steps"))
    return interval(within(one, "fd_lite0")) + ("\u00a0✓" if chosen else "")


def lines(grid: dict[tuple[str, int], Event], sweep: Event) -> list[Series]:
    """A line a guidance over steps, and the floor through all of them."""
    found: dict[str, list[tuple[float, float]]] = {}
    for (guidance, steps), one in sorted(grid.items(), key=lambda pair: pair[0][1]):
        found.setdefault(guidance, []).append((float(steps), float(one["fd_lite0"]["value"])))
    series = [Series(guidance, points, marked=True) for guidance, points in found.items()]
    floor = number(within(sweep, "floor", "fd_lite0").get("value"))
    ends = [float(steps) for _, steps in grid]
    return [*series, *([] if floor is None else [Series("real", [(x, floor) for x in (min(ends), max(ends))], True)])]


def conditions(sweep: Event) -> str:
    floor, kernel = within(sweep, "floor", "fd_lite0"), within(sweep, "best", "kernel_distance")
    before = within(sweep, "before")
    chosen = (
        f"Kernel distance of the chosen cell (✓): {interval(kernel)}. Before, the model was sampled in "
        f"{before.get('steps', UNKNOWN)} steps, {guidance_in_words(before)}."
    )
    return (
        f"n = {how_many(sweep.get('n'))} pictures of {count(number(sweep.get('size')))} px in each cell, from equal "
        f"seeds (of {sweep.get('seed')}, others than those of samples), against as many real ones, validation "
        f"pictures where those suffice; other real pictures come to {interval(floor)}. "
        f"{chosen} In square brackets: the 95 % interval. {NEVER_FID}"
    )


def neighbours(run: Run) -> Html | None:
    """Samples above the training pictures that are nearest to them."""
    found = run.nearest
    shown = picture(run.folder / "previews" / "nearest.png", "Samples, and what is nearest", 1200, NEAREST_BYTES)
    caption = (
        f"Above: samples. Below: of {count(number(found.get('trained')))} training pictures and their mirror images, "
        f"the one nearest to each. Median distance {ratio(found)} that of as many test pictures (n = "
        f"{how_many(found.get('n'))}); far below 1 would be copying."
    )
    plate = figure(shown, caption, "plate")
    return section("Nearest training pictures", plate) if plate else None


def ratio(found: Event) -> str:
    ours, theirs = number(found.get("samples_median")), number(found.get("held_out_median"))
    return f"{ours / theirs:.2f} times" if ours is not None and theirs else "not known beside"
