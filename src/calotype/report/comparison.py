"""`compare.html`: the verdicts on the lecture's claims, then the measures they rest on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calotype.files import write_whole
from calotype.report.format import (
    UNKNOWN,
    count,
    date,
    digits,
    duration,
    interval,
    memory,
    percent,
    scaled,
    spaced,
)
from calotype.report.html import (
    Html,
    Row,
    aside,
    bullets,
    definitions,
    figure,
    masthead,
    page,
    section,
    square,
    strip,
    table,
    tag,
)
from calotype.report.plot import Series, plot
from calotype.report.propagation import error_propagation, name_of

Result = Mapping[str, Any]
GRID_BYTES = 2_400_000
"""Limit of all grids together: 3.2 MB in base64."""
PARAMETERS = {
    "trained": "parameters, trained",
    "fitted": "parameters, fitted in closed form",
    "text_encoder": "parameters, frozen text encoder",
    "sum": "parameters, total",
}
VERDICTS = (
    "At: where the lecture makes the claim; one that it does not make is marked as ours. In square brackets: 95% "
    "intervals, over seeds where there are three and more of a kind, else over pictures; other seeds then differ more. "
    "There is not enough evidence where intervals overlap, and where a measure is missing or has no power."
)
SIGNS = {"confirmed": "✓", "partly refuted": "✗", "refuted": "✗"}
FILE = "compare.html"


def write_comparison(folder: Path, result: Result) -> Path:
    """Writes `compare.html` to the folder with the grids, and returns its path."""
    path = folder / FILE
    write_whole(path, document(folder, result))
    return path


def document(folder: Path, result: Result) -> str:
    parts = [
        head(result), verdicts(result), samples(folder, result), error_propagation(result), deployment(result),
        cost(result), quality(result), overfitting(result), stability(result),
        section("Notes", bullets(result["notes"])),
    ]  # fmt: skip
    return page(title(result), parts)


def title(result: Result) -> str:
    return " and ".join(run["name"] for run in result["runs"])


def head(result: Result) -> Html:
    facts = {
        "Runs": "; ".join(
            f"{name_of(run)}: {run['name']}, {' → '.join(map(str, run['chain']))} px" for run in result["runs"]
        ),
        "Pictures": result["data"],
        "Device": result["device"],
        "Versions": ", ".join(f"{name} {value}" for name, value in result["versions"].items()),
    }
    lede = f"{result['count']:,} samples of each run against as many real pictures; {date(result['created'])}."
    return masthead(("a comparison", square(result["size"])), title(result), lede, definitions(facts))


def verdicts(result: Result) -> Html | None:
    settings = dict.fromkeys(one["setting"] for one in result["verdicts"])
    return section(
        "The lecture’s claims", aside(VERDICTS), *(part for each in settings for part in claims(result, each))
    )


def claims(result: Result, setting: str) -> tuple[Html | None, Html | None]:
    rows = [
        (one["time"], one["claim"] + " (ours)" * one["ours"], f"{SIGNS.get(one['verdict'], UNKNOWN)} {one['verdict']}",
         one["sentence"])
        for one in result["verdicts"]
        if one["setting"] == setting
    ]  # fmt: skip
    return tag("h3", f"Runs {setting}"), table(("At", "Claim", "In this setting", "Evidence"), rows, "words")


def samples(folder: Path, result: Result) -> Html | None:
    limit = GRID_BYTES // len(result["runs"])
    grids = strip(
        figure(folder / run["grid"], f"{name_of(run)}: {run['name']}.", 1400, limit) for run in result["runs"]
    )
    return section("Samples", tag("p", "Equal positions have equal seeds and classes."), grids)


def side_by_side(runs: Sequence[Result], rows: Mapping[str, Iterable[str]]) -> Html | None:
    """A column for each run; `rows` have a name, and a value of each run."""
    return table(("", *map(name_of, runs)), [(name, *values) for name, values in rows.items()])


# -- Cost --------------------------------------------------------------------------------------------------------------


def deployment(result: Result) -> Html | None:
    runs, parts = result["runs"], [run["deployment"] for run in result["runs"]]
    networks = dict.fromkeys(name for part in parts for name in part["networks"])
    rows = {
        "networks": [str(part["count"]) for part in parts],
        **{f"parameters, {name}": [parameters(part["networks"].get(name)) for part in parts] for name in networks},
        **{name: [parameters(part["parameters"], kind) for part in parts] for kind, name in PARAMETERS.items()},
        "weights, all in memory": [memory(float(part["resident_bytes"])) for part in parts],
        "weights, one network at a time": [memory(float(part["sequential_bytes"])) for part in parts],
        "model folder": [memory(float(part["bytes"])) for part in parts],
        "files": [str(len(part["files"])) for part in parts],
    }
    note = (
        "Fitted in closed form are the priors, the linear path of the autoencoder and the statistics of its latents. A "
        "frozen text encoder is trained elsewhere and not in the model folder, but counts as a network."
    )
    return section("Deployment", side_by_side(runs, rows), aside(note))


def parameters(numbers: Result | None, kind: str = "sum") -> str:
    return UNKNOWN if numbers is None else scaled(float(numbers[kind]))


def cost(result: Result) -> Html | None:
    runs = result["runs"]
    rows = {"FLOP per sampled picture": [scaled(float(run["cost"]["flops_a_picture"])) for run in runs]}
    for batches in zip(*map(batches_of, runs), strict=True):
        batch = f"batch of {batches[0]['count']}"
        rows[f"seconds per picture, {batch}"] = [digits(one["seconds_a_picture"]) for one in batches]
        rows[f"peak memory, {batch}"] = [memory(one["bytes"]) for one in batches]
    rows["memory after loading"] = [memory(run["cost"]["sampling"]["loaded_bytes"]) for run in runs]
    reasons = [f"{name_of(run)}: {one['reason']}." for run in runs for one in batches_of(run) if one.get("reason")]
    note = (
        "Floating-point operations are counted in a real call, a multiply-add as two; memory is that of a process "
        "with only the model. FLOP of a leg are those of a step, forward and backward, by the pictures it has seen; "
        "those of closed forms, encodings and searches were counted when they were done. Previews and held-out "
        "measures count in the time of a leg, not in its FLOP."
    )
    return section(
        "Cost",
        side_by_side(runs, rows),
        tag("h3", "Training"),
        table(("Part", "Images seen", "FLOP", "Time"), [row for run in runs for row in part_rows(run)]),
        aside(" ".join([note, *reasons])),
        tag("h3", "Wall-clock time"),
        table(("Step", "Time"), [row for run in runs for row in clock_rows(run)]),
    )


def batches_of(run: Result) -> list[Result]:
    batches: list[Result] = run["cost"]["sampling"]["counts"]
    return batches


def part_rows(run: Result) -> Iterator[Row]:
    training = run["cost"]["training"]
    for part in [*training["parts"], {**training, "part": "total"}]:
        name = f"{name_of(run)}, {part['part']}"
        yield name, count(part.get("images_seen")), scaled(part["flops"]), duration(part["seconds"])


def clock_rows(run: Result) -> Iterator[Row]:
    """All seconds of a run, from reading the pictures to the report."""
    clock = run["cost"]["clock"]
    for step, seconds in {**clock["parts"], "other": clock["other"], "whole run": clock["seconds"]}.items():
        yield f"{name_of(run)}, {step}", duration(seconds)


# -- Quality -----------------------------------------------------------------------------------------------------------


def quality(result: Result) -> Html | None:
    heads = ("Pictures", "Size", "FD-Lite0", "Kernel distance", "Precision, recall", "Density, coverage", "n")
    note = (
        "Distances use EfficientNet-Lite0 features, so they are not FID; smaller is better, at equal n only. The "
        "floor is the distance of other real pictures from the same real pictures. Enlarged from real: a stage on "
        "shrunk real pictures; sampled: on the output of the stages before it."
    )
    rows = [quality_row("other real pictures: the floor", floor["size"], floor) for floor in result["floor"]] + [
        row for run in result["runs"] for row in quality_rows(run)
    ]
    return section("Quality", table(heads, rows), aside(note))


def quality_rows(run: Result) -> Iterator[Row]:
    measured, name = run["quality"], name_of(run)
    if "autoencoder" in measured:
        yield quality_row(f"{name}, autoencoder", run["chain"][0], measured["autoencoder"])
    for stage in measured["stages"]:
        if "given_real" in stage:
            yield quality_row(f"{name}, enlarged from real", stage["size"], stage["given_real"])
        if "sampled" in stage:
            last = ", whole model" if stage["size"] == run["chain"][-1] else ""
            yield quality_row(f"{name}, sampled{last}", stage["size"], stage["sampled"])


def quality_row(name: str, size: int, measures: Result) -> Row:
    pairs = (("precision", "recall"), ("density", "coverage"))
    overlaps = (", ".join(f"{measures[key]['value']:.2f}" for key in pair) for pair in pairs)
    distances = interval(measures["fd_lite0"]), interval(measures["kernel_distance"])
    return name, str(size), *distances, *overlaps, str(measures["n"][0])


# -- Learning ----------------------------------------------------------------------------------------------------------


def overfitting(result: Result) -> Html | None:
    plots = [
        plot(f"{name_of(run)}, {leg['leg']}", "held-out by training loss, less 1", [
            Series(spaced(level), [(look["images_seen"], look["gap"]) for look in looks], marked=True)
            for level, looks in leg["levels"].items()
        ])
        for run in result["runs"]
        for leg in run["overfitting"]["legs"]
    ]  # fmt: skip
    heads = ("Run", "Samples to training", "Held out to training", "Nearer than 95% of held out", "n")
    note = (
        "The gap is how much larger the held-out loss is than the training loss, by noise level. The two sets "
        "differ from the start, so what counts is how the gap grows. Distances are medians in feature space to the "
        "nearest training picture. Without memorisation, 5% of the samples are nearer than 95% of held-out pictures."
    )
    rows = map(nearest_row, result["runs"])
    return section("Overfitting", tag("p", note), strip(plots, "plots"), table(heads, rows))


def nearest_row(run: Result) -> Row:
    nearest = run["overfitting"]["nearest"]
    nearer = interval(nearest["nearer"] or {}, "%")
    n = ", ".join(f"{value:,}" for value in nearest["n"])
    return name_of(run), digits(nearest["samples_median"]), digits(nearest["held_out_median"]), nearer, n


def stability(result: Result) -> Html | None:
    heads = ("Network", "Loss", "Gradient norm", "Clipped", "Steps per line", "n")
    note = (
        "Relative standard deviation of loss and gradient norm around their running median over the second half of "
        "a leg, between lines of the log (n lines, each a mean over some steps); and the share of lines whose norm "
        "is above the clipping threshold."
    )
    rows = (
        (f"{name_of(run)}, {row['leg']}: {row['network']}", percent(row["loss_spread"]), percent(row["norm_spread"]),
         percent(row["clipped"]), digits(row["steps_a_line"]), str(row["lines"]))
        for run in result["runs"]
        for row in run["stability"]
    )  # fmt: skip
    return section("Stability", table(heads, rows), aside(note))
