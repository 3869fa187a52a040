"""Black and white of the pictures in a folder that have more than 8 bits: the same values for all of a kind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from calotype.data.formats import PictureFile, RefusedError, opened_file, require_reachable
from calotype.data.images import UnreadableError, deep_range, in_threads
from calotype.data.listing import first_names
from calotype.data.rgb import DEEP_COLOURS, Levels, Range, customary_range, range_of

DEEP_PNGS = {bytes((16, colours)) for colours in (0, 2, 4, 6)}
"""Bit depth and colour type in the headers of PNGs: grey and in colour, without and with opacity."""
DEEP_PICTURES = {
    "I;16": "grey picture{} of 16 bits", "I": "grey picture{} of 32 bits", "F": "grey picture{} of floating point",
    DEEP_COLOURS: "picture{} of 16-bit colours",
}  # fmt: skip


@dataclass(frozen=True)
class FolderLevels:
    """Black and white by the kind of number, and what the plan says of them."""

    values: dict[str, Range] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    prepared: str = ""
    """For the hash of the content: empty where each picture alone would be read with its customary range."""


def find_levels(files: Sequence[PictureFile], known: Levels | None = None) -> FolderLevels:
    """Reads all pictures that may have more than 8 bits; those that cannot be read are passed over.

    `known` are black and white that a run has already: they stay, and colours, which earlier versions did not spread,
    keep their whole range where it has none. Raises `UserError` as `require_reachable`.
    """
    found: dict[str, dict[PictureFile, Range]] = {}
    for file, result in zip(files, in_threads(_deep_range, files), strict=True):
        if result is not None:
            found.setdefault(result[0], {})[file] = result[1:]
    fixed = {} if known is None else {DEEP_COLOURS: customary_range(DEEP_COLOURS, 0.0, 0.0), **known}
    values, notes, changed = dict[str, Range](), list[str](), list[str]()
    for kind, ranges in sorted(found.items()):
        usual = ranges if kind in fixed else ranges | _without_stray(ranges)
        low, high = min(low for low, _ in usual.values()), max(high for _, high in usual.values())
        values[kind] = black, white = fixed.get(kind) or range_of(kind, low, high)
        stray = first_names(file.name for file in ranges if usual[file] != ranges[file])
        what = DEEP_PICTURES[kind].format("s" * (len(ranges) != 1))
        notes.append(
            f"{len(ranges):,} {what}, with values from {low:,g} to {high:,g}: "
            f"{black:,g} is black and {white:,g} white in all of them"
            + (f"; a few values far from all others do not count: {stray}" if stray else "")
        )
        if {customary_range(kind, *each) for each in ranges.values()} != {(black, white)}:
            changed.append(f"{kind} from {black!r} to {white!r}")
    return FolderLevels(values, tuple(notes), ", ".join(changed))


def _without_stray(ranges: Mapping[PictureFile, Range]) -> dict[PictureFile, Range]:
    """The ranges, without their stray values, of pictures that only by those leave the usual range by more than its
    own length: the range from the median of the smallest to that of the largest values."""
    black, white = (float(np.median(ends)) for ends in zip(*ranges.values(), strict=True))
    lowest, highest = 2 * black - white, 2 * white - black
    far = [file for file, (low, high) in ranges.items() if lowest < highest and (low < lowest or high > highest)]
    found = dict[PictureFile, Range]()
    for file, inner in zip(far, in_threads(partial(_deep_range, inner=True), far), strict=True):
        if inner is not None:
            (low, high), (_, least, most) = ranges[file], inner
            found[file] = least if low < lowest <= least else low, most if high > highest >= most else high
    return found


def _deep_range(file: PictureFile, inner: bool = False) -> tuple[str, float, float] | None:
    try:
        with opened_file(file) as opened:
            start = opened.read(26)
        return deep_range(file, inner) if starts_deep(start) else None
    except UnreadableError:  # the reason is given where the picture is read
        return None
    except (OSError, RefusedError) as error:
        require_reachable(file, error)
        return None


def starts_deep(start: bytes) -> bool:
    """Whether the first 26 bytes are those of a TIFF, or of a PNG of 16 bits."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") or (
        start[:4] == b"\x89PNG" and start[24:] in DEEP_PNGS
    )
