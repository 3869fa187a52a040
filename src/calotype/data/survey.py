"""A survey of a folder of pictures in one pass, which keeps a few hundred bytes a picture and no pixels."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from calotype.data.depth import find_levels
from calotype.data.duplicates import Hash, near_duplicate_pairs, perceptual_hash
from calotype.data.folder import check_size
from calotype.data.images import GAP, UnreadableError, fit, in_threads, is_plain, read_picture
from calotype.data.layout import few_notes, find_layout
from calotype.data.library import PictureLibrary, open_library
from calotype.data.rgb import Levels
from calotype.types import Progress, no_progress

MOST_SURVEYED = 2**17
"""Pictures that are read; of more, about as many, evenly spaced."""
ON_BLACK, PLAIN_PICTURE = "put on black, because nothing of it is visible on white", "of one colour"


class SurveyedPicture(NamedTuple):
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
    labels: dict[str, int]
    """Pictures by class, "" for those in none."""
    sets: Counter[str]
    """Pictures by the set that their subfolder names."""

    @property
    def plain(self) -> list[str]:
        """Names of pictures of one colour."""
        return [picture.name for picture in self.pictures if PLAIN_PICTURE in picture.properties]

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
    """Reads every picture, or some of a large set.

    Raises `UserError` where there is no folder, or no picture file in it.
    """
    check_size(size)
    library = open_library(folder)
    listing = library.listing
    every = find_layout(listing.pictures)
    chosen = every.names[:: max(1, len(every.names) // MOST_SURVEYED)]
    levels = find_levels(library.maybe_deep(chosen))
    examine = partial(_examine, library, size=size, levels=levels.values)
    results = dict(zip(chosen, in_threads(examine, chosen, progress), strict=True))
    pictures = [result for result in results.values() if isinstance(result, SurveyedPicture)]
    refused = {name: result for name, result in results.items() if isinstance(result, str)}
    names = [picture.name for picture in pictures]
    layout, captions = every.at(names), library.captions(names)[1]
    labels = Counter(label if label in layout.classes else "" for label in layout.labels)
    sets = Counter(filter(None, layout.sets))
    few = few_notes(labels, layout.classes)
    some = f"{len(chosen):,} of {len(every.names):,} pictures were read, evenly spaced; training reads, and names, all"
    notes = [some] if len(chosen) < len(every.names) else []
    notes += [*listing.without(captions.files).notes(), *layout.notes, *few, *levels.notes, *captions.notes(names)]
    return Survey(size, pictures, refused, notes, captions.sources, dict(sorted(labels.items())), sets)


def _examine(library: PictureLibrary, name: str, size: int, levels: Levels) -> SurveyedPicture | str:
    """The picture, or why it cannot be read."""
    try:
        picture = read_picture(library.file(name), math.ceil(GAP * size), levels)
    except UnreadableError as error:
        return error.reason
    square = fit(picture.image, size)
    seen = *[ON_BLACK] * picture.over_black, *[PLAIN_PICTURE] * is_plain(square)
    digest = hashlib.sha256(square.tobytes()).hexdigest()
    return SurveyedPicture(name, picture.size, (*picture.properties, *seen), digest, perceptual_hash(square))
