"""A run as a process: its lock, the signals that ask it to stop, and who shows its progress."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import psutil

from calotype.types import UserError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

BUSY = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
NAME_SECONDS = 1.0
"""How long to wait for the process number of an owner that has taken the lock and not yet written it."""
FAR = 1 << 30
"""Windows keeps others from reading a byte that is locked, so it is one far behind the number."""
UNFINISHED = re.compile(r"\.(?P<name>.+)\.(?P<process>\d+)\.(?P<kind>tmp|old)")
HANGUP = getattr(signal, "SIGHUP", None)
"""Windows has none."""
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
"""Ctrl-C, `kill`, and a terminal or connection that closes."""


# -- Progress ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class ProgressBar(Protocol):
    """A progress bar."""

    def __call__(self, done: int, total: int, note: str = "") -> None: ...


@runtime_checkable
class Reporter(Protocol):
    """A terminal, as training needs it: lines, and progress bars."""

    def say(self, text: str) -> None: ...

    def bar(self, step: str) -> AbstractContextManager[ProgressBar]: ...


# -- Signals -----------------------------------------------------------------------------------------------------------


class Interrupted(Exception):  # noqa: N818
    """The user asked to stop; everything is saved. `signal_number` is that of the signal that asked."""

    def __init__(self, folder: str = "", signal_number: int = signal.SIGINT) -> None:
        super().__init__(folder)
        self.signal_number = int(signal_number)


class Stop(threading.Event):
    """Is set when the user asks to stop; `signal_number` is that of the first signal that did."""

    signal_number: int = signal.SIGINT


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
    handlers = {number: signal.getsignal(number) for number in STOPPING}
    if HANGUP and handlers[HANGUP] is signal.SIG_IGN:
        del handlers[HANGUP]

    def ask(number: int, frame: object) -> None:
        if not stop.is_set():
            stop.signal_number = number
        stop.set()
        signal.signal(number, signal.SIG_IGN if number == HANGUP else handlers[signal.Signals(number)])

    for number in handlers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def until_stopped(stop: threading.Event, bar: ProgressBar) -> ProgressBar:
    """As `bar`, but raises `Interrupted` once `stop` is set."""

    def report(done: int, total: int, note: str = "") -> None:
        if stop.is_set():
            raise Interrupted
        bar(done, total, note)

    return report


# -- The lock ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder/lock`, and ends what killed processes had begun to write in the folder.

    Raises `UserError`, with the number of the process, if another holds the lock.
    The operating system grants the lock in one step and releases it when its process ends, however it ends.
    Network file systems: Linux locks files on NFS across machines; where a file system has no locks at all, only the
    process number in the file counts, which is not safe against two starts in the same instant or on two machines.
    """
    path = folder / "lock"
    with _exclusive(path) as file:
        if owner_of(folder) not in (None, os.getpid()):
            raise _in_use(folder)
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        clean_up(folder)
        try:
            yield
        finally:
            file.truncate(0)
            if os.name != "nt":
                path.unlink(missing_ok=True)
    if os.name == "nt":  # a file is removed there only when nobody has it open
        with suppress(OSError):
            path.unlink()


@contextmanager
def _exclusive(path: Path) -> Iterator[BinaryIO]:
    """The open lock file, locked; a file that the owner before has removed since it was opened does not count."""
    while True:
        with path.open("ab") as file:
            if not _try_lock(file):
                raise _in_use(path.parent)
            if _is_same(file, path):
                yield file
                return


def _try_lock(file: BinaryIO) -> bool:
    """False where another holds the lock; True where the file system has no locks."""
    try:
        if sys.platform == "win32":
            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in BUSY
    return True


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _in_use(folder: Path) -> UserError:
    end = time.monotonic() + NAME_SECONDS
    while (owner := owner_of(folder)) is None and time.monotonic() < end:
        time.sleep(0.01)
    process = f"process {owner}" if owner is not None else "another process, perhaps on another machine"
    return UserError(f"{folder} is in use by {process}; wait for it, or stop it")


def owner_of(folder: Path) -> int | None:
    """The process that works on a run; None where there is none, or it is gone."""
    lock = folder / "lock"
    try:
        text = lock.read_text(errors="replace").strip()
        return int(text) if text.isdecimal() and was_running(int(text), lock) else None
    except FileNotFoundError:
        return None


def was_running(process: int, file: Path) -> bool:
    """Whether this very process, and not a later one with its number (in a container, soon), wrote the file."""
    try:
        return psutil.Process(process).create_time() <= file.stat().st_mtime + 1
    except (psutil.NoSuchProcess, OverflowError, FileNotFoundError):
        return False


def clean_up(folder: Path) -> None:
    """Ends what killed processes had begun to write in a run: the caller holds its lock.

    A folder that was to be replaced gets its name back if the new one had not yet taken it; all else is removed.
    """
    for place in (folder, folder / "checkpoints", folder / "cache"):
        for path in sorted(place.glob(".*.*.old")) + sorted(place.glob(".*.*.tmp")):
            unfinished = UNFINISHED.fullmatch(path.name)
            if unfinished is None or was_running(int(unfinished["process"]), path):
                continue
            if unfinished["kind"] == "old" and not (place / unfinished["name"]).exists():
                path.rename(place / unfinished["name"])
            elif path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
