"""Overlapping windows and their blending: for networks on large images, and for priors on large latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.nets.blocks import Resized
from calotype.types import Latents

Weight = Float[Tensor, " side"]


class Window(NamedTuple):
    """One side of a window: what is read of the input, what is written of the output, and how it is weighted there.

    The weights of all windows along a side sum to 1 everywhere.
    """

    read: slice
    write: slice
    weight: Weight


def blend(
    network: Callable[[Latents], Resized],
    image: Latents,
    rows: Sequence[Window],
    columns: Sequence[Window],
    blended: Resized,
) -> Resized:
    """Adds the weighted outputs in all windows to `blended`, which is 0 (MultiDiffusion, arXiv 2302.08113, eq. 5)."""
    for row in rows:
        for column in columns:
            weight = (row.weight[:, None] * column.weight).to(blended)
            blended[..., row.write, column.write] += weight * network(image[..., row.read, column.read])
    return blended


def in_windows(network: Callable[[Latents], Latents], image: Latents, side: int) -> Latents:
    """`network` in half-overlapping squares of `side`, blended; an image of just that size is `network(image)`."""
    rows, columns = (half_overlapping(length, side) for length in image.shape[-2:])
    return blend(network, image, rows, columns, torch.zeros_like(image))


@cache
def half_overlapping(length: int, side: int) -> list[Window]:
    """Windows of `side` along `length`, each of which overlaps the next by half or more."""
    assert length >= side, f"a window of {side} does not fit into {length}"
    steps = math.ceil((length - side) / max(1, side // 2))
    starts = [step * (length - side) // max(1, steps) for step in range(steps + 1)]
    places = [slice(start, start + side) for start in starts]
    return [Window(place, place, weight) for place, weight in zip(places, tent_weights(places), strict=True)]


def tent_weights(places: Sequence[slice]) -> list[Weight]:
    """A weight that falls linearly from the middle of each window, divided by the sum over all windows."""
    tents = []
    for place in places:
        ramp = torch.arange(1.0, place.stop - place.start + 1)
        tents.append(torch.minimum(ramp, ramp.flip(0)))
    total = torch.zeros(places[-1].stop)
    for place, tent in zip(places, tents, strict=True):
        total[place] += tent
    return [tent / total[place] for place, tent in zip(places, tents, strict=True)]
