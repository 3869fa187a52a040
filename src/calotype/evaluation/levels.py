"""The augmentation level of a stage that enlarges: searched after training, on pictures of the stages before it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

from calotype.diffusion.stage import Sampling, Stage, generate, in_turn
from calotype.evaluation.distances import kernel_distance, kernel_of_rows
from calotype.evaluation.features import features
from calotype.evaluation.intervals import Estimate
from calotype.evaluation.pairing import Values, draws, is_level, paired_difference, redrawn, standard_error
from calotype.types import Images, Labels, OtherImages, Rng, Text

FEATURES_AT_ONCE = 8


class Distance(NamedTuple):
    """A kernel distance from real pictures, and its values on bootstrap sets, which are the same for all levels."""

    value: float
    drawn: Values


@dataclass(frozen=True)
class Search:
    """The distance from real pictures at each level that was tried."""

    tried: dict[float, Distance]

    @property
    def nearest(self) -> float:
        return min(self.tried, key=lambda level: (self.tried[level].value, level))

    @property
    def best(self) -> float:
        """The smallest level that is within a standard error of the nearest: augmentation must prove its worth."""
        return min(level for level in self.tried if is_level(self.behind(level)))

    def behind(self, level: float) -> Estimate:
        """How much further than the nearest."""
        one, other = self.tried[level], self.tried[self.nearest]
        return paired_difference(one.value, other.value, one.drawn - other.drawn)

    def as_json(self) -> dict[str, Any]:
        """`tried` has each level with its distance; `standard_errors` are those of the differences to the nearest."""
        return {
            "best": self.best,
            "tried": [[level, one.value] for level, one in self.tried.items()],
            "standard_errors": [standard_error(self.behind(level)) for level in self.tried],
        }


def search_level(
    distance: Callable[[float], Distance], most: float, steps: int, progress: Callable[[int, int], None]
) -> Search:
    """The distances at an even grid from 0 to `most`, then halfway from the nearest to its neighbours."""
    grid = max(2, steps - 2)
    tried: dict[float, Distance] = {}

    def attempt(level: float) -> None:
        if level not in tried:
            tried[level] = distance(level)
            progress(len(tried), steps)

    for place in range(grid):
        attempt(most * place / (grid - 1))
    gap = most / (grid - 1) / 2
    for level in (Search(tried).nearest - gap, Search(tried).nearest + gap):
        if 0 <= level <= most:
            attempt(level)
    return Search(tried)


def level_distance(
    stage: Stage,
    sampling: Sampling,
    low_res: Images,
    labels: Labels,
    real: OtherImages,
    text: Text | None = None,
) -> Callable[[float], Distance]:
    """From a level to the distance of what the stage makes of `low_res` from `real`; each time with equal noise."""
    real_features = features(real.split(FEATURES_AT_ONCE))
    same = draws(len(low_res), len(real), np.random.default_rng(0))

    def distance(level: float) -> Distance:
        changed = sampling.model_copy(update={"augmentation": level, "conditioning": "whole"})
        rngs = [Rng(("level", index)) for index in range(len(low_res))]
        made = in_parts([stage], [changed], labels, rngs, low_res, text)
        of_made = features(made.split(FEATURES_AT_ONCE))
        return Distance(kernel_distance(of_made, real_features), redrawn(kernel_of_rows(of_made, real_features), same))

    return distance


def in_parts(
    stages: Sequence[Stage],
    samplings: Sequence[Sampling],
    labels: Labels,
    rngs: Sequence[Rng],
    low_res: Images | None = None,
    text: Text | None = None,
) -> OtherImages:
    """As `generate`, a few pictures at a time."""
    full, factor = stages[-1].image_size, prod(stage.factor for stage in stages)
    height, width = (full, full) if low_res is None else (side * factor for side in low_res.shape[-2:])

    def part_of(part: slice) -> OtherImages:
        small, prompts = (None if low_res is None else low_res[part]), text and text.at(range(len(labels))[part])
        return generate(stages, labels[part], samplings, rngs[part], small, text=prompts)

    return torch.cat([part_of(part) for part in in_turn(len(labels), height, width)])
