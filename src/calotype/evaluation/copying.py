"""Whether a run copies its training pictures: what is measured, what is shown, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from calotype.evaluation.measures import as_json
from calotype.evaluation.memorisation import (
    FEWEST,
    TOO_FEW,
    Nearest,
    Seen,
    nearest_trained,
    share_of_copies,
    share_of_twins,
    verdict,
)
from calotype.evaluation.references import Library

MOST_TRAINED = 20_000
"""Training pictures that are searched at most; evenly spread."""
PAIRS = 12
"""Samples that are shown beside their nearest training pictures."""


@dataclass(frozen=True)
class Copying:
    found: dict[str, Any]
    pairs: list[tuple[int, int]]
    """Of the samples most like copies: its place, and the row of its nearest training picture."""


def unknown(reason: str) -> Copying:
    return Copying({"verdict": TOO_FEW, "sentence": reason}, [])


def copying(samples: Seen, library: Library, size: int, count: int) -> Copying:
    """`count`: test pictures that are looked at, at most."""
    rows = spread(library.pictures.train_indices, MOST_TRAINED)
    test = library.pictures.test_indices[:count]
    if len(rows) < 3:
        return unknown(f"a copy is told by its neighbours, and there are {len(rows)} training pictures")
    trained = library.seen(rows, size, mirrored=False)
    of_samples, among = nearest_trained(samples, trained), nearest_trained(trained, trained, themselves=True)
    real = among if len(test) < FEWEST else nearest_trained(library.seen(test, size, mirrored=True), trained)
    word, sentence = verdict(of_samples, real)
    found = {
        "verdict": word,
        "sentence": sentence,
        "samples": shares(of_samples),
        "real": shares(real),
        "real_are": "training pictures, each beside the others" if real is among else "test pictures",
        "twins": as_json(share_of_twins(among)),
        "n": [len(of_samples.place), len(real.place), len(rows)],
    }
    if len(rows) < len(library.pictures.train_indices):
        found["note"] = f"{len(rows):,} of {len(library.pictures.train_indices):,} training pictures were searched"
    likest = np.argsort(of_samples.ratio)[:PAIRS]
    return Copying(found, [(int(one), int(rows[of_samples.place[one]])) for one in likest])


def shares(found: Nearest) -> dict[str, Any]:
    return {
        "copies": as_json(share_of_copies(found)),
        "ratio_median": float(np.median(found.ratio)),
        "apart_median": float(np.median(found.apart)),
        "feature_distance_median": float(np.median(found.feature_distance)),
    }


def spread(rows: Int[Tensor, " count"], most: int) -> Tensor:
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]
