"""Files at an address, as `s3://bucket/shards`, which fsspec reads in ranges; none is copied whole.

An address is given wherever a path is: `Path` makes `s3:/bucket/shards` of it, and `remote_address` the address again.
"""

from __future__ import annotations

import io
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar
from urllib.parse import urlsplit

from calotype.types import UserError

Answer = TypeVar("Answer")

ADDRESS = re.compile(r"(?P<scheme>(?!file:|local:)[a-z][a-z0-9+.:-]+):/+(?P<rest>[^/].*)", re.DOTALL)
"""One letter is a drive of Windows; of a chain, the schemes are one after the other."""
PAUSES = (1.0, 4.0)
"""Seconds before a request that failed is sent again."""
BUFFER_BYTES = 2**22
VERSIONS = ("ETag", "etag", "LastModified", "Last-Modified", "mtime", "updated", "created")
"""What file systems call that by which a file can be seen to have changed."""


class NotThereError(UserError):
    """There is nothing at an address."""


class NotReachedError(UserError):
    """An address cannot be read now; later, or with another package, it may be."""


def remote_address(path: Path | str) -> str | None:
    """The address that a path stands for; None for a path of this machine."""
    match = ADDRESS.fullmatch(Path(path).as_posix())
    return f"{match['scheme']}://{match['rest']}" if match and not os.path.lexists(path) else None


def absolute(path: Path) -> str:
    """The address, or the absolute path."""
    return remote_address(path) or str(path.resolve())


def may_exist(path: Path) -> bool:
    """Whether there is such a path; of an address this is not known before it is read."""
    return remote_address(path) is not None or path.exists()


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file at an address, with its size in bytes and whatever shows that it has changed."""

    address: str
    size: int
    version: str = ""

    def __str__(self) -> str:
        return self.address

    @property
    def name(self) -> str:
        return PurePosixPath(self.address).name

    def open(self) -> io.BufferedReader:
        return io.BufferedReader(_Ranges(self), BUFFER_BYTES)

    def read(self, offset: int, size: int) -> bytes:
        """One range. Raises `UserError` where the file cannot be read, also after some pauses, or in no ranges."""
        end = min(offset + size, self.size)
        if end <= offset:
            return b""

        def request() -> bytes:
            system, path = file_system(self.address)
            content: bytes = system.cat_file(path, start=offset, end=end)
            return content

        content = _tried(self.address, request)
        if len(content) != end - offset:
            raise UserError(
                f"{self.address} is not read in ranges: {end - offset:,} bytes were asked for, {len(content):,} came; "
                f"it has changed, or its server knows no ranges: copy the shards to a disk"
            )
        return content


class _Ranges(io.RawIOBase):
    """A remote file as a raw stream, each read of which is one request."""

    def __init__(self, file: RemoteFile) -> None:
        self.file, self.place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self.place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.place, os.SEEK_END: self.file.size}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(self.place, len(buffer))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


# -- File systems ------------------------------------------------------------------------------------------------------


def file_system(address: str) -> tuple[Any, str]:
    """Fsspec's file system for an address, and the path there.

    Raises `UserError` where its package is missing, where it cannot be reached, and as `require_plain` does.
    """
    try:
        import fsspec

        require_plain(address)
        system, path = fsspec.core.url_to_fs(address)
    except UserError:
        raise
    except Exception as error:  # each file system has errors of its own; some connect already here
        reason = " ".join(str(error).split()) or type(error).__name__
        missing = isinstance(error, ImportError | ValueError)
        hint = 'for http and s3 try: pip install "calotype[fsspec]"' if missing else "try again later"
        raise NotReachedError(f"{address} cannot be read: {reason:.160}; {hint}") from None
    return system, path


def require_plain(address: str) -> None:
    """Raises `UserError` for chained addresses, and for a password, which would stand in `run.json` and in reports.

    The user of a web server is refused, too: most often it is a token.
    """
    if "::" in address:
        alone = address.rpartition("::")[2].rpartition("@")[2]  # without what may be a password
        raise UserError(f"the chain of addresses to {alone} is not read; give the address of the shards alone")
    parts = urlsplit(address)
    if parts.password is not None or (parts.username is not None and parts.scheme in ("http", "https")):
        raise UserError(
            f"the address at {parts.hostname} has a password or token in it, which would appear in the run and its "
            f"report; leave it out, and put it into the settings of fsspec for {parts.scheme} (~/.config/fsspec)"
        )


def find_file(address: str) -> RemoteFile:
    """Raises `UserError` where there is no file."""
    system, path = file_system(address)
    return _described(address, _tried(address, lambda: system.info(path)))


def list_folder(address: str) -> list[RemoteFile]:
    """The files right in a folder, by name. Raises `UserError` where it cannot be listed."""
    system, path = file_system(address)
    entries = _tried(address, lambda: system.ls(path, detail=True))
    names = sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file")
    known = {PurePosixPath(entry["name"]).name: entry for entry in entries}
    places = ((f"{address.rstrip('/')}/{name}", known[name]) for name in names)
    return [_described(place, about) if about.get("size") is not None else find_file(place) for place, about in places]


def _described(address: str, about: dict[str, Any]) -> RemoteFile:
    if about.get("type") != "file" or about.get("size") is None:
        raise UserError(f"{address} is no file whose size is known, so it is not read in ranges; copy it to a disk")
    version = next((str(about[key]) for key in VERSIONS if about.get(key)), "")
    return RemoteFile(address, int(about["size"]), version)


def _tried(address: str, request: Callable[[], Answer]) -> Answer:
    """What a request returns, which is sent again where it fails. Raises `UserError`."""
    for pause in (*PAUSES, None):
        try:
            return request()
        except FileNotFoundError:
            raise NotThereError(f"there is nothing at {address}, or it may not be read; look at its name") from None
        except UserError:
            raise
        except Exception as error:  # each file system has errors of its own
            if pause is None:
                reason = " ".join(str(error).split()) or type(error).__name__
                raise NotReachedError(f"{address} cannot be read: {reason:.160}; try again later") from None
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")
