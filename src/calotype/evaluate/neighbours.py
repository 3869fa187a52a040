"""The training picture that is nearest to a picture: the few nearest by their pixels, of these by their features."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from calotype.evaluate.features import AnyImages, features
from calotype.evaluate.sets import distances
from calotype.vocabulary import Images

SIDE = 16
"""Of the thumbnails by which candidates are found; before that, every so many pixels are left out."""
CANDIDATES = 4
AT_ONCE = 512


class Neighbours(NamedTuple):
    images: Images  # the nearest of each, mirrored where that is nearer
    places: list[int]  # of them among the trained ones
    distances: Float[np.ndarray, " count"]  # in feature space


def neighbours(images: Images, trained: UInt8[Tensor, "trained 3 rows columns"]) -> Neighbours:
    """For every image the nearest of the trained pictures and of their mirror images."""
    few = min(CANDIDATES, 2 * len(trained))
    chosen = torch.cdist(thumbnails(images), of_both_sides(trained)).topk(few, largest=False).indices
    candidates = [oriented(trained, row) for row in chosen]
    ours = features([images])
    between = np.stack([distances(ours[[i]], features([some]))[0] for i, some in enumerate(candidates)])
    best = between.argmin(1)
    places = [int(chosen[i, place]) % len(trained) for i, place in enumerate(best)]
    nearest = torch.stack([some[int(place)] for some, place in zip(candidates, best, strict=True)])
    return Neighbours(nearest, places, between.min(1))


def of_both_sides(trained: UInt8[Tensor, "trained 3 rows columns"]) -> Float[Tensor, "twice values"]:
    """Thumbnails of all pictures, then of their mirror images."""
    step = max(1, trained.shape[-1] // (2 * SIDE))
    small = torch.cat([as_images(part[:, :, ::step, ::step]) for part in trained.split(AT_ONCE)])
    return torch.cat([thumbnails(small), thumbnails(small.flip(-1))])


def thumbnails(images: AnyImages) -> Float[Tensor, "_ values"]:
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


def as_images(pixels: UInt8[Tensor, "_ 3 _ _"]) -> AnyImages:
    return pixels.float() / 127.5 - 1


def oriented(trained: UInt8[Tensor, "trained 3 rows columns"], chosen: Tensor) -> Images:
    """Pictures at places among both sides."""
    images = as_images(trained[chosen % len(trained)])
    return torch.where((chosen >= len(trained))[:, None, None, None], images.flip(-1), images)
