"""Shards elsewhere: addresses that fsspec knows (s3://, gs://, https://, ...), read by ranges of bytes, never whole."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from calotype.files import reason_of, write_whole
from calotype.places import cache_home
from calotype.types import UserError

Answer = TypeVar("Answer")
ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+://\S+")
PAUSES = (0.5, 2.0)
"""Seconds before a second and a third try: networks fail for a moment."""
MAX_INDEX = 2**30


@dataclass(frozen=True, slots=True)
class RemoteShard:
    """A tar file at an address; its index lies beside it."""

    address: str

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]

    @property
    def length(self) -> int:
        """In bytes. Raises `UserError`."""
        return int(self._ask(self.address, lambda system, path: system.size(path)) or 0)

    def read(self, offset: int, size: int) -> bytes:
        """A range of its bytes. Raises `UserError`."""
        return self._ask(self.address, lambda system, path: system.cat_file(path, start=offset, end=offset + size))

    def index(self, suffix: str) -> Path:
        """A copy of its index in the user's cache, fetched again each time. Raises `UserError`."""
        place = self.address.rpartition(".")[0] + suffix
        content = self._ask(place, lambda system, path: system.cat_file(path, start=0, end=MAX_INDEX))
        file = cache_home() / "shards" / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}{suffix}"
        write_whole(file, content)
        return file

    @staticmethod
    def _ask(address: str, question: Callable[[Any, str], Answer]) -> Answer:
        for pause in (*PAUSES, None):
            try:
                return question(*_file_system(address))
            except UserError:
                raise
            except Exception as error:  # each file system has its own
                if pause is None or isinstance(error, FileNotFoundError):
                    raise UserError(
                        f"{address} cannot be read: {reason_of(error):.120}; a shard needs its index beside it, as "
                        f"calotype data shards writes it, and a server that answers ranges"
                    ) from None
            time.sleep(pause)
        raise AssertionError


def _file_system(address: str) -> tuple[Any, str]:
    """The file system of an address, which fsspec keeps, and the path there."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UserError(f"{address} needs fsspec; install it with: pip install 'calotype[fsspec]'") from None
    try:
        system, path = url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise UserError(f"{address} cannot be opened by fsspec: {reason_of(error):.160}") from None
    return system, path


# -- Lists of shards ---------------------------------------------------------------------------------------------------


def is_list(file: Path) -> bool:
    """Whether it is a text file, by its suffix."""
    with suppress(OSError):
        return file.suffix.lower() == ".txt" and file.is_file()
    return False


def listed_shards(file: Path, suffix: str) -> list[Path | RemoteShard]:
    """The shards in a text file, a path or an address a line; paths are relative to the folder of the list.

    Empty lines, and those that begin with #, are passed over. Raises `UserError` with the line of what is no shard.
    """
    shards: list[Path | RemoteShard] = []
    for number, line in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        shard = RemoteShard(text) if ADDRESS.fullmatch(text) else file.parent / text
        if not shard.name.lower().endswith(suffix) or (isinstance(shard, Path) and not shard.is_file()):
            raise UserError(
                f"{file}, line {number}: {text!r:.120} is no shard; expected a {suffix} file or its address"
            )
        shards.append(shard)
    if not shards:
        raise UserError(f"{file} lists no shards; expected a {suffix} file or its address on each line")
    return shards
