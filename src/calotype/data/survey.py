"""What a folder of pictures holds, seen in one pass that keeps a few hundred bytes a picture and no pixels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from calotype.data.captions import read_captions
from calotype.data.folder import Progress, Source, check_size, find_pictures, in_threads, watched
from calotype.data.images import FORMATS, GAP, UnreadableError, fit, read_image
from calotype.data.prints import Print, alike_pairs, print_of

UPRIGHT = 1
ORIENTATION = 274


class Seen(NamedTuple):
    """One picture that can be read."""

    name: str
    size: tuple[int, int]
    kinds: tuple[str, ...]
    digest: str  # of the square that would be trained on
    print: Print


@dataclass(frozen=True)
class Survey:
    size: int
    seen: list[Seen] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)  # name: reason
    notes: list[str] = field(default_factory=list)  # on files that were passed over
    captions: Counter[str] = field(default_factory=Counter)
    """Pictures with captions, by the kind of file that holds them."""

    def labels(self) -> dict[str, int]:
        """Pictures by first-level subfolder, "" for those in none."""
        folders = sorted(Source("", one.name).folder for one in self.seen)
        return {name: len(list(group)) for name, group in groupby(folders)}

    def small(self) -> int:
        """How many have to be enlarged."""
        return sum(min(one.size) < self.size for one in self.seen)

    def equal(self) -> list[list[str]]:
        """Groups of names whose pictures would be trained on as the same pixels."""
        ordered = sorted(self.seen, key=lambda one: (one.digest, one.name))
        groups = ([one.name for one in group] for _, group in groupby(ordered, lambda one: one.digest))
        return sorted(names for names in groups if len(names) > 1)

    def alike(self) -> list[tuple[str, str]]:
        """Names of different pictures that look the same, each with the first one that it looks like."""
        unique = list({one.digest: one for one in reversed(self.seen)}.values())[::-1]
        first = alike_pairs([one.print for one in unique])
        return [(unique[one].name, unique[other].name) for one, other in first]


def survey(folder: Path, size: int, progress: Progress | None = None) -> Survey:
    """Raises `UserError` for a folder that is not there or holds no picture files; unreadable ones are told."""
    check_size(size)
    listing = find_pictures(folder)
    names = listing.pictures
    found = watched(in_threads(partial(look_at, folder, size=size), names), len(names), progress)
    seen, refused = [], {}
    for name, one in zip(names, found, strict=True):
        if isinstance(one, Seen):
            seen.append(one)
        else:
            refused[name] = one
    words = read_captions(folder, [one.name for one in seen])[1]
    notes = [*listing.notes(), *words.notes([one.name for one in seen])]
    return Survey(size, seen, refused, notes, words.described)


def look_at(folder: Path, name: str, size: int) -> Seen | str:
    """What there is to say of one picture, or why it cannot be read."""
    path = folder / name
    try:
        square = fit(read_image(path, shortest=math.ceil(GAP * size)), size)
        with Image.open(path, formats=FORMATS) as image:
            turned = orientation(image) != UPRIGHT
            shape = image.size[::-1] if orientation(image) >= 5 else image.size
            kinds = tuple(kinds_of(image, turned))
    except UnreadableError as problem:
        return problem.reason
    except OSError as problem:  # it went away between the two looks
        return problem.strerror or "unreadable"
    return Seen(name, shape, kinds, hashlib.sha256(square.tobytes()).hexdigest(), print_of(square))


def orientation(image: Image.Image) -> int:
    """As EXIF counts: 1 is upright, from 5 on width and height are exchanged."""
    try:
        found = image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # broken EXIF data says nothing
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def kinds_of(image: Image.Image, turned: bool) -> Iterator[str]:
    """What is special about a picture that has been opened; none of it hinders training."""
    if turned:
        yield "turned by EXIF"
    if image.mode == "CMYK":
        yield "CMYK"
    if image.mode == "P":
        yield "palette"
    if image.mode in {"I", "F"} or ";16" in f"{image.mode} {[tile[3] for tile in getattr(image, 'tile', [])]}":
        yield "more than 8 bits"
    if image.has_transparency_data:
        yield "transparent"
    if getattr(image, "is_animated", False):
        yield "animated"
