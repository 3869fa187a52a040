"""Content hashes of picture files, kept by name, size and time of change: what has not changed is not read again.

They are in the user's cache, a file for each folder of pictures; a cache that is missing or damaged costs time alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from calotype.data.formats import Member, PictureFile, RefusedError, regular_file, require_reachable
from calotype.data.images import in_threads
from calotype.files import require_regular, sha256, write_whole
from calotype.places import cache_home
from calotype.types import UserError

FEWEST_KEPT = 256
"""Files in a folder; fewer are hashed in a moment."""
FIRST_LINE = "calotype hashes 2"
LINE = re.compile(r'([0-9a-f]{64}) (\d{1,20} -?\d{1,20} -?\d{1,20} ".*")\n')
SETTLED = 2 * 10**9
"""Nanoseconds since its last change after which a file's time says whether it has changed again: clocks of some file
systems are as coarse (git's index has the same rule: Documentation/technical/racy-git)."""


class Stamp(NamedTuple):
    size: int
    time: int
    """Of its last change, in nanoseconds, as programs that copy files may set it."""
    changed: int = 0
    """When the file system last changed it; no program sets that."""


Hashed = tuple[str, Stamp]
"""Digest (SHA-256) and stamp."""


def stamp(path: PictureFile) -> Stamp:
    if isinstance(path, Member):  # its content is compared with its hash whenever it is read
        return Stamp(path.size, 0)
    status = path.stat()
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def hash_files(folder: Path, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
    """Hashes of the files that can be read, and why others were refused. Raises `UserError` as `require_reachable`."""
    file = hashes_file(folder) if len(names) >= FEWEST_KEPT else None
    known = read_hashes(file) if file else {}
    now = time.time_ns()

    def hash_file(name: str) -> Hashed | str:
        try:
            path = regular_file(folder / name)
            before = stamp(path)
            return known.get(_key(name, before)) or sha256(path), before
        except RefusedError as error:
            return str(error)
        except OSError as error:
            require_reachable(folder / name, error)
            return error.strerror or "unreadable"

    results = dict(zip(names, in_threads(hash_file, names), strict=True))
    hashed = {name: result for name, result in results.items() if not isinstance(result, str)}
    if file:
        _keep(file, known, {name: result for name, result in hashed.items() if max(result[1][1:]) < now - SETTLED})
    return hashed, {name: result for name, result in results.items() if isinstance(result, str)}


def hashes_file(folder: Path) -> Path:
    return cache_home() / "hashes" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.txt"


def read_hashes(file: Path) -> dict[str, str]:
    """Digests by `_key`; empty where there are none. Lines that are damaged are passed over."""
    known = {}
    with suppress(OSError, UserError):
        require_regular(file)
        with file.open(encoding="ascii", errors="replace", newline="\n") as lines:
            if next(lines, "").strip() == FIRST_LINE:
                known = {match[2]: match[1] for match in map(LINE.fullmatch, lines) if match}
    return known


def _keep(file: Path, known: Mapping[str, str], hashed: Mapping[str, Hashed]) -> None:
    """Writes these hashes where they are not those that are known; without a place for them, each command hashes."""
    lines = {_key(name, its): digest for name, (digest, its) in hashed.items()}
    if lines != known:
        with suppress(OSError):
            write_whole(file, "\n".join([FIRST_LINE, *(f"{digest} {key}" for key, digest in lines.items()), ""]))


def _key(name: str, its: Stamp) -> str:
    return f"{its.size} {its.time} {its.changed} {json.dumps(name)}"
