"""Where the files of a set of pictures are: in a folder and its subfolders, or in shards. All else reads both alike."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path, PurePosixPath

from calotype.data.captions import CaptionFiles, Captions, read_captions
from calotype.data.formats import UNAVAILABLE, Member, PictureFile
from calotype.data.hashes import Hashed, Stamp, hash_files
from calotype.data.images import shown
from calotype.data.listing import Listing, check_folder, find_pictures
from calotype.data.shard_sets import find_shards
from calotype.data.shards import Shard, ShardIndex, open_shard
from calotype.types import UserError

NOT_DECODED = tuple(UNAVAILABLE)


def open_library(place: Path) -> PictureLibrary:
    """Of a folder of pictures or shards, a list of shards, or an address of either.

    Raises `UserError` where there is none, or no picture in it, or shards are damaged.
    """
    if (shards := find_shards(place)) is not None:
        return ShardLibrary(place, shards)
    check_folder(place)
    return FolderLibrary(place)


class FolderLibrary:
    """Files in a folder and its subfolders, by their names with "/"."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.listing = folder, find_pictures(folder)

    def file(self, name: str) -> PictureFile:
        return self.folder / name

    def hashes(self, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
        """Of the files that can be read, and why others were refused."""
        return hash_files(self.folder, names)

    def maybe_deep(self, names: Sequence[str]) -> list[PictureFile]:
        """Those that may have more than 8 bits."""
        return [self.folder / name for name in names]

    def captions(self, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
        return read_captions(self.folder, names)


class ShardLibrary:
    """Pictures in shards. Their keys are their names; where no key has a folder, the label is the folder.

    All that is known of a picture, but its name, is in arrays.
    """

    def __init__(self, source: Path, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self.indices = [open_shard(shard) for shard in self.shards]
        self.starts = [*accumulate(map(len, self.indices), initial=0)]
        """The row of the first picture of each shard."""
        self.rows: dict[str, int] = {}
        self.listing = Listing()
        for index in self.indices:
            self.listing.others.update(index.facts.others)
        renewed = [shard.name for shard, index in zip(self.shards, self.indices, strict=True) if index.renewed]
        self.listing.renewed += renewed
        flat = not any("/" in name for index in self.indices for name in index.names)
        for place in range(len(self.shards)):
            self._list(place, flat)
        self.listing.pictures.sort()
        if not self.listing.pictures:
            raise UserError(f"no pictures in the shards of {shown(source)}; {'; '.join(self.listing.notes())}")

    def _list(self, place: int, flat: bool) -> None:
        index = self.indices[place]
        for row, (key, label) in enumerate(zip(index.names, index.labels, strict=True), self.starts[place]):
            if key.lower().endswith(NOT_DECODED):
                self.listing.unavailable[UNAVAILABLE[PurePosixPath(key).suffix.lower()]] += 1
                continue
            name = f"{label}/{key}" if flat and label else key
            if name in self.rows:  # shards may use the keys of others again
                path = PurePosixPath(name)
                name = str(path.with_name(f"{path.stem} ({self.shards[place].name} {row}){path.suffix}"))
            self.rows[name] = row
            self.listing.pictures.append(name)

    def file(self, name: str) -> PictureFile:
        index, shard, row = self._at(name)
        digest = index.digests[row].numpy().tobytes().hex()
        return Member(shard, name, int(index.offsets[row]), int(index.sizes[row]), digest)

    def hashes(self, names: Sequence[str]) -> tuple[dict[str, Hashed], dict[str, str]]:
        digests = b"".join(index.digests.numpy().tobytes() for index in self.indices)
        stamp_of = cache(lambda size: Stamp(size, 0))  # one object for all pictures of a size
        stamps = [stamp_of(size) for index in self.indices for size in index.sizes.tolist()]
        rows = map(self.rows.__getitem__, names)
        hashed = {
            name: (digests[32 * row : 32 * row + 32].hex(), stamps[row]) for name, row in zip(names, rows, strict=True)
        }
        return hashed, {}

    def maybe_deep(self, names: Sequence[str]) -> list[PictureFile]:
        deep = [flag for index in self.indices for flag in index.deep.tolist()]
        return [self.file(name) for name in names if deep[self.rows[name]]]

    def captions(self, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
        read = CaptionFiles(Path())
        for name in names:
            index, _, row = self._at(name)
            if text := index.texts[row]:
                read.add(name, text.split("\n"), "shards")
        read.refused += [reason for index in self.indices for reason in index.facts.refused]
        of = tuple(tuple(read.captions.get(name, ())) for name in names)
        return (Captions(of) if any(of) else None), read

    def _at(self, name: str) -> tuple[ShardIndex, Shard, int]:
        """The index of a picture's shard, the shard, and the row in it."""
        place = bisect(self.starts, self.rows[name]) - 1
        return self.indices[place], self.shards[place], self.rows[name] - self.starts[place]


PictureLibrary = FolderLibrary | ShardLibrary
