"""How long the legs of a run train: what an image costs in each, and the controller that keeps a leg to its time."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from calotype.training.loop import TrainProgress

Phases = list[tuple[float, float]]
"""Up to this fraction of the leg, an image costs so many seconds (or operations)."""


@dataclass(frozen=True)
class TimeBudget:
    """What the pipeline needs of a plan, in seconds; by leg, or by the name of another step."""

    seconds: float
    """Of the whole command."""
    predicted: Mapping[str, float] = field(default_factory=dict)
    """Of each step, in their order."""
    phases: Mapping[str, Phases] = field(default_factory=dict)
    paced: Collection[str] = ()
    """Legs whose length follows the clock; the others see as many images as the recipe says."""
    level_crops: Mapping[str, int] = field(default_factory=dict)
    """On how many crops the augmentation level of a stage is searched, by its size; 0: it stays as in the recipe."""

    def after(self, step: str) -> float:
        """Predicted seconds of all that comes after a step."""
        order = list(self.predicted)
        return sum(self.predicted[later] for later in order[order.index(step) + 1 :])


class BudgetController:
    """Keeps a leg to its seconds: on a machine faster or slower than measured, the leg sees more or fewer images."""

    def __init__(self, phases: Phases, seconds: float) -> None:
        self.phases, self.seconds = phases, seconds

    def done(self, progress: float) -> float:
        """The share of the leg's work that lies before this fraction of its images."""
        before = [(min(end, progress), cost) for end, cost in self.phases]
        return mean_cost(before) / mean_cost(self.phases)

    def __call__(self, clock: TrainProgress) -> None:
        done = self.done(clock.progress)
        if not 0.02 < done < 0.97:
            return
        ahead = clock.seconds * (1 - done) / done
        stretch = max(0.5, min(2.0, (self.seconds - clock.seconds) / ahead))
        images = clock.images_seen + (clock.total - clock.images_seen) * stretch
        clock.total = max(clock.images_seen + clock.batch, whole_batches(images, clock.batch))


def mean_cost(phases: Phases) -> float:
    """Seconds or operations an image, averaged over the leg."""
    starts = [0.0, *(end for end, _ in phases)]
    return sum((end - start) * cost for start, (end, cost) in zip(starts, phases, strict=False))


def whole_batches(images: float, batch: int) -> int:
    """The images of as many whole batches, at least of one."""
    return max(1, math.floor(images / batch)) * batch
