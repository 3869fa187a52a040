"""The training loop. It knows objectives, train states, batches and hooks; it does not know diffusion."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
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
    def progress(self) -> float:
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

    def restore(self, state: dict[str, int | float]) -> None:
        for name, value in state.items():
            setattr(self, name, value)
        self.started = time.perf_counter()


@dataclass(frozen=True)
class StepResult:
    """The terms of each loss and the norm of each gradient, by network."""

    terms: dict[str, Tensor]
    norms: dict[str, float]


@dataclass(frozen=True)
class Hook:
    """Something done between steps, when it is due: log, save, validate."""

    due: Callable[[TrainProgress], bool]
    run: Callable[[TrainProgress, StepResult], None]


def train_loop(
    objective: Objective,
    states: dict[str, TrainState],
    source: BatchSource,
    clock: TrainProgress,
    hooks: Sequence[Hook],
) -> None:
    clock.started = time.perf_counter()
    while clock.images_seen < clock.total:
        batch = source.batch(clock.images_seen, clock.batch)
        result = train_step(states, objective.losses(batch, clock.progress, clock.rng()), clock)
        clock.advance(len(batch))
        for hook in hooks:
            if hook.due(clock):
                hook.run(clock, result)


def train_step(states: dict[str, TrainState], losses: dict[str, Loss], clock: TrainProgress) -> StepResult:
    """One step of every network that has a loss. All gradients are taken before any weight moves."""
    for name, loss in losses.items():
        states[name].backward(loss.total)
    norms = {name: step(states[name], name, losses[name], clock) for name in losses}
    terms = {f"{name}.{term}": value for name, loss in losses.items() for term, value in loss.terms.items()}
    return StepResult(terms, norms)


def step(state: TrainState, name: str, loss: Loss, clock: TrainProgress) -> float:
    try:
        return state.step(clock.progress)
    except NotFiniteError as error:
        terms = ", ".join(f"{term} {float(value):.3g}" for term, value in loss.terms.items())
        raise UserError(
            f"{name} after {clock.images_seen} images: {error} ({terms}); training stopped before it spread, and the "
            f"last checkpoint is sound; lower the learning rate, or set precision to float32, and resume"
        ) from None


def every(seconds: float) -> Callable[[TrainProgress], bool]:
    """Due when so many seconds of training have gone by since it was last due."""
    last = 0.0

    def due(clock: TrainProgress) -> bool:
        nonlocal last
        if clock.seconds < last + seconds:
            return False
        last = clock.seconds
        return True

    return due


def at_fractions(fractions: Iterable[float], seen: float = 0.0) -> Callable[[TrainProgress], bool]:
    """Due once at each of these fractions of the run, those up to `seen` left out."""
    left = sorted(fraction for fraction in fractions if fraction > seen)

    def due(clock: TrainProgress) -> bool:
        passed = [fraction for fraction in left if clock.progress >= fraction]
        del left[: len(passed)]
        return bool(passed)

    return due
