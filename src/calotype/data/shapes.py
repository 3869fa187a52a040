"""Aspect-ratio buckets: pictures in the nearest of a few shapes, each about as large as the square, instead of in that.

The first stage of a model learns from them; all else, what is held against samples too, are squares.
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

from calotype.data.folder import Pictures, Progress, decoded
from calotype.data.images import shown
from calotype.types import UserError

WIDEST = 2.0
"""Times as wide as high, or as high as wide."""
FEWEST = 16
"""Pictures that a shape needs; those of a rarer one go to the next."""
WORTH_TELLING = 0.05
"""Of pictures that squares cut away."""
SUGGESTED = 5


class Shape(NamedTuple):
    """In pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def shapes_of(count: int, size: int, unit: int) -> list[Shape]:
    """From 1:2 to 2:1, evenly in the logarithm; sides are multiples of `unit`, so small ones may be fewer."""
    stretches = (WIDEST ** (place / max(1, count // 2) / 2) for place in range(-(count // 2), count // 2 + 1))
    sides = ((max(1, round(size * by / unit)) * unit, max(1, round(size / by / unit)) * unit) for by in stretches)
    return list(dict.fromkeys(Shape(*pair) for pair in sides))


def sort(sizes: Sequence[Shape], shapes: Sequence[Shape]) -> list[Shape]:
    """The shape that each picture of these sizes is brought into: the nearest of those that are frequent enough."""
    counts = Counter(map(partial(nearest, shapes), sizes))
    frequent = [shape for shape in shapes if counts[shape] >= FEWEST] or [counts.most_common(1)[0][0]]
    return [nearest(frequent, size) for size in sizes]


def nearest(shapes: Iterable[Shape], size: Shape) -> Shape:
    """By the logarithm of width by height."""
    return min(shapes, key=lambda shape: abs(math.log(shape.width * size.height / (shape.height * size.width))))


def cut_away(size: Shape, shape: Shape) -> float:
    """The share of a picture that does not go into a shape that it just covers."""
    wider = size.width * shape.height / (size.height * shape.width)
    return 1 - min(wider, 1 / wider)


def read_forms(
    pictures: Pictures, shapes: Sequence[Shape], factor: int, cache: Path, progress: Progress | None = None
) -> list[Pictures]:
    """The same pictures, read again, in one of these shapes each, and made smaller by `factor`.

    Those of one shape are together, the most frequent shape first. Raises `UserError` where a picture has gone since.
    """
    if not pictures.originals:
        return [pictures]
    own = sort(sizes_of(pictures), shapes)
    rows = {shape: [index for index, one in enumerate(own) if one == shape] for shape, _ in Counter(own).most_common()}
    return [_read_form(pictures, chosen, shape, cache, progress).low_res(factor) for shape, chosen in rows.items()]


def _read_form(
    pictures: Pictures, chosen: Sequence[int], shape: Shape, cache: Path, progress: Progress | None
) -> Pictures:
    content = hashlib.sha256(f"{pictures.content} {shape} {chosen}".encode()).hexdigest()[:32]
    paths = [pictures.originals[index].path for index in chosen]
    pixels, outcomes = decoded(paths, (shape.height, shape.width), cache / f"pixels-{content}.npy", progress)
    for path, outcome in zip(paths, outcomes, strict=True):
        if outcome.refused:
            raise UserError(f"{shown(path)} could be read before, but not now: {outcome.refused}; put it back")
    form = pictures.at(torch.tensor(chosen), torch.from_numpy(pixels))
    return replace(form, content=content)


def sizes_of(pictures: Pictures) -> list[Shape]:
    """Of their files, or of what is drawn."""
    square = Shape(*reversed(pictures.pixels.shape[-2:]))
    return [Shape(one.width, one.height) for one in pictures.originals] or [square] * len(pictures)


def about(sizes: Sequence[Shape], shapes: Sequence[Shape]) -> str:
    """How many pictures each shape has, how much of them is cut away, and how many are enlarged."""
    own = sort(sizes, shapes)
    counts = ", ".join(f"{shape} px {count:,}" for shape, count in Counter(own).most_common())
    enlarged = sum(size.width < one.width or size.height < one.height for size, one in zip(sizes, own, strict=True))
    more = f", {enlarged:,} are enlarged" if enlarged else ""
    return f"{counts}; {mean_cut(sizes, own):.0%} of each is cut away on average{more}"


def mean_cut(sizes: Sequence[Shape], own: Sequence[Shape]) -> float:
    return sum(map(cut_away, sizes, own)) / len(sizes)


def shape_notes(sizes: Sequence[Shape], count: int, size: int, unit: int) -> list[str]:
    """What the shapes do to pictures of these sizes; with squares alone, what they cut away, if that is much."""
    square, several = Shape(size, size), shapes_of(SUGGESTED, size, unit)
    if count > 1:
        return [
            f"shapes: {about(sizes, shapes_of(count, size, unit))} "
            f"({mean_cut(sizes, [square] * len(sizes)):.0%} with squares)",
            "previews, samples and measures are squares; calotype sample --size WxH makes other shapes",
        ]
    if (lost := mean_cut(sizes, [square] * len(sizes))) < WORTH_TELLING:
        return []
    kept = mean_cut(sizes, sort(sizes, several))
    return [
        f"squares cut away {lost:.0%} of {len(sizes):,} pictures; "
        f"with --set aspect_buckets={SUGGESTED} it is {kept:.0%}"
    ]
