"""A leg of a run: trained from its newest checkpoint to its end, with previews, validation, log and checkpoints."""

from __future__ import annotations

import math
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from calotype.run import Run
from calotype.training import checkpoint
from calotype.training.checkpoint import Saved
from calotype.training.critic_guard import CriticGuard
from calotype.training.early_stopping import watch
from calotype.training.loop import Hook, Source, StepResult, TrainProgress, at_fractions, every, train
from calotype.training.objectives import Objective
from calotype.training.state import TrainState
from calotype.types import UserError

PREVIEWS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
"""Fractions of a leg after which a picture is made and the held-out measures are taken."""
SAVE_SECONDS, LOG_SECONDS = 60.0, 2.0


class Interrupted(Exception):  # noqa: N818
    """The user asked to stop; everything is saved. `signal_number` is that of the signal that asked."""

    def __init__(self, folder: str = "", signal_number: int = signal.SIGINT) -> None:
        super().__init__(folder)
        self.signal_number = int(signal_number)


class Stop(threading.Event):
    """Is set when the user asks to stop; `signal_number` is that of the first signal that did."""

    signal_number: int = signal.SIGINT


@dataclass
class Leg:
    """One thing to train. `preview` makes a picture; `check` measures on held-out data; `pace` keeps to the time.

    `guards` watch over players, and are saved with them.
    """

    name: str
    objective: Objective
    players: dict[str, TrainState]
    source: Source
    clock: TrainProgress
    preview: Callable[[Path], None]
    check: Callable[[], dict[str, float]]
    pace: Callable[[TrainProgress], None] = lambda clock: None
    looks: tuple[float, ...] = ()
    """Fractions after which `preview` and `check` are called; none: `PREVIEWS`."""
    look_share: float = math.inf
    """A look (picture, measures, watch for overfitting) before the end is left out while looks took a larger share."""
    guards: Mapping[str, CriticGuard] = field(default_factory=dict)
    held_out: int = 0
    """Pictures that `check` measures the held-out loss on."""
    most_rise: float = math.inf
    """The leg ends when its held-out loss is more than so many times the best."""
    prompts: tuple[str, ...] = ()
    """What the pictures in `preview` were asked to show."""

    @property
    def saved(self) -> dict[str, Saved]:
        """All that a checkpoint must hold."""
        return {**self.players, **self.guards}


def go(
    run: Run,
    leg: Leg,
    stop: threading.Event,
    progress: Callable[[int, int, str], None],
    warn: Callable[[str], None] = lambda text: None,
) -> None:
    """Trains a leg from its newest checkpoint to its end. Raises `Interrupted` after saving, if `stop` is set.

    `warn` gets a line for each damaged checkpoint that was passed over; the log of the run gets it as well.
    """
    checkpoints = run.folder / "checkpoints"

    def note(text: str) -> None:
        line = f"{leg.name}: {text}"
        run.log("note", text=line)
        warn(line)

    found = checkpoint.restore(checkpoints, leg.name, leg.saved, leg.clock, note)
    if run.state.legs[leg.name] == "finished" and (found is None or leg.clock.images_seen < leg.clock.total):
        raise UserError(
            f"the last checkpoint of the {leg.name} in {checkpoints} is missing or damaged, and what came after it was "
            f"made with it; put it back, or start a new run"
        )
    if found is not None:
        run.log("note", text=f"{leg.name}: went on from {found.name}")
    run.state.legs[leg.name] = "training"
    run.save()
    spent, guard = leg.clock.seconds, watch(checkpoints, leg.name, leg.players, leg.held_out, run.state)

    def save(clock: TrainProgress, result: StepResult) -> None:
        checkpoint.save(checkpoints, leg.name, leg.saved, clock)
        run.state.seconds[leg.name] = clock.seconds
        run.save()

    at_look, looked = at_fractions(leg.looks or PREVIEWS, leg.clock.progress), [0.0]

    def look_is_due(clock: TrainProgress) -> bool:
        return at_look(clock) and (clock.progress >= 1 or looked[-1] <= leg.look_share * clock.seconds)

    def look_and_watch(clock: TrainProgress, result: StepResult) -> None:
        start = time.perf_counter()
        guard.note(clock.images_seen, look(run, leg.name, clock, leg.preview, leg.check, leg.prompts))
        run.save()
        looked.append(looked[-1] + time.perf_counter() - start)
        if guard.rise > leg.most_rise:
            clock.total = clock.images_seen

    def stop_if_asked(clock: TrainProgress, result: StepResult) -> None:
        if stop.is_set():
            save(clock, result)
            raise Interrupted

    log = Log(run, leg, progress)
    hooks = [
        Hook(always, log.note),
        *(Hook(at_fractions(one.looks, leg.clock.progress), watching(run, leg, one)) for one in leg.guards.values()),
        Hook(look_is_due, look_and_watch),
        Hook(every(3.0), lambda clock, result: leg.pace(clock)),
        Hook(after(spent, SAVE_SECONDS), save),
        Hook(always, stop_if_asked),
    ]
    train(leg.objective, leg.players, leg.source, leg.clock, hooks)
    leg.clock.advance(0)
    if said := guard.choose():
        run.log("note", text=f"{leg.name}: {said}")
        run.state.overfitted[leg.name] = said
    save(leg.clock, StepResult({}, {}))
    run.state.legs[leg.name] = "finished"
    run.save()
    shutil.rmtree(guard.folder, ignore_errors=True)


def look(
    run: Run,
    name: str,
    clock: TrainProgress,
    preview: Callable[[Path], None],
    check: Callable[[], dict[str, float]],
    prompts: tuple[str, ...] = (),
) -> dict[str, float]:
    """A preview and the held-out measures, into the run's folder and its log."""
    where = {"leg": name, "images_seen": clock.images_seen, "seconds": clock.seconds}
    file = f"previews/{name}-{clock.images_seen:010d}.png"
    (run.folder / "previews").mkdir(exist_ok=True)
    preview(run.folder / file)
    run.log("preview", **where, file=file, **({"prompts": prompts} if prompts else {}))
    run.log("check", **where, progress=clock.progress, measures=(measures := check()))
    return measures


def watching(run: Run, leg: Leg, guard: CriticGuard) -> Callable[[TrainProgress, StepResult], None]:
    """Lets the guard look, and logs what it saw; what it did is a note, too."""

    def watch(clock: TrainProgress, result: StepResult) -> None:
        seen = guard.look()
        run.log("guard", leg=leg.name, images_seen=clock.images_seen, **seen._asdict())
        if seen.taken_back:
            run.log("note", text=f"{leg.name} after {clock.images_seen} images: {seen}")

    return watch


class Log:
    """Averages what the steps say, and writes a line every so often."""

    def __init__(self, run: Run, leg: Leg, progress: Callable[[int, int, str], None]) -> None:
        self.run, self.leg, self.progress = run, leg, progress
        self.result: list[StepResult] = []
        self.last, self.last_seen = leg.clock.seconds, leg.clock.images_seen

    def note(self, clock: TrainProgress, result: StepResult) -> None:
        self.result.append(result)
        if clock.seconds - self.last < LOG_SECONDS and clock.images_seen < clock.total:
            return
        speed = (clock.images_seen - self.last_seen) / max(clock.seconds - self.last, 1e-9)
        terms = average([one.terms for one in self.result])
        norms = average([one.norms for one in self.result])
        self.run.log(
            "step", leg=self.leg.name, images_seen=clock.images_seen, progress=clock.progress, seconds=clock.seconds,
            terms=terms, norms=norms, images_a_second=speed,
        )  # fmt: skip
        shown = ", ".join(f"{name.split('.')[-1]} {value:.3f}" for name, value in list(terms.items())[:3])
        self.progress(clock.images_seen, clock.total, f"{shown}, {speed:.0f} pictures/s")
        self.result, self.last, self.last_seen = [], clock.seconds, clock.images_seen


def average(records: Sequence[dict[str, Tensor] | dict[str, float]]) -> dict[str, float]:
    names = {name: None for record in records for name in record}
    values = {name: [float(record[name]) for record in records if name in record] for name in names}
    return {name: sum(some) / len(some) for name, some in values.items()}


def always(clock: TrainProgress) -> bool:
    return True


def after(spent: float, seconds: float) -> Callable[[TrainProgress], bool]:
    """As `every`, but counted from `spent` seconds on."""
    due = every(seconds)
    return lambda clock: clock.seconds >= spent + seconds and due(clock)


STOPPING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Ctrl-C, `kill`, and a terminal or connection that closes. Windows has no SIGHUP."""


@contextmanager
def stoppable() -> Iterator[Stop]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets; the same signal once more stops at once.

    Except a second SIGHUP: the kernel and the shell both send one when a terminal closes, within a millisecond.
    Under `nohup` SIGHUP is ignored from the start, and stays so.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPPING if not ignored_hangup(number)}

    def ask(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.signal_number = number
        stop.set()
        signal.signal(number, signal.SIG_IGN if is_hangup(number) else before[signal.Signals(number)])

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_hangup(number: int) -> bool:
    return number == getattr(signal, "SIGHUP", None)


def ignored_hangup(number: int) -> bool:
    return is_hangup(number) and signal.getsignal(number) is signal.SIG_IGN


def deterministic(seed: int) -> None:
    """Seeds torch's own generators, from which new weights are drawn, and has cuDNN repeat its results.

    On one machine's CPU with as many threads a run comes out the same to the bit, stopped and resumed or not. On CUDA
    it is not promised: other kernels than cuDNN's add in an order that changes.
    """
    torch.manual_seed(seed)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
