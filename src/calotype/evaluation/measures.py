"""All measures of one set of pictures against another; those that so few cannot give say so."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from calotype.evaluation.distances import (
    Features,
    Others,
    density_coverage,
    frechet_estimate,
    frechet_of_many,
    kernel_estimate,
    precision_recall,
)
from calotype.evaluation.features import FeatureNetwork, distance_name
from calotype.evaluation.intervals import Estimate
from calotype.evaluation.results import Measure, SetMeasures

Estimator = Callable[[Features, Others, np.random.Generator], Estimate | float]
MEASURES: dict[str, tuple[int, Estimator]] = {
    "frechet": (50, frechet_estimate),
    "frechet_of_many": (500, frechet_of_many),
    "kernel_distance": (10, kernel_estimate),
    "precision": (20, lambda samples, real, rng: precision_recall(samples, real)[0]),
    "recall": (20, lambda samples, real, rng: precision_recall(samples, real)[1]),
    "density": (20, lambda samples, real, rng: density_coverage(samples, real)[0]),
    "coverage": (20, lambda samples, real, rng: density_coverage(samples, real)[1]),
}
"""Each with the fewest pictures, on either side, of which it says anything."""


def measure_sets(
    samples: Features, real: Others, seed: int, network: FeatureNetwork, any_count: bool = False
) -> SetMeasures:
    """All measures; of too few pictures without a value, but with the reason.

    `any_count`: of however few, but not the extrapolated distance; intervals and n show what they are worth.
    """
    count, result = min(len(samples), len(real)), dict[str, Measure]()
    for name, (fewest, _) in MEASURES.items():
        if any_count and name == "frechet_of_many":
            continue
        result[name.replace("frechet", distance_key(network))] = (
            measure(name, samples, real, seed)
            if any_count or count >= fewest
            else Measure(value=None, reason=f"it needs {fewest} pictures on either side, and there are {count}")
        )
    return SetMeasures.of((len(samples), len(real)), result)


def measure(name: str, samples: Features, real: Others, seed: int) -> Measure:
    """One of `MEASURES`, of however few pictures."""
    return as_measure(MEASURES[name][1](samples, real, np.random.default_rng(seed)))


def distance_key(network: FeatureNetwork) -> str:
    return distance_name(network).lower().replace("-", "_")


def as_measure(estimate: Estimate | float) -> Measure:
    """An interval without an end is none, and says why."""
    if not isinstance(estimate, Estimate):
        return Measure(value=estimate)
    if not np.isfinite(estimate.high - estimate.low):
        return Measure(value=estimate.value, low=None, high=None, reason="one value has no spread")
    return Measure(**estimate._asdict())
