"""Which shards a set has: those in a folder, of a list in a text file, or at an address."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from calotype.data.images import shown
from calotype.data.remote import RemoteFile, find_file, list_folder, remote_address
from calotype.data.shards import AGAIN, MANIFEST, PICTURE_SUFFIXES, SHARD, Shard, ShardManifest
from calotype.files import checked, json_of, read_bytes
from calotype.types import UserError

LIST = ".txt"
MOST_LISTED = 2**24
"""Bytes of a list, at most."""


def find_shards(place: Path) -> Sequence[Shard] | None:
    """The shards at a place, in their order; None for a folder of pictures.

    Raises `UserError` where some are missing, or a list has something else.
    """
    address = remote_address(place)
    if address is not None:
        return _at_address(address)
    if is_shard(place.name) and place.is_file():
        return [place]
    if place.suffix.lower() == LIST and place.is_file():
        return _of_list(place, read_bytes(place, MOST_LISTED))
    return shard_files(place) if is_shards(place) else None


# -- Folders -----------------------------------------------------------------------------------------------------------


def is_shards(folder: Path) -> bool:
    """Whether a folder holds shards: tar files, and beside them neither pictures nor folders."""
    with suppress(OSError), os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
        suffixes = {Path(entry.name).suffix.lower() for entry in visible}
        known = SHARD in suffixes or any(entry.name == MANIFEST for entry in visible)
        return known and not suffixes & {*PICTURE_SUFFIXES} and not any(entry.is_dir() for entry in visible)
    return False


def shard_files(folder: Path) -> Sequence[Path]:
    """In the order of their names. Raises `UserError` where those that Calotype has written are not all there."""
    files = sorted(path for path in folder.iterdir() if is_shard(path.name))
    if os.path.lexists(folder / MANIFEST):
        _check_all(shown(folder), [path.name for path in files], read_bytes(folder / MANIFEST))
    return files


def is_shard(name: str) -> bool:
    return name.lower().endswith(SHARD) and not name.startswith(".")


def _check_all(folder: str, names: Sequence[str], content: bytes) -> None:
    """Raises `UserError` where the shards are not those of the manifest."""
    place = f"{folder}/{MANIFEST}"
    manifest: ShardManifest = checked(json_of(content, place), ShardManifest, place)
    if not manifest.finished:
        raise UserError(
            f"the shards in {folder} are not finished; run calotype data shards FOLDER --out {folder} again, and it "
            f"goes on"
        )
    if missing := [name for name in manifest.shards if name not in names]:
        raise UserError(f"{shown(f'{folder}/{missing[0]}')} is missing; {AGAIN}")
    if more := [name for name in names if name not in manifest.shards]:
        raise UserError(f"{shown(f'{folder}/{more[0]}')} is not one of the shards in {MANIFEST}; move it elsewhere")


# -- Addresses and lists -----------------------------------------------------------------------------------------------


def _at_address(address: str) -> Sequence[Shard]:
    """One shard, a list, or the shards of a folder."""
    if is_shard(address.rpartition("/")[2]):
        return [find_file(address)]
    if address.lower().endswith(LIST):
        return _of_list(address, _content(find_file(address)))
    files = list_folder(address)
    shards = [file for file in files if is_shard(file.name)]
    if manifest := [file for file in files if file.name == MANIFEST]:
        _check_all(address, [file.name for file in shards], _content(manifest[0]))
    if not shards:
        raise UserError(
            f"there are no shards (files that end with {SHARD}) at {address}; pictures are read from there in shards "
            f"alone: write them with calotype data shards FOLDER --out SHARDS, and copy them there"
        )
    return shards


def _content(file: RemoteFile) -> bytes:
    """All of a list or manifest. Raises `UserError` where it is larger than one is: a part would be another set."""
    if file.size > MOST_LISTED:
        raise UserError(f"{file} has {file.size:,} bytes, but a list or {MANIFEST} has at most {MOST_LISTED:,}")
    return file.read(0, file.size)


def _of_list(place: Path | str, content: bytes) -> Sequence[Shard]:
    """One path or address a line; a path is relative to the list. Lines that are empty or begin with # are left out."""
    return list(_listed(place, content)) or _refused(place, 1, "a list of shards, but it is empty")


def _listed(place: Path | str, content: bytes) -> Iterator[Shard]:
    for number, line in enumerate(content.decode("utf-8-sig", "surrogateescape").splitlines(), 1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        if not is_shard(name.rpartition("/")[2]):
            _refused(place, number, f"the path or address of a shard, which ends with {SHARD}, got {shown(name[:80])}")
        if (address := remote_address(name) or _beside(place, name)) is not None:
            yield find_file(address)
        elif (path := Path(place).parent / name).is_file():
            yield path
        else:
            _refused(place, number, f"a shard, but there is none at {shown(path)}")


def _beside(place: Path | str, name: str) -> str | None:
    """The address of a shard beside a list that has an address itself."""
    return f"{place.rpartition('/')[0]}/{name}" if isinstance(place, str) else None


def _refused(place: Path | str, number: int, expected: str) -> Sequence[Shard]:
    raise UserError(f"{shown(place)}, line {number}: expected {expected}")
