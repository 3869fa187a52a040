"""A survey of a folder of pictures in one pass, which keeps a few hundred bytes a picture and no pixels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from calotype.data.captions import read_captions
from calotype.data.duplicates import Hash, near_duplicate_pairs, perceptual_hash
from calotype.data.folder import HashedFile, check_size, find_pictures
from calotype.data.images import FORMATS, GAP, UnreadableError, fit, in_threads, read_image
from calotype.types import Progress, no_progress

UPRIGHT, FIRST_SIDEWAYS = 1, 5
"""Orientations as EXIF counts them; from 5 on width and height are exchanged."""
ORIENTATION_TAG = 274


class SurveyedPicture(NamedTuple):
    """A picture that can be read."""

    name: str
    size: tuple[int, int]
    """Width and height, upright."""
    properties: tuple[str, ...]
    """Such as "CMYK"; none of them hinders training."""
    digest: str
    """Hash of the square that would be trained on."""
    hash: Hash


@dataclass(frozen=True)
class Survey:
    size: int
    pictures: list[SurveyedPicture]
    refused: dict[str, str]
    """The reason for each file that cannot be read."""
    notes: list[str]
    """On files that were passed over."""
    captions: Counter[str]
    """Pictures with captions, by the kind of file that holds these."""

    @property
    def labels(self) -> dict[str, int]:
        """Pictures by first-level subfolder, "" for those in none."""
        return dict(sorted(Counter(HashedFile("", picture.name).folder for picture in self.pictures).items()))

    @property
    def enlarged(self) -> int:
        """Pictures with a side below `size`."""
        return sum(min(picture.size) < self.size for picture in self.pictures)

    def duplicates(self) -> list[list[str]]:
        """Groups of names whose pictures would be trained on as the same pixels."""
        ordered = sorted(self.pictures, key=lambda picture: (picture.digest, picture.name))
        groups = ([picture.name for picture in group] for _, group in groupby(ordered, lambda picture: picture.digest))
        return sorted(names for names in groups if len(names) > 1)

    def near_duplicates(self) -> list[tuple[str, str]]:
        """Names of different pictures that look alike, each with the first one that it looks like."""
        unique = list({picture.digest: picture for picture in reversed(self.pictures)}.values())[::-1]
        pairs = near_duplicate_pairs([picture.hash for picture in unique])
        return [(unique[row].name, unique[first].name) for row, first in pairs]


def survey(folder: Path, size: int, progress: Progress = no_progress) -> Survey:
    """Reads every picture. Raises `UserError` where there is no folder, or no picture file in it."""
    check_size(size)
    listing = find_pictures(folder)
    pictures, refused = [], {}
    results = in_threads(partial(_examine, folder, size=size), listing.pictures, progress)
    for name, result in zip(listing.pictures, results, strict=True):
        if isinstance(result, SurveyedPicture):
            pictures.append(result)
        else:
            refused[name] = result
    names = [picture.name for picture in pictures]
    captions = read_captions(folder, names)[1]
    return Survey(size, pictures, refused, [*listing.notes(), *captions.notes(names)], captions.sources)


def _examine(folder: Path, name: str, size: int) -> SurveyedPicture | str:
    """The picture, or why it cannot be read."""
    path = folder / name
    try:
        square = fit(read_image(path, shortest=math.ceil(GAP * size)), size)
        with Image.open(path, formats=FORMATS) as image:
            orientation = _orientation(image)
            upright_size = image.size[::-1] if orientation >= FIRST_SIDEWAYS else image.size
            properties = tuple(_properties(image, orientation))
    except UnreadableError as error:
        return error.reason
    except OSError as error:  # it was removed between the two readings
        return error.strerror or "unreadable"
    digest = hashlib.sha256(square.tobytes()).hexdigest()
    return SurveyedPicture(name, upright_size, properties, digest, perceptual_hash(square))


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    except Exception:  # broken EXIF data
        return UPRIGHT
    return orientation if orientation in range(1, 9) else UPRIGHT


def _properties(image: Image.Image, orientation: int) -> Iterator[str]:
    if orientation != UPRIGHT:
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
