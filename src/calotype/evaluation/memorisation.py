"""Memorisation: the nearest training picture of every sample, compared with that of held-out pictures.

A small distance alone means little: similar pictures are near each other. A copy lies much nearer to one training
picture than to all the others (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
memorize"; Carlini et al., arXiv 2301.13188, section 4), which a blurred or an average picture does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.evaluation.distances import Features, Others
from calotype.evaluation.features import AnyImages
from calotype.evaluation.intervals import Estimate, difference_of_shares, distances, nearest_distance, share_estimate
from calotype.evaluation.measures import as_measure
from calotype.evaluation.results import Copies, Memorisation, Nearness
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
DUPLICATE = 0.04
"""Root mean squared difference, of pixels in [-1, 1], below which two training pictures are near-duplicates."""
FEWEST = 20
"""Pictures that a share must be of before it says anything."""
AT_ONCE = 512

MOST_TRAINED = 20_000
"""Training pictures that are searched at most; evenly spaced."""
PAIRS = 12
"""Samples that are shown beside their nearest training pictures."""
Word = Literal["copies", "does not copy", "too few to say"]
COPIES: Word = "copies"
DOES_NOT_COPY: Word = "does not copy"
TOO_FEW: Word = "too few to say"
Places = Int[np.ndarray, " count"]
Numbers = Float[np.ndarray, " count"]
Rows = Int[Tensor, " _"]


class Compared(NamedTuple):
    """Pictures as memorisation compares them; `mirrored`: the features of their mirror images."""

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
    word: Word
    sentence: str


def small_pixels(images: AnyImages) -> Float[np.ndarray, "_ 3 side side"]:
    shrunk = F.interpolate(images.float(), size=(SIDE, SIDE), mode="bilinear", antialias=True)
    return np.asarray(shrunk.cpu().numpy(), np.float32)


def thumbnails(images: AnyImages) -> Compared:
    """With means of blocks of pixels as features, so without a network."""
    pixels = small_pixels(images)
    blocks = pixels.reshape(len(pixels), 3, SIDE // BLOCK, BLOCK, SIDE // BLOCK, BLOCK).mean((3, 5))
    ahead, mirrored = (side.reshape(len(pixels), -1) for side in (blocks, blocks[..., ::-1]))
    return Compared(ahead, pixels, mirrored)


def concatenated(parts: Iterable[Compared]) -> Compared:
    features, pixels, mirrored = zip(*parts, strict=True)
    return Compared(np.concatenate(features), np.concatenate(pixels), np.concatenate(mirrored))


def nearest_trained(images: Compared, trained: Compared, themselves: bool = False) -> Nearest:
    """By features, then by pixels, mirror images too; `themselves`: `images` are `trained`, without themselves.

    Needs one training picture, or two where they are without themselves.
    """
    blocks = [slice(start, start + AT_ONCE) for start in range(0, len(images.pixels), AT_ONCE)]
    parts = [_nearest(images, block, trained, themselves) for block in blocks]
    return Nearest(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _nearest(images: Compared, block: slice, trained: Compared, themselves: bool) -> Nearest:
    apart = distances(images.features[block], trained.features)
    if images.mirrored is not None:
        apart = np.minimum(apart, distances(images.mirrored[block], trained.features))
    rows = np.arange(len(apart))
    if themselves:
        apart[rows, rows + block.start] = np.inf
    count = min(NEIGHBOURS, len(trained.pixels) - themselves)
    candidates = np.argsort(apart, 1)[:, :count]
    pixels = pixels_apart(images.pixels[block], trained.pixels, candidates)
    best = pixels.argmin(1)
    place = candidates[rows, best]
    others = np.sort(pixels, 1)[:, 1:]
    next_ones = np.median(others, 1) if count > 1 else np.full(len(rows), np.nan)
    ratio = pixels.min(1) / np.maximum(next_ones, 1e-6)
    return Nearest(place, pixels.min(1).astype(np.float64), apart[rows, place], ratio.astype(np.float64))


def pixels_apart(
    images: Float[np.ndarray, "count 3 side side"],
    trained: Float[np.ndarray, "trained 3 side side"],
    candidates: Int[np.ndarray, "count candidates"],
) -> Float[np.ndarray, "count candidates"]:
    """Root mean squared difference to each candidate or its mirror image, whichever is nearer."""
    result = np.empty(candidates.shape, np.float32)
    for row, (picture, chosen) in enumerate(zip(images, candidates, strict=True)):
        both = np.stack([picture, picture[..., ::-1]])[:, None] - trained[chosen][None]
        result[row] = np.sqrt(np.square(both).mean((2, 3, 4))).min(0)
    return result


def mirrored_to_match(trained: Images, images: Images) -> Images:
    """Each training picture, mirrored where it is nearer to its image that way."""
    ahead, mirrored = ((one - images).square().flatten(1).mean(1) for one in (trained, trained.flip(-1)))
    return torch.where((mirrored < ahead)[:, None, None, None], trained.flip(-1), trained)


def share_of_copies(nearest_ones: Nearest) -> Estimate:
    return share_estimate(int((nearest_ones.ratio < COPY).sum()), len(nearest_ones.ratio))


def share_of_duplicates(among: Nearest) -> Estimate:
    """Of training pictures that have a near-duplicate among the others."""
    return share_estimate(int((among.apart < DUPLICATE).sum()), len(among.apart))


def verdict(samples: Nearest, real: Nearest) -> Verdict:
    """`real`: held-out pictures, or training pictures among the others."""
    if not (np.isfinite(samples.ratio).all() and np.isfinite(real.ratio).all()):
        return Verdict(TOO_FEW, "one training picture has no neighbours to tell a copy by")
    more = difference_of_shares(share_of_copies(samples), share_of_copies(real))
    counts = f"{copies_in(samples)} samples and {copies_in(real)} real pictures look like copies of a training picture"
    if len(samples.ratio) >= FEWEST and more.low > 0:
        return Verdict(COPIES, counts)
    if len(samples.ratio) >= FEWEST and more.high <= TOLERATED:
        return Verdict(DOES_NOT_COPY, counts)
    return Verdict(TOO_FEW, f"{counts}; more samples would tell")


def copies_in(nearest_ones: Nearest) -> str:
    return f"{int((nearest_ones.ratio < COPY).sum()):,} of {len(nearest_ones.ratio):,}"


# -- Of a run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorisationResult:
    measures: Memorisation
    pairs: list[tuple[int, int]]
    """Of the samples most like copies: its index, and the row of its nearest training picture."""


def unmeasured(reason: str) -> MemorisationResult:
    return MemorisationResult(Memorisation(verdict=TOO_FEW, sentence=reason), [])


def memorisation(
    samples: Compared, compared: Callable[[Rows, bool], Compared], train: Rows, test: Rows
) -> MemorisationResult:
    """`compared` gives the pictures of these rows, with their mirror images or without."""
    rows = evenly(train, MOST_TRAINED)
    if len(rows) < 3:
        return unmeasured(f"a copy is told apart by its neighbours, and there are {len(rows)} training pictures")
    trained = compared(rows, False)
    of_samples, among = nearest_trained(samples, trained), nearest_trained(trained, trained, themselves=True)
    real = among if len(test) < FEWEST else nearest_trained(compared(test, True), trained)
    word, sentence = verdict(of_samples, real)
    searched = f"{len(rows):,} of {len(train):,} training pictures were searched" if len(rows) < len(train) else ""
    measures = Memorisation(
        verdict=word,
        sentence=sentence,
        samples=copies(of_samples),
        real=copies(real),
        real_are="training pictures, each beside the others" if real is among else "test pictures",
        duplicates=as_measure(share_of_duplicates(among)),
        n=(len(of_samples.place), len(real.place), len(rows)),
        note=searched,
    )
    likest = np.argsort(of_samples.ratio)[:PAIRS]
    return MemorisationResult(measures, [(int(one), int(rows[of_samples.place[one]])) for one in likest])


def copies(nearest_ones: Nearest) -> Copies:
    return Copies(
        copies=as_measure(share_of_copies(nearest_ones)),
        ratio_median=float(np.median(nearest_ones.ratio)),
        apart_median=float(np.median(nearest_ones.apart)),
        feature_distance_median=float(np.median(nearest_ones.feature_distance)),
    )


def nearness(samples: Features, held_out: Others, trained: Float[np.ndarray, "trained channel"]) -> Nearness:
    """How near samples lie to training pictures in feature space, compared with held-out pictures."""
    n = (len(samples), len(held_out), len(trained))
    if not len(held_out) or not len(trained):
        reason = "no picture of the comparison is held out, or none was trained on"
        return Nearness(samples_median=None, held_out_median=None, nearer=None, reason=reason, n=n)
    ours, theirs = nearest_distance(samples, trained), nearest_distance(held_out, trained)
    near = share_estimate(int((ours < np.percentile(theirs, 5)).sum()), len(samples))
    medians = (float(np.median(each)) for each in (ours, theirs))
    return Nearness(samples_median=next(medians), held_out_median=next(medians), nearer=as_measure(near), n=n)


def evenly(rows: Rows, most: int) -> Rows:
    """At most so many of the rows, evenly spaced."""
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]
