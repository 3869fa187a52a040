"""All measures of one set of pictures against another; those that so few cannot give say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from calotype.evaluation.distances import Features, Others
from calotype.evaluation.extrapolation import frechet_of_many
from calotype.evaluation.features import FeatureNetwork, distance_name
from calotype.evaluation.intervals import (
    Estimate,
    density_coverage,
    frechet_estimate,
    kernel_estimate,
    precision_recall,
)
from calotype.evaluation.results import Measure, SetMeasures

Estimator = Callable[[Features, Others, np.random.Generator], Estimate | float]
FRECHET, MANY_KEY = "frechet", "frechet_of_many"
MEASURES: dict[str, tuple[int, Estimator]] = {
    FRECHET: (50, frechet_estimate),
    MANY_KEY: (500, frechet_of_many),
    "kernel_distance": (10, kernel_estimate),
    "precision": (20, lambda made, real, rng: precision_recall(real, made)[0]),
    "recall": (20, lambda made, real, rng: precision_recall(real, made)[1]),
    "density": (20, lambda made, real, rng: density_coverage(real, made)[0]),
    "coverage": (20, lambda made, real, rng: density_coverage(real, made)[1]),
}
"""Each with the fewest pictures, on either side, of which it says anything."""


def measured(made: Features, real: Others, seed: int, network: FeatureNetwork, any_count: bool = False) -> SetMeasures:
    """All measures; of too few pictures without a value, but with the reason.

    `any_count`: of however few, but not the extrapolated distance; intervals and n show what they are worth.
    """
    count, result = min(len(made), len(real)), dict[str, Measure]()
    for name, (fewest, _) in MEASURES.items():
        if any_count and name == MANY_KEY:
            continue
        result[name.replace(FRECHET, distance_key(network))] = (
            measure(name, made, real, seed)
            if any_count or count >= fewest
            else too_few(f"it needs {fewest} pictures on either side, and there are {count}")
        )
    return SetMeasures.of((len(made), len(real)), result)


def measure(name: str, made: Features, real: Others, seed: int) -> Measure:
    """One of `MEASURES`, of however few pictures."""
    return as_measure(MEASURES[name][1](made, real, np.random.default_rng(seed)))


def distance_key(network: FeatureNetwork) -> str:
    return distance_name(network).lower().replace("-", "_")


def too_few(reason: str) -> Measure:
    return Measure(value=None, reason=reason)


def as_measure(estimate: Estimate | float) -> Measure:
    """An interval without an end is none, and says why."""
    if not isinstance(estimate, Estimate):
        return Measure(value=estimate)
    if not np.isfinite(estimate.high - estimate.low):
        return Measure(value=estimate.value, low=None, high=None, reason="one value has no spread")
    return Measure(**estimate._asdict())


def as_json(estimate: Estimate | float) -> dict[str, Any]:
    return as_measure(estimate).stored()
