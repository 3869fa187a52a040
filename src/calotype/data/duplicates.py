"""Near-duplicates by perceptual hashes: the signs of a small grey picture's gradients, compared by their cosine.

The hashes of copies at other sizes, brightness or compression are almost parallel. They extend the difference hash
(dHash, two signs) by a third: where grey hardly changes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int8, UInt8
from PIL import Image
from torch import Tensor

from calotype.data.images import Square, in_threads
from calotype.types import ByteImages

SIDE_OF_HASH = 16
"""Pixels of the side of the grey picture whose gradients are hashed."""
HASH_BYTES = 2 * SIDE_OF_HASH * (SIDE_OF_HASH - 1)
"""Of the hash of one picture: a value for each neighbour to the right, and below."""
FLAT = 3
"""Differences between neighbours up to this, of 255, count as 0: compression makes those."""
SIMILAR = 0.93
"""The cosine from which on two hashes are of one picture: 99 of 100 copies at half the size, saved as JPEG at quality
60, have 0.96 and more; of 1,000 portraits put together from the same parts, a few pairs have it (dev/LOG.md)."""
SHEET = 4
"""Pictures in a row and in a column of a sheet: a sheet is downsampled at once."""
MOST_COMPARED_ALIKE = 2**14
"""Pictures that are compared with all others where every pair would be asked for."""
HASHES_AT_A_TIME, OTHERS_AT_A_TIME = 1024, 8192
"""Of a block of comparisons: 32 MB of products."""

Hash = Int8[np.ndarray, " gradients"]
Hashes = Int8[np.ndarray, "count gradients"]
OtherHashes = Int8[np.ndarray, "others gradients"]
Similarity = Bool[np.ndarray, "_ _"]


def perceptual_hash(square: Square) -> Hash:
    """Whether grey rises (1), falls (-1) or stays (0) from each pixel to its right and to its lower neighbour."""
    grey = Image.fromarray(square).convert("L").resize((SIDE_OF_HASH, SIDE_OF_HASH), Image.Resampling.BOX)
    gradients: Hash = _gradient_signs(np.asarray(grey)[None])[0]
    return gradients


def perceptual_hashes(pixels: ByteImages) -> Hashes:
    """The hash of each; a blank picture, which has no gradients, gets bits that only equal pixels share."""

    def hashes_of(part: Tensor) -> Hashes:
        pictures = part.permute(0, 2, 3, 1).contiguous().numpy()
        hashes: Hashes = _gradient_signs(_downsampled(pictures))
        for row in np.flatnonzero(~hashes.any(1)):
            bits = np.unpackbits(np.frombuffer(hashlib.blake2b(pictures[row].tobytes()).digest(), np.uint8))
            hashes[row] = 2 * bits[: hashes.shape[1]].astype(np.int8) - 1
        return hashes

    return np.concatenate(list(in_threads(hashes_of, pixels.split(SHEET**2))))


def _gradient_signs(grey: UInt8[np.ndarray, "count side side"]) -> Hashes:
    steps = [np.diff(grey.astype(np.int16), axis=axis).reshape(len(grey), -1) for axis in (2, 1)]
    gradients = np.concatenate(steps, 1)
    return (np.sign(gradients) * (np.abs(gradients) > FLAT)).astype(np.int8)


def _downsampled(pictures: UInt8[np.ndarray, "count rows columns 3"]) -> UInt8[np.ndarray, "count side side"]:
    """As `perceptual_hash` downsamples each, but in one sheet, which is faster: the box filter crosses no border.

    The sheet has the aspect ratio of one picture, by which Pillow decides which axis is rounded first.
    """
    count, rows, columns, _ = pictures.shape
    sheet, side = np.zeros((SHEET * rows, SHEET * columns, 3), np.uint8), SIDE_OF_HASH
    cells = sheet.reshape(SHEET, rows, SHEET, columns, 3).swapaxes(1, 2)
    for index, picture in enumerate(pictures):
        cells[divmod(index, SHEET)] = picture
    small = Image.fromarray(sheet).convert("L").resize((SHEET * side, SHEET * side), Image.Resampling.BOX)
    return np.asarray(small).reshape(SHEET, side, SHEET, side).swapaxes(1, 2).reshape(-1, side, side)[:count]


def similar(hashes: Hashes, others: OtherHashes) -> Bool[np.ndarray, "count others"]:
    """Where the cosine is at least `SIMILAR`; nothing is similar to a hash of zeros. Integer products are exact."""
    rows, columns = (each.astype(np.float32) for each in (hashes, others))
    products = rows @ columns.T
    squares = np.square(rows).sum(1)[:, None] * np.square(columns).sum(1)
    return (products > 0) & (np.square(products) >= SIMILAR**2 * squares)


def near_duplicate_pairs(hashes: Sequence[Hash], most: int = MOST_COMPARED_ALIKE) -> list[tuple[int, int]]:
    """Indices of hashes that are similar to an earlier one, each with the first such.

    Of more than `most` hashes, about as many, evenly spaced, are compared with all earlier ones: the time grows with
    their number, not with its square.
    """
    if not hashes:
        return []
    rows = np.arange(0, len(hashes), max(1, len(hashes) // most))
    every, firsts = np.stack(hashes), np.full(len(rows), len(hashes))
    for at, columns, similarity in _blocks(every[rows], every):
        nearest = columns.start + similarity.argmax(1)
        firsts[at] = np.where(similarity.any(1), np.minimum(firsts[at], nearest), firsts[at])
    return [(int(row), int(first)) for row, first in zip(rows, firsts, strict=True) if first < row]


def near_duplicates(hashes: Hashes, others: OtherHashes) -> Bool[np.ndarray, " count"]:
    """Which of `hashes` are similar to one of `others`."""
    duplicates = np.zeros(len(hashes), bool)
    for rows, _, similarity in _blocks(hashes, others):
        duplicates[rows] |= similarity.any(1)
    return duplicates


def similar_indices(hashes: Hashes, others: OtherHashes, most: int) -> list[list[int]]:
    """For each hash, the indices of similar ones in `others`; of more than `most`, only `most + 1` or more."""
    indices: list[list[int]] = [[] for _ in hashes]
    for rows, columns, similarity in _blocks(hashes, others):
        for row in np.flatnonzero(similarity.any(1)):
            if len(own := indices[rows.start + row]) <= most:
                own += (columns.start + np.flatnonzero(similarity[row])[: most + 1]).tolist()
    return indices


def _blocks(hashes: Hashes, others: OtherHashes) -> Iterator[tuple[slice, slice, Similarity]]:
    """The similarity of all pairs, in blocks that fit into memory at any number of pictures."""
    for left in range(0, len(others), OTHERS_AT_A_TIME):
        columns = slice(left, left + OTHERS_AT_A_TIME)
        for top in range(0, len(hashes), HASHES_AT_A_TIME):
            rows = slice(top, top + HASHES_AT_A_TIME)
            yield rows, columns, similar(hashes[rows], others[columns])
