"""Encoding and decoding in tiles: pictures of any size in bounded memory.

A *cell* is one latent and the square of pixels that it stands for. Tiles overlap by as many cells as the network sees
beyond its own, which is measured and not assumed. Where that is a finite number, tiles equal the whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.nets.blocks import Resized
from calotype.types import Latents, Rng

Network = Callable[[Latents], Resized]

LARGE = 2**20
"""Pictures of more pixels than this are done in tiles,"""
TILE = 1024
"""of this side in pixels, their overlap included."""
STRIP = 129
"""Cells of the strip on which the reach is measured: more than twice what our networks see."""
MOST = 0.99
"""Of the influence: a network that sees the whole picture has tiles that overlap by as many cells as have this much."""


@dataclass(frozen=True)
class Scale:
    """How many values a side a cell has before and after a network: 1 and 8 for a decoder of f8."""

    before: int
    after: int

    @property
    def pixels(self) -> int:
        return max(self.before, self.after)


@dataclass(frozen=True)
class Reach:
    """How many cells to each side a network sees beyond its own. `exact` if it sees nothing at all beyond these."""

    cells: int
    exact: bool


@dataclass(frozen=True)
class Span:
    """Cells `start` to `end` of a side are seen by a tile, and `first` to `last` are what it is responsible for."""

    start: int
    first: int
    last: int
    end: int


def in_tiles(network: Network, image: Latents, scale: Scale, channels: int) -> Resized:
    """`network(image)`, which has so many channels: at once where the picture is small, in tiles where it is large."""
    height, width = image.shape[-2:]
    if height * width * scale.pixels**2 <= LARGE * scale.before**2:
        return network(image)
    return tiled(network, image, scale, channels, measure_reach(network, image, scale), TILE // scale.pixels)


def tiled(network: Network, image: Latents, scale: Scale, channels: int, reach: Reach, side: int) -> Resized:
    """`network(image)` through tiles of `side` cells, more where the overlap takes most of that, one after another."""
    height, width = (size // scale.before for size in image.shape[-2:])
    whole = image.new_zeros(len(image), channels, height * scale.after, width * scale.after)
    margin = reach.cells if reach.exact else min(reach.cells, side // 4)
    rows, columns = (list(spans(cells, side, margin)) for cells in (height, width))
    shares = [windows(some, scale.after, reach.exact, image) for some in (rows, columns)]
    for one, place in zip(image.split(1), whole.split(1), strict=True):
        for row, down in zip(rows, shares[0], strict=True):
            for column, across in zip(columns, shares[1], strict=True):
                part = network(cut(one, row, column, scale.before))
                cut(place, row, column, scale.after).add_(part * down[:, None] * across)
    return whole


def spans(cells: int, side: int, margin: int) -> Iterator[Span]:
    """Tiles of about equal size, in order; each is responsible for at least as much as it sees to either side."""
    count = -(-cells // max(1, margin, side - 2 * margin))
    for index in range(count):
        first, last = index * cells // count, (index + 1) * cells // count
        yield Span(max(0, first - margin), first, last, min(cells, last + margin))


def cut(image: Latents, row: Span, column: Span, values: int) -> Resized:
    """What a tile sees, as a view."""
    return image[..., row.start * values : row.end * values, column.start * values : column.end * values]


def windows(tiles: list[Span], values: int, exact: bool, like: Tensor) -> list[Float[Tensor, " _"]]:
    """The weight of each value that a tile makes along a side; those of all tiles sum to 1 everywhere.

    Exact tiles keep what they are responsible for, others are faded into their neighbours.
    """
    places = [torch.arange(tile.start * values, tile.end * values, device=like.device) for tile in tiles]
    if exact:
        return [
            ((place >= tile.first * values) & (place < tile.last * values)).to(like.dtype)
            for tile, place in zip(tiles, places, strict=True)
        ]
    hats = [torch.minimum(place - place[0], place[-1] - place).to(like.dtype) + 1 for place in places]
    total = like.new_zeros(tiles[-1].end * values)
    for place, hat in zip(places, hats, strict=True):
        total[place] += hat
    return [hat / total[place] for place, hat in zip(places, hats, strict=True)]


def measure_reach(network: Network, image: Latents, scale: Scale) -> Reach:
    """From the gradient of one cell's values with respect to the cells beside it, and above and below it.

    A network that sees the ends of the strip is taken to see everything: what `image` has beyond it, too.
    """
    influence = strip_influence(network, image, scale) + strip_influence(upright(network), image, scale)
    felt = int(influence.nonzero().max()) if influence.any() else 0
    if felt < STRIP // 2:
        return Reach(felt, exact=True)
    inside = influence.cumsum(0) / influence.sum()
    return Reach(int((inside < MOST).sum()), exact=False)


def upright(network: Network) -> Network:
    """The network as it is along the other side of pictures."""
    return lambda image: network(image.mT).mT


def strip_influence(network: Network, image: Latents, scale: Scale) -> Float[Tensor, " distance"]:
    """How strongly cells at each distance act on the middle of a strip, which is one cell high: that costs little."""
    middle, rng = STRIP // 2, Rng(("reach",))
    strip = rng.at("strip").normal(1, image.shape[1], scale.before, STRIP * scale.before).to(image).requires_grad_()
    with torch.enable_grad():
        felt = network(strip)[..., middle * scale.after : (middle + 1) * scale.after]
        mixed = felt * rng.at("mixture").normal(*felt.shape).to(felt)
        (gradient,) = torch.autograd.grad(mixed.sum(), strip)
    cells = gradient.cpu().double().abs().sum((0, 1, 2)).unflatten(0, (STRIP, scale.before)).sum(1)
    return cells[middle:] + cells[: middle + 1].flip(0)
