"""Does a model copy? Every sample's nearest training picture, held against the same for pictures it has never seen.

Near alone means little: pictures of one kind are near each other. A copy lies much nearer to one training picture than
to all the others (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to memorize"; Carlini et
al., arXiv 2301.13188, section 4), which a blurred or an average picture does not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int

from calotype.evaluation.distances import Features
from calotype.evaluation.features import AnyImages
from calotype.evaluation.intervals import Estimate, difference, distances, share_estimate
from calotype.types import Images

SIDE = 32
"""Pixels are compared at this side: what a copy loses in grain and sharpness is not seen."""
BLOCK = 2
NEIGHBOURS = 12
"""So many training pictures, the nearest by features, are compared by pixels."""
COPY = 1 / 3
"""A copy's distance to its nearest training picture, by the median distance to its next ones, is below this."""
TOLERATED = 0.05
"""Share of samples that look like copies, above that of real pictures, that is not held against a model."""
TWIN = 0.04
"""Root mean squared difference, of pixels in [-1, 1], below which two training pictures are the same one."""
FEWEST = 20
"""Pictures that a share must be of before it says anything."""
AT_ONCE = 512

COPIES, DOES_NOT_COPY, TOO_FEW = "copies", "does not copy", "too few to say"
Places = Int[np.ndarray, " count"]
Numbers = Float[np.ndarray, " count"]


class Seen(NamedTuple):
    """Pictures as they are compared. `mirrored` are the features of their mirror images."""

    features: Features
    pixels: Float[np.ndarray, "count 3 side side"]
    mirrored: Features | None = None


class Nearest(NamedTuple):
    """Of every picture: its nearest training picture, how far that is, and by how much it is the nearest."""

    place: Places
    apart: Numbers  # root mean squared difference of the pixels
    feature_distance: Numbers
    ratio: Numbers  # to the next ones; nan where there is no next one


class Verdict(NamedTuple):
    word: str
    sentence: str


def small_pixels(images: AnyImages) -> Float[np.ndarray, "_ 3 side side"]:
    shrunk = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return np.asarray(shrunk.cpu().numpy(), np.float32)


def glanced_at(images: AnyImages) -> Seen:
    """In a moment, without a network: blocks of their pixels stand for features."""
    pixels = small_pixels(images)
    blocks = pixels.reshape(len(pixels), 3, SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).mean((3, 5))
    ahead, mirrored = (side.reshape(len(pixels), -1) for side in (blocks, blocks[..., ::-1]))
    return Seen(ahead, pixels, mirrored)


def together(parts: Iterable[Seen]) -> Seen:
    features, pixels, mirrored = zip(*parts, strict=True)
    return Seen(np.concatenate(features), np.concatenate(pixels), np.concatenate(mirrored))


def nearest_trained(some: Seen, trained: Seen, themselves: bool = False) -> Nearest:
    """By features, then by pixels, mirror images too; `themselves`: `some` are `trained`, and do not count themselves.

    Needs one training picture, or two where they do not count themselves.
    """
    blocks = [slice(start, start + AT_ONCE) for start in range(0, len(some.pixels), AT_ONCE)]
    parts = [_nearest(some, block, trained, themselves) for block in blocks]
    return Nearest(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nearest(some: Seen, block: slice, trained: Seen, themselves: bool) -> Nearest:
    apart = distances(some.features[block], trained.features)
    if some.mirrored is not None:
        apart = np.minimum(apart, distances(some.mirrored[block], trained.features))
    rows = np.arange(len(apart))
    if themselves:
        apart[rows, rows + block.start] = np.inf
    count = min(NEIGHBOURS, len(trained.pixels) - themselves)
    candidates = np.argsort(apart, 1)[:, :count]
    pixels = pixels_apart(some.pixels[block], trained.pixels, candidates)
    best = pixels.argmin(1)
    place = candidates[rows, best]
    others = np.sort(pixels, 1)[:, 1:]
    next_ones = np.median(others, 1) if count > 1 else np.full(len(rows), np.nan)
    ratio = pixels.min(1) / np.maximum(next_ones, 1e-6)
    return Nearest(place, pixels.min(1).astype(np.float64), apart[rows, place], ratio.astype(np.float64))


def pixels_apart(
    some: Float[np.ndarray, "count 3 side side"],
    trained: Float[np.ndarray, "trained 3 side side"],
    candidates: Int[np.ndarray, "count candidates"],
) -> Float[np.ndarray, "count candidates"]:
    """Root mean squared difference to each candidate or its mirror image, whichever is nearer."""
    found = np.empty(candidates.shape, np.float32)
    for row, (picture, chosen) in enumerate(zip(some, candidates, strict=True)):
        both = np.stack([picture, picture[..., ::-1]])[:, None] - trained[chosen][None]
        found[row] = np.sqrt(np.square(both).mean((2, 3, 4))).min(0)
    return found


def facing(trained: Images, images: Images) -> Images:
    """Each trained picture as it is, or mirrored where it so lies nearer to its image."""
    ahead, mirrored = ((one - images).square().flatten(1).mean(1) for one in (trained, trained.flip(-1)))
    return torch.where((mirrored < ahead)[:, None, None, None], trained.flip(-1), trained)


def share_of_copies(found: Nearest) -> Estimate:
    return share_estimate(int((found.ratio < COPY).sum()), len(found.ratio))


def share_of_twins(found: Nearest) -> Estimate:
    """Of training pictures of which there is another that is almost the same."""
    return share_estimate(int((found.apart < TWIN).sum()), len(found.apart))


def verdict(samples: Nearest, real: Nearest) -> Verdict:
    """`real` are pictures that nobody made: held-out ones, or training pictures among the others."""
    if not (np.isfinite(samples.ratio).all() and np.isfinite(real.ratio).all()):
        return Verdict(TOO_FEW, "one training picture has no neighbours to tell a copy by")
    more = difference(share_of_copies(samples), share_of_copies(real))
    told = f"{said(samples)} samples and {said(real)} real pictures look like copies of a training picture"
    if len(samples.ratio) >= FEWEST and more.low > 0:
        return Verdict(COPIES, told)
    if len(samples.ratio) >= FEWEST and more.high <= TOLERATED:
        return Verdict(DOES_NOT_COPY, told)
    return Verdict(TOO_FEW, f"{told}; more samples would tell")


def said(found: Nearest) -> str:
    return f"{int((found.ratio < COPY).sum()):,} of {len(found.ratio):,}"
