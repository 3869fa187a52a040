"""What `calotype evaluate` found of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calotype.report.curves import without_unknown
from calotype.report.folder import Run
from calotype.report.markup import Html, figure, picture, section, table, tag
from calotype.report.measures import digits, figures, interval, share
from calotype.report.words import UNKNOWN, count, guidance_in_words, title
from calotype.run import read_mapping

FORMAT = 1
FILE, PAIRS_FILE, PROMPTED_FILE = "evaluation.json", "nearest.png", "prompted.png"
PAIRS_BYTES = 500_000
SAMPLED = ("Measure", "Samples", "Other real pictures", "Noise")
THROUGH = ("Measure", "Reconstructions", "Other real pictures", "Before training")
OBEYED = ("Real pictures", "At most, unread")
COLUMNS = ("samples", "floor", "ceiling")
NAMES = {
    "kernel_distance": "kernel distance", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage", "psnr": "PSNR, dB", "ssim": "SSIM", "perceptual": "perceptual distance",
}  # fmt: skip


def read_evaluation(folder: Path) -> dict[str, Any]:
    """Nothing where there is none, or one of another version."""
    found = read_mapping(folder / FILE)
    return found if found.get("format") == FORMAT else {}


def evaluation(run: Run) -> Html | None:
    if not (found := read_evaluation(run.folder)):
        return None
    copies, shown = found["memorisation"], picture(run.folder / PAIRS_FILE, "Pairs", 1400, PAIRS_BYTES)
    parts = [
        tag("p", about(found), class_="note"),
        tag("ul", *(tag("li", one) for one in (*reasons(found), *found["notes"]))),
        table(SAMPLED, with_n(found, found["measures"]), "figures"),
        found["autoencoder"] and table(THROUGH, with_n(found, found["autoencoder"]), "figures"),
        by_class(found),
        tag("h3", "Memorisation"),
        tag("p", tag("b", f"{title(copies['verdict'])}. "), f"{copies['sentence']}. {twins(copies)}"),
        *copying(copies),
        figure(shown, "The samples most like copies, each with its nearest training picture to the right.", "plate"),
        *obedience(run, found.get("obedience") or {}),
    ]
    return section("Evaluation", *parts)


def with_n(found: dict[str, Any], measures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    yield from rows(found, measures)
    yield "n, as many real ones", *(count(measures[column]["n"][0]) for column in COLUMNS)


def by_class(found: dict[str, Any]) -> Html | None:
    """Of fewer pictures than all, so of some measures there is nothing to say."""
    key, distance = found["features"]["key"], found["features"]["distance"]
    heads = ("Class", distance, "Kernel distance", "Of other real pictures", "Precision, recall", "n")
    cells = [
        (
            one["class"],
            interval(one["samples"][key]),
            *(interval(one[column]["kernel_distance"]) for column in ("samples", "floor")),
            ", ".join(hundredths(one["samples"][name]["value"]) for name in ("precision", "recall")),
            count(one["samples"]["n"][0]),
        )
        for one in found["classes"]
    ]
    return table(*without_unknown(heads, cells), "figures") if cells else None


def hundredths(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}"


def copying(copies: dict[str, Any]) -> Iterator[Html]:
    """Samples, and pictures that nobody made, beside the training pictures nearest to them."""
    if "samples" not in copies:
        return
    heads = ("Pictures", "Copies", "Distance to the nearest", "By that to the next", "n")
    made, real, trained = copies["n"]
    cells = (nearest_row("samples", copies["samples"], made), nearest_row(copies["real_are"], copies["real"], real))
    yield table(heads, cells, "figures")
    how = (
        f"Distances are medians of the root mean squared difference of pixels, in [−1, 1], to {count(trained)} "
        "training pictures and their mirror images; the last one by the distance to the next nearest."
    )
    yield tag("p", how, class_="note")


def nearest_row(name: str, one: dict[str, Any], n: int) -> tuple[str, ...]:
    return name, share(one["copies"]), figures(one["apart_median"]), figures(one["ratio_median"]), count(n)


def twins(copies: dict[str, Any]) -> str:
    """Duplicates inside the training set."""
    if "twins" not in copies:
        return ""
    return f"Of {count(copies['n'][2])} training pictures {share(copies['twins'])} have another that is almost equal."


def obedience(run: Run, obeyed: dict[str, Any]) -> Iterator[Html | None]:
    """What was told and what is to be seen, where the model reads."""
    if not obeyed.get("languages"):
        return
    yield tag("h3", "Does it obey?")
    yield tag("p", about_obedience(obeyed), class_="note")
    yield table(("Told", *obeyed["languages"], *OBEYED), obeyed_rows(obeyed), "figures")
    if prompts := obeyed.get("prompts"):
        shown = picture(run.folder / PROMPTED_FILE, "Prompted samples", 1400, PAIRS_BYTES)
        yield figure(shown, "The first prompts of each language, in rows.", "plate")
        yield tag(
            "details", tag("summary", "The prompts, in reading order"), tag("ol", *(tag("li", one) for one in prompts))
        )


def about(found: dict[str, Any]) -> str:
    """Of how many pictures, seen by what."""
    made, real = found["measures"]["samples"]["n"]
    network, sampling = found["features"], found["sampling"][0]
    seen = f"features of {network['network']} (weights {network['weights_sha256'][:12]}, {network['preparation']})"
    way = f"seed {found['seed']}, {sampling['steps']} steps, {guidance_in_words(sampling)}"
    return f"{made} samples against {real} real pictures, {way}, {seen}."


def names(found: dict[str, Any]) -> dict[str, str]:
    """What the measures are called; only features of Inception make a FID."""
    key, distance = found["features"]["key"], found["features"]["distance"]
    return {key: distance, f"{key}_of_many": f"{distance} of 10,000 samples", **NAMES}


def rows(found: dict[str, Any], measures: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Of every measure that holds its name, and what samples, floor and ceiling have of it."""
    for key, name in names(found).items():
        if measures["samples"].get(key, {}).get("value") is not None:
            yield name, *(interval(measures[column].get(key, {})) for column in COLUMNS)


def reasons(found: dict[str, Any]) -> Iterator[str]:
    """Why measures are missing."""
    for key, name in names(found).items():
        if reason := found["measures"]["samples"].get(key, {}).get("reason"):
            yield f"no {name}: {reason}"


def obeyed_rows(obeyed: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Shares of samples that show what they were told, of held-out pictures, and of what guessing would get."""
    for one in obeyed.get("attributes") or []:
        ends = interval(one["real"]), digits(one["chance"])
        yield f"{one['about']}, n = {one['n']}", *map(interval, one["samples"]), *ends
    sought = [one for one in obeyed["retrieval"] if one.get("value") is not None]
    if sought:
        name = f"1 of {sought[0]['candidates']} captions, n = {sought[0]['n']}"
        yield name, *map(interval, obeyed["retrieval"]), UNKNOWN, digits(sought[0]["chance"])


def about_obedience(obeyed: dict[str, Any]) -> str:
    """How the rows are to be read, and what is not among them."""
    said = []
    if attributes := obeyed.get("attributes"):
        asked = max(one["n"] for one in attributes)
        said.append(
            f"Shares of samples that show what they were told: {asked} prompts a language, none of them said by a "
            "training caption. Beside them the same judges on test portraits with their own captions, and what "
            "would be right at most if all samples were alike."
        )
    for sought in obeyed["retrieval"][:1]:
        level = f"at {sought.get('levels')} levels of noise, at {sought.get('stage_size')} px"
        said.append(
            f"Captions were not told apart: {sought['reason']}."
            if sought.get("value") is None
            else f"Captions: how often a test picture is denoised best with its own, {level}."
        )
    return " ".join([*said, *(f"Left out: {one}." for one in obeyed.get("left_out") or [])])
