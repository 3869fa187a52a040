"""The results of `calotype evaluate`: a section of the page, and the rows that terminal and model card show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from calotype.evaluation.memorisation import MOST_SEARCHED
from calotype.evaluation.results import (
    EVALUATION_FILE,
    PAIRS_FILE,
    PROMPTED_FILE,
    Alignment,
    Columns,
    EvaluationResult,
    Memorisation,
    PropertyShare,
    read_result,
)
from calotype.report.format import UNKNOWN, count, digits, final_denoising, guidance, interval, measure_name, sentence
from calotype.report.html import Html, Row, aside, bullets, figure, prompt_list, section, table, tag
from calotype.run import Run

PLATE_BYTES = 500_000
SAMPLED = ("Samples", "Other real pictures", "Noise")
RECONSTRUCTED = ("Reconstructions", "Other real pictures", "Before training")
ALIGNED = ("Real pictures", "Best without prompts")
READING_OF_TABLES = (
    "In brackets: the 95 % interval. Other real pictures are the floor of each measure, the value that perfect samples "
    "would have; noise, or the autoencoder before training, is its ceiling."
)
Cells = tuple[str, ...]


def read_evaluation(folder: Path) -> EvaluationResult | None:
    """None where there is none, or one of another version."""
    return read_result(folder / EVALUATION_FILE, EvaluationResult)


# -- Rows, for the page, the terminal and the card ---------------------------------------------------------------------


def measured_with_text(result: EvaluationResult) -> str:
    samples, real = result.measures.samples.n
    network, sampling = result.features, result.sampling[0]
    features = f"features of {network.network} (weights {network.weights_sha256[:12]}, {network.preparation})"
    settings = f"seed {result.seed}, {sampling['steps']} steps, {guidance(sampling)}{final_denoising(sampling)}"
    return f"{samples} samples against {real} real pictures, {settings}, {features}."


def name_in(result: EvaluationResult, measure: str) -> str:
    """What a measure is called; only features of Inception make a FID."""
    key, distance = result.features.key, result.features.distance
    return {key: distance, f"{key}_of_many": f"{distance} of 10,000 samples"}.get(measure) or measure_name(measure)


def measure_rows(result: EvaluationResult, measures: Columns) -> Iterator[Cells]:
    """Of every measure its name, and its value of samples, floor and ceiling."""
    columns = measures.samples, measures.floor, measures.ceiling
    for measure in measures.samples.names:
        if measures.samples.get(measure).value is not None:
            yield name_in(result, measure), *(interval(each.get(measure)) for each in columns)


def evaluation_notes(result: EvaluationResult) -> list[str]:
    """Why measures are missing, and the notes."""
    samples = result.measures.samples
    reasons = {name_in(result, measure): samples.get(measure).reason for measure in samples.names}
    return [*(f"no {name}: {reason}" for name, reason in reasons.items() if reason), *result.notes]


def alignment_heads(aligned: Alignment) -> Cells:
    return ("Attribute", *aligned.languages, *ALIGNED)


def alignment_rows(aligned: Alignment) -> Iterator[Cells]:
    """Accuracy on samples, on held-out pictures, and at best without prompts."""
    for each in aligned.attributes:
        yield f"{each.about}, n = {each.n}", *map(interval, each.samples), interval(each.real), digits(each.chance)
    if measured := [each for each in aligned.retrieval if each.value is not None]:
        name = f"1 of {measured[0].candidates} captions, n = {measured[0].n}"
        yield name, *map(interval, aligned.retrieval), UNKNOWN, digits(measured[0].chance)


def alignment_text(aligned: Alignment) -> str:
    """What the rows mean, and what is missing."""
    texts = []
    if aligned.attributes:
        most = max(each.n for each in aligned.attributes)
        texts.append(
            f"Accuracy of attributes in the samples of {most} prompts a language, which are absent from training "
            "captions. Beside it: the same classifiers on test portraits with their own captions, and the best "
            "accuracy when ignoring prompts."
        )
    for retrieval in aligned.retrieval[:1]:
        texts.append(
            f"Caption retrieval was not measured: {retrieval.reason}."
            if retrieval.value is None
            else f"Caption retrieval: how often a test picture has the smallest denoising loss with its own caption, "
            f"at {retrieval.levels} noise levels, at {retrieval.stage_size} px."
        )
    return " ".join([*texts, *(f"Left out: {each}." for each in aligned.left_out)])


def share_row(share: PropertyShare) -> Cells:
    n = ", ".join(map(count, share.n))
    return share.about, interval(share.samples), interval(share.real), n, "yes" if share.agrees else "no"


# -- The page ----------------------------------------------------------------------------------------------------------


def evaluation_section(run: Run) -> Html | None:
    if not (run.folder / EVALUATION_FILE).is_file():
        return None
    if (result := read_evaluation(run.folder)) is None:
        return section("Evaluation", aside(f"{EVALUATION_FILE} is of another version; run `calotype evaluate` again."))
    copies, autoencoder = result.memorisation, result.autoencoder
    caption = "The samples most like copies, each with its nearest training picture to the right."
    shares = map(share_row, result.shares)
    return section(
        "Evaluation",
        aside(measured_with_text(result)),
        bullets(evaluation_notes(result)),
        table(("Measure", *SAMPLED), with_counts(result, result.measures)),
        table(("Measure", *RECONSTRUCTED), with_counts(result, autoencoder)) if autoencoder else None,
        aside(READING_OF_TABLES),
        class_table(result),
        tag("h3", "Memorisation"),
        tag("p", tag("b", f"{sentence(copies.verdict)}. "), f"{copies.sentence}. {duplicates(copies)}"),
        *copies_table(copies),
        figure(run.folder / PAIRS_FILE, caption, 1400, PLATE_BYTES),
        *alignment_table(run, result.alignment),
        table(("Shown by", "Samples", "Real test pictures", "n", "Agree"), shares),
    )


def with_counts(result: EvaluationResult, measures: Columns) -> Iterator[Cells]:
    yield from measure_rows(result, measures)
    sets = measures.samples, measures.floor, measures.ceiling
    yield "n, as many real pictures", *(count(each.n[0]) for each in sets)


def class_table(result: EvaluationResult) -> Html | None:
    key, distance = result.features.key, result.features.distance
    heads = ("Class", distance, "Kernel distance", "Floor of the kernel distance", "Precision, recall", "n")
    rows: list[Row] = []
    for each in result.classes:
        overlap = [each.samples.get(name).value for name in ("precision", "recall")]
        known = any(value is not None for value in overlap)
        both = ", ".join(UNKNOWN if value is None else f"{value:.2f}" for value in overlap)
        distances = each.samples.get(key), each.samples.get("kernel_distance"), each.floor.get("kernel_distance")
        rows.append((each.name, *map(interval, distances), both if known else UNKNOWN, count(each.samples.n[0])))
    return table(heads, rows)


def copies_table(result: Memorisation) -> Iterator[Html | None]:
    """Samples and held-out pictures beside their nearest training pictures."""
    if result.samples is None or result.real is None or result.n is None:
        return
    heads = ("Pictures", "Copies", "Distance to the nearest", "Relative to the next nearest", "n")
    sets = (("samples", result.samples, result.n[0]), (result.real_are, result.real, result.n[1]))
    yield table(
        heads,
        (
            (name, interval(each.copies, "%"), digits(each.apart_median), digits(each.ratio_median), count(n))
            for name, each, n in sets
        ),
    )
    yield aside(
        "Distances are medians of the root mean squared difference of pixels, in [−1, 1], to "
        f"{count(result.n[2])} training pictures and their mirror images; the ratio is to the median distance to the "
        "next nearest ones."
    )
    if result.note:
        yield aside(f"{sentence(result.note)}.")
    if (both := result.among_test) is not None:
        yield aside(
            f"Share of samples that look like copies of training pictures beyond chance: "
            f"{interval(both.memorised, '%')}. Chance is how often samples look like copies of test pictures, which "
            f"training has not seen. For {interval(both.nearest_is_training, '%')} of the samples the nearest of all "
            f"training and test pictures is a training picture; by chance {100 * (1 - both.chance_of_nearest):.1f} %."
        )


def duplicates(result: Memorisation) -> str:
    """Inside the training set."""
    if result.duplicates is None or result.n is None:
        return ""
    searched = min(result.n[2], MOST_SEARCHED)  # the others are those near samples
    return f"Near-duplicates among {count(searched)} training pictures: {interval(result.duplicates, '%')}."


def alignment_table(run: Run, aligned: Alignment) -> Iterator[Html | None]:
    if not aligned.languages:
        return
    yield tag("h3", "Prompt alignment")
    yield aside(alignment_text(aligned))
    yield table(alignment_heads(aligned), alignment_rows(aligned))
    if aligned.prompts:
        yield figure(run.folder / PROMPTED_FILE, "The first prompts of each language, in rows.", 1400, PLATE_BYTES)
        yield prompt_list(aligned.prompts)


# -- The terminal ------------------------------------------------------------------------------------------------------


def evaluation_lines(result: EvaluationResult) -> Iterator[str]:
    """The measures beside their floor and ceiling, those of the autoencoder, memorisation and prompt alignment."""
    yield measured_with_text(result)
    yield from in_columns(("", *SAMPLED), measure_rows(result, result.measures))
    if result.autoencoder:
        yield from in_columns(("", *RECONSTRUCTED), measure_rows(result, result.autoencoder))
    yield from evaluation_notes(result)
    yield f"memorisation: {result.memorisation.verdict}: {result.memorisation.sentence}"
    if result.alignment.reason:
        yield f"prompt alignment: not measured: {result.alignment.reason}"
        return
    yield from in_columns(alignment_heads(result.alignment), alignment_rows(result.alignment))
    yield alignment_text(result.alignment)
    for name, samples, real, n, agree in map(share_row, result.shares):
        yield f"{name}: {samples} of the samples, {real} of real test pictures (n = {n}); agree: {agree}"


def in_columns(heads: Cells, rows: Iterable[Cells]) -> Iterator[str]:
    """Nothing where there are no rows: too few pictures give no value."""
    if not (cells := list(rows)):
        return
    for name, *rest in (tuple(map(str.lower, heads)), *cells):
        yield (f"{name:<28}" + "".join(f"{cell:<28}" for cell in rest)).rstrip()
