"""TensorBoard events of a run, made from its log: the extra `tensorboard`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from calotype.data.images import UnreadableError, read_image
from calotype.files import make_folder, remove
from calotype.run import Event, Run
from calotype.tables import number, numbers, within
from calotype.types import UserError

EVENTS_FOLDER = "tensorboard"
CURVES_OF = {"step": ("terms", "norms", "learning_rates"), "check": ("measures",), "preview": ()}
"""Events of the log that have curves or pictures, and their tables of numbers."""
SPEED = "images_a_second"


def begin_events(folder: Path, wanted: bool) -> None:
    """Makes the folder by which a run has its events written, also when it is resumed. Raises `UserError`."""
    if wanted:
        require_writer()
        make_folder(folder / EVENTS_FOLDER)


def require_writer() -> None:
    if find_spec("tensorboardX") is None:
        raise UserError('--tensorboard needs tensorboardX; install it with: pip install "calotype[tensorboard]"')


@contextmanager
def events_beside(run: Run, note: Callable[[str], None]) -> Iterator[None]:
    """Writes what the run logs as TensorBoard events, too, if it has the folder for them.

    Its log so far is written again in place of the events before; of a leg that goes on once it is known from where, so
    that no step is there twice. `note` gets a line where the writer is not installed any more.
    """
    folder = run.folder / EVENTS_FOLDER
    if not (run.writes and folder.is_dir()):
        yield
        return
    try:
        require_writer()
    except UserError as error:
        note(f"no TensorBoard events are written: {error}")
        yield
        return
    from tensorboardX import SummaryWriter

    remove(folder)
    writer, unwritten = SummaryWriter(str(folder)), [*run.state.legs]

    def write_before(leg: str, seen: float = math.inf) -> None:
        unwritten.remove(leg)
        logged = Run(run.folder, run.state)  # reads the log as it is now
        for event in (event for kind in CURVES_OF for event in logged.history(kind, leg)):
            if event["images_seen"] < seen:
                write_event(writer, run, event)

    def listen(event: Event) -> None:
        if (leg := event.get("leg")) in unwritten and event["event"] in CURVES_OF:
            write_before(leg, float(event["images_seen"]))
        write_event(writer, run, event)

    for leg, status in run.state.legs.items():
        if status == "finished":
            write_before(leg)
    run.listener = listen
    try:
        yield
    finally:
        run.listener = None
        for leg in [*unwritten]:
            write_before(leg)
        writer.close()


def write_event(writer: Any, run: Run, event: Event) -> None:
    """The numbers of an event, or its picture, over images seen. Its time is that of the run's start and training."""
    kind, leg, seen = str(event.get("event")), event.get("leg"), number(event.get("images_seen"))
    if kind not in CURVES_OF or leg is None or seen is None:
        return
    seconds = number(event.get("seconds")) or 0.0
    time = datetime.fromisoformat(run.state.created).timestamp() + seconds if run.state.created else seconds
    for table in CURVES_OF[kind]:
        for name, value in numbers(within(event, table)).items():
            writer.add_scalar(f"{leg}/{table}/{name}", value, int(seen), time)
    if (speed := number(event.get(SPEED))) is not None:
        writer.add_scalar(f"{leg}/{SPEED}", speed, int(seen), time)
    file = (run.folder / str(event.get("file"))).resolve()
    if kind == "preview" and file.is_relative_to(run.folder.resolve()):
        with suppress(UnreadableError):  # removed, or damaged
            writer.add_image(f"{leg}/preview", np.asarray(read_image(file)).transpose(2, 0, 1), int(seen), time)
