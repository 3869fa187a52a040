"""Choosing sampling settings by distances from real pictures, with a paired bootstrap.

All settings are measured with the same seeds and on the same bootstrap sets, so the noise that they share cancels; of
those within a standard error of the best, the cheapest or the simplest is taken.

`sweep` tries a grid over sampler steps, guide and guidance scale. After training, `search_level` finds the augmentation
level of a stage that enlarges, on pictures of the stages before it, and `search_scale` the guidance scale of the first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from calotype.data.images import rounded
from calotype.diffusion.stage import Guide, Sampling, Stage, generate_in_turn
from calotype.evaluation.distances import (
    Features,
    frechet_estimate,
    frechet_of_rows,
    kernel_distance,
    kernel_estimate,
    kernel_of_rows,
)
from calotype.evaluation.features import FeatureNetwork, features
from calotype.evaluation.intervals import (
    Estimate,
    Values,
    normal_estimate,
    on_resamples,
    resamples,
    standard_error,
    within_standard_error,
)
from calotype.evaluation.measures import as_measure
from calotype.evaluation.results import Cell
from calotype.types import Images, Labels, Progress, Rng, Text

SCALES = {"prior": (1.0, 2.0, 3.0, 4.0), "unconditional": (1.0, 1.5, 2.0, 3.0)}
"""Guidance scales to try with each guide."""
FEATURES_AT_ONCE = 8


# -- Steps and guidance ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """What a sweep tries; an empty list stands for the usual values."""

    steps: Sequence[int] = (8, 12, 24)
    guidance: Sequence[float] = ()
    guides: Sequence[Guide] = ()
    slopes: Sequence[float] = ()

    def samplings(self, sampling: Sampling, conditional: bool, has_prior: bool) -> list[Sampling]:
        """`sampling` in every cell.

        Without a label or caption (`conditional`) the unconditional model is no guide, and without a closed form
        (`has_prior`) that is none; where there is none at all, only the steps differ.
        """
        possible: list[Guide] = ["prior"] * has_prior + ["unconditional"] * conditional  # type: ignore[assignment]
        guides = [guide for guide in possible if guide in (self.guides or possible)]
        changes = list(dict.fromkeys(change for guide in guides for change in self.guidances(guide, sampling)))
        guidances = [dict(change) for change in changes] or [{}]
        return [
            sampling.model_copy(update={"steps": steps, **change}) for change, steps in product(guidances, self.steps)
        ]

    def guidances(self, guide: Guide, sampling: Sampling) -> Iterator[tuple[tuple[str, Any], ...]]:
        """Settings of one guide; a scale of 1 is the same with every guide and slope."""
        slopes = (self.slopes or (sampling.guidance_slope,)) if guide == "prior" else (sampling.guidance_slope,)
        for scale, slope in product(self.guidance or SCALES[guide], slopes):
            if scale == 1:
                yield (("guidance", scale),)
            else:
                yield ("guide", guide), ("guidance", scale), ("guidance_slope", slope)


def sweep(
    samplings: Sequence[Sampling],
    sampled: Callable[[Sampling], Features],
    real: Features,
    progress: Progress,
    seed: int = 0,
) -> list[Cell]:
    """Every cell of a grid. `sampled` gives features of as many samples as there are in `real`, with equal seeds."""
    of_samples = []
    for done, sampling in enumerate(samplings, 1):
        of_samples.append(sampled(sampling))
        progress(done, len(samplings))
    estimates = [frechet_estimate(each, real, np.random.default_rng(seed)) for each in of_samples]
    smallest = min(range(len(samplings)), key=lambda place: estimates[place].value)
    sets = resamples(len(of_samples[0]), len(real), np.random.default_rng(seed))
    resampled = [on_resamples(frechet_of_rows(each, real), sets) for each in of_samples]
    return [
        Cell(
            steps=sampling.steps,
            guidance=sampling.guidance,
            guide=sampling.guide,
            calls=sampling.calls(),
            fd_lite0=as_measure(estimate),
            kernel_distance=as_measure(kernel_estimate(each, real, np.random.default_rng(seed))),
            behind=as_measure(
                normal_estimate(estimate.value - estimates[smallest].value, values - resampled[smallest])
            ),
            sampling=sampling.model_dump(mode="json"),
        )
        for sampling, each, estimate, values in zip(samplings, of_samples, estimates, resampled, strict=True)
    ]


def sampled_features(
    stage: Stage, labels: Labels, text: Text | None, seed: int, network: FeatureNetwork
) -> Callable[[Sampling], Features]:
    """Features of one picture a label; picture i has the same seed in every cell, and `calotype sample` another."""
    rngs = [Rng((seed, "sweep", index)) for index in range(len(labels))]
    return lambda sampling: features(
        map(rounded, generate_in_turn([stage], labels, [sampling], rngs, text=text)), network
    )


def cheapest(cells: Sequence[Cell]) -> Cell:
    """Of the cells within a standard error of the smallest, the one with the fewest calls; of equals, the nearest."""
    level = [cell for cell in cells if within_standard_error(cell.behind.estimate)]
    return min(level, key=lambda cell: (cell.calls, cell.fd_lite0.estimate.value))


# -- The augmentation level --------------------------------------------------------------------------------------------


class Distance(NamedTuple):
    """A kernel distance from real pictures, and its values on bootstrap sets, which are the same for all levels."""

    value: float
    resampled: Values


@dataclass(frozen=True)
class Search:
    """The distance from real pictures at each level that was tried: of augmentation, or a guidance scale."""

    tried: dict[float, Distance]
    usual: float | None = None
    """The level that is kept unless another is clearly better."""
    scalings: dict[float, float] = field(default_factory=dict)
    """The epsilon scaling with each guidance scale."""

    @property
    def nearest(self) -> float:
        return min(self.tried, key=lambda level: (self.tried[level].value, level))

    @property
    def best(self) -> float:
        """Of the levels within a standard error of the nearest, the usual one, or the smallest."""
        near = [level for level in self.tried if within_standard_error(self.behind(level))]
        return self.usual if self.usual in near else min(near)

    def behind(self, level: float) -> Estimate:
        """How much further than the nearest."""
        distance, nearest = self.tried[level], self.tried[self.nearest]
        return normal_estimate(distance.value - nearest.value, distance.resampled - nearest.resampled)

    def as_json(self) -> dict[str, Any]:
        """`tried` has each level with its distance; `standard_errors` are those of the differences to the nearest."""
        scaling = {"epsilon_scaling": self.scalings[self.best]} if self.scalings else {}
        return {
            "best": self.best,
            **scaling,
            "tried": [[level, distance.value] for level, distance in self.tried.items()],
            "standard_errors": [standard_error(self.behind(level)) for level in self.tried],
        }


def search_level(distance: Callable[[float], Distance], most: float, steps: int, progress: Progress) -> Search:
    """The distances at an even grid from 0 to `most`, then halfway from the nearest to its neighbours."""
    tried: dict[float, Distance] = {}

    def attempt(level: float) -> None:
        if level not in tried:
            tried[level] = distance(level)
            progress(len(tried), steps)

    gaps = max(2, steps - 2) - 1
    for place in range(gaps + 1):
        attempt(most * place / gaps)
    nearest, halfway = Search(tried).nearest, most / gaps / 2
    for level in (nearest - halfway, nearest + halfway):
        if 0 <= level <= most:
            attempt(level)
    return Search(tried)


def search_scale(
    distance: Callable[[Sampling], Distance], scaling: Callable[[Sampling], float], sampling: Sampling,
    scales: Sequence[float], progress: Progress,
) -> Search:  # fmt: skip
    """The distances at these guidance scales, each with its epsilon scaling; that of `sampling` is the usual one."""
    tried: dict[float, Distance] = {}
    scalings: dict[float, float] = {}
    for scale in scales:
        guided = sampling.model_copy(update={"guidance": scale})
        scalings[scale] = scaling(guided)
        tried[scale] = distance(guided.scaled(scalings[scale]))
        progress(len(tried), len(scales))
    return Search(tried, sampling.guidance, scalings)


def scale_distance(
    stage: Stage, labels: Labels, text: Text | None, real: Features, seed: int, network: FeatureNetwork
) -> Callable[[Sampling], Distance]:
    """From sampling settings to the distance of samples from `real`; each time with equal seeds."""
    sampled, distance = sampled_features(stage, labels, text, seed, network), resampled_distance(len(labels), real)
    return lambda sampling: distance(sampled(sampling))


def level_distance(
    stage: Stage,
    sampling: Sampling,
    low_res: Images,
    labels: Labels,
    real: Features,
    network: FeatureNetwork,
    text: Text | None = None,
) -> Callable[[float], Distance]:
    """From a level to the distance of what the stage makes of `low_res` from `real`; each time with equal noise."""
    distance = resampled_distance(len(low_res), real)
    rngs = [Rng(("level", index)) for index in range(len(low_res))]

    def distance_at(level: float) -> Distance:
        changed = sampling.model_copy(update={"augmentation": level, "conditioning": "whole"})
        enlarged = generate_in_turn([stage], labels, [changed], rngs, low_res, text=text)
        return distance(features((few for part in enlarged for few in part.split(FEATURES_AT_ONCE)), network))

    return distance_at


def resampled_distance(count: int, real: Features) -> Callable[[Features], Distance]:
    """From the features of so many pictures to their distance from `real`, each time on equal resamples."""
    sets = resamples(count, len(real), np.random.default_rng(0))
    return lambda fake: Distance(kernel_distance(fake, real), on_resamples(kernel_of_rows(fake, real), sets))
