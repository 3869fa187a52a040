"""Writes a set of pictures as shards, which any reader of WebDataset's layout can read, too.

Files are not decoded, but copied with their bytes, in the order of their hashes: so every shard is a random part of the
set. A key is the picture's name without its suffix; its captions are `key.txt`, the index of its class `key.cls`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from calotype.data.caption_files import lines_of_text
from calotype.data.folder import HashedFile, without_duplicates
from calotype.data.formats import RefusedError, opened_file
from calotype.data.images import shown
from calotype.data.layout import Layout, find_layout
from calotype.data.library import PictureLibrary, open_library
from calotype.data.listing import first_names, note
from calotype.data.shards import INDEX, MANIFEST, SHARD, ShardManifest, open_shard, scan
from calotype.files import abandoned, make_folder, read_as, remove, whole_file, write_json, write_tensors
from calotype.types import Progress, UserError, no_progress

SHARD_BYTES, SHARD_PICTURES = 2**30, 10_000
"""At most, of a shard; a larger picture has one of its own."""
HEADERS = 3 * 2 * tarfile.BLOCKSIZE
"""Bytes of a picture, its captions and its class beside their contents, about."""


@dataclass(frozen=True)
class Packed:
    pictures: int
    shards: int
    bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Source:
    """The pictures to be written, in their order, with their keys, captions and classes."""

    library: PictureLibrary
    files: Sequence[HashedFile]
    sizes: Mapping[str, int]
    keys: Mapping[str, str]
    captions: Mapping[str, Sequence[str]]
    classes: Mapping[str, int]

    @property
    def content(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            about = [self.keys[file.name], self.captions.get(file.name), self.classes.get(file.name)]
            digest.update(f"{file.digest} {about}\n".encode("utf-8", "backslashreplace"))
        return digest.hexdigest()[:32]


def write_shards(folder: Path, out: Path, progress: Progress = no_progress) -> Packed:
    """Writes the pictures in `folder` into shards in `out`; one that was interrupted goes on where it was.

    Raises `UserError` where `out` holds something else, lies inside the pictures, or the disk is too small.
    """
    library = open_library(folder)
    if out.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"the shards would lie inside the pictures in {shown(folder)}; choose another place with --out")
    layout = find_layout(library.listing.pictures)
    hashed, refused = library.hashes(layout.names)
    files = without_duplicates(HashedFile(digest, name) for name, (digest, _) in hashed.items())
    names = [file.name for file in files]
    read = library.captions(names)[1]
    sizes = {name: hashed[name][1].size for name in names}
    source = _Source(library, files, sizes, _keys(names), read.captions, _classes(layout))
    manifest = _claimed(out, source)
    done = 0
    for name, part in _parts(source):
        if not _is_there(out / name, part):
            _write_shard(out / name, part, source)
        manifest.shards[name] = (out / name).stat().st_size
        done += len(part)
        progress(done, len(files))
    manifest.finished = True
    write_json(out / MANIFEST, manifest.model_dump())
    unread = [f"{shown(name)} ({reason})" for name, reason in sorted(refused.items())]
    notes = (
        *library.listing.without(read.files).notes(),
        *layout.notes,
        *note(len(unread), "file", f"left out: {first_names(unread)}"),
        *note(len(hashed) - len(files), "duplicate", "left out"),
        *read.notes(names),
    )
    return Packed(len(files), len(manifest.shards), sum(manifest.shards.values()), notes)


def _keys(names: Sequence[str]) -> dict[str, str]:
    """A key for each name: a full stop in the file's name would end it, and no two are equal."""
    keys, taken = dict[str, str](), set[str]()
    for name in sorted(names):
        path = PurePosixPath(name)
        stem = str(path.with_name(path.stem.replace(".", "_")))
        number, key = 1, stem
        while key in taken:
            number, key = number + 1, f"{stem}-{number + 1}"
        taken.add(key)
        keys[name] = key
    return keys


def _classes(layout: Layout) -> dict[str, int]:
    index = {name: number for number, name in enumerate(layout.classes)}
    return {name: index[label] for name, label in zip(layout.names, layout.labels, strict=True) if label in index}


def _claimed(out: Path, source: _Source) -> ShardManifest:
    """The manifest of `out`, which is empty, or holds the first of these very shards."""
    manifest = ShardManifest(content=source.content)
    if os.path.lexists(out) and (not out.is_dir() or any(out.iterdir())):
        if not out.is_dir() or not (out / MANIFEST).is_file():
            raise UserError(f"{shown(out)} is not an empty folder; choose another place with --out")
        there: ShardManifest = read_as(out / MANIFEST, ShardManifest)
        if there.content != manifest.content:
            raise UserError(
                f"{shown(out)} has shards of other pictures, or of pictures that have changed since; choose another "
                f"place with --out"
            )
        manifest = there if _is_complete(out, there) else manifest
    make_folder(out)
    needed, free = sum(source.sizes.values()) + HEADERS * len(source.files), shutil.disk_usage(out).free
    for path in out.glob(".*.tmp"):
        if abandoned(path):
            remove(path)
    needed -= sum(path.stat().st_size for path in out.iterdir() if not path.name.startswith("."))
    if needed > free:
        raise UserError(
            f"the shards take {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free in {shown(out)}; choose "
            f"another disk with --out"
        )
    if not manifest.finished:
        write_json(out / MANIFEST, manifest.model_dump())
    return manifest


def _is_complete(out: Path, manifest: ShardManifest) -> bool:
    """Whether the set is finished, and all its shards are there: it stays so whatever happens to this command."""
    shards = ((out / name, size) for name, size in manifest.shards.items())
    return manifest.finished and all(path.is_file() and path.stat().st_size == size for path, size in shards)


def _parts(source: _Source) -> Iterator[tuple[str, list[HashedFile]]]:
    """The name of each shard, and what is in it."""
    part, size, number = list[HashedFile](), 0, 0
    for file in source.files:
        needed = source.sizes[file.name] + HEADERS
        if part and (size + needed > SHARD_BYTES or len(part) == SHARD_PICTURES):
            yield f"shard-{number:06}{SHARD}", part
            part, size, number = [], 0, number + 1
        part.append(file)
        size += needed
    yield f"shard-{number:06}{SHARD}", part


def _is_there(shard: Path, part: Sequence[HashedFile]) -> bool:
    """Whether it was written before the last interruption."""
    if not shard.is_file() or not shard.with_suffix(INDEX).is_file():
        return False
    try:
        index = open_shard(shard)
    except UserError:
        return False
    digests = index.digests.numpy()
    return not index.renewed and [digest.tobytes().hex() for digest in digests] == [file.digest for file in part]


def _write_shard(shard: Path, part: Sequence[HashedFile], source: _Source) -> None:
    """Written under another name, read again for its index, brought to the disk, and then renamed."""
    with whole_file(shard) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
            for file in part:
                for suffix, content in _members(file, source):
                    about = tarfile.TarInfo(source.keys[file.name] + suffix)
                    about.size = len(content)
                    tar.addfile(about, io.BytesIO(content))
        index = scan(temporary)
        if [digest.tobytes().hex() for digest in index.digests.numpy()] != [file.digest for file in part]:
            raise UserError(
                f"{shown(shard.name)} has {len(index.digests):,} pictures that can be read, but {len(part):,} were "
                f"written: names of some of its pictures are not read as pictures; rename them, then start again"
            )
        write_tensors(shard.with_suffix(INDEX), index.tensors())


def _members(file: HashedFile, source: _Source) -> Iterator[tuple[str, bytes]]:
    """Suffix and content of each file of a picture."""
    try:
        with opened_file(source.library.file(file.name)) as opened:
            content = opened.read()
    except (OSError, RefusedError) as error:
        raise UserError(f"{shown(file.name)} can no longer be read ({error}); start again") from None
    if hashlib.sha256(content).hexdigest() != file.digest:
        raise UserError(f"{shown(file.name)} changed while it was read; wait until it is complete, then start again")
    yield PurePosixPath(file.name).suffix.lower(), content
    if captions := source.captions.get(file.name):
        yield _text(captions)
    if (label := source.classes.get(file.name)) is not None:
        yield ".cls", str(label).encode()


def _text(captions: Sequence[str]) -> tuple[str, bytes]:
    """A caption a line; as JSON where the lines would be taken for something else."""
    text = "\n".join(captions)
    try:
        plain = lines_of_text(text) == list(captions)
    except ValueError:
        plain = False
    return (".txt", text.encode()) if plain else (".json", json.dumps({"captions": list(captions)}).encode())
