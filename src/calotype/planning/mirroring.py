"""Whether mirrored pictures look like the pictures themselves, so that training can take both."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.types import Images, Labels

FEWEST, MOST = 1_000, 10_000
"""Training pictures. Samples of fewer, 300, were farther from other real ones with mirrored pictures (dev/LOG.md,
2026-11-28); of more, a training of minutes or hours sees few twice."""
COMPARED = 2_000
"""Pictures that are compared at most: of more, the classifier says the same."""
SMALL_SIDE, READ_SIDE = 16, 64
"""Pictures are compared at this size, in pixels, of about so many of their rows and columns, which are soon read."""
CROSS_VALIDATED, SHRINKAGE = 4, 0.1
"""Parts of cross-validation; and what is added to the covariance, in units of the mean variance."""
OWN_MEAN = 8
"""Pictures of a class by which its mean weighs as much as that of all."""
STANDARD_ERRORS = 2.0

Halves = Float[Tensor, "count value"]


def choose_flip(pictures: Pictures, reads_captions: bool) -> tuple[bool, str]:
    """Whether half of the pictures that training sees are mirrored, and the reason."""
    chosen = pictures.train_indices
    if reads_captions:
        return False, "captions may speak of left and right"
    if not FEWEST <= pictures.trained <= MOST:
        return False, f"tried only with {FEWEST:,} to {MOST:,} training pictures"
    some, step = chosen[:: math.ceil(len(chosen) / COMPARED)], max(1, min(pictures.pixels.shape[-2:]) // READ_SIDE)
    rows, columns = (even_places(side, step) for side in pictures.pixels.shape[-2:])
    read = (images_from_pixels(pictures.pixels[row][:, rows[:, None], columns][None]) for row in some)
    small = torch.cat([F.adaptive_avg_pool2d(images, SMALL_SIDE) for images in read])
    accuracy = chirality(small, pictures.labels[some])
    symmetric = is_symmetric(accuracy, len(some))
    result = f"a linear classifier tells {accuracy:.0%} of {len(some):,} pictures from their mirror images"
    return symmetric, f"{result}, where 50% is chance"


def even_places(length: int, step: int) -> Int[Tensor, " place"]:
    """Places about `step` apart, as far from the one end as from the other."""
    first = torch.arange(step // 2, length // 2, step)
    return torch.cat([first, length - 1 - first.flip(0)])


def chirality(images: Images, labels: Labels) -> float:
    """How often a linear classifier tells a picture from its mirror image, between 0 and 1; 0.5 is chance.

    Visual chirality (arXiv 2006.09512) in closed form: the antisymmetric half of a picture, `x - mirrored(x)`, changes
    its sign under reflection, so Fisher's discriminant through the origin, fitted within classes to three quarters of
    the pictures, is right about another where its sign is positive.
    """
    small = F.adaptive_avg_pool2d(images.float(), SMALL_SIDE)
    halves = (small - small.flip(-1))[..., : SMALL_SIDE // 2].flatten(1).double()
    classes = labels.unique(return_inverse=True)[1]
    fold, right = torch.arange(len(halves)) % CROSS_VALIDATED, []
    for held_out in range(CROSS_VALIDATED):
        seen = fold != held_out
        directions = discriminants(halves[seen], classes[seen], int(classes.max()) + 1)
        right.append((halves[~seen] * directions[classes[~seen]]).sum(1) > 0)
    return float(torch.cat(right).double().mean())


def discriminants(halves: Halves, classes: Labels, count: int) -> Float[Tensor, "class value"]:
    """Fisher's discriminants of `count` classes; the mean of a small class is drawn to that of all pictures."""
    covariance = halves.T @ halves / len(halves)
    covariance += SHRINKAGE * covariance.diagonal().mean().clamp(min=1e-12) * torch.eye(len(covariance)).to(covariance)
    sums = torch.zeros(count, halves.shape[1]).to(halves).index_add(0, classes, halves)
    sizes = classes.bincount(minlength=count)[:, None]
    means = (sums + OWN_MEAN * halves.mean(0)) / (sizes + OWN_MEAN)
    return torch.linalg.solve(covariance, means.T).T


def is_symmetric(accuracy: float, count: int) -> bool:
    """Whether `count` pictures were told from their mirror images no more often than by chance."""
    return accuracy < 0.5 + STANDARD_ERRORS * math.sqrt(0.25 / count)
