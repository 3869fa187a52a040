"""Views of pictures: crops, half of them mirrored, on which a denoiser of few pictures is trained besides whole ones.

The denoiser is told where each lies, and of samples that they are whole: non-leaking augmentation (arXiv 2006.06676,
section 2.2; for diffusion models arXiv 2206.00364, section 5), as crop conditioning
does (arXiv 2307.01952, section 2.2).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from calotype.types import ByteImages, Rng

SMALLEST_VIEW, LARGEST_VIEW = 0.75, 0.98
"""Sides of a view, as fractions of those of the picture."""
DECODED_TIMES = 2
"""Views are cut from pictures of so many times the size: of the size itself they would be soft."""
VIEW_SHARE = 0.6
"""Of the pictures that training sees."""

Boxes = Float[Tensor, "*shape 4"]
"""Left and top edge and side as fractions of those of the picture, and 1 where the view is mirrored."""


@dataclass(frozen=True)
class Views:
    """Of all pictures: where they lie, and from what they are cut, which is read when it is first needed."""

    boxes: Float[Tensor, "views pictures 4"]
    read: Callable[[], ByteImages]

    @cached_property
    def pixels(self) -> ByteImages:
        return self.read()


def whole_boxes(*shape: int) -> Boxes:
    return torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(*shape, 4)


def draw_boxes(rng: Rng, *shape: int) -> Boxes:
    """Anywhere within the picture, sides from `SMALLEST_VIEW` to `LARGEST_VIEW`."""
    side, left, top, mirrored = rng.uniform(*shape, 4).unbind(-1)
    side = SMALLEST_VIEW + (LARGEST_VIEW - SMALLEST_VIEW) * side
    return torch.stack([left * (1 - side), top * (1 - side), side, (mirrored < 0.5).float()], -1)


def cut_views(
    pixels: ByteImages, boxes: Float[Tensor, "count 4"], size: tuple[int, int]
) -> UInt8[Tensor, "count 3 height width"]:
    """One view of each picture at (rows, columns) of `size`, resampled (Lanczos)."""
    (height, width), views = pixels.shape[-2:], []
    for picture, (left, top, side, mirrored) in zip(pixels.permute(0, 2, 3, 1).numpy(), boxes.tolist(), strict=True):
        box = left * width, top * height, min(width, (left + side) * width), min(height, (top + side) * height)
        view = Image.fromarray(picture).resize(size[::-1], Image.Resampling.LANCZOS, box)
        views.append(np.asarray(ImageOps.mirror(view) if mirrored else view))
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2)


def placement(boxes: Float[Tensor, "batch 4"]) -> Float[Tensor, "batch 4"]:
    """What the denoiser is told: how much is cut off, how far the middle has moved, both in units of the most, and 1
    where the view is mirrored. All are 0 for a whole picture."""
    left, top, side, mirrored = boxes.unbind(1)
    middles = [(edge + side / 2 - 0.5) / ((1 - SMALLEST_VIEW) / 2) for edge in (left, top)]
    return torch.stack([(1 - side) / (1 - SMALLEST_VIEW), *middles, mirrored], 1)
