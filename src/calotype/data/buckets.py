"""Aspect-ratio buckets: the first stage learns from pictures cropped to the nearest of a few aspect ratios.

Each bucket has about the area of the square. All else, and what is compared with samples too, are squares.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from calotype.data.folder import CHANGED, Pictures, decode_all
from calotype.data.images import shown
from calotype.types import ByteImages, Progress, UserError, no_progress

MAX_ASPECT_RATIO = 2.0
MIN_PICTURES = 16
"""Of a bucket; pictures of a smaller one go to the next nearest."""
NOTEWORTHY_CROP = 0.05
"""Fraction of the pictures' area from which on the plan says what squares cut away."""
SUGGESTED_BUCKETS = 5
SIZES_COUNTED = 2**14
"""Pictures, evenly spaced, that are divided into aspect buckets to see how much of them is cut away."""


class PixelSize(NamedTuple):
    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def bucket_sizes(count: int, size: int, unit: int) -> list[PixelSize]:
    """Sizes from 1:2 to 2:1, evenly in the logarithm of the ratio, each with about the area of the square of `size`.

    Sides are multiples of `unit`, so of small sizes there may be fewer than `count`.
    """
    half = count // 2
    stretches = (MAX_ASPECT_RATIO ** (step / max(1, half) / 2) for step in range(-half, half + 1))
    sides = ((max(1, round(size * by / unit)) * unit, max(1, round(size / by / unit)) * unit) for by in stretches)
    return list(dict.fromkeys(PixelSize(*pair) for pair in sides))


def assign_buckets(sizes: Sequence[PixelSize], buckets: Sequence[PixelSize]) -> list[PixelSize]:
    """The bucket of each picture: the nearest of those with enough pictures."""
    counts = Counter(map(partial(nearest_bucket, buckets), sizes))
    frequent = [size for size in buckets if counts[size] >= MIN_PICTURES] or [counts.most_common(1)[0][0]]
    return [nearest_bucket(frequent, size) for size in sizes]


def nearest_bucket(buckets: Iterable[PixelSize], size: PixelSize) -> PixelSize:
    """By the logarithm of the aspect ratio."""
    return min(buckets, key=lambda bucket: abs(math.log(bucket.width * size.height / (bucket.height * size.width))))


def cropped_fraction(size: PixelSize, bucket: PixelSize) -> float:
    """The fraction of a picture that is cut away for its bucket."""
    wider = size.width * bucket.height / (size.height * bucket.width)
    return 1 - min(wider, 1 / wider)


def mean_crop(sizes: Sequence[PixelSize], buckets: Iterable[PixelSize]) -> float:
    return sum(map(cropped_fraction, sizes, buckets)) / len(sizes)


def read_buckets(
    pictures: Pictures, buckets: Sequence[PixelSize], factor: int, cache: Path, progress: Progress = no_progress
) -> list[Pictures]:
    """The same pictures, decoded again for their buckets, and downsampled by `factor`; one `Pictures` a bucket.

    The largest bucket is first. Raises `UserError` where a file has gone, or has changed, since.
    """
    if not pictures.originals:
        return [pictures]
    assigned = assign_buckets(original_sizes(pictures), buckets)
    return [
        _read_bucket(
            pictures, [row for row, own in enumerate(assigned) if own == bucket], bucket, cache, progress
        ).low_res(factor)
        for bucket, _ in Counter(assigned).most_common()
    ]


def larger_pixels(pictures: Pictures, by: int, cache: Path, progress: Progress = no_progress) -> ByteImages:
    """The pixels of the same pictures, decoded again at `by` times their size; as they are where there are no files.

    Raises `UserError` as `read_buckets` does.
    """
    if not pictures.originals:
        return pictures.pixels
    height, width = (by * side for side in pictures.pixels.shape[-2:])
    return _read_bucket(pictures, range(len(pictures)), PixelSize(width, height), cache, progress).pixels


def _read_bucket(
    pictures: Pictures, chosen: Sequence[int], bucket: PixelSize, cache: Path, progress: Progress
) -> Pictures:
    levels = f" {dict(pictures.levels)}" if pictures.levels else ""
    content = hashlib.sha256(f"{pictures.content} {bucket} {chosen}{levels}".encode()).hexdigest()[:32]
    paths, stamps = zip(*((file.path, file.stamp) for file in (pictures.originals[row] for row in chosen)), strict=True)
    file = cache / f"pixels-{content}.npy"
    pixels, decoded = decode_all(paths, (bucket.height, bucket.width), file, progress, pictures.levels, stamps)
    for path, picture in zip(paths, decoded, strict=True):
        if picture.refused:
            file.with_suffix(".json").unlink(missing_ok=True)  # it vouches for the pixels: next time all are read again
            if picture.refused == CHANGED:
                raise UserError(f"{shown(path)} cannot be read again: {CHANGED}")
            raise UserError(f"{shown(path)} could be read before, but not now: {picture.refused}; put it back")
    return replace(pictures.at(torch.tensor(chosen), torch.from_numpy(pixels)), content=content)


def original_sizes(pictures: Pictures) -> list[PixelSize]:
    """Of the files; of embedded portraits, which are drawn as squares, those of their pixels."""
    square = PixelSize(*reversed(pictures.pixels.shape[-2:]))
    return [PixelSize(file.width, file.height) for file in pictures.originals] or [square] * len(pictures)


def some_sizes(pictures: Pictures) -> list[PixelSize]:
    """Of about `SIZES_COUNTED` of the files, evenly spaced."""
    return original_sizes(pictures)[:: max(1, len(pictures) // SIZES_COUNTED)]


def bucket_counts(pictures: Pictures, buckets: Sequence[PixelSize]) -> list[int]:
    """How many of all pictures each bucket has, about: by the share of some of them."""
    some = some_sizes(pictures)
    assigned = Counter(assign_buckets(some, buckets))
    return [round(pictures.total * count / len(some)) for _, count in assigned.most_common()]


def bucket_notes(sizes: Sequence[PixelSize], count: int, size: int, unit: int) -> list[str]:
    """For the plan: how `count` buckets divide pictures of these sizes; with squares alone, what they cut away."""
    lost = mean_crop(sizes, [PixelSize(size, size)] * len(sizes))
    assigned = assign_buckets(sizes, bucket_sizes(count if count > 1 else SUGGESTED_BUCKETS, size, unit))
    kept = mean_crop(sizes, assigned)
    if count == 1:
        advice = f"with --set aspect_buckets={SUGGESTED_BUCKETS} it is {kept:.0%}"
        return [f"squares cut away {lost:.0%} of {len(sizes):,} pictures; {advice}"] if lost >= NOTEWORTHY_CROP else []
    counts = ", ".join(f"{bucket} px {number:,}" for bucket, number in Counter(assigned).most_common())
    pairs = zip(sizes, assigned, strict=True)
    enlarged = sum(size.width < bucket.width or size.height < bucket.height for size, bucket in pairs)
    more = f", {enlarged:,} are enlarged" if enlarged else ""
    return [
        f"aspect buckets: {counts}; {kept:.0%} of each is cut away on average{more} ({lost:.0%} with squares)",
        "previews, samples and measures are squares; calotype sample --size WxH makes other aspect ratios",
    ]
