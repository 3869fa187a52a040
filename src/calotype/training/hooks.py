"""Hooks of a leg: what is done between its steps, when it is due."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from torch import Tensor

from calotype.run import Run
from calotype.training.critic_guard import CriticGuard
from calotype.training.early_stopping import EarlyStopping
from calotype.training.loop import StepResult, TrainProgress, every
from calotype.training.reporter import Progress

LOG_SECONDS = 2.0


@runtime_checkable
class Validator(Protocol):
    """Shows what the averaged weights make, always from the same seeds, and measures them on validation pictures."""

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the pictures in a preview; empty where there are none."""
        ...

    def draw(self, path: Path) -> None: ...

    def measure(self) -> dict[str, float]: ...


def validate(run: Run, leg: str, clock: TrainProgress, validator: Validator) -> dict[str, float]:
    """A preview and the measures, into the run's folder and its log."""
    where = {"leg": leg, "images_seen": clock.images_seen, "seconds": clock.seconds}
    file = f"previews/{leg}-{clock.images_seen:010d}.png"
    (run.folder / "previews").mkdir(exist_ok=True)
    validator.draw(run.folder / file)
    prompts = {"prompts": validator.prompts} if validator.prompts else {}
    run.log("preview", **where, file=file, **prompts)
    run.log("check", **where, progress=clock.progress, measures=(measures := validator.measure()))
    return measures


@dataclass
class ValidationHook:
    """Validates at some fractions of a leg, and ends it early where it overfits beyond `max_rise`."""

    run: Run
    leg: str
    validator: Validator
    stopping: EarlyStopping
    at_fraction: Callable[[TrainProgress], bool]
    share: float
    """Expensive validation is skipped while it has taken a larger share of the time; at the end it never is."""
    max_rise: float
    seconds: float = 0.0

    def due(self, clock: TrainProgress) -> bool:
        return self.at_fraction(clock) and (clock.progress >= 1 or self.seconds <= self.share * clock.seconds)

    def __call__(self, clock: TrainProgress, result: StepResult) -> None:
        start = time.perf_counter()
        self.stopping.note(clock.images_seen, validate(self.run, self.leg, clock, self.validator))
        self.run.save()
        self.seconds += time.perf_counter() - start
        if self.stopping.rise > self.max_rise:
            clock.total = clock.images_seen


def guarding(run: Run, leg: str, guard: CriticGuard) -> Callable[[TrainProgress, StepResult], None]:
    """Lets the guard check the reconstructions, and logs what it measured and did."""

    def check(clock: TrainProgress, result: StepResult) -> None:
        checked = guard.check()
        run.log("guard", leg=leg, images_seen=clock.images_seen, **checked._asdict())
        if checked.taken_back:
            run.log("note", text=f"{leg} after {clock.images_seen} images: {checked}")

    return check


class StepLog:
    """Averages loss terms and gradient norms over steps, and logs them every two seconds."""

    def __init__(self, run: Run, leg: str, clock: TrainProgress, progress: Progress) -> None:
        self.run, self.leg, self.progress = run, leg, progress
        self.results: list[StepResult] = []
        self.last, self.last_seen = clock.seconds, clock.images_seen

    def __call__(self, clock: TrainProgress, result: StepResult) -> None:
        self.results.append(result)
        if clock.seconds - self.last < LOG_SECONDS and clock.images_seen < clock.total:
            return
        speed = (clock.images_seen - self.last_seen) / max(clock.seconds - self.last, 1e-9)
        terms = average([result.terms for result in self.results])
        norms = average([result.norms for result in self.results])
        self.run.log(
            "step", leg=self.leg, images_seen=clock.images_seen, progress=clock.progress, seconds=clock.seconds,
            terms=terms, norms=norms, images_a_second=speed,
        )  # fmt: skip
        shown = ", ".join(f"{name.split('.')[-1]} {value:.3f}" for name, value in list(terms.items())[:3])
        self.progress(clock.images_seen, clock.total, f"{shown}, {speed:.0f} pictures/s")
        self.results, self.last, self.last_seen = [], clock.seconds, clock.images_seen


def average(records: Sequence[dict[str, Tensor] | dict[str, float]]) -> dict[str, float]:
    """Of each name over the records that have it."""
    names = {name: None for record in records for name in record}
    values = {name: [float(record[name]) for record in records if name in record] for name in names}
    return {name: sum(numbers) / len(numbers) for name, numbers in values.items()}


def always(clock: TrainProgress) -> bool:
    return True


def every_after(spent: float, seconds: float) -> Callable[[TrainProgress], bool]:
    """As `every`, but counted from `spent` seconds on."""
    due = every(seconds)
    return lambda clock: clock.seconds >= spent + seconds and due(clock)
