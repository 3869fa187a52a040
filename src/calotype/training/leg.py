"""A leg of a run: one network (or two that compete), trained from its newest checkpoint to its end."""

from __future__ import annotations

import math
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from calotype.run import Run, Validation
from calotype.training import checkpoint
from calotype.training.checkpoint import Saved
from calotype.training.critic_guard import CriticGuard
from calotype.training.early_stopping import EarlyStopping
from calotype.training.hooks import StepLog, ValidationHook, Validator, always, every_after, guarding
from calotype.training.loop import BatchSource, Hook, StepResult, TrainProgress, at_fractions, every, train_loop
from calotype.training.objectives import Objective
from calotype.training.reporter import Progress
from calotype.training.signals import Interrupted
from calotype.training.state import TrainState
from calotype.types import UserError

PREVIEWS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Fractions of a leg after which it is previewed and validated."""
SAVE_SECONDS, CONTROL_SECONDS = 60.0, 3.0
Result_co = TypeVar("Result_co", covariant=True)


@dataclass(frozen=True)
class Leg(Generic[Result_co]):
    """One thing to train, with all that this takes."""

    name: str
    objective: Objective
    states: dict[str, TrainState]
    source: BatchSource
    clock: TrainProgress
    validator: Validator
    trained: Result_co
    """What comes of it: it holds the averaged weights, which the end of the leg leaves at their best."""
    guards: Mapping[str, CriticGuard] = field(default_factory=dict)
    """They watch over train states, and are saved with them."""
    last_previews: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)
    """Further previews at the end, by the word behind the leg's name."""

    @property
    def saved(self) -> dict[str, Saved]:
        """All that a checkpoint must hold."""
        return {**self.states, **self.guards}


@dataclass(frozen=True)
class LegLimits:
    """How a leg is held to its time; without limits it sees the images that the recipe says."""

    control: Callable[[TrainProgress], None] | None = None
    previews_at: tuple[float, ...] = ()
    """Fractions after which it is previewed and validated; none: `PREVIEWS`."""
    validation_share: float = math.inf
    """Validation before the end is skipped while it has taken a larger share of the time."""
    max_rise: float = math.inf
    """The leg ends when its held-out loss is more than so many times the best."""


UNLIMITED = LegLimits()


def train_leg(
    run: Run,
    leg: Leg[object],
    stop: threading.Event,
    progress: Progress,
    say: Callable[[str], None] = lambda text: None,
    limits: LegLimits = UNLIMITED,
) -> None:
    """Trains a leg from its newest checkpoint to its end. Raises `Interrupted` after saving, if `stop` is set.

    `say` gets a line for each damaged checkpoint that was passed over, and where the leg overfitted. The log of the
    run gets these lines as well.
    """
    resume_leg(run, leg, say)
    spent, checkpoints = leg.clock.seconds, run.folder / "checkpoints"
    validation = run.state.validation.setdefault(leg.name, Validation())
    stopping = EarlyStopping(checkpoints / f"best-{leg.name}", leg.states, validation)

    def save(clock: TrainProgress, result: StepResult) -> None:
        checkpoint.save(checkpoints, leg.name, leg.saved, clock)
        run.state.seconds[leg.name] = clock.seconds
        run.save()

    def stop_if_asked(clock: TrainProgress, result: StepResult) -> None:
        if stop.is_set():
            save(clock, result)
            raise Interrupted

    def control(clock: TrainProgress, result: StepResult) -> None:
        if limits.control is not None:
            limits.control(clock)

    seen = leg.clock.progress
    due = at_fractions(limits.previews_at or PREVIEWS, seen)
    validate = ValidationHook(run, leg.name, leg.validator, stopping, due, limits.validation_share, limits.max_rise)
    hooks = [
        Hook(always, StepLog(run, leg.name, leg.clock, progress)),
        *(Hook(at_fractions(guard.fractions, seen), guarding(run, leg.name, guard)) for guard in leg.guards.values()),
        Hook(validate.due, validate),
        Hook(every(CONTROL_SECONDS), control),
        Hook(every_after(spent, SAVE_SECONDS), save),
        Hook(always, stop_if_asked),
    ]
    train_loop(leg.objective, leg.states, leg.source, leg.clock, hooks)
    leg.clock.advance(0)
    if overfitted := stopping.restore_best():
        run.log("note", text=f"{leg.name}: {overfitted}")
        run.state.overfitted[leg.name] = overfitted
    save(leg.clock, StepResult({}, {}))
    finish_leg(run, leg, say)
    shutil.rmtree(stopping.folder, ignore_errors=True)


def resume_leg(run: Run, leg: Leg[object], say: Callable[[str], None]) -> None:
    """Brings a leg to its newest whole checkpoint.

    Raises `UserError` where the leg had been finished, and the checkpoint of its end is missing or damaged.
    """
    checkpoints = run.folder / "checkpoints"

    def warn(text: str) -> None:
        run.log("note", text=f"{leg.name}: {text}")
        say(f"{leg.name}: {text}")

    restored = checkpoint.restore(checkpoints, leg.name, leg.saved, leg.clock, warn)
    if run.state.legs[leg.name] == "finished" and (restored is None or leg.clock.images_seen < leg.clock.total):
        raise UserError(
            f"the last checkpoint of the {leg.name} in {checkpoints} is missing or damaged, and what came after it was "
            f"made with it; put it back, or start a new run"
        )
    if restored is not None:
        run.log("note", text=f"{leg.name}: went on from {restored.name}")
    run.state.legs[leg.name] = "training"
    run.save()


def finish_leg(run: Run, leg: Leg[object], say: Callable[[str], None]) -> None:
    """Draws the last previews, and says where the leg overfitted."""
    run.state.legs[leg.name] = "finished"
    trained = [state.network for name, state in leg.states.items() if name != "critic"]
    run.state.parameters[leg.name] = sum(weights.numel() for network in trained for weights in network.parameters())
    run.save()
    if overfitted := run.state.overfitted.get(leg.name):
        say(f"{leg.name}: {overfitted}")
    for word, draw in leg.last_previews.items():
        if not (file := run.folder / "previews" / f"{leg.name}-{word}.png").exists():
            with run.timing("previews"):
                draw(file)
