"""Where the files of a set of pictures are: in a folder and its subfolders, or in shards. All else reads both alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Protocol, runtime_checkable

from calotype.data.captions import CaptionFiles, Captions, read_captions
from calotype.data.formats import UNAVAILABLE, Member, PictureFile
from calotype.data.hashes import Hashed, Stamp, hash_files
from calotype.data.images import shown
from calotype.data.listing import Listing, check_folder, find_pictures
from calotype.data.shards import ShardIndex, is_shards, open_shard, shard_files
from calotype.types import UserError


@runtime_checkable
class Library(Protocol):
    """The files of a set of pictures, by their names with "/"."""

    @property
    def listing(self) -> Listing: ...

    def file(self, name: str) -> PictureFile: ...

    def hashes(self, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
        """Of the files that can be read, and why others were refused."""
        ...

    def maybe_deep(self, names: Sequence[str]) -> list[PictureFile]:
        """Those that may have more than 8 bits."""
        ...

    def captions(self, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]: ...


def open_library(folder: Path) -> Library:
    """Raises `UserError` where there is no folder, or no picture in it, or shards are damaged."""
    check_folder(folder)
    return ShardLibrary(folder) if is_shards(folder) else FolderLibrary(folder)


class FolderLibrary:
    """Files in a folder and its subfolders."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listing = folder, find_pictures(folder)

    def file(self, name: str) -> PictureFile:
        return self.folder / name

    def hashes(self, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
        return hash_files(self.folder, names)

    def maybe_deep(self, names: Sequence[str]) -> list[PictureFile]:
        return [self.folder / name for name in names]

    def captions(self, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
        return read_captions(self.folder, names)


class ShardLibrary:
    """Pictures in shards. Their keys are their names; where no key has a folder, the label is the folder."""

    def __init__(self, folder: Path) -> None:
        self.shards = shard_files(folder)
        self.indices = [open_shard(shard) for shard in self.shards]
        names = [[*index.names] for index in self.indices]
        flat = not any("/" in name for own in names for name in own)
        self.places: dict[str, tuple[int, int]] = {}
        """Shard and row of each picture."""
        for shard, (own, index) in enumerate(zip(names, self.indices, strict=True)):
            for row, (name, label) in enumerate(zip(own, index.labels, strict=True)):
                self.places[self._unique(f"{label}/{name}" if flat and label else name, shard)] = shard, row
        if not self.listing.pictures:
            raise UserError(f"no pictures in the shards of {shown(folder)}; {'; '.join(self.listing.notes())}")

    def _unique(self, name: str, shard: int) -> str:
        """Shards may use the keys of others again."""
        return name if name not in self.places else f"{name} in {self.shards[shard].name} {len(self.places)}"

    @cached_property
    def listing(self) -> Listing:
        listing = Listing()
        for name, (shard, row) in self.places.items():
            suffix = PurePosixPath(self.indices[shard].names[row]).suffix.lower() if UNAVAILABLE else ""
            if suffix in UNAVAILABLE:
                listing.unavailable[UNAVAILABLE[suffix]] += 1
            else:
                listing.pictures.append(name)
        for index in self.indices:
            listing.others.update(index.facts.others)
        listing.pictures.sort()
        return listing

    def file(self, name: str) -> PictureFile:
        index, row = self._at(name)
        shard, digest = self.shards[self.places[name][0]], index.digests[row].numpy().tobytes().hex()
        return Member(shard, name, int(index.offsets[row]), int(index.sizes[row]), digest)

    def hashes(self, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
        hashed: dict[str, Hashed] = {}
        for name in names:
            index, row = self._at(name)
            hashed[name] = index.digests[row].numpy().tobytes().hex(), Stamp(int(index.sizes[row]), 0)
        return hashed, {}

    def maybe_deep(self, names: Sequence[str]) -> list[PictureFile]:
        return [self.file(name) for name in names if self._deep(name)]

    def _deep(self, name: str) -> bool:
        index, row = self._at(name)
        return bool(index.deep[row])

    def captions(self, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
        read = CaptionFiles(Path())
        for name in names:
            index, row = self._at(name)
            if text := index.texts[row]:
                read.add(name, text.split("\n"), "shards")
        read.refused += [reason for index in self.indices for reason in index.facts.refused]
        of = tuple(tuple(read.captions.get(name, ())) for name in names)
        return (Captions(of) if any(of) else None), read

    def _at(self, name: str) -> tuple[ShardIndex, int]:
        shard, row = self.places[name]
        return self.indices[shard], row
