"""A folder of pictures: decoded once at one size, labelled by subfolder, split into three sets."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import psutil
import torch
from jaxtyping import Int, UInt8
from pydantic import Field
from torch import Tensor

from calotype.bounds import LARGEST_SIDE
from calotype.data.caches import Pixels, cached_pixels
from calotype.data.captions import Captions, plural, read_captions
from calotype.data.images import (
    GAP,
    SUFFIXES,
    UnreadableError,
    cut,
    images_from_pixels,
    in_threads,
    pixels_from_images,
    read_image,
    shown,
)
from calotype.data.split import Split, SplitRule, stratified_split
from calotype.diffusion.stage import shrunk
from calotype.files import sha256
from calotype.types import NULL_LABEL, Labels, Progress, UserError, no_progress

PREPARATION = "upright, sRGB, over white, centre square, Lanczos with gap 3; version 1"


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a folder at one size, decoded once, in the order of their content hashes.

    So neither the order nor the split depends on names, and equal `content` means equal rows.
    """

    pixels: UInt8[Tensor, "count 3 rows columns"]  # in memory, or mapped from a file; squares, but for aspect buckets
    labels: Labels  # index into `classes`, or NULL_LABEL
    classes: tuple[str, ...]
    split: Split
    content: str  # hash of the pictures and of how they were prepared
    notes: tuple[str, ...] = ()  # sentences for the plan
    captions: Captions | None = None
    originals: tuple[Original, ...] = ()  # the file of each picture; empty for the embedded portraits

    def __len__(self) -> int:
        return len(self.labels)

    def shrunk(self, size: int) -> Pictures:
        """The same squares, downsampled by an integer factor, in memory."""
        return self.low_res(self.pixels.shape[-1] // size)

    def low_res(self, factor: int) -> Pictures:
        if factor == 1:
            return self
        parts = [shrunk(images_from_pixels(part), factor) for part in self.pixels.split(64)]
        return replace(self, pixels=torch.cat([pixels_from_images(part) for part in parts]))

    def first(self, count: int) -> Pictures:
        """`count` pictures, spread evenly over all sets."""
        chosen = torch.arange(0, len(self), max(1, len(self) // count))[:count]
        return self.at(chosen, self.pixels[chosen])

    def at(self, chosen: Int[Tensor, " _"], pixels: UInt8[Tensor, "_ 3 _ _"]) -> Pictures:
        """The pictures at these indices, with these pixels."""
        captions = self.captions and self.captions.at(chosen.tolist())
        originals = tuple(self.originals[index] for index in chosen.tolist()) if self.originals else ()
        labels, split = self.labels[chosen], self.split.at(chosen)
        return replace(self, pixels=pixels, labels=labels, split=split, captions=captions, originals=originals)

    def file(self, row: int) -> str:
        """The name of a picture's file, on one line; of an embedded portrait its number."""
        return shown(self.originals[row].path) if self.originals else f"portrait {row}"

    @property
    def train_indices(self) -> Int[Tensor, " train"]:
        return self.split.train.nonzero().flatten()

    @property
    def validation_indices(self) -> Int[Tensor, " validation"]:
        """For every choice."""
        return self.split.validation.nonzero().flatten()

    @property
    def test_indices(self) -> Int[Tensor, " test"]:
        """For reports alone. Empty where there are too few pictures, or where the recipe wants no test set."""
        return self.split.test.nonzero().flatten()


class Original(NamedTuple):
    """The file of a picture, and its size there."""

    path: Path
    width: int
    height: int


class HashedFile(NamedTuple):
    """A picture file by its content, before it is decoded; files sort by their hashes."""

    digest: str
    name: str  # relative to the folder, with "/"

    @property
    def folder(self) -> str:
        """The first-level subfolder; "" where there is none."""
        return self.name.rpartition("/")[0].partition("/")[0]


class Decoded(NamedTuple):
    """Why a file was refused, or how its picture was decoded."""

    refused: str = ""
    enlarged: bool = False
    size: tuple[int, int] = (1, 1)
    """Width and height in its file, or those at which a JPEG was decoded."""


def read_folder(
    folder: Path,
    size: int,
    cache: Path | None = None,
    progress: Progress = no_progress,
    rule: SplitRule = stratified_split,
) -> Pictures:
    """All pictures below `folder`, as squares of `size` px. `notes` name those that cannot be read.

    The pixels are in memory, or, if they would take more than a quarter of what is free, in a file in `cache`. Raises
    `UserError` where there is no folder, or no picture that can be read.
    """
    check_size(size)
    listing = find_pictures(folder)
    files, refused = _hash_files(folder, listing.pictures)
    unique = without_duplicates(files)
    path = cache and cache / f"pixels-{content_hash(unique, size)}.npy"
    pixels, decoded = decode_all([folder / file.name for file in unique], (size, size), path, progress)
    refused |= {file.name: result.refused for file, result in zip(unique, decoded, strict=True) if result.refused}
    read = [file for file in unique if file.name not in refused]
    if not read:
        raise UserError(f"no picture in {shown(folder)} could be read: {_reasons(refused)}")
    names = [file.name for file in read]
    folders = sorted({file.folder for file in read} - {""})
    classes = folders if len(folders) > 1 else []  # a single subfolder distinguishes nothing
    captions, caption_files = read_captions(folder, names)
    listing.others -= Counter(Path(name).suffix for name in caption_files.files)
    unread = f"{len(refused)} of {plural(len(listing.pictures), 'file')} could not be read: {_reasons(refused)}"
    notes = [
        *listing.notes(),
        *([unread] if refused else []),
        *note(len(files) - len(unique), "duplicate", "left out"),
        *note(sum(result.enlarged for result in decoded), "picture", f"smaller than {size} px, and enlarged"),
        *class_notes(read, classes),
        *caption_files.notes(names),
    ]
    sizes = (result.size for result in decoded if not result.refused)
    originals = tuple(Original(folder / name, *own) for name, own in zip(names, sizes, strict=True))
    return with_captions(replace(assemble(pixels, read, classes, size, notes, rule), originals=originals), captions)


def with_captions(pictures: Pictures, captions: Captions | None) -> Pictures:
    """The pictures with captions, which belong to the hash of their content unless they are optional."""
    if captions is None or captions.optional:
        return replace(pictures, captions=captions)
    digest = hashlib.sha256(f"{pictures.content} {captions.of}".encode("utf-8", "replace")).hexdigest()[:32]
    return replace(pictures, captions=captions, content=digest)


def assemble(
    pixels: Pixels,
    files: Sequence[HashedFile],
    classes: Sequence[str],
    size: int,
    notes: Sequence[str],
    rule: SplitRule = stratified_split,
) -> Pictures:
    """Pictures from the first rows of `pixels`, one for each of `files`, which are sorted by `without_duplicates`."""
    index = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([index.get(file.folder, NULL_LABEL) for file in files])
    rows = torch.from_numpy(pixels[: len(files)])
    split = rule(rows, labels, classes)
    return Pictures(rows, labels, tuple(classes), split, content_hash(files, size), (*notes, *split.notes))


def content_hash(files: Sequence[HashedFile], size: int) -> str:
    prepared = [f"{size} px, {PREPARATION}", *(file.digest for file in files)]
    return hashlib.sha256("\n".join(prepared).encode()).hexdigest()[:32]


def without_duplicates(files: Iterable[HashedFile]) -> list[HashedFile]:
    """Sorted by hash; of files with equal content, the first by name."""
    return [next(equal) for _, equal in groupby(sorted(files), lambda file: file.digest)]


def check_size(size: int) -> None:
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(
            f"the size of the pictures is {size} px, but must be at least 1 and at most {LARGEST_SIDE}; try 64"
        )


# -- Listing -----------------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    """Names of picture files, and counts of what was passed over."""

    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    forbidden: int = 0

    def notes(self) -> list[str]:
        return [
            *note(self.others.total(), "file", f"passed over, by suffix: {_tally(self.others)}"),
            *note(self.outside, "link", "not followed, as they lead outside the folder"),
            *note(self.forbidden, "folder", "not opened, for lack of permission"),
        ]


def list_pictures(path: Path) -> list[Path]:
    """The picture files in a folder, or the one file. Raises `UserError` where there is none."""
    return [path] if path.is_file() else [path / name for name in find_pictures(path).pictures]


def find_pictures(folder: Path) -> Listing:
    """Picture files by their suffix, below a folder; hidden ones, and links that lead outside, are not followed."""
    _check_folder(folder)
    root = folder.resolve()
    listing = Listing()
    for path in _visible_files(root, listing):
        if path.suffix.lower() not in SUFFIXES:
            listing.others[path.suffix.lower() or "none"] += 1
        elif _leads_outside(path, root):
            listing.outside += 1
        elif path.is_file():
            listing.pictures.append(path.relative_to(root).as_posix())
    listing.pictures.sort()
    if not listing.pictures:
        contents = "; ".join(listing.notes()) or "it is empty"
        raise UserError(f"no pictures in {shown(folder)}: looked for {' '.join(SUFFIXES)}; {contents}")
    return listing


def _visible_files(root: Path, listing: Listing) -> Iterator[Path]:
    def forbidden(_: OSError) -> None:
        listing.forbidden += 1

    for parent, folders, names in os.walk(root, onerror=forbidden):
        folders[:] = [name for name in folders if not name.startswith(".")]
        listing.outside += sum(_leads_outside(Path(parent, name), root) for name in folders)
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _leads_outside(path: Path, root: Path) -> bool:
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    parent = folder.absolute().parent
    if folder.exists():
        raise UserError(f"{shown(folder)} is a file; give the folder that it lies in, {shown(parent)}")
    siblings = [path.name for path in parent.iterdir() if path.is_dir()] if parent.is_dir() else []
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    advice = f"did you mean {shown(folder.with_name(close[0]))}?" if close else "give a folder of pictures"
    raise UserError(f"there is no folder {shown(folder)}; {advice}")


# -- Decoding ----------------------------------------------------------------------------------------------------------


def _hash_files(folder: Path, names: Sequence[str]) -> tuple[list[HashedFile], dict[str, str]]:
    """The files, and why others were refused."""

    def hash_file(name: str) -> HashedFile | str:
        try:
            return HashedFile(sha256(folder / name), name)
        except OSError as error:
            return error.strerror or "unreadable"

    results = dict(zip(names, in_threads(hash_file, names), strict=True))
    files = [result for result in results.values() if isinstance(result, HashedFile)]
    return files, {name: result for name, result in results.items() if isinstance(result, str)}


def decode_all(
    paths: Sequence[Path], size: tuple[int, int], cache: Path | None, progress: Progress = no_progress
) -> tuple[Pixels, list[Decoded]]:
    """Pictures of (rows, columns), and what happened to each file; those that were refused have no row in the pixels.

    They are in the file `cache`, if they would take more than a quarter of the free memory.
    """
    shape = (len(paths), 3, *size)
    fits = math.prod(shape) <= psutil.virtual_memory().available / 4
    facts = Annotated[list[Decoded], Field(min_length=len(paths), max_length=len(paths))]
    return cached_pixels(None if fits else cache, shape, partial(_decode, paths, progress=progress), facts)


def _decode(paths: Sequence[Path], pixels: Pixels, progress: Progress) -> list[Decoded]:
    """Fills the first rows of `pixels` with the pictures that can be read, without gaps."""
    height, width = pixels.shape[2:]

    def decode(row: int) -> Decoded:
        try:
            image = read_image(paths[row], shortest=math.ceil(GAP * max(height, width)))
        except UnreadableError as error:
            return Decoded(error.reason)
        pixels[row] = np.asarray(cut(image, width, height)).transpose(2, 0, 1)
        return Decoded(enlarged=image.width < width or image.height < height, size=image.size)

    decoded = list(in_threads(decode, range(len(paths)), progress))
    for new, old in enumerate(row for row, result in enumerate(decoded) if not result.refused):
        if new != old:
            pixels[new] = pixels[old]
    return decoded


# -- Classes and notes -------------------------------------------------------------------------------------------------


def class_notes(files: Sequence[HashedFile], classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    sizes = Counter(file.folder for file in files)
    return [
        f"{len(classes)} classes, by subfolder: {_tally(Counter({name: sizes[name] for name in classes}))}",
        *note(sizes[""], "picture", "left without a label, beside the class folders"),
    ]


def note(count: int, noun: str, rest: str) -> list[str]:
    """`["2 links were not followed"]`; no note where the count is 0."""
    return [f"{plural(count, noun)} {'was' if count == 1 else 'were'} {rest}"] if count else []


def _reasons(refused: dict[str, str]) -> str:
    reasons = [f"{shown(name)} ({reason})" for name, reason in sorted(refused.items())]
    return ", ".join(reasons[:5]) + (f" and {len(reasons) - 5} more" if len(reasons) > 5 else "")


def _tally(counts: Counter[str]) -> str:
    return ", ".join(f"{shown(name)} {count}" for name, count in counts.most_common(20))
