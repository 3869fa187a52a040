"""The training loop. It knows objectives, train states and batches; it does not know diffusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

from calotype.training.objectives import Loss, Objective
from calotype.training.state import NotFiniteError, TrainState
from calotype.types import Batch, Rng, UserError


@runtime_checkable
class BatchSource(Protocol):
    """Training data as a function of the images seen: no state, so nothing to restore."""

    def batch(self, images_seen: int, count: int) -> Batch: ...


@dataclass
class TrainProgress:
    """How far a leg is. The only measure of progress is images seen; seconds are kept for the budget and the report."""

    total: int
    batch: int
    seed: int
    images_seen: int = 0
    seconds: float = 0.0
    started: float = field(default_factory=time.perf_counter)

    @property
    def fraction(self) -> float:
        return self.images_seen / self.total

    def rng(self) -> Rng:
        return Rng((self.seed, "train", self.images_seen))

    def advance(self, count: int) -> None:
        self.images_seen += count
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now

    def state(self) -> dict[str, int | float]:
        state = asdict(self)
        del state["started"]
        return state

    def restore(self, state: Mapping[str, int | float]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.started = time.perf_counter()


@dataclass(frozen=True)
class StepResult:
    """The terms of each loss and the norm of each gradient, by network."""

    terms: dict[str, Tensor]
    norms: dict[str, float]


def train_steps(
    objective: Objective, states: Mapping[str, TrainState], source: BatchSource, progress: TrainProgress
) -> Iterator[StepResult]:
    """Trains to the end of the leg, one step for each result; what is done between steps is up to the caller."""
    progress.started = time.perf_counter()
    while progress.images_seen < progress.total:
        batch = source.batch(progress.images_seen, progress.batch)
        result = train_step(states, objective.losses(batch, progress.fraction, progress.rng()), progress)
        progress.advance(len(batch))
        yield result


def train_step(states: Mapping[str, TrainState], losses: dict[str, Loss], progress: TrainProgress) -> StepResult:
    """One step of every network that has a loss. All gradients are taken before any weight moves.

    Raises `UserError` for a gradient that is not finite.
    """
    for name, loss in losses.items():
        states[name].backward(loss.total)
    norms = {}
    for name, loss in losses.items():
        try:
            norms[name] = states[name].step(progress.fraction)
        except NotFiniteError as error:
            values = ", ".join(f"{term} {float(value):.3g}" for term, value in loss.terms.items())
            raise UserError(
                f"{name} after {progress.images_seen} images: {error} ({values}); training stopped before it spread, "
                f"and the last checkpoint is sound; lower the learning rate, or set precision to float32, and resume"
            ) from None
    terms = {f"{name}.{term}": value for name, loss in losses.items() for term, value in loss.terms.items()}
    return StepResult(terms, norms)


Due = Callable[[TrainProgress], bool]
"""Whether something is to be done after a step."""


def every(seconds: float, last: float = 0.0) -> Due:
    """Due when so many seconds of training have gone by since it was last due, or since `last`."""

    def due(progress: TrainProgress) -> bool:
        nonlocal last
        if progress.seconds < last + seconds:
            return False
        last = progress.seconds
        return True

    return due


def at_fractions(fractions: Iterable[float], seen: float = 0.0) -> Due:
    """Due once at each of these fractions of the leg, those up to `seen` left out."""
    left = sorted(fraction for fraction in fractions if fraction > seen)

    def due(progress: TrainProgress) -> bool:
        passed = [fraction for fraction in left if progress.fraction >= fraction]
        del left[: len(passed)]
        return bool(passed)

    return due
