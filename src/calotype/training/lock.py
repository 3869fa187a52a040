"""The lock of a run: one process at a time works in its folder."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

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
        if (owner := owner_of(folder)) not in (None, os.getpid()):
            raise _in_use(folder, owner)
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
                raise _in_use(path.parent, _wait_for_owner(path.parent))
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


def _wait_for_owner(folder: Path) -> int | None:
    end = time.monotonic() + NAME_SECONDS
    while (owner := owner_of(folder)) is None and time.monotonic() < end:
        time.sleep(0.01)
    return owner


def _in_use(folder: Path, owner: int | None) -> UserError:
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
