"""The results of `calotype evaluate`: a section of the page, and the rows that terminal and model card show."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from calotype.evaluation.results import EVALUATION_FILE, PAIRS_FILE, PROMPTED_FILE, EvaluationResult, read_result
from calotype.report.format import UNKNOWN, count, digits, guidance, interval, sentence
from calotype.report.html import Html, aside, bullets, details, figure, section, table, tag
from calotype.run import Run

PAIRS_BYTES = 500_000
SAMPLED = ("Measure", "Samples", "Other real pictures", "Noise")
THROUGH = ("Measure", "Reconstructions", "Other real pictures", "Before training")
ALIGNED = ("Real pictures", "Best without prompts")
COLUMNS = ("samples", "floor", "ceiling")
NAMES = {
    "kernel_distance": "kernel distance", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual distance",
}  # fmt: skip


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Empty where there is none, or one of another version."""
    result = read_result(folder / EVALUATION_FILE, EvaluationResult)
    return {} if result is None else result.stored()


def evaluation(run: Run) -> Html | None:
    if not (run.folder / EVALUATION_FILE).is_file():
        return None
    if not (result := read_evaluation(run.folder)):
        return section("Evaluation", aside(f"{EVALUATION_FILE} is of another version; run `calotype evaluate` again."))
    copies, autoencoder = result["memorisation"], result["autoencoder"]
    caption = "The samples most like copies, each with its nearest training picture to the right."
    return section(
        "Evaluation",
        aside(about(result)),
        bullets([*reasons(result), *result["notes"]]),
        table(SAMPLED, with_n(result, result["measures"])),
        autoencoder and table(THROUGH, with_n(result, autoencoder)),
        by_class(result),
        tag("h3", "Memorisation"),
        tag("p", tag("b", f"{sentence(copies['verdict'])}. "), f"{copies['sentence']}. {duplicates(copies)}"),
        *copying(copies),
        figure(run.folder / PAIRS_FILE, caption, 1400, PAIRS_BYTES),
        *alignment(run, result["alignment"]),
        *shares(result),
    )


def with_n(result: dict[str, Any], measures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield from rows(result, measures)
    yield "n, as many real pictures", *(count(measures[column]["n"][0]) for column in COLUMNS)


def by_class(result: dict[str, Any]) -> Html | None:
    key, distance = result["features"]["key"], result["features"]["distance"]
    heads = ("Class", distance, "Kernel distance", "Floor of the kernel distance", "Precision, recall", "n")
    cells = [
        (
            one["class"],
            interval(one["samples"][key]),
            *(interval(one[column]["kernel_distance"]) for column in ("samples", "floor")),
            two_decimals([one["samples"][name]["value"] for name in ("precision", "recall")]),
            count(one["samples"]["n"][0]),
        )
        for one in result["classes"]
    ]
    return table(heads, cells)


def two_decimals(values: Sequence[float | None]) -> str:
    """Unknown where none of the values is known."""
    known = any(value is not None for value in values)
    return ", ".join(UNKNOWN if value is None else f"{value:.2f}" for value in values) if known else UNKNOWN


def copying(copies: dict[str, Any]) -> Iterator[Html | None]:
    """Samples and held-out pictures beside their nearest training pictures."""
    if "samples" not in copies:
        return
    heads = ("Pictures", "Copies", "Distance to the nearest", "Relative to the next nearest", "n")
    made, real, trained = copies["n"]
    sets = (("samples", copies["samples"], made), (copies["real_are"], copies["real"], real))
    yield table(
        heads,
        (
            (name, interval(one["copies"], "%"), digits(one["apart_median"]), digits(one["ratio_median"]), count(n))
            for name, one, n in sets
        ),
    )
    yield aside(
        f"Distances are medians of the root mean squared difference of pixels, in [−1, 1], to {count(trained)} "
        "training pictures and their mirror images; the ratio is to the median distance to the next nearest ones."
    )


def duplicates(copies: dict[str, Any]) -> str:
    """Inside the training set."""
    if "duplicates" not in copies:
        return ""
    return f"Near-duplicates among {count(copies['n'][2])} training pictures: {interval(copies['duplicates'], '%')}."


def alignment(run: Run, result: dict[str, Any]) -> Iterator[Html | None]:
    if not result.get("languages"):
        return
    yield tag("h3", "Prompt alignment")
    yield aside(about_alignment(result))
    yield table(("Attribute", *result["languages"], *ALIGNED), alignment_rows(result))
    if prompts := result.get("prompts"):
        yield figure(run.folder / PROMPTED_FILE, "The first prompts of each language, in rows.", 1400, PAIRS_BYTES)
        yield details("The prompts, in reading order", tag("ol", *(tag("li", prompt) for prompt in prompts)))


def shares(result: dict[str, Any]) -> Iterator[Html | None]:
    """What samples of prompts show as often as real pictures, or not."""
    if measured := result.get("shares"):
        heads = ("Shown by", "Samples", "Real test pictures", "n", "Agree")
        yield table(heads, [share_row(share) for share in measured])


def share_row(share: dict[str, Any]) -> tuple[str, ...]:
    n = ", ".join(map(count, share["n"]))
    return share["about"], interval(share["samples"]), interval(share["real"]), n, "yes" if share["agrees"] else "no"


def about(result: dict[str, Any]) -> str:
    """What was measured, and how."""
    made, real = result["measures"]["samples"]["n"]
    network, sampling = result["features"], result["sampling"][0]
    features = f"features of {network['network']} (weights {network['weights_sha256'][:12]}, {network['preparation']})"
    settings = f"seed {result['seed']}, {sampling['steps']} steps, {guidance(sampling)}"
    return f"{made} samples against {real} real pictures, {settings}, {features}."


def names(result: dict[str, Any]) -> dict[str, str]:
    """What the measures are called; only features of Inception make a FID."""
    key, distance = result["features"]["key"], result["features"]["distance"]
    return {key: distance, f"{key}_of_many": f"{distance} of 10,000 samples", **NAMES}


def rows(result: dict[str, Any], measures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of every measure its name, and its value of samples, floor and ceiling."""
    for key, name in names(result).items():
        if measures["samples"].get(key, {}).get("value") is not None:
            yield name, *(interval(measures[column].get(key, {})) for column in COLUMNS)


def reasons(result: dict[str, Any]) -> Iterator[str]:
    """Why measures are missing."""
    for key, name in names(result).items():
        if reason := result["measures"]["samples"].get(key, {}).get("reason"):
            yield f"no {name}: {reason}"


def alignment_rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Accuracy on samples, on held-out pictures, and at best without prompts."""
    for one in result.get("attributes") or []:
        ends = interval(one["real"]), digits(one["chance"])
        yield f"{one['about']}, n = {one['n']}", *map(interval, one["samples"]), *ends
    measured = [one for one in result["retrieval"] if one.get("value") is not None]
    if measured:
        name = f"1 of {measured[0]['candidates']} captions, n = {measured[0]['n']}"
        yield name, *map(interval, result["retrieval"]), UNKNOWN, digits(measured[0]["chance"])


def about_alignment(result: dict[str, Any]) -> str:
    """What the rows mean, and what is missing."""
    texts = []
    if attributes := result.get("attributes"):
        most = max(one["n"] for one in attributes)
        texts.append(
            f"Accuracy of attributes in the samples of {most} prompts a language, which are absent from training "
            "captions. Beside it: the same classifiers on test portraits with their own captions, and the best "
            "accuracy when ignoring prompts."
        )
    for retrieval in result["retrieval"][:1]:
        levels = f"at {retrieval.get('levels')} noise levels, at {retrieval.get('stage_size')} px"
        texts.append(
            f"Caption retrieval was not measured: {retrieval['reason']}."
            if retrieval.get("value") is None
            else f"Caption retrieval: how often a test picture has the smallest denoising loss with its own caption, "
            f"{levels}."
        )
    return " ".join([*texts, *(f"Left out: {one}." for one in result.get("left_out") or [])])


# -- The terminal ------------------------------------------------------------------------------------------------------


def summary(result: dict[str, Any]) -> Iterator[str]:
    """The measures beside their floor and ceiling, those of the autoencoder, memorisation and prompt alignment."""
    yield about(result)
    yield from columns(("", "samples", "other real pictures", "noise"), rows(result, result["measures"]))
    if autoencoder := result["autoencoder"]:
        heads = ("", "reconstructions", "other real pictures", "before training")
        yield from columns(heads, rows(result, autoencoder))
    yield from (*reasons(result), *result["notes"])
    yield f"memorisation: {result['memorisation']['verdict']}: {result['memorisation']['sentence']}"
    aligned = result["alignment"]
    if reason := aligned.get("reason"):
        yield f"prompt alignment: not measured: {reason}"
        return
    yield from columns(("attribute", *aligned["languages"], *map(str.lower, ALIGNED)), alignment_rows(aligned))
    yield about_alignment(aligned)
    for name, samples, real, n, agree in map(share_row, result.get("shares") or []):
        yield f"{name}: {samples} of the samples, {real} of real test pictures (n = {n}); agree: {agree}"


def columns(heads: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Nothing where there are no rows: too few pictures give no value."""
    if not (rows_below := list(cells)):
        return
    for name, *rest in (heads, *rows_below):
        yield (f"{name:<28}" + "".join(f"{cell:<28}" for cell in rest)).rstrip()
