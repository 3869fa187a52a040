"""The training loop. It knows objectives, train states and batches; it does not know diffusion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from calotype.machine import out_of_memory, release_memory
from calotype.ranks import ALONE, Ranks
from calotype.threads import at_once, one_thread
from calotype.training.objectives import Loss, Objective, Slice
from calotype.training.state import Gradients, TrainState
from calotype.types import Batch, NotFiniteError, Rng, UserError

NAMED = 8
"""Files of a batch that an error message names."""


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

    def __str__(self) -> str:
        """Where an error happened."""
        return f"after {self.images_seen} images: in step {self.images_seen // self.batch + 1}"

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
    """The terms of each loss, the norm of each gradient and the learning rate, by network."""

    terms: dict[str, Tensor]
    norms: dict[str, float]
    learning_rates: dict[str, float] = field(default_factory=dict)


Note = Callable[[str], None]
"""Takes a line for the user."""


class Division(NamedTuple):
    """How a batch is divided: see `train_steps`."""

    slices: int = 1
    rounds: int = 1
    ranks: Ranks = ALONE


WHOLE = Division()


def train_steps(
    objective: Objective,
    states: Mapping[str, TrainState],
    source: BatchSource,
    progress: TrainProgress,
    slices: int = 1,
    note: Note = lambda text: None,
    rounds: int = 1,
    ranks: Ranks = ALONE,
) -> Iterator[StepResult]:
    """Trains to the end of the leg, one step for each result; what is done between steps is up to the caller.

    Where memory is too small for a batch, its slices are worked on in twice as many `rounds`, one after the other, from
    then on; `note` gets a line. Raises `UserError` where they cannot be smaller, or there are more ranks than images.
    Several ranks do not change their rounds on the way: the others would wait for one.
    """
    if progress.batch < ranks.count:
        raise UserError(f"a batch of {progress.batch} is too small for {ranks.count} ranks; take fewer ranks")
    if not ranks.alone:
        rounds = min(rounds, progress.batch // ranks.count)  # so that all ranks have as many parts
    for state in states.values():
        state.share(ranks)
    progress.started = time.perf_counter()
    while progress.images_seen < progress.total:
        batch = source.batch(progress.images_seen, progress.batch)
        try:
            result = train_step(objective, states, batch, progress, slices, rounds, ranks)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not ranks.alone:
                raise
            rounds = smaller(objective, states, batch, progress, slices, rounds)
            note(f"memory is too small for a batch of {len(batch)} at once: it is worked on in {rounds} parts")
            continue
        progress.advance(len(batch))
        yield result


def smaller(
    objective: Objective, states: Mapping[str, TrainState], batch: Batch, progress: TrainProgress, slices: int,
    rounds: int,
) -> int:  # fmt: skip
    """Twice as many rounds. Raises `UserError` where the batch has no more slices."""
    for state in states.values():
        state.zero_grad()  # of the rounds before
    release_memory(batch.clean.device)
    before, after = (
        len(objective.slices(batch, progress.fraction, progress.rng(), slices, count)) for count in (rounds, 2 * rounds)
    )
    if after <= before:
        raise UserError(
            f"memory is too small for a training step after {progress.images_seen} images; the last checkpoint is "
            f"sound: close other programs and resume, or start again with a smaller batch, crop or network"
        )
    return 2 * rounds


def train_step(
    objective: Objective, states: Mapping[str, TrainState], batch: Batch, progress: TrainProgress, slices: int = 1,
    rounds: int = 1, ranks: Ranks = ALONE,
) -> StepResult:  # fmt: skip
    """One step of every network that has a loss.

    In each of `rounds`, `slices` of the batch are worked on at once, if the objective can; of several ranks each works
    on its own part, in `rounds` alone. Raises `UserError` for a picture, a loss or a gradient that is not finite, with
    the files.
    """
    try:
        require_finite(batch, f"{' and '.join(states)} {progress}")
        if not ranks.alone:
            parts = objective.slices(batch, progress.fraction, progress.rng(), 1, rounds, ranks)
            return update(states, summed_over_ranks(states, parts), progress, ranks)
        with one_thread() if slices > 1 else nullcontext():
            parts = objective.slices(batch, progress.fraction, progress.rng(), slices, rounds)
            losses: list[dict[str, Loss]] = []
            for start in range(0, len(parts), slices):
                tasks = [partial(differentiated, states, part) for part in parts[start : start + slices]]
                losses += accumulated(states, at_once(tasks))
            return update(states, losses, progress, threads=slices)
    except NotFiniteError as error:
        ranks.end_with_first()
        raise UserError(
            f"{error}; training stopped before it spread, and the last checkpoint is sound; lower the learning rate, "
            f"or set precision to float32, and resume (files of this step: {several(batch.files)})"
        ) from None


def require_finite(batch: Batch, place: str) -> None:
    """Raises `NotFiniteError` with the files of images (or latents) that are not finite."""
    for images in (batch.clean, batch.low_res):
        if images is None or math.isfinite(float(images.sum())):  # the sum is cheaper than a look at each
            continue
        if wrong := (~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
            named = [batch.files[row] for row in wrong] if batch.files else ()
            raise NotFiniteError(f"{place} a picture of the batch is not finite: {several(named)}")


def several(names: Sequence[str]) -> str:
    """At most so many names on one line."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more or "unknown"


Differentiated = dict[str, tuple[Loss, Gradients]]
"""By network, the loss of a slice and its gradients."""


def differentiated(states: Mapping[str, TrainState], part: Callable[[], dict[str, Loss]]) -> Differentiated:
    return {name: (loss, states[name].gradients(loss.total)) for name, loss in part().items()}


def accumulated(states: Mapping[str, TrainState], slices: Sequence[Differentiated]) -> list[dict[str, Loss]]:
    """Adds the gradients of all slices to those of the next step. Returns the losses."""
    for name in slices[0]:
        for part in slices:
            states[name].add(part[name][1])
    return [{name: loss for name, (loss, _) in part.items()} for part in slices]


def summed_over_ranks(states: Mapping[str, TrainState], parts: Sequence[Slice]) -> list[dict[str, Loss]]:
    """Adds the gradients of these slices, and of those of the other ranks, to those of the next step.

    Returns the losses of these.
    """
    losses = []
    for place, part in enumerate(parts, 1):
        losses.append(part())
        for name, loss in losses[-1].items():
            states[name].backward(loss.total, place == len(parts))
    return losses


def update(
    states: Mapping[str, TrainState], slices: Sequence[dict[str, Loss]], progress: TrainProgress, ranks: Ranks = ALONE,
    threads: int = 1,
) -> StepResult:  # fmt: skip
    """One step along the sum of the gradients of all slices, whose losses these are, and of those of other ranks.

    Raises `NotFiniteError`, which names network, step and terms.
    """
    norms, terms = {}, {}
    for name in slices[0]:
        losses = [part[name] for part in slices]
        sums = torch.stack([torch.stack([loss.terms[term] for loss in losses]).sum() for term in losses[0].terms])
        terms[name] = dict(zip(losses[0].terms, ranks.sum(sums), strict=True))
    for name in slices[0]:
        values = torch.stack(list(terms[name].values())).tolist()
        try:
            if not all(map(math.isfinite, values)):
                raise NotFiniteError("the loss is not finite")
            norms[name] = states[name].step(progress.fraction, threads)
        except NotFiniteError as error:
            shown = ", ".join(f"{term} {value:.3g}" for term, value in zip(terms[name], values, strict=True))
            raise NotFiniteError(f"{name} {progress} {error} ({shown})") from None
    named = {f"{name}.{term}": value for name in terms for term, value in terms[name].items()}
    return StepResult(named, norms, {name: states[name].learning_rate(progress.fraction) for name in norms})


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


def at_doublings(first: int, seen: int = 0) -> Due:
    """Due at `first` images seen, at twice as many, and so on, those up to `seen` left out; never where it is 0."""
    rung = doublings(first, seen)

    def due(progress: TrainProgress) -> bool:
        nonlocal rung
        before, rung = rung, doublings(first, progress.images_seen)
        return rung > before

    return due


def doublings(first: int, seen: int) -> int:
    """How many of `first`, twice as many, and so on, are at most `seen`."""
    return (seen // first).bit_length() if first else 0


def at_fractions(fractions: Iterable[float], seen: float = 0.0) -> Due:
    """Due once at each of these fractions of the leg, those up to `seen` left out."""
    left = sorted(fraction for fraction in fractions if fraction > seen)

    def due(progress: TrainProgress) -> bool:
        passed = [fraction for fraction in left if progress.fraction >= fraction]
        del left[: len(passed)]
        return bool(passed)

    return due
