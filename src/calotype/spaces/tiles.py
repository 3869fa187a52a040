"""Encoding and decoding in tiles: images of any size in bounded memory.

A *cell* is one latent and the square of pixels that it stands for. Tiles overlap by as many cells as the network's
receptive field has beyond its own cell, which is measured. Where that is finite, tiles give exactly what the network
gives at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.nets.blocks import Resized
from calotype.spaces.tiling import Window, blend, tent_weights
from calotype.types import Latents, Rng

TiledNetwork = Callable[[Latents], Resized]

LARGE = 2**20
"""Images of more pixels than this are processed in tiles."""
TILE = 1024
"""Side of a tile in pixels, its overlap included."""
STRIP = 129
"""Cells of the strip on which the reach is measured: more than twice the receptive field of our networks."""
INFLUENCE = 0.99
"""Share of a cell's influence that tiles of a network with global receptive field must overlap by."""


@dataclass(frozen=True)
class CellScale:
    """Values a side that a cell has before and after a network: 1 and 8 for a decoder of reduction 8."""

    before: int
    after: int

    @property
    def pixels(self) -> int:
        return max(self.before, self.after)


@dataclass(frozen=True)
class Reach:
    """Cells to each side that a network sees beyond its own; `exact` if it sees nothing beyond these."""

    cells: int
    exact: bool


def in_tiles(network: TiledNetwork, image: Latents, scale: CellScale, channels: int) -> Resized:
    """`network(image)`, which has `channels`: at once where the image is small, in tiles where it is large."""
    height, width = image.shape[-2:]
    if height * width * scale.pixels**2 <= LARGE * scale.before**2:
        return network(image)
    return tiled(network, image, scale, channels, measure_reach(network, image, scale), TILE // scale.pixels)


def tiled(network: TiledNetwork, image: Latents, scale: CellScale, channels: int, reach: Reach, side: int) -> Resized:
    """`network(image)` in tiles of `side` cells, more where the overlap takes most of that, one image after another."""
    height, width = (size // scale.before for size in image.shape[-2:])
    output = image.new_zeros(len(image), channels, height * scale.after, width * scale.after)
    margin = reach.cells if reach.exact else min(reach.cells, side // 4)
    rows, columns = (tile_windows(cells, side, margin, scale, reach.exact) for cells in (height, width))
    for single, place in zip(image.split(1), output.split(1), strict=True):
        blend(network, single, rows, columns, place)
    return output


def tile_windows(cells: int, side: int, margin: int, scale: CellScale, exact: bool) -> list[Window]:
    """Tiles of about equal size along a side; each is responsible for at least as much as it sees to either side.

    Exact tiles keep what they are responsible for; others are blended with their neighbours.
    """
    count = -(-cells // max(1, margin, side - 2 * margin))
    ends = [index * cells // count for index in range(count + 1)]
    tiles = [(max(0, first - margin), min(cells, last + margin)) for first, last in pairwise(ends)]
    reads = [slice(start * scale.before, end * scale.before) for start, end in tiles]
    writes = [slice(start * scale.after, end * scale.after) for start, end in tiles]
    weights = tent_weights(writes)
    if exact:
        for weight, (start, _), (first, last) in zip(weights, tiles, pairwise(ends), strict=True):
            weight.zero_()[(first - start) * scale.after : (last - start) * scale.after] = 1
    return [Window(*window) for window in zip(reads, writes, weights, strict=True)]


def measure_reach(network: TiledNetwork, image: Latents, scale: CellScale) -> Reach:
    """From the gradient of one cell's values with respect to the cells beside it, and above and below it.

    A network that sees the ends of the strip is taken to have a global receptive field.
    """
    influence = strip_influence(network, image, scale)
    influence += strip_influence(lambda strip: network(strip.mT).mT, image, scale)
    farthest = int(influence.nonzero().max()) if influence.any() else 0
    if farthest < STRIP // 2:
        return Reach(farthest, exact=True)
    within = influence.cumsum(0) / influence.sum()
    return Reach(int((within < INFLUENCE).sum()), exact=False)


def strip_influence(network: TiledNetwork, image: Latents, scale: CellScale) -> Float[Tensor, " distance"]:
    """Gradient magnitude by distance from the middle of a strip one cell high, so that it costs little."""
    middle, rng = STRIP // 2, Rng(("reach",))
    strip = rng.at("strip").normal(1, image.shape[1], scale.before, STRIP * scale.before).to(image).requires_grad_()
    with torch.enable_grad():
        middle_values = network(strip)[..., middle * scale.after : (middle + 1) * scale.after]
        mixed = middle_values * rng.at("mixture").normal(*middle_values.shape).to(middle_values)
        (gradient,) = torch.autograd.grad(mixed.sum(), strip)
    cells = gradient.cpu().double().abs().sum((0, 1, 2)).unflatten(0, (STRIP, scale.before)).sum(1)
    return cells[middle:] + cells[: middle + 1].flip(0)
