"""A folder of pictures, read once: decoded at one size, labelled by subfolder, split into three sets."""

from __future__ import annotations

import difflib
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from calotype.data.captions import Captions, read_captions
from calotype.data.images import (
    GAP,
    SUFFIXES,
    UnreadableError,
    cut,
    images_from_pixels,
    pixels_from_images,
    read_image,
    shown,
)
from calotype.data.pixels import Pixels, in_memory, on_disk
from calotype.data.split import Rule, Split, three_sets
from calotype.diffusion.stage import shrunk
from calotype.files import sha256
from calotype.types import NULL_LABEL, Labels, UserError

Progress = Callable[[int, int], None]  # (done, of how many)
T = TypeVar("T")

PREPARATION = "upright, sRGB, over white, centre square, Lanczos with gap 3; version 1"


@dataclass(frozen=True, eq=False)
class Pictures:
    """All pictures of a folder at one size, decoded once, in the order of their content hashes.

    So neither the order nor the split depends on names, and equal `content` means equal rows.
    """

    pixels: UInt8[Tensor, "count 3 rows columns"]  # in memory, or mapped from a file; squares, but for `shapes.py`
    labels: Labels  # index into `classes`, or NOT_TOLD
    classes: tuple[str, ...]
    split: Split
    content: str  # hash over the pictures' content and how they were prepared
    notes: tuple[str, ...] = ()  # plain sentences for the plan
    captions: Captions | None = None
    originals: tuple[Original, ...] = ()  # one a picture; none where they were drawn, as squares

    def __len__(self) -> int:
        return len(self.labels)

    def shrunk(self, size: int) -> Pictures:
        """The same squares, smaller by a whole factor; they lie in memory."""
        return self.low_res(self.pixels.shape[-1] // size)

    def low_res(self, factor: int) -> Pictures:
        if factor == 1:
            return self
        parts = [shrunk(images_from_pixels(part), factor) for part in self.pixels.split(64)]
        return replace(self, pixels=torch.cat([pixels_from_images(part) for part in parts]))

    def first(self, count: int) -> Pictures:
        """A few of them, spread evenly over all sets."""
        chosen = torch.arange(0, len(self), max(1, len(self) // count))[:count]
        return self.at(chosen, self.pixels[chosen])

    def at(self, chosen: Int[Tensor, " _"], pixels: UInt8[Tensor, "_ 3 _ _"]) -> Pictures:
        """Some of them, with these pixels."""
        captions = self.captions and self.captions.at(chosen.tolist())
        originals = tuple(self.originals[index] for index in chosen.tolist()) if self.originals else ()
        labels, split = self.labels[chosen], self.split.at(chosen)
        return replace(self, pixels=pixels, labels=labels, split=split, captions=captions, originals=originals)

    @property
    def train_indices(self) -> Int[Tensor, " train"]:
        return self.split.train.nonzero().flatten()

    @property
    def validation_indices(self) -> Int[Tensor, " validation"]:
        """For every choice."""
        return self.split.validation.nonzero().flatten()

    @property
    def test_indices(self) -> Int[Tensor, " test"]:
        """For what is reported, and nothing else; none where there are too few pictures or the recipe wants none."""
        return self.split.test.nonzero().flatten()

    @property
    def held_out_indices(self) -> Int[Tensor, " validation"]:  # old name of `validation_indices`, until all use that
        return self.validation_indices

    @property
    def held_out(self) -> Bool[Tensor, " count"]:  # old name of `split.validation`, until all use that
        return self.split.validation


class Original(NamedTuple):
    """The file that a picture was read from, and how large it is there."""

    path: Path
    width: int
    height: int


class Source(NamedTuple):
    """A picture before it is decoded."""

    digest: str
    name: str  # relative to its folder, with "/"

    @property
    def folder(self) -> str:
        """The first-level subfolder; "" where there is none."""
        return self.name.rpartition("/")[0].partition("/")[0]


class Outcome(NamedTuple):
    """What became of a source: why it was refused, or how it was."""

    refused: str = ""
    enlarged: bool = False
    size: tuple[int, int] = (1, 1)
    """Width and height in its file, or those at which a JPEG was decoded."""


def read_folder(
    folder: Path, size: int, cache: Path | None = None, progress: Progress | None = None, rule: Rule = three_sets
) -> Pictures:
    """All pictures below `folder`; those that cannot be read are left out, and the notes say why.

    The pixels lie in memory, or, if they would take more than a quarter of what is free, in a file in `cache`.
    """
    check_size(size)
    listing = find_pictures(folder)
    sources, refused = _hashed(folder, listing.pictures)
    unique = distinct(sources)
    kept = cache and cache / f"pixels-{content_hash(unique, size)}.npy"
    pixels, outcomes = decoded([folder / source.name for source in unique], (size, size), kept, progress)
    refused |= {source.name: outcome.refused for source, outcome in zip(unique, outcomes, strict=True)}
    refused = {name: reason for name, reason in refused.items() if reason}
    read = [source for source in unique if source.name not in refused]
    if not read:
        raise UserError(f"no picture in {shown(folder)} could be read: {_some(refused)}")
    classes = _classes(read)
    captions, found = read_captions(folder, [source.name for source in read])
    listing.others -= Counter(Path(name).suffix for name in found.files)
    notes = [
        *listing.notes(),
        *_refused_note(refused, len(listing.pictures)),
        *duplicates_note(sources, unique),
        *note(sum(outcome.enlarged for outcome in outcomes), "picture", f"smaller than {size} px, and enlarged"),
        *class_notes(read, classes),
        *found.notes([source.name for source in read]),
    ]
    sizes = (outcome.size for outcome in outcomes if not outcome.refused)
    originals = tuple(Original(folder / source.name, *own) for source, own in zip(read, sizes, strict=True))
    return with_captions(replace(assemble(pixels, read, classes, size, notes, rule), originals=originals), captions)


def with_captions(pictures: Pictures, captions: Captions | None) -> Pictures:
    """Other captions are other content, where they are read."""
    if captions is None or captions.optional:
        return replace(pictures, captions=captions)
    digest = hashlib.sha256(f"{pictures.content} {captions.of}".encode("utf-8", "replace")).hexdigest()[:32]
    return replace(pictures, captions=captions, content=digest)


def assemble(
    pixels: Pixels,
    sources: Sequence[Source],
    classes: Sequence[str],
    size: int,
    notes: Sequence[str],
    rule: Rule = three_sets,
) -> Pictures:
    """`sources` are in the order of their digests, as `distinct` gives them; of the pixels, the first of them count."""
    index = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([index.get(source.folder, NULL_LABEL) for source in sources])
    rows = torch.from_numpy(pixels[: len(sources)])
    split = rule(rows, labels, classes)
    content = content_hash(sources, size)
    return Pictures(rows, labels, tuple(classes), split, content, (*notes, *split.notes))


def content_hash(sources: Sequence[Source], size: int) -> str:
    prepared = [f"{size} px, {PREPARATION}", *(source.digest for source in sources)]
    return hashlib.sha256("\n".join(prepared).encode()).hexdigest()[:32]


def distinct(sources: Iterable[Source]) -> list[Source]:
    """In the order of digests; of equal ones, the first by name."""
    return [next(equal) for _, equal in groupby(sorted(sources), lambda source: source.digest)]


def check_size(size: int) -> None:
    if size < 1:
        raise UserError(f"the size of the pictures is {size} px, but must be at least 1; try 64")


# -- Listing -----------------------------------------------------------------------------------------------------------


@dataclass
class Listing:
    pictures: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: int = 0
    closed: int = 0

    def notes(self) -> list[str]:
        return [
            *note(self.others.total(), "file", f"passed over, by suffix: {_tally(self.others)}"),
            *note(self.outside, "link", "not followed, as they lead outside the folder"),
            *note(self.closed, "folder", "not opened, for lack of permission"),
        ]


def list_pictures(place: Path) -> list[Path]:
    """The picture files in a folder, or the one file. Raises `UserError` where there is none."""
    return [place] if place.is_file() else [place / name for name in find_pictures(place).pictures]


def find_pictures(folder: Path) -> Listing:
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
        raise UserError(_no_pictures(folder, listing))
    return listing


def _visible_files(root: Path, listing: Listing) -> Iterator[Path]:
    def closed(_: OSError) -> None:
        listing.closed += 1

    for place, folders, names in os.walk(root, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        listing.outside += sum(_leads_outside(Path(place, name), root) for name in folders)
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _leads_outside(path: Path, root: Path) -> bool:
    return path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root)


def _check_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    if folder.exists():
        raise UserError(
            f"{shown(folder)} is a file; give the folder that it lies in, {shown(folder.absolute().parent)}"
        )
    raise UserError(f"there is no folder {shown(folder)}; {_closest(folder)}")


def _closest(folder: Path) -> str:
    beside = folder.absolute().parent
    siblings = [path.name for path in beside.iterdir() if path.is_dir()] if beside.is_dir() else []
    close = difflib.get_close_matches(folder.name, siblings, n=1)
    return f"did you mean {shown(folder.with_name(close[0]))}?" if close else "give a folder of pictures"


def _no_pictures(folder: Path, listing: Listing) -> str:
    found = "; ".join(listing.notes()) or "it is empty"
    return f"no pictures in {shown(folder)}: looked for {' '.join(SUFFIXES)}; {found}"


# -- Reading -----------------------------------------------------------------------------------------------------------


def _hashed(folder: Path, names: Sequence[str]) -> tuple[list[Source], dict[str, str]]:
    """The sources, and why others were refused."""
    digests = list(in_threads(lambda name: _digest(folder / name), names))
    sources = [Source(digest, name) for name, digest in zip(names, digests, strict=True) if isinstance(digest, str)]
    refused = {
        name: error.strerror or "unreadable"
        for name, error in zip(names, digests, strict=True)
        if isinstance(error, OSError)
    }
    return sources, refused


def _digest(path: Path) -> str | OSError:
    try:
        return sha256(path)
    except OSError as problem:
        return problem


def decoded(
    paths: Sequence[Path], shape: tuple[int, int], kept: Path | None, progress: Progress | None
) -> tuple[Pixels, list[Outcome]]:
    """Pictures of (rows, columns); in the file `kept`, if they would take more than a quarter of the free memory."""
    whole = (len(paths), 3, *shape)
    fill = partial(_decode, paths, progress=progress)
    if kept is None or math.prod(whole) <= psutil.virtual_memory().available / 4:
        pixels, outcomes = in_memory(whole, fill)
    else:
        pixels, outcomes = on_disk(kept, whole, fill)
    return pixels, [Outcome(*outcome) for outcome in outcomes]


def _decode(paths: Sequence[Path], pixels: Pixels, progress: Progress | None) -> list[Outcome]:
    """Fills the first rows of `pixels` with those that can be read, without gaps."""
    height, width = pixels.shape[2:]

    def place(row: int, path: Path) -> Outcome:
        try:
            image = read_image(path, shortest=math.ceil(GAP * max(height, width)))
        except UnreadableError as problem:
            return Outcome(problem.reason)
        pixels[row] = np.asarray(cut(image, width, height)).transpose(2, 0, 1)
        return Outcome(enlarged=image.width < width or image.height < height, size=image.size)

    outcomes = list(watched(in_threads(place, range(len(paths)), paths), len(paths), progress))
    for new, old in enumerate(row for row, outcome in enumerate(outcomes) if not outcome.refused):
        if new != old:
            pixels[new] = pixels[old]
    return outcomes


def in_threads(work: Callable[..., T], *arguments: Iterable[Any]) -> Iterator[T]:
    """In the order of the arguments. Pillow decodes, resizes and converts without holding Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from pool.map(work, *arguments)


def watched(things: Iterable[T], total: int, progress: Progress | None) -> Iterator[T]:
    for done, thing in enumerate(things, 1):
        if progress is not None:
            progress(done, total)
        yield thing


# -- Classes and notes -------------------------------------------------------------------------------------------------


def _classes(sources: Sequence[Source]) -> list[str]:
    """The first-level subfolders, if there are at least two: one alone tells nothing apart."""
    folders = sorted({source.folder for source in sources} - {""})
    return folders if len(folders) > 1 else []


def class_notes(sources: Sequence[Source], classes: Sequence[str]) -> list[str]:
    if not classes:
        return []
    sizes = Counter(source.folder for source in sources)
    return [
        f"{len(classes)} classes, by subfolder: {_tally(Counter({name: sizes[name] for name in classes}))}",
        *note(sizes[""], "picture", "left without a label, beside the class folders"),
    ]


def note(count: int, noun: str, rest: str) -> list[str]:
    """`["2 links were not followed"]`; nothing where there is nothing to tell."""
    return [f"{count} {noun}{'s were' if count > 1 else ' was'} {rest}"] if count else []


def duplicates_note(sources: Sequence[Source], unique: Sequence[Source]) -> list[str]:
    return note(len(sources) - len(unique), "duplicate", "left out")


def _refused_note(refused: dict[str, str], total: int) -> list[str]:
    was = "was" if len(refused) == 1 else "were"
    return [f"{len(refused)} of {total} files {was} not read: {_some(refused)}"] if refused else []


def _some(refused: dict[str, str]) -> str:
    reasons = [f"{shown(name)} ({reason})" for name, reason in sorted(refused.items())]
    return ", ".join(reasons[:5]) + (f" and {len(reasons) - 5} more" if len(reasons) > 5 else "")


def _tally(counts: Counter[str]) -> str:
    return ", ".join(f"{shown(name)} {count}" for name, count in counts.most_common(20))
