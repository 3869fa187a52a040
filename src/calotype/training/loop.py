"""The training loop. It knows objectives, train states and batches; it does not know diffusion."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from calotype.data.listing import first_names
from calotype.devices import is_host
from calotype.machine import out_of_memory, release_memory
from calotype.ranks import ALONE, Ranks
from calotype.threads import at_once, one_thread
from calotype.training.objectives import Loss, Objective, Slice
from calotype.training.state import Gradients, StepNorms, TrainState
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
    """The terms of each loss, the norm of each gradient and the learning rate, by network.

    To read one of the tensors is to wait until the device has done the step, so that it has nothing to do until the
    next one has been prepared. Where that costs time, `require_finite` is called after the next step has begun.
    """

    terms: dict[str, Tensor]
    norms: dict[str, Tensor]
    learning_rates: dict[str, float] = field(default_factory=dict)
    require_finite: Callable[[], None] = lambda: None
    """Raises `UserError` for a picture, a loss, a gradient or a weight that is not finite, with the files; on a CPU
    the step itself has done so. To be called before anything of the step is kept."""


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
    division: Division = WHOLE,
    note: Note = lambda text: None,
) -> Iterator[StepResult]:
    """Trains to the end of the leg, one step for each result; what is done between steps is up to the caller.

    Where memory is too small for a batch, its slices are worked on in twice as many `rounds`, one after the other, from
    then on; `note` gets a line. Raises `UserError` where they cannot be smaller, or there are more ranks than images.
    Several ranks do not change their rounds on the way: the others would wait for one. What a step leaves on a GPU is
    read when the next one has begun; who keeps anything of it before calls `StepResult.require_finite`.
    """
    ranks = division.ranks
    if progress.batch < ranks.count:
        raise UserError(f"a batch of {progress.batch} is too small for {ranks.count} ranks; take fewer ranks")
    if not ranks.alone:
        division = division._replace(rounds=min(division.rounds, progress.batch // ranks.count))  # equal for all ranks
    for state in states.values():
        state.share(ranks)
    progress.started = time.perf_counter()
    before: StepResult | None = None
    while progress.images_seen < progress.total:
        batch = source.batch(progress.images_seen, progress.batch)
        try:
            result = train_step(objective, states, batch, progress, division)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or not ranks.alone:
                raise
            division = in_more_rounds(objective, states, batch, progress, division)
            note(f"memory is too small for a batch of {len(batch)} at once: it is worked on in {division.rounds} parts")
            continue
        if before:
            before.require_finite()
        before = result
        progress.advance(len(batch))
        yield result
    if before:
        before.require_finite()


def in_more_rounds(
    objective: Objective, states: Mapping[str, TrainState], batch: Batch, progress: TrainProgress, division: Division
) -> Division:
    """With twice as many rounds. Raises `UserError` where the batch has no more slices."""
    for state in states.values():
        state.zero_grad()  # of the rounds before
    release_memory(batch.clean.device)
    slices, rounds = division.slices, division.rounds
    before, after = (
        len(objective.slices(batch, progress.fraction, progress.rng(), slices, count)) for count in (rounds, 2 * rounds)
    )
    if after <= before:
        raise UserError(
            f"memory is too small for a training step after {progress.images_seen} images; the last checkpoint is "
            f"sound: close other programs and resume, or start again with a smaller batch, crop or network"
        )
    return division._replace(rounds=2 * rounds)


def train_step(
    objective: Objective, states: Mapping[str, TrainState], batch: Batch, progress: TrainProgress,
    division: Division = WHOLE,
) -> StepResult:  # fmt: skip
    """One step of every network that has a loss.

    In each of `rounds`, `slices` of the batch are worked on at once, if the objective can; of several ranks each works
    on its own part, in `rounds` alone. Raises `UserError` as `StepResult.require_finite` does.
    """
    slices, rounds, ranks = division
    with finite_or_stop(batch, f"{' and '.join(states)} {progress}", ranks):
        if not ranks.alone:
            parts = objective.slices(batch, progress.fraction, progress.rng(), 1, rounds, ranks)
            return update(states, summed_over_ranks(states, parts), batch, progress, ranks)
        with one_thread() if slices > 1 else nullcontext():
            parts = objective.slices(batch, progress.fraction, progress.rng(), slices, rounds)
            losses: list[dict[str, Loss]] = []
            for start in range(0, len(parts), slices):
                tasks = [partial(differentiated, states, part) for part in parts[start : start + slices]]
                losses += accumulated(states, at_once(tasks))
            return update(states, losses, batch, progress, threads=slices)


@contextmanager
def finite_or_stop(batch: Batch, place: str, ranks: Ranks) -> Iterator[None]:
    """`UserError` in place of `NotFiniteError`, with the files of the batch, and the cause where that is a picture."""
    try:
        yield
    except NotFiniteError as error:
        ranks.end_with_first()
        spoiled = not_finite_of(batch)
        raise UserError(
            f"{f'{place} a picture of the batch is not finite: {spoiled}' if spoiled else error}; training stopped "
            f"before it spread, and the last checkpoint is sound; lower the learning rate, or set precision to "
            f"float32, and resume (files of this step: {first_names(batch.files, NAMED) or 'unknown'})"
        ) from None


def not_finite_of(batch: Batch) -> str:
    """The files of images (or latents) that are not finite; "" if all are."""
    wrong = set[int]()
    for images in (batch.clean, batch.low_res):
        if images is not None:
            wrong |= {*(~images.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()}
    if not wrong:
        return ""
    return first_names([batch.files[row] for row in sorted(wrong)] if batch.files else (), NAMED) or "unknown"


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
    states: Mapping[str, TrainState], slices: Sequence[dict[str, Loss]], batch: Batch, progress: TrainProgress,
    ranks: Ranks = ALONE, threads: int = 1,
) -> StepResult:  # fmt: skip
    """One step along the sum of the gradients of all slices, whose losses these are, and of those of other ranks.

    Raises `NotFiniteError`, which names network, step and terms.
    """
    terms = {name: summed_terms([part[name] for part in slices], ranks) for name in slices[0]}
    norms, place, read_now = dict[str, StepNorms](), str(progress), is_host(batch.clean.device)
    for name in slices[0]:
        with finite(f"{name} {place}", terms[name]) if read_now else nullcontext():
            norms[name] = states[name].step(progress.fraction, threads)

    def require_finite() -> None:
        with finite_or_stop(batch, f"{' and '.join(states)} {place}", ranks):
            for name, of in norms.items():
                with finite(f"{name} {place}", terms[name]):
                    states[name].require_finite(of)

    named = {f"{name}.{term}": value for name in terms for term, value in terms[name].items()}
    rates = {name: states[name].learning_rate(progress.fraction) for name in norms}
    gradients = {name: of.gradient for name, of in norms.items()}
    return StepResult(named, gradients, rates, (lambda: None) if read_now else require_finite)


@contextmanager
def finite(about: str, terms: Mapping[str, Tensor]) -> Iterator[None]:
    """Raises `NotFiniteError` for terms that are not finite, and names them where what is done within it raises one."""
    values = torch.stack([*terms.values()]).tolist()
    try:
        if not all(map(math.isfinite, values)):
            raise NotFiniteError("the loss is not finite")
        yield
    except NotFiniteError as error:
        shown = ", ".join(f"{term} {value:.3g}" for term, value in zip(terms, values, strict=True))
        raise NotFiniteError(f"{about} {error} ({shown})") from None


def summed_terms(losses: Sequence[Loss], ranks: Ranks) -> dict[str, Tensor]:
    """The terms of a loss, summed over slices and ranks."""
    sums = torch.stack([torch.stack([loss.terms[term] for loss in losses]).sum() for term in losses[0].terms])
    return dict(zip(losses[0].terms, ranks.sum(sums), strict=True))


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
