"""Black and white of the grey pictures in a folder that have more than 8 bits: the same values for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from calotype.data.formats import PictureFile, opened_file
from calotype.data.images import UnreadableError, deep_range, in_threads
from calotype.data.listing import plural
from calotype.data.rgb import Range, customary_range, range_of

DEEP_GREY_PNG = bytes((16, 0))
"""Bit depth and colour type in the header of a PNG."""
NUMBERS = {"I;16": "16 bits", "I": "32 bits", "F": "floating point"}


@dataclass(frozen=True)
class FolderLevels:
    """Black and white by the kind of number, and what the plan says of them."""

    values: dict[str, Range] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prepared: str = ""
    """For the hash of the content: empty where each picture alone would be read with its customary range."""


def find_levels(files: Sequence[PictureFile]) -> FolderLevels:
    """Reads all pictures that may have more than 8 bits; those that cannot be read are passed over."""
    found: dict[str, list[Range]] = {}
    for result in in_threads(_deep_range, files):
        if result is not None:
            found.setdefault(result[0], []).append(result[1:])
    values, notes, changed = dict[str, Range](), list[str](), list[str]()
    for kind, ranges in sorted(found.items()):
        low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
        values[kind] = black, white = range_of(kind, low, high)
        notes.append(
            f"{plural(len(ranges), 'grey picture')} of {NUMBERS[kind]}, with values from {low:,g} to {high:,g}: "
            f"{black:,g} is black and {white:,g} white in all of them"
        )
        if {customary_range(kind, *each) for each in ranges} != {(black, white)}:
            changed.append(f"{kind} from {black!r} to {white!r}")
    return FolderLevels(values, tuple(notes), ", ".join(changed))


def _deep_range(file: PictureFile) -> tuple[str, float, float] | None:
    try:
        with opened_file(file) as opened:
            start = opened.read(26)
        return deep_range(file) if starts_deep(start) else None
    except (UnreadableError, OSError, ValueError):  # the reason is given where the picture is read
        return None


def starts_deep(start: bytes) -> bool:
    """Whether the first 26 bytes are those of a TIFF, or of a grey PNG of 16 bits."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or (
        start[:4] == b"\x89PNG" and start[24:] == DEEP_GREY_PNG
    )
