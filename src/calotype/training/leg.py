"""A leg of a run: one network (or two that compete), trained from its newest checkpoint to its end."""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Generic, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from calotype.priors.prior import trained_state
from calotype.ranks import ALONE, Ranks
from calotype.run import Run, Validation
from calotype.training import checkpoint
from calotype.training.checkpoint import Saved
from calotype.training.control import MIN_VALIDATION, CriticGuard, EarlyStopping
from calotype.training.loop import (
    WHOLE,
    BatchSource,
    Division,
    Note,
    StepResult,
    TrainProgress,
    at_doublings,
    at_fractions,
    every,
    train_steps,
)
from calotype.training.objectives import Objective
from calotype.training.process import Interrupted, ProgressBar
from calotype.training.sharding import ShardedState
from calotype.training.state import TrainState
from calotype.types import UserError

PREVIEWS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Fractions of a leg after which it is previewed and validated."""
LOG_SECONDS, CONTROL_SECONDS, SAVE_SECONDS = 2.0, 3.0, 60.0
LOG_SHARE = 1 / 400
"""Between two lines of the log at least this fraction of the leg's time so far: 400 lines for each e-fold of it, so a
week has 2,700."""
CPU = torch.device("cpu")
Result_co = TypeVar("Result_co", covariant=True)


@runtime_checkable
class Validator(Protocol):
    """Shows what the averaged weights make, always from the same seeds, and measures them on validation pictures."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the pictures in a preview; empty where there are none."""
        ...

    def write(self, path: Path) -> None: ...

    def measure(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Leg(Generic[Result_co]):
    """A network to train, with its objective, data, progress and validator."""

    name: str
    objective: Objective
    states: dict[str, TrainState]
    source: BatchSource
    progress: TrainProgress
    validator: Validator
    trained: Result_co
    """The result: it holds the averaged weights, which the end of the leg leaves at their best."""
    guard: CriticGuard | None = None
    """It watches over the autoencoder, and is saved with it."""
    write_raw: Callable[[Path], None] | None = None
    """A further preview at the end, of the weights that are not averaged."""
    fewest_validated: int = MIN_VALIDATION
    """Pictures of a validation from which overfitting is judged."""

    @property
    def sharded(self) -> list[ShardedState]:
        return [state for state in self.states.values() if isinstance(state, ShardedState)]

    @property
    def saved(self) -> dict[str, Saved]:
        """All that a checkpoint must hold."""
        return {**self.states, **({"critic-guard": self.guard} if self.guard else {})}

    def steps(self, division: Division = WHOLE, note: Note = lambda text: None) -> Iterator[StepResult]:
        """Trains to the end, one step for each result; see `train_steps`."""
        return train_steps(self.objective, self.states, self.source, self.progress, division, note)


@dataclass(frozen=True)
class LegLimits:
    """How a leg is held to its time; without limits it sees the images that the recipe says."""

    control: Callable[[TrainProgress], None] = lambda progress: None
    previews_at: tuple[float, ...] = ()
    """Fractions after which it is previewed and validated; none: `PREVIEWS`."""
    validation_share: float = math.inf
    """Validation before the end is skipped while it has taken a larger share of the time."""
    max_rise: float = math.inf
    """The leg ends when its held-out loss is more than so many times the best."""
    milestones: int = 0
    """Of the recipe."""


UNLIMITED = LegLimits()


def train_leg(
    run: Run, leg: Leg[object], stop: threading.Event, bar: ProgressBar, say: Note = lambda text: None,
    limits: LegLimits = UNLIMITED, division: Division = WHOLE, prepare: Callable[[], object] = lambda: None,
) -> None:  # fmt: skip
    """Trains a leg from its newest checkpoint to its end. Raises `Interrupted` after saving, if `stop` is set.

    `prepare` is called before the first step, if there is one; `say` and the log get a line for each damaged checkpoint
    that was passed over, and where the leg overfitted. Of several ranks the first restores, validates, controls and
    saves (of sharded states each rank its pieces); all stop at the same step.
    """

    def note(text: str) -> None:
        run.log("note", text=f"{leg.name}: {text}")
        say(f"{leg.name}: {text}")

    ranks = division.ranks
    stopping = begin_leg(run, leg, ranks, note, prepare, limits.milestones)
    progress, validating, save = leg.progress, 0.0, partial(save_leg, run, leg, ranks, limits.milestones, note)
    log = StepLog(run, leg.name, progress, bar)
    guard_due = at_fractions(leg.guard.fractions if leg.guard else (), progress.fraction)
    preview_due = at_fractions(limits.previews_at or PREVIEWS, progress.fraction)
    control_due, save_due = every(CONTROL_SECONDS), every(SAVE_SECONDS, progress.seconds)
    milestone_due = at_doublings(limits.milestones, progress.images_seen)

    def validate_affordably() -> None:
        nonlocal validating
        if progress.fraction < 1 and validating > limits.validation_share * progress.seconds:
            return
        start = time.perf_counter()
        stopping.note(progress.images_seen, validate(run, leg.name, progress, leg.validator))
        run.save()
        validating += time.perf_counter() - start
        if stopping.rise > limits.max_rise:
            progress.total = progress.images_seen

    for result in leg.steps(division, note):
        log(progress, result)
        if leg.guard and guard_due(progress):
            result.require_finite()
            guard_critic(run, leg.name, progress, leg.guard, ranks)
        if preview_due(progress):
            result.require_finite()
            with gathered_average(leg, ranks):
                ranks.say(validate_affordably)
        if ranks.first and control_due(progress):
            limits.control(progress)
        saving, stopped = agreed(ranks, progress, save_due(progress) | milestone_due(progress), stop.is_set())
        if saving or stopped:
            result.require_finite()
            save()
        if stopped:
            ranks.end_with_first()
            raise Interrupted
    with gathered_average(leg, ranks):
        ranks.say(lambda: end_leg(run, leg, stopping))
    share_leg(ranks, leg)
    save()
    if ranks.first:
        finish_leg(run, leg, say)
        shutil.rmtree(stopping.folder, ignore_errors=True)


def begin_leg(
    run: Run, leg: Leg[object], ranks: Ranks, note: Note, prepare: Callable[[], object] = lambda: None,
    milestones: int = 0,
) -> EarlyStopping:  # fmt: skip
    """Brings all ranks to the newest whole checkpoint, as the first chooses it, and validation to where it was.

    `prepare` is called where there are steps left.
    """
    others = ranks.say(lambda: leg.name not in run.state.validation)  # pictures than those of a checkpoint, if any
    restored = ranks.say(lambda: resume_leg(run, leg, note))
    if leg.sharded and restored and not ranks.first:
        checkpoint.load_checkpoint(run.folder / "checkpoints" / restored, leg.saved, leg.progress)
    if others and leg.guard:
        leg.guard.forget()
    if not leg.sharded:
        share_leg(ranks, leg)
    if others and leg.guard and restored:
        save_leg(run, leg, ranks, milestones, note)  # before `validation` has the leg: after a kill it forgets again
    validation = run.state.validation.setdefault(leg.name, Validation())
    run.save()
    best = run.folder / "checkpoints" / f"best-{leg.name}"
    stopping = EarlyStopping(best, leg.states, validation, leg.fewest_validated)
    if ranks.first and leg.progress.fraction < 1 and (lost := stopping.forget_lost()):
        note(lost)
    if leg.progress.fraction < 1:
        prepare()
    return stopping


def resume_leg(run: Run, leg: Leg[object], note: Note) -> str | None:
    """Brings a leg to its newest whole checkpoint, and returns its name; `note` gets a line for each damaged one that
    is passed over.

    Raises `UserError` where the leg had been finished, and the checkpoint of its end is missing or damaged.
    """
    checkpoints = run.folder / "checkpoints"
    restored = checkpoint.restore(checkpoints, leg.name, leg.saved, leg.progress, note)
    if run.state.legs[leg.name] == "finished" and (restored is None or leg.progress.images_seen < leg.progress.total):
        raise UserError(
            f"the last checkpoint of the {leg.name} in {checkpoints} is missing or damaged, and what came after it was "
            f"made with it; put it back, or start a new run"
        )
    if restored is not None:
        run.log("note", text=f"{leg.name}: went on from {restored.name}")
    elif spent := run.state.seconds.get(leg.name):
        note(
            f"it was trained for {spent:,.0f} s, but {checkpoints} has no checkpoint of it, so it starts from 0; if "
            f"there is a copy, stop this with Ctrl-C, put the copy back, and resume"
        )
    run.state.legs[leg.name] = "training"
    run.save()
    return restored.name if restored else None


@contextmanager
def gathered_average(leg: Leg[object], ranks: Ranks) -> Iterator[None]:
    """Within it the first rank has the whole averages of sharded states on its device."""
    for state in leg.sharded:
        state.gather()
        state.move(ranks.device if ranks.first else CPU)
    yield
    for state in leg.sharded:
        state.move(CPU)


def share_leg(ranks: Ranks, leg: Leg[object]) -> None:
    """Brings all ranks to where the first is: its weights, averages, moments and progress; of sharded states the
    average alone, whole, on every device."""
    if ranks.alone:
        return
    ranks.meet()
    steps = ranks.say(lambda: {name: state.steps for name, state in leg.saved.items()})
    for name, state in leg.saved.items():
        if isinstance(state, ShardedState):
            state.replace_average(ranks.broadcast(trained_state(state.average)))
            state.move(ranks.device)
        elif ranks.first:
            ranks.broadcast(state.tensors())
        else:
            state.restore(ranks.broadcast({}), steps[name])
    leg.progress.restore(ranks.say(leg.progress.state))


def agreed(ranks: Ranks, progress: TrainProgress, saving: bool, stopped: bool) -> tuple[bool, bool]:
    """Whether all save, as the first says, and stop, as any says; all get the length and time of the first."""
    if ranks.alone:
        return saving, stopped
    own = (float(progress.total), progress.seconds, float(saving)) if ranks.first else (0.0, 0.0, 0.0)
    total, progress.seconds, save, stop = ranks.max([*own, float(stopped)])
    progress.total = int(total)
    return bool(save), bool(stop)


def save_leg(
    run: Run, leg: Leg[object], ranks: Ranks = ALONE, milestones: int = 0, note: Note = lambda text: None
) -> None:
    """To be called by all ranks."""
    if ranks.first:
        run.require_lock()
    checkpoint.save(run.folder / "checkpoints", leg.name, leg.saved, leg.progress, ranks, milestones, note)
    run.state.seconds[leg.name] = leg.progress.seconds
    run.save()


def end_leg(run: Run, leg: Leg[object], stopping: EarlyStopping) -> None:
    """Leaves the averaged weights at their best."""
    leg.progress.advance(0)
    if overfitted := stopping.restore_best():
        run.log("note", text=f"{leg.name}: {overfitted}")
        run.state.overfitted[leg.name] = overfitted


def finish_leg(run: Run, leg: Leg[object], say: Callable[[str], None]) -> None:
    """Draws the last preview, and says where the leg overfitted."""
    run.state.legs[leg.name] = "finished"
    trained = [state.network for name, state in leg.states.items() if name != "critic"]
    run.state.parameters[leg.name] = sum(weights.numel() for network in trained for weights in network.parameters())
    run.save()
    if overfitted := run.state.overfitted.get(leg.name):
        say(f"{leg.name}: {overfitted}")
    if leg.write_raw and not (file := run.folder / "previews" / f"{leg.name}-raw.png").exists():
        with run.timing("previews"):
            leg.write_raw(file)


# -- Between the steps -------------------------------------------------------------------------------------------------


def validate(run: Run, leg: str, progress: TrainProgress, validator: Validator) -> dict[str, float]:
    """A preview and the measures, into the run's folder and its log."""
    where = {"leg": leg, "images_seen": progress.images_seen, "seconds": progress.seconds}
    file = f"previews/{leg}-{progress.images_seen:010d}.png"
    (run.folder / "previews").mkdir(exist_ok=True)
    validator.write(run.folder / file)
    prompts = {"prompts": validator.prompts} if validator.prompts else {}
    run.log("preview", **where, file=file, **prompts)
    run.log("check", **where, progress=progress.fraction, measures=(measures := validator.measure()))
    return measures


def guard_critic(run: Run, leg: str, progress: TrainProgress, guard: CriticGuard, ranks: Ranks = ALONE) -> None:
    """Lets the guard check the reconstructions, as the first rank has measured them; logs what it measured and did."""
    checked = guard.check(ranks.say(guard.psnr))
    run.log("guard", leg=leg, images_seen=progress.images_seen, **checked._asdict())
    if checked.taken_back:
        run.log("note", text=f"{leg} after {progress.images_seen} images: {checked}")


class StepLog:
    """Averages loss terms and gradient norms over steps, and logs them.

    Every two seconds at first, then ever more rarely, so that the log of a long run stays small: see `LOG_SHARE`.
    """

    def __init__(self, run: Run, leg: str, progress: TrainProgress, bar: ProgressBar) -> None:
        self.run, self.leg, self.bar = run, leg, bar
        self.terms, self.norms = RunningMeans(), RunningMeans()
        self.last, self.last_seen = progress.seconds, progress.images_seen
        self.bar_due = every(LOG_SECONDS, progress.seconds)

    def __call__(self, progress: TrainProgress, result: StepResult) -> None:
        self.terms.add(result.terms)
        self.norms.add(result.norms)
        ended = progress.images_seen >= progress.total
        if ended or progress.seconds - self.last >= max(LOG_SECONDS, LOG_SHARE * progress.seconds):
            self._log(progress, result.learning_rates)
        elif self.bar_due(progress):
            self._show(progress, self.terms.means())

    def _log(self, progress: TrainProgress, rates: dict[str, float]) -> None:
        terms, norms = self.terms.means(), self.norms.means()
        if not all(map(math.isfinite, (*terms.values(), *norms.values()))):
            return  # on a GPU: the next step, which ends the leg, names it
        self.run.log(
            "step", leg=self.leg, images_seen=progress.images_seen, progress=progress.fraction,
            seconds=progress.seconds, terms=terms, norms=norms, learning_rates=rates,
            images_a_second=self._speed(progress),
        )  # fmt: skip
        self._show(progress, terms)
        self.terms, self.norms = RunningMeans(), RunningMeans()
        self.last, self.last_seen = progress.seconds, progress.images_seen

    def _show(self, progress: TrainProgress, terms: dict[str, float]) -> None:
        shown = ", ".join(f"{name.split('.')[-1]} {value:.3f}" for name, value in list(terms.items())[:3])
        self.bar(progress.images_seen, progress.total, f"{shown}, {self._speed(progress):.0f} pictures/s")

    def _speed(self, progress: TrainProgress) -> float:
        """Images a second since the last line of the log."""
        return (progress.images_seen - self.last_seen) / max(progress.seconds - self.last, 1e-9)


class RunningMeans:
    """The mean of each name over the records that have it; their number takes no memory."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor | float] = {}
        self.counts: dict[str, int] = {}

    def add(self, record: Mapping[str, Tensor] | Mapping[str, float]) -> None:
        for name, value in record.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: float(total) / self.counts[name] for name, total in self.sums.items()}
