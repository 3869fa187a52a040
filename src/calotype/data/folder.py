"""A folder of pictures: decoded once at one size, labelled by subfolder, split into three sets."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
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
from calotype.data.caches import Pixels, cached_pixels, fit_into
from calotype.data.captions import Captions
from calotype.data.depth import FolderLevels, find_levels
from calotype.data.formats import PictureFile, require_reachable
from calotype.data.hashes import Stamp, stamp
from calotype.data.images import (
    ANIMATED,
    GAP,
    OF_PAGES,
    UnreadableError,
    cut,
    images_from_pixels,
    in_threads,
    is_plain,
    pixels_from_images,
    read_picture,
    shown,
)
from calotype.data.layout import Layout, class_notes, find_layout, first_level, layout_of_run
from calotype.data.library import open_library
from calotype.data.listing import first_names, note, plural
from calotype.data.rgb import Levels
from calotype.data.split import Split, SplitRule, stratified_split
from calotype.diffusion.stage import shrunk
from calotype.types import NULL_LABEL, ByteImages, Labels, Progress, UserError, no_progress

SHRUNK_VALUES = 2**24
"""Of the pictures that are downsampled together: five of 1024 px."""
PREPARATION = "upright, sRGB, over white, centre square, Lanczos with gap 3; version 1"
CHANGED = "it changed while it was read; wait until it is complete, then start again"


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a folder at one size, decoded once, in the order of their content hashes.

    So neither the order nor the split depends on names, and equal `content` means equal rows.
    """

    pixels: ByteImages  # in memory, or mapped from a file; squares, but for aspect buckets
    labels: Labels  # index into `classes`, or NULL_LABEL
    classes: tuple[str, ...]
    split: Split
    content: str  # hash of the pictures and of how they were prepared
    notes: tuple[str, ...] = ()  # sentences for the plan
    captions: Captions | None = None
    originals: tuple[Original, ...] = ()  # the file of each picture; empty for the embedded portraits
    sampled_from: int | None = None
    """How many there are, where these are some of them, evenly spaced: for a plan."""
    named: tuple[str, ...] = ()
    """The set that subfolders name for each picture, "" for none; empty for the embedded portraits."""
    uncaptioned: str = ""
    """The hash without captions; empty for the embedded portraits."""
    levels: Levels = field(default_factory=dict)
    """Black and white of grey pictures with more than 8 bits."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def total(self) -> int:
        return self.sampled_from or len(self)

    @property
    def trained(self) -> int:
        """How many of all are trained on; as many as in a sample are held out."""
        return self.total - (len(self) - len(self.train_indices))

    def split_by(self, rule: SplitRule) -> Pictures:
        """The same pictures in other sets."""
        return replace(self, split=rule(self.pixels, self.labels, self.classes, named=self.named))

    def shrunk(self, size: int) -> Pictures:
        """The same squares, downsampled by an integer factor, in memory."""
        return self.low_res(self.pixels.shape[-1] // size)

    def low_res(self, factor: int) -> Pictures:
        return self if factor == 1 else replace(self, pixels=downsampled(self.pixels, factor))

    def first(self, count: int, factor: int = 1) -> Pictures:
        """`count` pictures, spread evenly over all sets, downsampled by a factor."""
        every = max(1, len(self) // count)
        chosen = torch.arange(0, len(self), every)[:count]
        return self.at(chosen, downsampled(self.pixels[::every][:count], factor))

    def at(self, chosen: Int[Tensor, " _"], pixels: UInt8[Tensor, "_ 3 _ _"]) -> Pictures:
        """The pictures at these indices, with these pixels."""
        captions = self.captions and self.captions.at(chosen.tolist())
        originals = tuple(self.originals[index] for index in chosen.tolist()) if self.originals else ()
        named = tuple(self.named[index] for index in chosen.tolist()) if self.named else ()
        labels, split = self.labels[chosen], self.split.at(chosen)
        return replace(
            self, pixels=pixels, labels=labels, split=split, captions=captions, originals=originals, named=named
        )

    def file(self, row: int) -> str:
        """The name of a picture's file, on one line; of an embedded portrait its number."""
        return shown(self.originals[row].path) if self.originals else f"portrait {row}"

    @property
    def train_indices(self) -> Int[Tensor, " train"]:
        return self.split.train.nonzero().flatten()

    @property
    def validation_indices(self) -> Int[Tensor, " validation"]:
        """Of the set by which all is chosen: the end of training, the settings of sampling."""
        return self.split.validation.nonzero().flatten()

    @property
    def test_indices(self) -> Int[Tensor, " test"]:
        """For reports alone. Empty where there are too few pictures, or where the recipe wants no test set."""
        return self.split.test.nonzero().flatten()


class Original(NamedTuple):
    """The file of a picture, and its size there."""

    path: PictureFile
    width: int
    height: int
    stamp: Stamp
    """When it was read; see `decode_all`."""


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
    """Width and height in its file, or those at which a large picture was decoded."""
    over_black: bool = False
    plain: bool = False
    """Whether it is of one colour."""
    has_more: bool = False
    """Whether its file has more frames or pages."""
    put_right: bool = False
    """Whether earlier versions read it otherwise: to a run of theirs it is another picture."""


def read_folder(
    folder: Path,
    size: int,
    cache: Path | None = None,
    progress: Progress = no_progress,
    rule: SplitRule = stratified_split,
    classes: Sequence[str] | None = None,
    most: int | None = None,
    levels: Levels | None = None,
) -> Pictures:
    """All pictures below `folder`, as squares of `size` px, or about `most` of more than twice as many, evenly spaced.

    `notes` name those that cannot be read.

    The pixels are in memory, or, as `fit_into` says, in a file in `cache`. With the `classes` of an earlier run,
    subfolders are labels by the rule that gave them, and with its `levels` grey pictures with more than 8 bits have its
    black and white. Raises `UserError` where there is no folder, or no picture that can be read.
    """
    check_size(size)
    library = open_library(folder)
    listing = library.listing
    every = find_layout(listing.pictures) if classes is None else layout_of_run(listing.pictures, classes)
    hashed, refused = library.hashes(every.names)
    whole = without_duplicates(HashedFile(digest, name) for name, (digest, _) in hashed.items())
    total, duplicates = len(whole), len(hashed) - len(whole)
    unique = whole[:: total // most] if most and total > 2 * most else whole
    stamps = [hashed[file.name][1] for file in unique]
    del hashed, whole  # of a million pictures some 400 MB, which what follows does not need
    depth = find_levels(library.maybe_deep([file.name for file in unique]), levels)
    path = cache and cache / f"pixels-{content_hash(unique, size, depth.prepared)}.npy"
    files = [library.file(file.name) for file in unique]
    pixels, decoded = decode_all(files, (size, size), path, progress, depth.values, stamps)
    refused |= {file.name: result.refused for file, result in zip(unique, decoded, strict=True) if result.refused}
    read = {file: result for file, result in zip(unique, decoded, strict=True) if not result.refused}
    if not read:
        raise UserError(f"no picture in {shown(folder)} could be read: {_reasons(refused)}")
    names = [file.name for file in read]
    layout = every.at(names)
    captions, caption_files = library.captions(names)
    unread = f"{len(refused)} of {plural(len(every.names), 'file')} could not be read: {_reasons(refused)}"
    notes = [
        *listing.without(caption_files.files).notes(),
        *layout.notes,
        *([unread] if refused else []),
        *note(duplicates, "duplicate", "left out"),
        *depth.notes,
        *_decoding_notes(read, size),
        *class_notes(layout.labels, layout.classes),
        *caption_files.notes(names),
    ]
    if len(unique) < total:
        notes.append(f"all that is counted here is of {len(unique):,} pictures, evenly spaced, of {total:,}")
    pictures = assemble(pixels, list(read), layout.classes, size, notes, rule, layout, _prepared(depth, read))
    if len(unique) < total:
        pictures = replace(pictures, sampled_from=total)
    found = zip(files, decoded, stamps, strict=True)
    originals = tuple(Original(file, *result.size, its) for file, result, its in found if not result.refused)
    return with_captions(replace(pictures, originals=originals, levels=depth.values), captions)


def _prepared(levels: FolderLevels, read: Mapping[HashedFile, Decoded]) -> str:
    """How the pictures were prepared in other ways than `PREPARATION` says."""
    over_black = [file.digest for file, result in read.items() if result.over_black]
    put_right = [file.digest for file, result in read.items() if result.put_right]
    kinds = {"over black:": over_black, "as tagged:": put_right}
    return ", ".join(filter(None, (levels.prepared, *(" ".join([kind, *of]) for kind, of in kinds.items() if of))))


def _decoding_notes(read: Mapping[HashedFile, Decoded], size: int) -> list[str]:
    plain = [file.name for file, result in read.items() if result.plain]
    more = [file.name for file, result in read.items() if result.has_more]
    return [
        *note(sum(result.enlarged for result in read.values()), "picture", f"smaller than {size} px, and enlarged"),
        *note(
            sum(result.over_black for result in read.values()), "transparent picture",
            "put on black, because nothing of it is visible on white",
        ),
        *note(
            len(more), "picture",
            f"read without the frames or pages after the first; save those that count as files: {first_names(more)}",
        ),
        *note(len(plain), "picture", f"of one colour, which is all that can be learned from it: {first_names(plain)}"),
    ]  # fmt: skip


def with_captions(pictures: Pictures, captions: Captions | None) -> Pictures:
    """The pictures with captions, which belong to the hash of their content unless they are optional."""
    if captions is None or captions.optional:
        return replace(pictures, captions=captions, uncaptioned=pictures.content)
    digest = hashlib.sha256(f"{pictures.content} {captions.of}".encode("utf-8", "replace")).hexdigest()[:32]
    return replace(pictures, captions=captions, content=digest, uncaptioned=pictures.content)


def assemble(
    pixels: Pixels,
    files: Sequence[HashedFile],
    classes: Sequence[str],
    size: int,
    notes: Sequence[str],
    rule: SplitRule = stratified_split,
    layout: Layout | None = None,
    prepared: str = "",
) -> Pictures:
    """Pictures from the first rows of `pixels`, one for each of `files`, which are sorted by `without_duplicates`.

    Without a `layout`, the first subfolder of each is its class.
    """
    layout = layout or first_level([file.name for file in files])
    index = {name: label for label, name in enumerate(classes)}
    labels = torch.tensor([index.get(label, NULL_LABEL) for label in layout.labels])
    rows = torch.from_numpy(pixels[: len(files)])
    split = rule(rows, labels, classes, named=layout.sets)
    content = content_hash(files, size, prepared)
    return Pictures(rows, labels, tuple(classes), split, content, (*notes, *split.notes), named=layout.sets)


def content_hash(files: Sequence[HashedFile], size: int, changes: str = "") -> str:
    """`changes` are what `PREPARATION` does not say."""
    prepared = [f"{size} px, {PREPARATION}{changes}", *(file.digest for file in files)]
    return hashlib.sha256("\n".join(prepared).encode()).hexdigest()[:32]


def without_duplicates(files: Iterable[HashedFile]) -> list[HashedFile]:
    """Sorted by hash; of files with equal content, the first by name."""
    return [next(equal) for _, equal in groupby(sorted(files), lambda file: file.digest)]


def check_size(size: int) -> None:
    if not 1 <= size <= LARGEST_SIDE:
        raise UserError(
            f"the size of the pictures is {size} px, but must be at least 1 and at most {LARGEST_SIDE}; try 64"
        )


def downsampled(pixels: ByteImages, factor: int) -> UInt8[Tensor, "count 3 _ _"]:
    """Each square of `factor` pixels as its mean; a few pictures at a time, as they may be mapped from a file that is
    larger than memory."""
    if factor == 1:
        return pixels.clone()
    at_once = max(1, SHRUNK_VALUES // max(1, pixels[:1].numel()))
    parts = (shrunk(images_from_pixels(part), factor) for part in pixels.split(at_once))
    return torch.cat([pixels_from_images(part) for part in parts])


# -- Decoding ----------------------------------------------------------------------------------------------------------


def decode_all(
    paths: Sequence[PictureFile],
    size: tuple[int, int],
    cache: Path | None,
    progress: Progress = no_progress,
    levels: Levels | None = None,
    stamps: Sequence[Stamp] = (),
) -> tuple[Pixels, list[Decoded]]:
    """Pictures of (rows, columns), and what happened to each file; those that were refused have no row in the pixels.

    They are in the file `cache`, if they would take more than a quarter of the free memory, or several ranks share it.
    A file whose stamp is not that of `stamps` is refused.
    """
    shape = (len(paths), 3, *size)
    fits = fit_into(math.prod(shape), psutil.virtual_memory().available)
    fill = partial(_decode, paths, progress=progress, levels=levels, stamps=stamps)
    facts = Annotated[list[Decoded], Field(min_length=len(paths), max_length=len(paths))]
    return cached_pixels(None if fits else cache, shape, fill, facts)


def _decode(
    paths: Sequence[PictureFile], pixels: Pixels, progress: Progress, levels: Levels | None, stamps: Sequence[Stamp]
) -> list[Decoded]:
    """Fills the first rows of `pixels` with the pictures that can be read, without gaps."""
    height, width = pixels.shape[2:]

    def decode(row: int) -> Decoded:
        try:
            picture = read_picture(paths[row], math.ceil(GAP * max(height, width)), levels)
            if stamps and stamp(paths[row]) != stamps[row]:
                return Decoded(CHANGED)
        except UnreadableError as error:
            return Decoded(error.reason)
        except OSError as error:  # it was removed after it was read
            require_reachable(paths[row], error)
            return Decoded(error.strerror or "unreadable")
        image = picture.image
        square = np.asarray(cut(image, width, height))
        pixels[row] = square.transpose(2, 0, 1)
        enlarged = image.width < width or image.height < height
        has_more = not {ANIMATED, OF_PAGES}.isdisjoint(picture.properties)
        return Decoded("", enlarged, image.size, picture.over_black, is_plain(square), has_more, picture.put_right)

    decoded = list(in_threads(decode, range(len(paths)), progress))
    for new, old in enumerate(row for row, result in enumerate(decoded) if not result.refused):
        if new != old:
            pixels[new] = pixels[old]
    return decoded


def _reasons(refused: dict[str, str]) -> str:
    return first_names(f"{shown(name)} ({reason})" for name, reason in sorted(refused.items()))
