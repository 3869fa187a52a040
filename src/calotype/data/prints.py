"""Perceptual hashes ("prints"): pictures that look the same have almost parallel ones, at any size and compression."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image
from torch import Tensor

from calotype.data.images import Square

PRINT = 16
"""Side of the grey picture whose edges are compared."""
QUIET = 3
"""Differences between neighbours up to this, of 255, are no edge: compression makes those."""
ALIKE = 0.93
"""From this cosine on, two prints are of one picture: 99 of 100 copies at half the size, saved as JPEG at quality 60,
come to 0.96 and more; of 1,000 drawn portraits put together from the same parts, a few pairs do (dev/LOG.md)."""
SHEET = 4
"""By so many pictures are shrunk together."""
AT_ONCE, COLUMNS = 1024, 8192
"""Prints compared at a time, and with how many others: 32 MB of products."""

Print = Int8[np.ndarray, " edges"]
Prints = Int8[np.ndarray, "count edges"]
OtherPrints = Int8[np.ndarray, "others edges"]


def print_of(square: Square) -> Print:
    """A perceptual hash: whether grey rises, falls or stays from each place to its right and to its lower neighbour.

    So it is the same at another size or brightness, and after compression.
    """
    grey = Image.fromarray(square).convert("L").resize((PRINT, PRINT), Image.Resampling.BOX)
    edges: Print = edges_of(np.asarray(grey)[None])[0]
    return edges


def edges_of(grey: UInt8[np.ndarray, "count side side"]) -> Prints:
    steps = [np.diff(grey.astype(np.int16), axis=axis).reshape(len(grey), -1) for axis in (2, 1)]
    both = np.concatenate(steps, 1)
    return (np.sign(both) * (np.abs(both) > QUIET)).astype(np.int8)


def shrunk_together(
    pictures: UInt8[np.ndarray, "count rows columns 3"],
) -> UInt8[np.ndarray, "count side side"]:
    """As `print_of` shrinks each, in a sheet of `SHEET` by `SHEET`, which is faster: the filter crosses no border.

    The sheet has the shape of one picture, by which Pillow decides what is rounded first.
    """
    count, rows, columns, _ = pictures.shape
    sheet = np.zeros((SHEET * rows, SHEET * columns, 3), np.uint8)
    places = sheet.reshape(SHEET, rows, SHEET, columns, 3).swapaxes(1, 2)
    for index, picture in enumerate(pictures):
        places[index // SHEET, index % SHEET] = picture
    small = Image.fromarray(sheet).convert("L").resize((SHEET * PRINT, SHEET * PRINT), Image.Resampling.BOX)
    squares = np.asarray(small).reshape(SHEET, PRINT, SHEET, PRINT).swapaxes(1, 2)
    return squares.reshape(-1, PRINT, PRINT)[:count]


def prints_of(pixels: UInt8[Tensor, "count 3 rows columns"]) -> Prints:
    """The print of each; of a blank picture, bits that only equal pixels share, as it has no edges."""

    def look(part: Tensor) -> Prints:
        pictures = part.permute(0, 2, 3, 1).contiguous().numpy()
        found: Prints = edges_of(shrunk_together(pictures))
        for row in np.flatnonzero(~found.any(1)):
            found[row] = bits_of(pictures[row], found.shape[1])
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return np.concatenate(list(pool.map(look, pixels.split(SHEET**2))))


def bits_of(square: Square, count: int) -> Print:
    """`count`, at most 512, values of -1 or 1, from a hash of the pixels."""
    bits = np.unpackbits(np.frombuffer(hashlib.blake2b(square.tobytes()).digest(), np.uint8))
    return 2 * bits[:count].astype(np.int8) - 1


def alike(some: Prints, others: OtherPrints) -> Bool[np.ndarray, "count others"]:
    """Where the cosine is at least `ALIKE`; blank prints are like nothing. Products of whole numbers are exact."""
    (rows, columns) = (one.astype(np.float32) for one in (some, others))
    products = rows @ columns.T
    squares = np.square(rows).sum(1)[:, None] * np.square(columns).sum(1)
    return (products > 0) & (np.square(products) >= ALIKE**2 * squares)


def alike_pairs(prints: Sequence[Print]) -> list[tuple[int, int]]:
    """Places of prints that are like one before, each with the first such."""
    if not prints:
        return []
    edges, pairs = np.stack(prints), []
    for start in range(0, len(edges), AT_ONCE):
        like = alike(edges[start : start + AT_ONCE], edges)
        first = like.argmax(1)
        pairs += [
            (start + row, int(first[row])) for row in np.flatnonzero(like.any(1)).tolist() if first[row] < start + row
        ]
    return pairs


def near_duplicates(some: Prints, others: OtherPrints) -> Bool[np.ndarray, " count"]:
    """Which of `some` look like one of `others`."""
    found = np.zeros(len(some), bool)
    for rows, _, like in in_blocks(some, others):
        found[rows] |= like.any(1)
    return found


def neighbours(some: Prints, others: OtherPrints, most: int) -> list[list[int]]:
    """Places in `others` of those that each of `some` looks like; of more than `most`, some `most + 1` or more."""
    found: list[list[int]] = [[] for _ in some]
    for rows, columns, like in in_blocks(some, others):
        for place in np.flatnonzero(like.any(1)):
            if len(own := found[rows.start + place]) <= most:
                own += (columns.start + np.flatnonzero(like[place])[: most + 1]).tolist()
    return found


def in_blocks(some: Prints, others: OtherPrints) -> Iterator[tuple[slice, slice, Bool[np.ndarray, "_ _"]]]:
    """Each of `some` beside each of `others`, in parts that fit into memory at any number of pictures."""
    for left in range(0, len(others), COLUMNS):
        columns = slice(left, left + COLUMNS)
        for top in range(0, len(some), AT_ONCE):
            rows = slice(top, top + AT_ONCE)
            yield rows, columns, alike(some[rows], others[columns])
