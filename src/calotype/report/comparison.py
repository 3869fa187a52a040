"""`compare.html`: the verdicts on the lecture's claims, then the measures they rest on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from calotype.evaluation.comparison_results import ComparisonResult, ParameterCounts, RunMeasures, SurvivalPoint
from calotype.evaluation.results import SetMeasures
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
    sentence,
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


def write_comparison(folder: Path, result: ComparisonResult) -> Path:
    """Writes `compare.html` to the folder with the grids, and returns its path."""
    path = folder / "compare.html"
    write_whole(path, comparison_page(folder, result))
    return path


def comparison_page(folder: Path, result: ComparisonResult) -> str:
    runs, title = result.runs, " and ".join(run.name for run in result.runs)
    limit = GRID_BYTES // len(runs)
    grids = strip(figure(folder / run.grid, f"{name_of(run)}: {run.name}.", 1400, limit) for run in runs)
    lede = f"{result.count:,} samples of each run against as many real pictures; {date(result.created)}."
    parts = [
        masthead(("a comparison", square(result.size)), title, lede, facts_of_comparison(result)),
        verdict_section(result),
        section("Samples", tag("p", "Equal positions have equal seeds and classes."), grids),
        propagation_section([run for run in runs if run.propagation.points]),
        deployment_section(runs),
        cost_section(runs),
        quality_section(result),
        overfitting_section(runs),
        stability_section(runs),
        section("Notes", bullets(result.notes)),
    ]
    return page(title, parts)


def facts_of_comparison(result: ComparisonResult) -> Html | None:
    runs = (f"{name_of(run)}: {run.name}, {' → '.join(map(str, run.chain))} px" for run in result.runs)
    return definitions({
        "Runs": "; ".join(runs),
        "Pictures": result.data,
        "Device": result.device,
        "Versions": ", ".join(f"{name} {value}" for name, value in result.versions.items()),
    })  # fmt: skip


def name_of(run: RunMeasures) -> str:
    return f"{run.key} {run.kind}"


def verdict_section(result: ComparisonResult) -> Html | None:
    tables: list[Html | None] = []
    for setting in dict.fromkeys(row.setting for row in result.verdicts):
        rows = [
            (row.time, row.claim + " (ours)" * row.ours, f"{SIGNS.get(row.verdict, UNKNOWN)} {row.verdict}",
             row.sentence)
            for row in result.verdicts
            if row.setting == setting
        ]  # fmt: skip
        heads = ("At", "Claim", "In this setting", "Evidence")
        tables += [tag("h3", f"Runs {setting}"), table(heads, rows, "words")]
    return section("The lecture’s claims", aside(VERDICTS), *tables)


def side_by_side(runs: Sequence[RunMeasures], rows: Mapping[str, Iterable[str]]) -> Html | None:
    """A column for each run; `rows` have a name, and a value of each run."""
    return table(("", *map(name_of, runs)), [(name, *values) for name, values in rows.items()])


# -- Error propagation -------------------------------------------------------------------------------------------------


def propagation_section(runs: Sequence[RunMeasures]) -> Html | None:
    """Of the runs in which it was measured: plots over the strength of an error, and a table of levels."""
    if not runs:
        return section("Error propagation", aside("Nothing was measured."))
    first = runs[0].propagation
    explanation = (
        f"An error is added to pictures of {first.size} px, and sampling continues with the same noise: in a cascade "
        "from the output of the first stage, in latent diffusion from the input of the denoiser at some sigma. "
        f"Survival is the norm of the remaining error in the final picture, shrunk to {first.size} px, divided by the "
        "norm of the added one: 1 is all of it, 0 is nothing, above 1 it has grown. Strength is the norm of the error "
        f"divided by that of the picture without its mean colour. n = {first.n} pictures per point."
    )
    over_strength = {
        kind: survival_lines(runs, lambda point: point.survival.estimate.value, kind)
        for kind in dict.fromkeys(point.corruption for point in first.points)
    }
    agreement = survival_lines(runs, lambda point: point.psnr)
    plots = [
        *(plot(sentence(kind), "survival", series, "strength") for kind, series in over_strength.items()),
        plot("Agreement", "PSNR in dB", agreement, "strength", "Of the pictures with and without the error."),
        *map(level_plot, runs),
    ]
    rows = [
        (f"{name_of(run)}, {name}", digits(arm.level), interval(arm), str(run.propagation.n))
        for run in runs
        for name, arm in run.propagation.arms.items()
    ]
    arms = table(("Mechanism or level", "Noise", "Survival, all errors", "n"), rows)
    return section(
        "Error propagation", tag("p", explanation), strip(plots, "plots"), tag("h3", "By mechanism and level"), arms
    )


def survival_lines(
    runs: Sequence[RunMeasures], value: Callable[[SurvivalPoint], float], kind: str | None = None
) -> list[Series]:
    """A line for each run and arm in which all strengths were measured: means over errors of equal strength."""
    series = []
    for run in runs:
        for arm in run.propagation.arms:
            by_strength: dict[float, list[float]] = {}
            for point in run.propagation.points:
                if point.arm == arm and kind in (None, point.corruption):
                    by_strength.setdefault(point.strength, []).append(value(point))
            means = [(strength, sum(values) / len(values)) for strength, values in sorted(by_strength.items())]
            name = run.key if arm == "matched" else f"{run.key} {arm}"
            series += [Series(name, means, marked=True)] if len(means) > 1 else []
    return series


def level_plot(run: RunMeasures) -> Html:
    points = sorted({arm.level: arm.estimate.value for arm in run.propagation.arms.values()}.items())
    x = {"latent": "sigma of the latents", "pixels": "sigma of the pixels"}.get(run.kind, "level of augmentation")
    note = f"All errors at strength {run.propagation.strength:g}."
    return plot(f"{name_of(run)}, by level", "survival", [Series(run.key, points, marked=True)], x, note)


# -- Cost --------------------------------------------------------------------------------------------------------------


def deployment_section(runs: Sequence[RunMeasures]) -> Html | None:
    each = [run.deployment for run in runs]
    networks = dict.fromkeys(name for item in each for name in item.networks)

    def parameters(counts: ParameterCounts | None, kind: str = "sum") -> str:
        return UNKNOWN if counts is None else scaled(getattr(counts, kind))

    rows = {
        "networks": [str(item.count) for item in each],
        **{f"parameters, {name}": [parameters(item.networks.get(name)) for item in each] for name in networks},
        **{name: [parameters(item.parameters, kind) for item in each] for kind, name in PARAMETERS.items()},
        "weights, all in memory": [memory(item.resident_bytes) for item in each],
        "weights, one network at a time": [memory(item.sequential_bytes) for item in each],
        "model folder": [memory(item.bytes) for item in each],
        "files": [str(len(item.files)) for item in each],
    }
    note = (
        "Fitted in closed form are the priors, the linear path of the autoencoder and the statistics of its latents. A "
        "frozen text encoder is trained elsewhere and not in the model folder, but counts as a network."
    )
    return section("Deployment", side_by_side(runs, rows), aside(note))


def cost_section(runs: Sequence[RunMeasures]) -> Html | None:
    rows = {"FLOP per sampled picture": [scaled(run.cost.flops_a_picture) for run in runs]}
    for batches in zip(*(run.cost.sampling.counts for run in runs), strict=True):
        name = f"batch of {batches[0].count}"
        rows[f"seconds per picture, {name}"] = [digits(batch.seconds_a_picture) for batch in batches]
        rows[f"peak memory, {name}"] = [memory(batch.bytes) for batch in batches]
    rows["memory after loading"] = [memory(run.cost.sampling.loaded_bytes) for run in runs]
    reasons = [f"{name_of(run)}: {batch.reason}." for run in runs for batch in run.cost.sampling.counts if batch.reason]
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
        table(("Part", "Images seen", "FLOP", "Time"), [row for run in runs for row in training_rows(run)]),
        aside(" ".join([note, *reasons])),
        tag("h3", "Wall-clock time"),
        table(("Step", "Time"), [row for run in runs for row in wall_clock_rows(run)]),
    )


def training_rows(run: RunMeasures) -> Iterator[Row]:
    training = run.cost.training
    for part in training.parts:
        yield f"{name_of(run)}, {part.part}", count(part.images_seen), scaled(part.flops), duration(part.seconds)
    yield f"{name_of(run)}, total", UNKNOWN, scaled(training.flops), duration(training.seconds)


def wall_clock_rows(run: RunMeasures) -> Iterator[Row]:
    """All seconds of a run, from reading the pictures to the report."""
    clock = run.cost.clock
    for step, seconds in {**clock.parts, "other": clock.other, "whole run": clock.seconds}.items():
        yield f"{name_of(run)}, {step}", duration(seconds)


# -- Quality -----------------------------------------------------------------------------------------------------------


def quality_section(result: ComparisonResult) -> Html | None:
    heads = ("Pictures", "Size", "FD-Lite0", "Kernel distance", "Precision, recall", "Density, coverage", "n")
    note = (
        "Distances use EfficientNet-Lite0 features, so they are not FID; smaller is better, at equal n only. The "
        "floor is the distance of other real pictures from the same real pictures. Enlarged from real: a stage on "
        "shrunk real pictures; sampled: on the output of the stages before it."
    )
    rows = [quality_row("other real pictures: the floor", floor.size, floor) for floor in result.floor]
    rows += [row for run in result.runs for row in quality_rows(run)]
    return section("Quality", table(heads, rows), aside(note))


def quality_rows(run: RunMeasures) -> Iterator[Row]:
    name = name_of(run)
    if run.quality.autoencoder:
        yield quality_row(f"{name}, autoencoder", run.chain[0], run.quality.autoencoder)
    for stage in run.quality.stages:
        if stage.given_real:
            yield quality_row(f"{name}, enlarged from real", stage.size, stage.given_real)
        last = ", whole model" if stage.size == run.chain[-1] else ""
        yield quality_row(f"{name}, sampled{last}", stage.size, stage.sampled)


def quality_row(name: str, size: int | None, measures: SetMeasures) -> Row:
    pairs = (("precision", "recall"), ("density", "coverage"))
    overlaps = (", ".join(f"{measures.get(key).estimate.value:.2f}" for key in pair) for pair in pairs)
    distances = (interval(measures.get(key)) for key in ("fd_lite0", "kernel_distance"))
    return name, str(size), *distances, *overlaps, str(measures.n[0])


# -- Learning ----------------------------------------------------------------------------------------------------------


def overfitting_section(runs: Sequence[RunMeasures]) -> Html | None:
    plots = [
        plot(f"{name_of(run)}, {leg.leg}", "held-out by training loss, less 1", [
            Series(spaced(level), [(gap.images_seen, gap.gap) for gap in gaps], marked=True)
            for level, gaps in leg.levels.items()
        ])
        for run in runs
        for leg in run.overfitting.legs
    ]  # fmt: skip
    heads = ("Run", "Samples to training", "Held out to training", "Nearer than 95% of held out", "n")
    note = (
        "The gap is how much larger the held-out loss is than the training loss, by noise level. The two sets "
        "differ from the start, so what counts is how the gap grows. Distances are medians in feature space to the "
        "nearest training picture. Without memorisation, 5% of the samples are nearer than 95% of held-out pictures."
    )
    rows = [
        (name_of(run), digits(nearest.samples_median), digits(nearest.held_out_median), interval(nearest.nearer, "%"),
         ", ".join(map(count, nearest.n)))
        for run in runs
        for nearest in [run.overfitting.nearest]
    ]  # fmt: skip
    return section("Overfitting", tag("p", note), strip(plots, "plots"), table(heads, rows))


def stability_section(runs: Sequence[RunMeasures]) -> Html | None:
    heads = ("Network", "Loss", "Gradient norm", "Clipped", "Steps per line", "n")
    note = (
        "Relative standard deviation of loss and gradient norm around their running median over the second half of "
        "a leg, between lines of the log (n lines, each a mean over some steps); and the share of lines whose norm "
        "is above the clipping threshold."
    )
    rows = (
        (f"{name_of(run)}, {row.leg}: {row.network}", percent(row.loss_spread), percent(row.norm_spread),
         percent(row.clipped), digits(row.steps_a_line), str(row.lines))
        for run in runs
        for row in run.stability
    )  # fmt: skip
    return section("Stability", table(heads, rows), aside(note))
