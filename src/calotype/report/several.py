"""Several runs on one page: a table, their curves over each other, their samples side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from string import ascii_uppercase

from calotype.files import write_whole
from calotype.report.brief import Brief, brief
from calotype.report.curves import with_n
from calotype.report.folder import Run, read_run
from calotype.report.markup import Html, figure, pairs, picture, section, table, tag
from calotype.report.measures import digits, figure_of, figures
from calotype.report.page import sheet
from calotype.report.plot import Series
from calotype.report.words import UNKNOWN, called_leg, clipped, count, duration, memory, moment, short, title
from calotype.run import Event
from calotype.tables import number, within
from calotype.types import UserError

GRIDS_BYTES = 2_400_000
MEASURES = (("psnr", "PSNR in dB"), ("held_out_loss", "held-out loss"))
AXES: dict[str, Callable[[Event], float | None]] = {
    "images seen": lambda event: number(event.get("images_seen")),
    "minutes": lambda event: None if (seconds := number(event.get("seconds"))) is None else seconds / 60,
}

Keyed = dict[str, Run]


def write_several(folders: Sequence[Path], out: Path) -> Path:
    """One page of several runs. Raises `UserError` for more of them than there are letters."""
    if len(folders) > len(ascii_uppercase):
        raise UserError(f"report got {len(folders)} runs, but takes at most {len(ascii_uppercase)}; leave some out")
    write_whole(out, document(dict(zip(ascii_uppercase, map(read_run, folders), strict=False))))
    return out


def document(runs: Keyed) -> str:
    briefs = {key: brief(run) for key, run in runs.items()}
    parts = [masthead(briefs), main_table(runs, briefs), samples(runs), curves(runs), closing()]
    return sheet("Runs side by side", parts)


def masthead(briefs: dict[str, Brief]) -> Html:
    names = pairs({f"Run {key}": f"{one.name}, {moment(one.created)}" for key, one in briefs.items()})
    kicker = tag("p", "Calotype\u00a0· runs side by side", class_="kicker")
    return tag("header", kicker, tag("h1", f"{len(briefs)} runs"), names)


def main_table(runs: Keyed, briefs: dict[str, Brief]) -> Html:
    """A column a run, as names are long."""
    rows: list[tuple[str, Callable[[Run, Brief], str]]] = [
        ("state", lambda run, one: one.state),
        ("kind", lambda run, one: one.kind or UNKNOWN),
        ("size in px", lambda run, one: one.chain or UNKNOWN),
        ("data", lambda run, one: clipped(one.data) or UNKNOWN),
        ("training pictures", lambda run, one: count(number(within(run.facts, "pictures").get("train")))),
        ("budget", lambda run, one: duration(number(run.plan.get("budget_seconds")))),
        ("time spent", lambda run, one: duration(one.seconds)),
        ("peak memory", lambda run, one: memory(number(run.facts.get("peak_memory_bytes")))),
        ("parameters", lambda run, one: UNKNOWN if one.parameters is None else short(one.parameters)),
        ("PSNR in dB", lambda run, one: beside(one.psnr, run, "psnr")),
        ("held-out loss", lambda run, one: beside(one.held_out_loss, run, "held_out_loss")),
        (
            "FD-Lite0",
            lambda run, one: f"{digits(one.fd_lite0)} (n\u00a0=\u00a0{one.fd_n})" if one.fd_lite0 else UNKNOWN,
        ),
    ]
    body = [(name, *(say(runs[key], one) for key, one in briefs.items())) for name, say in rows]
    note = (
        "A held-out loss can only be compared between runs of one kind, size and scaling; FD-Lite0 only at equal n. "
        "Both are better where they are smaller."
    )
    return section("In figures", table(("", *briefs), body, "figures"), tag("p", note, class_="note"))


def beside(value: float | None, run: Run, measure: str) -> str:
    """With the n of the last look at which it was measured."""
    if value is None:
        return UNKNOWN
    looks = [within(run.latest("check", leg), "measures") for leg in run.legs]
    n = next((number(one.get("n")) for one in looks if measure in one), None)
    return figures(value) + with_n(n)


def samples(runs: Keyed) -> Html | None:
    show = partial(picture, longest=1000, limit=GRIDS_BYTES // len(runs))
    plates = [
        figure(show(run.folder / "samples" / "grid.png", f"Samples of {key}"), f"{key}: {run.name}.", "plate")
        for key, run in runs.items()
    ]
    return section("Samples", tag("div", *plates, class_="strip")) if any(plates) else None


def curves(runs: Keyed) -> Html | None:
    """What is measured on held-out pictures, each leg by images and by time; a run has one style in all plots."""
    legs = dict.fromkeys(leg for run in runs.values() for leg in run.legs)
    drawn = [
        figure_of(title(called_leg(leg)), said, series, axis, f"By {axis}.")
        for leg in legs
        for name, said in MEASURES
        for axis in AXES
        if (series := lines(runs, leg, name, axis))
    ]
    return section("Over each other", tag("div", *drawn, class_="plots")) if drawn else None


def lines(runs: Keyed, leg: str, measure: str, axis: str) -> list[Series]:
    series = []
    for style, (key, run) in enumerate(runs.items()):
        looks = [(AXES[axis](one), number(within(one, "measures").get(measure))) for one in run.history("check", leg)]
        points = [(x, y) for x, y in looks if x is not None and y is not None]
        series += [Series(key, points, marked=True, style=style)] if points else []
    return series


def closing() -> Html:
    return tag("p", "All runs, with more of each: the report.html in its own folder.", class_="note")
