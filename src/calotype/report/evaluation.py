"""What `calotype evaluate` found of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calotype.report.folder import Run, read_mapping
from calotype.report.markup import Html, figure, picture, table, tag
from calotype.report.measures import interval

FORMAT = 1
FILE, PAIRS_FILE = "evaluation.json", "nearest.png"
PAIRS_BYTES = 500_000
SAMPLED = ("Measure", "Samples", "Other real pictures", "Noise")
THROUGH = ("Measure", "Reconstructions", "Other real pictures", "Before training")
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
        tag("p", tag("b", f"Memorisation: {copies['verdict']}. "), f"{copies['sentence']}."),
        figure(shown, "The samples most like copies, each with its nearest training picture to the right.", "plate"),
        table(SAMPLED, rows(found, found["measures"]), "figures"),
        found["autoencoder"] and table(THROUGH, rows(found, found["autoencoder"]), "figures"),
    ]
    return tag("section", tag("h2", "Evaluation"), tag("div", *parts))


def about(found: dict[str, Any]) -> str:
    """Of how many pictures, seen by what."""
    made, real = found["measures"]["samples"]["n"]
    network = found["features"]
    seen = f"features of {network['network']} (weights {network['weights_sha256'][:12]}, {network['preparation']})"
    return f"{made} samples against {real} real pictures, seed {found['seed']}, {seen}."


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
