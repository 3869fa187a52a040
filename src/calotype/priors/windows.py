"""What knows pictures of one size, on a larger canvas: asked about overlapping windows, and blended."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.types import Latents

Share = Float[Tensor, " side"]


def windowed(canvas: Latents, side: int, work: Callable[[Latents], Latents]) -> Latents:
    """`work` of squares of `side`, blended smoothly: the canvas that is nearest to what it says of all of them.

    MultiDiffusion (arXiv 2302.08113, eq. 5). A canvas of just that size is `work(canvas)`, to the bit.
    """
    height, width = canvas.shape[-2:]
    blended = torch.zeros_like(canvas)
    for rows, down in windows(height, side):
        for columns, across in windows(width, side):
            weight = (down[:, None] * across).to(canvas)
            blended[..., rows, columns] += weight * work(canvas[..., rows, columns])
    return blended


@cache
def windows(length: int, side: int) -> list[tuple[slice, Share]]:
    """Windows along one side of a canvas, each half over the next or more, and how much each counts at its places.

    In its middle a window counts most; together they count 1 everywhere.
    """
    assert length >= side, f"a window of {side} does not fit into {length}"
    steps = math.ceil((length - side) / max(1, side // 2))
    starts = [step * (length - side) // max(1, steps) for step in range(steps + 1)]
    ramp = torch.arange(1.0, side + 1)
    tent, total = torch.minimum(ramp, ramp.flip(0)), torch.zeros(length)
    for start in starts:
        total[start : start + side] += tent
    return [(slice(start, start + side), tent / total[start : start + side]) for start in starts]
