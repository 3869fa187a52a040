"""A run as a process: its lock, the signals that ask it to stop, and who shows its progress."""

from __future__ import annotations

import errno
import os
import platform
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import psutil

from calotype.files import abandoned, read_bytes, remove, was_running
from calotype.run import lost, require_in_place
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
HANGUP = getattr(signal, "SIGHUP", None)
"""Windows has none."""
STOPPING = (signal.SIGINT, signal.SIGTERM, *([HANGUP] if HANGUP else []))
"""Ctrl-C, `kill`, and a terminal or connection that closes."""
ECHOES: dict[int, float] = {signal.SIGTERM: 0.1, **({HANGUP: 1.0} if HANGUP else {})}
"""Seconds after a request to stop in which these belong to it: `timeout` sends SIGTERM twice, to a process and to its
group, and of a terminal that closes both the kernel and the shell tell."""
PASSED_ON = 30.0
"""Seconds that torchrun gives its ranks to end."""
HOST = platform.node() or "localhost"


# -- Progress ----------------------------------------------------------------------------------------------------------


@runtime_checkable
class ProgressBar(Protocol):
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
    """Is set when the user asks to stop; `signal_number` is that of the first signal that did, at the time `asked`."""

    signal_number: int = signal.SIGINT
    asked: float = 0.0


@contextmanager
def stoppable() -> Iterator[Stop]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets; a second one, of whatever kind, stops at once.

    Except the `ECHOES` of the first. Under `nohup` SIGHUP is ignored from the start, and stays so.
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
            stop.signal_number, stop.asked = number, time.monotonic()
            stop.set()
        elif time.monotonic() > stop.asked + echo_seconds(number):
            signal.signal(number, handlers[signal.Signals(number)])
            signal.raise_signal(number)

    for number in handlers:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def echo_seconds(number: int) -> float:
    """How long a signal belongs to the first: torchrun passes on what its ranks have had from the terminal already."""
    return PASSED_ON if "TORCHELASTIC_RUN_ID" in os.environ else ECHOES.get(number, 0.0)


@dataclass(frozen=True)
class StoppableReporter:
    """A reporter whose bars raise `Interrupted` once `stop` is set."""

    reporter: Reporter
    stop: threading.Event

    def say(self, text: str) -> None:
        self.reporter.say(text)

    @contextmanager
    def bar(self, step: str) -> Iterator[ProgressBar]:
        with self.reporter.bar(step) as bar:

            def update(done: int, total: int, note: str = "") -> None:
                if self.stop.is_set():
                    raise Interrupted
                bar(done, total, note)

            yield update


# -- The lock ----------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[Callable[[], bool]]:
    """Holds `folder/lock`, and ends what killed processes had begun to write in the folder. It yields a test of whether
    the lock is still there: a folder may be removed, moved or replaced.

    Raises `UserError`, with the number and the host of the process, if another holds the lock; and in place of an error
    of a file, where the folder was removed or moved meanwhile.
    The operating system grants the lock in one step and releases it when its process ends, however it ends.
    Network file systems: Linux locks files on NFS across machines; where a file system has no locks at all, only the
    process number and the host in the file count, which is not safe against two starts in the same instant.
    """
    path = folder / "lock"
    with _exclusive(path) as file:
        if owner_of(folder) not in (None, os.getpid()):
            raise _in_use(folder)
        file.truncate(0)
        file.write(f"{os.getpid()} {HOST}".encode())
        file.flush()
        clean_up(folder)
        try:
            yield partial(_is_same, file, path)
        except OSError:
            if not _is_same(file, path):
                raise UserError(lost(folder)) from None
            raise
        finally:
            file.truncate(0)
            if os.name != "nt" and _is_same(file, path):  # not that of a new folder with this name
                path.unlink(missing_ok=True)
    if os.name == "nt":  # a file is removed there only when nobody has it open
        with suppress(OSError):
            path.unlink()


@contextmanager
def _exclusive(path: Path) -> Iterator[BinaryIO]:
    """The open lock file, locked; a file that the owner before has removed since it was opened does not count.

    Raises `UserError` as `require_in_place`: the owner empties the file.
    """
    while True:
        require_in_place(path)
        with path.open("ab") as file:
            locked = _try_lock(file)
            if locked is False or (locked is None and _named(path)[1] not in ("", HOST)):
                raise _in_use(path.parent)
            if _is_same(file, path):
                yield file
                return


def _try_lock(file: BinaryIO) -> bool | None:
    """False where another holds the lock; None where the file system has no locks."""
    try:
        if sys.platform == "win32":
            file.seek(FAR)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in BUSY else None
    return True


def _is_same(file: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _in_use(folder: Path) -> UserError:
    end = time.monotonic() + NAME_SECONDS
    while (named := _named(folder / "lock"))[0] is None and time.monotonic() < end:
        time.sleep(0.01)
    owner, host = named
    process = "another process, perhaps on another machine" if owner is None else f"process {owner} on {host or HOST}"
    gone = f"; if it is gone, remove {folder / 'lock'}" if host not in ("", HOST) else ""
    return UserError(f"{folder} is in use by {process}; wait for it, or stop it{gone}")


def owner_of(folder: Path) -> int | None:
    """The process of this machine that works on a run; None where there is none, or it is gone."""
    owner, host = _named(folder / "lock")
    return owner if owner is not None and host in ("", HOST) and was_running(owner, folder / "lock") else None


def holder_of(folder: Path) -> psutil.Process | None:
    """The process that holds the lock of a run, proven by the system; None where what the file says is not so.

    Whoever can write the file can write any number into it, so a signal goes only to a process that has this very file
    open while it is locked. Where a file system has no locks, the open file alone counts; on Windows the lock alone.
    """
    owner, lock = owner_of(folder), folder / "lock"
    if owner is None or _is_free(lock):
        return None
    try:
        process = psutil.Process(owner)
        held = os.name == "nt" or any(_is_named(file.path, lock) for file in process.open_files())
    except psutil.Error:
        return None
    return process if held else None


def _is_free(lock: Path) -> bool:
    try:
        with lock.open("rb") as file:
            return _try_lock(file) is True
    except OSError:
        return True


def _is_named(name: str, file: Path) -> bool:
    try:
        return file.samefile(name)
    except OSError:
        return False


def _named(lock: Path) -> tuple[int | None, str]:
    """Process and host in a lock file; earlier versions wrote no host."""
    try:
        owner, _, host = read_bytes(lock, 4096).decode("utf-8", "replace").strip().partition(" ")
    except UserError:  # there is none, or a pipe or a folder has its name
        return None, ""
    return (int(owner), host) if owner.isdecimal() else (None, "")


def clean_up(folder: Path) -> None:
    """Ends what killed processes had begun to write in a run and its folders: the caller holds its lock.

    A folder that was to be replaced gets its name back if the new one had not yet taken it; all else is removed.
    """
    for path in sorted(folder.rglob(".*.*.old")) + sorted(folder.rglob(".*.*.tmp")):
        if (unfinished := abandoned(path)) is None:
            continue
        if unfinished["kind"] == "old" and not path.with_name(unfinished["name"]).exists():
            path.rename(path.with_name(unfinished["name"]))
        else:
            remove(path)
