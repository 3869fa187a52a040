"""All measures of one set of pictures against another; those that so few cannot give say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from calotype.evaluation.distances import Features, Others
from calotype.evaluation.extrapolation import frechet_of_many
from calotype.evaluation.features import LITE0, FeatureNetwork, distance_name
from calotype.evaluation.intervals import (
    Estimate,
    density_coverage,
    frechet_estimate,
    kernel_estimate,
    precision_recall,
)

Measure = dict[str, Any]
Measured = Callable[[Features, Others, np.random.Generator], Estimate | float]
FRECHET, MANY_KEY = "frechet", "frechet_of_many"
MEASURES: dict[str, tuple[int, Measured]] = {
    FRECHET: (50, frechet_estimate),
    MANY_KEY: (500, frechet_of_many),
    "kernel_distance": (10, kernel_estimate),
    "precision": (20, lambda made, real, rng: precision_recall(real, made)[0]),
    "recall": (20, lambda made, real, rng: precision_recall(real, made)[1]),
    "density": (20, lambda made, real, rng: density_coverage(real, made)[0]),
    "coverage": (20, lambda made, real, rng: density_coverage(real, made)[1]),
}
"""Each with the fewest pictures, on either side, of which it says anything."""


def measured(made: Features, real: Others, seed: int, network: FeatureNetwork = LITE0) -> dict[str, Any]:
    """By name; the Fréchet distance by that of its network: `fd_lite0`."""
    count = min(len(made), len(real))
    found: dict[str, Any] = {"n": [len(made), len(real)]}
    for name, (fewest, _) in MEASURES.items():
        found[name.replace(FRECHET, distance_key(network))] = (
            measure(name, made, real, seed)
            if count >= fewest
            else too_few(f"it needs {fewest} pictures on either side, and there are {count}")
        )
    return found


def measure(name: str, made: Features, real: Others, seed: int) -> Measure:
    """One of `MEASURES`, of however few pictures."""
    return as_json(MEASURES[name][1](made, real, np.random.default_rng(seed)))


def distance_key(network: FeatureNetwork) -> str:
    return distance_name(network).lower().replace("-", "_")


def too_few(reason: str) -> Measure:
    return {"value": None, "reason": reason}


def as_json(found: Estimate | float) -> Measure:
    """An interval without an end is none, and says why."""
    if not isinstance(found, Estimate):
        return {"value": found}
    if not np.isfinite(found.high - found.low):
        return {"value": found.value, "low": None, "high": None, "reason": "one value has no spread"}
    return dict(found._asdict())
