"""Several runs: the figures of each for a list, and one page with all of them side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from calotype.evaluation.results import EVALUATION_FILE, SWEEP_FILE, Measure
from calotype.files import write_whole
from calotype.report.folder import legs_of, read_run, settings_of
from calotype.report.format import (
    UNKNOWN,
    clipped,
    count,
    date,
    digits,
    duration,
    interval,
    leg_name,
    memory,
    n_suffix,
    sample_sizes,
    scaled,
)
from calotype.report.html import Html, aside, definitions, figure, masthead, page, section, strip, table
from calotype.report.plot import Series, plot
from calotype.run import Event, Run, read_mapping
from calotype.tables import number, numbers, within
from calotype.training.process import owner_of
from calotype.types import UserError

GRIDS_BYTES = 2_400_000
"""Limit of all grids together."""
COMPARED_MEASURES = {"psnr": "PSNR in dB", "held_out_loss": "held-out loss"}
HORIZONTAL: dict[str, Callable[[Event], float | None]] = {
    "images seen": lambda event: number(event.get("images_seen")),
    "minutes": lambda event: None if (seconds := number(event.get("seconds"))) is None else seconds / 60,
}
"""What measures are plotted over."""


@dataclass(frozen=True)
class RunSummary:
    """What `calotype runs` lists of a run; None or "" where it is not known."""

    folder: Path
    name: str
    state: str
    """The status, or `killed` where the run was training and its process is gone, or `damaged`."""
    kind: str = ""
    chain: str = ""
    """The sizes of the pictures after each stage, in pixels."""
    data: str = ""
    created: str = ""
    seconds: float | None = None
    parameters: float | None = None
    psnr: float | None = None
    held_out_loss: float | None = None
    fd_lite0: float | None = None
    fd_low: float | None = None
    fd_high: float | None = None
    """The ends of its 95 % interval."""
    fd_n: str = ""
    fd_floor: float | None = None
    fd_ceiling: float | None = None
    """The same distance of other real pictures, and of noise."""
    problem: str = ""


def summarize(run: Run) -> RunSummary:
    """Of a measure that several legs have, the value of the first leg."""
    state, settings = run.state, settings_of(run)
    measures: dict[str, float] = {}
    for leg in reversed(legs_of(run)):
        measures |= last_measures(run, leg)
    stages = settings.get("stages") or [settings.get("size")]
    known = isinstance(stages, list) and all(isinstance(size, int) for size in stages)
    killed = state.status == "training" and owner_of(run.folder) is None
    return RunSummary(
        folder=run.folder,
        name=run.name,
        state="killed" if killed else state.status,
        kind=str(run.plan.get("kind") or ""),
        chain=" → ".join(map(str, stages)) if known else "",
        data=Path(state.data).name,
        created=state.created,
        seconds=number(sum(state.seconds.values())) or None,
        parameters=sum(numbers(within(run.plan, "predicted", "parameters")).values()) or None,
        psnr=measures.get("psnr"),
        held_out_loss=measures.get("held_out_loss"),
        **fd_lite0(run),
    )


def fd_lite0(run: Run) -> dict[str, Any]:
    """What `RunSummary` has of FD-Lite0: of `calotype evaluate`, else of the cell that a sweep chose."""
    sweep = read_mapping(run.folder / SWEEP_FILE)
    swept = {"samples": {**within(sweep, "best"), "n": sweep.get("n")}, "floor": within(sweep, "floor")}
    for columns in (
        within(read_mapping(run.folder / EVALUATION_FILE), "measures"),
        swept if sweep.get("stored") else {},
    ):
        measured, floor, ceiling = (within(columns, name, "fd_lite0") for name in ("samples", "floor", "ceiling"))
        if (value := number(measured.get("value"))) is not None:
            ends = {"fd_low": number(measured.get("low")), "fd_high": number(measured.get("high"))}
            beside = {"fd_floor": number(floor.get("value")), "fd_ceiling": number(ceiling.get("value"))}
            return {"fd_lite0": value, **ends, "fd_n": sample_sizes(within(columns, "samples").get("n")), **beside}
    return {}


def summarize_all(folder: Path) -> list[RunSummary]:
    """Every run in a folder, newest first; a damaged run has a `problem`. Raises `UserError` where there is no run."""
    runs = [path.parent for path in folder.glob("*/run.json")] if folder.is_dir() else []
    if not runs:
        raise UserError(f"no run in {folder}: no folder in it has a run.json; train one, or name another folder")
    return sorted(map(summarize_folder, runs), key=lambda run: (run.created, run.name), reverse=True)


def summarize_folder(folder: Path) -> RunSummary:
    try:
        return summarize(Run.open(folder))
    except Exception as problem:  # a damaged run does not hide the others
        return RunSummary(folder, folder.name, "damaged", problem=str(problem))


# -- One page ----------------------------------------------------------------------------------------------------------


def write_runs(folders: Sequence[Path], out: Path) -> Path:
    """One page of several runs. Raises `UserError` for more runs than there are letters."""
    if len(folders) > len(ascii_uppercase):
        raise UserError(f"report got {len(folders)} runs, but takes at most {len(ascii_uppercase)}; leave some out")
    runs = dict(zip(ascii_uppercase, map(read_run, folders), strict=False))
    names = definitions({f"Run {key}": f"{run.name}, {date(run.state.created)}" for key, run in runs.items()})
    grids = (
        figure(run.folder / "samples" / "grid.png", f"{key}: {run.name}.", 1000, GRIDS_BYTES // len(runs))
        for key, run in runs.items()
    )
    parts = (
        masthead(["runs side by side"], f"{len(runs)} runs", facts=names),
        figures_table(runs),
        section("Samples", strip(grids)),
        section("Training curves", strip(comparing_plots(runs), "plots")),
        aside("The report.html in the folder of each run shows more of it."),
    )
    write_whole(out, page("Runs side by side", parts))
    return out


def figures_table(runs: Mapping[str, Run]) -> Html | None:
    summaries = {key: summarize(run) for key, run in runs.items()}
    rows: dict[str, Callable[[Run, RunSummary], str]] = {
        "state": lambda run, summary: summary.state,
        "kind": lambda run, summary: summary.kind,
        "size in px": lambda run, summary: summary.chain,
        "data": lambda run, summary: clipped(summary.data),
        "training pictures": lambda run, summary: count(run.state.pictures.get("train")),
        "budget": lambda run, summary: duration(number(run.plan.get("budget_seconds"))),
        "time spent": lambda run, summary: duration(summary.seconds),
        "peak memory": lambda run, summary: memory(run.state.peak_memory_bytes),
        "parameters": lambda run, summary: scaled(summary.parameters),
        "PSNR in dB": lambda run, summary: digits(summary.psnr) + n_of(run, "psnr"),
        "held-out loss": lambda run, summary: digits(summary.held_out_loss) + n_of(run, "held_out_loss"),
        "FD-Lite0": lambda run, summary: (
            interval(Measure(value=summary.fd_lite0, low=summary.fd_low, high=summary.fd_high))
            + (f" (n\u00a0=\u00a0{summary.fd_n})" if summary.fd_n else "")
        ),
        "its floor: other real pictures": lambda run, summary: digits(summary.fd_floor),
        "its ceiling: noise": lambda run, summary: digits(summary.fd_ceiling),
    }
    body = [
        (name, *(text(runs[key], summary) or UNKNOWN for key, summary in summaries.items()))
        for name, text in rows.items()
    ]
    note = (
        "Held-out losses are comparable only between runs of the same kind, size and parameterisation, FD-Lite0 only "
        "at equal n. For both, smaller is better. In brackets: the 95 % interval."
    )
    return section("Figures", table(("Figure", *runs), body), aside(note))


def n_of(run: Run, measure: str) -> str:
    """The n of the last value of a held-out measure."""
    checks = (last_measures(run, leg) for leg in legs_of(run))
    return n_suffix(next((measures.get("n") for measures in checks if measure in measures), None))


def last_measures(run: Run, leg: str) -> dict[str, float]:
    """Of the last validation of a leg; the loss of an autoencoder is left out, since it is not one of denoising."""
    measures = numbers(within(run.latest("check", leg), "measures"))
    return {name: value for name, value in measures.items() if (leg, name) != ("autoencoder", "held_out_loss")}


def comparing_plots(runs: Mapping[str, Run]) -> list[Html]:
    """Held-out measures of each leg over images and over time; a run has the same style in all plots."""
    return [
        plot(leg_name(leg), label, series, axis, f"Over {axis}.")
        for leg in dict.fromkeys(leg for run in runs.values() for leg in legs_of(run))
        for measure, label in COMPARED_MEASURES.items()
        for axis in HORIZONTAL
        if (series := series_of_runs(runs, leg, measure, axis))
    ]


def series_of_runs(runs: Mapping[str, Run], leg: str, measure: str, axis: str) -> list[Series]:
    series = []
    for style, (key, run) in enumerate(runs.items()):
        checks = run.history("check", leg)
        values = [(HORIZONTAL[axis](check), number(within(check, "measures").get(measure))) for check in checks]
        points = [(x, y) for x, y in values if x is not None and y is not None]
        series += [Series(key, points, marked=True, style=style)] if points else []
    return series
