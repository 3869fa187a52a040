"""Which augmentation suits a stage best: tried after training, on pictures that the stages before it have made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch

from calotype.evaluate.distances import kernel_distance
from calotype.evaluate.features import features
from calotype.stage import Sampling, Stage, generate, in_turn
from calotype.vocabulary import Images, Labels, OtherImages, Rng, Text

AT_ONCE = 8


@dataclass(frozen=True)
class Search:
    """What was tried: the kernel distance from real pictures at each level, and the level with the smallest."""

    tried: dict[float, float]

    @property
    def best(self) -> float:
        return min(self.tried, key=lambda level: (self.tried[level], level))


def search_level(
    distance: Callable[[float], float], most: float, steps: int, progress: Callable[[int, int], None]
) -> Search:
    """The best of an even grid from 0 to `most`, then halfway to its better neighbour and beyond it."""
    grid = max(2, steps - 2)
    tried: dict[float, float] = {}

    def attempt(level: float) -> None:
        if level not in tried:
            tried[level] = distance(level)
            progress(len(tried), steps)

    for place in range(grid):
        attempt(most * place / (grid - 1))
    gap = most / (grid - 1) / 2
    for level in (Search(tried).best - gap, Search(tried).best + gap):
        if 0 <= level <= most:
            attempt(level)
    return Search(tried)


def level_distance(
    stage: Stage,
    sampling: Sampling,
    smaller: Images,
    labels: Labels,
    real: OtherImages,
    text: Text | None = None,
) -> Callable[[float], float]:
    """How far what the stage makes of `smaller` lies from `real`, at a level; each time with the same noise."""
    real_features = features(real.split(AT_ONCE))

    def distance(level: float) -> float:
        changed = sampling.model_copy(update={"augmentation": level, "conditioning": "whole"})
        rngs = [Rng(("level", index)) for index in range(len(smaller))]
        made = in_parts([stage], [changed], labels, rngs, smaller, text)
        return kernel_distance(features(made.split(AT_ONCE)), real_features)

    return distance


def in_parts(
    stages: Sequence[Stage],
    samplings: Sequence[Sampling],
    labels: Labels,
    rngs: Sequence[Rng],
    smaller: Images | None = None,
    text: Text | None = None,
) -> OtherImages:
    """As `generate`, a few at a time."""
    full, factor = stages[-1].image_size, prod(stage.factor for stage in stages)
    height, width = (full, full) if smaller is None else (side * factor for side in smaller.shape[-2:])
    parts = in_turn(len(labels), height, width)
    small = [None if smaller is None else smaller[part] for part in parts]
    told = [text and text.at(range(len(labels))[part]) for part in parts]
    made = [
        generate(stages, labels[part], samplings, rngs[part], one, text=some)
        for part, one, some in zip(parts, small, told, strict=True)
    ]
    return torch.cat(made)
