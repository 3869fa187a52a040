"""Memorisation: the nearest training picture of every sample, compared with that of held-out pictures.

A small distance alone means little: similar pictures are near each other. A copy lies much nearer to one training
picture than to all the others (Yoon et al. 2023, "Diffusion probabilistic models generalize when they fail to
memorize"; Carlini et al., arXiv 2301.13188, section 4), which a blurred or an average picture does not.

Where pictures are much alike, guided samples, which are typical of them, look like copies of one or another by chance.
They then look like copies of held-out pictures, too, as often for each of these; a model that memorises does that for
training pictures alone (the holdout-based share of Platzer and Reutterer, arXiv 2104.00635, section 3.2). A prompt
is the caption of a test picture, which its sample resembles for that reason: so it is not compared with that one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.data.split import evenly
from calotype.evaluation.distances import Features, Others, pairwise_distances
from calotype.evaluation.intervals import Estimate, Places, difference_of_shares, share_estimate
from calotype.evaluation.measures import as_measure
from calotype.evaluation.results import AgainstTest, Copies, CopyVerdict, Memorisation, Nearness
from calotype.types import NULL_LABEL, Images, OtherImages

COMPARED_SIDE, BLOCK = 32, 2
"""Pixels are compared at this side: a copy's loss of grain and sharpness does not count. A thumbnail has a feature for
each block of so many pixels a side."""
NEIGHBOURS = 12
"""So many training pictures, the nearest by features, are compared by pixels."""
COPY_RATIO = 1 / 3
"""A copy's distance to its nearest training picture, by the median distance to its next ones, is below this."""
TOLERATED = 0.05
"""Share of samples that look like copies, above that of real pictures, that is not held against a model."""
DUPLICATE = 0.04
"""Root mean squared difference, of pixels in [-1, 1], below which two training pictures are near-duplicates."""
FEWEST_FOR_A_SHARE = 20
"""Pictures that a share must be of before it says anything."""
BLOCK_OF_ROWS = 512
"""Pictures whose distances are in memory together."""
MOST_SEARCHED = 20_000
"""Training pictures whose features are taken, evenly spaced; of more, also those that are nearest by thumbnails."""
SHOWN_PAIRS = 12
"""Samples that are shown beside their nearest training pictures."""
COPIES: CopyVerdict = "copies"
DOES_NOT_COPY: CopyVerdict = "does not copy"
TOO_FEW: CopyVerdict = "too few to say"
Numbers = Float[np.ndarray, " count"]
Rows = Int[Tensor, " _"]
SmallPixels = Float[np.ndarray, "count 3 side side"]


class Compared(NamedTuple):
    """Pictures as memorisation compares them; `mirrored`: the features of their mirror images."""

    features: Features
    pixels: SmallPixels
    mirrored: Features | None = None


class Nearest(NamedTuple):
    """Of every picture: its nearest training picture, how far that is, and by how much it is the nearest."""

    place: Int[np.ndarray, " count"]
    apart: Numbers  # root mean squared difference of the pixels
    feature_distance: Numbers
    ratio: Numbers  # to the next ones; nan where there is no next one

    @property
    def copies(self) -> int:
        return int((self.ratio < COPY_RATIO).sum())

    @property
    def share_of_copies(self) -> Estimate:
        return share_estimate(self.copies, len(self.ratio))

    @property
    def share_of_duplicates(self) -> Estimate:
        """Of training pictures that have a near-duplicate among the others."""
        return share_estimate(int((self.apart < DUPLICATE).sum()), len(self.apart))


def small_pixels(images: OtherImages) -> Float[np.ndarray, "_ 3 side side"]:
    side = (COMPARED_SIDE, COMPARED_SIDE)
    shrunk = F.interpolate(images.float(), size=side, mode="bilinear", antialias=True)
    return np.asarray(shrunk.cpu().numpy(), np.float32)


def thumbnails(images: OtherImages) -> Compared:
    """With means of blocks of pixels as features, so without a network."""
    pixels = small_pixels(images)
    return Compared(block_means(pixels), pixels, block_means(pixels[..., ::-1]))


def block_means(pixels: SmallPixels) -> Features:
    count, places = len(pixels), COMPARED_SIDE // BLOCK
    return pixels.reshape(count, 3, places, BLOCK, places, BLOCK).mean((3, 5)).reshape(count, -1)


def nearest_by_thumbnails(images: SmallPixels, trained: Iterable[SmallPixels]) -> Int[np.ndarray, " found"]:
    """Places of all training pictures that are among the `NEIGHBOURS` nearest of an image, mirror images too.

    `trained` gives them in parts, which are in memory one after the other.
    """
    both = block_means(images), block_means(images[..., ::-1])
    best, place = np.full((len(images), NEIGHBOURS), np.inf), np.zeros((len(images), NEIGHBOURS), np.int64)
    start = 0
    for pixels in trained:
        features, end = block_means(pixels), start + len(pixels)
        apart = np.minimum(*(pairwise_distances(each, features) for each in both))
        apart = np.concatenate([best, apart], 1)
        places = np.concatenate([place, np.tile(np.arange(start, end), (len(images), 1))], 1)
        kept = np.argpartition(apart, NEIGHBOURS - 1, 1)[:, :NEIGHBOURS]
        best, place, start = np.take_along_axis(apart, kept, 1), np.take_along_axis(places, kept, 1), end
    return np.unique(place[np.isfinite(best)])


def concatenated(parts: Iterable[Compared]) -> Compared:
    return Compared(*map(np.concatenate, zip(*parts, strict=True)))


def nearest_trained(
    images: Compared, trained: Compared, themselves: bool = False, without: Places | None = None
) -> Nearest:
    """By features, then by pixels, mirror images too; `themselves`: `images` are `trained`, without themselves.

    `without`: of each image, the place of the one in `trained` that it is not compared with; -1 for none. Needs one
    training picture, or two where one is left out.
    """
    without = np.arange(len(images.pixels)) if themselves else without
    starts = range(0, len(images.pixels), BLOCK_OF_ROWS)
    parts = [_nearest(images, slice(start, start + BLOCK_OF_ROWS), trained, without) for start in starts]
    return Nearest(*map(np.concatenate, zip(*parts, strict=True)))


def _nearest(images: Compared, block: slice, trained: Compared, without: Places | None) -> Nearest:
    apart = pairwise_distances(images.features[block], trained.features)
    if images.mirrored is not None:
        apart = np.minimum(apart, pairwise_distances(images.mirrored[block], trained.features))
    rows = np.arange(len(apart))
    if without is not None:
        left_out = np.flatnonzero(without[block] >= 0)
        apart[left_out, without[block][left_out]] = np.inf
    count = min(NEIGHBOURS, len(trained.pixels) - (without is not None))
    candidates = np.argsort(apart, 1)[:, :count]
    pixels = _pixels_apart(images.pixels[block], trained.pixels, candidates)
    place = candidates[rows, pixels.argmin(1)]
    next_distance = np.median(np.sort(pixels, 1)[:, 1:], 1) if count > 1 else np.full(len(rows), np.nan)
    ratio = pixels.min(1) / np.maximum(next_distance, 1e-6)
    return Nearest(place, pixels.min(1).astype(np.float64), apart[rows, place], ratio.astype(np.float64))


def _pixels_apart(
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
    ahead, mirrored = ((each - images).square().flatten(1).mean(1) for each in (trained, trained.flip(-1)))
    return torch.where((mirrored < ahead)[:, None, None, None], trained.flip(-1), trained)


class Origins(NamedTuple):
    """The classes of pictures, within which the split is by chance, and the pictures whose captions are prompts."""

    trained: Places
    """Classes of the training pictures that are compared."""
    tested: Places
    every: Places
    """Classes of all training pictures, also of those that are too far to be compared."""
    sources: Places
    """The place, among the test pictures, of the one whose caption is a sample's prompt; -1 for none of them."""


class Found(NamedTuple):
    """Samples that look like copies, searched among training and test pictures together."""

    of_training: int
    of_test: int
    nearest_is_training: int
    samples: int
    chance: float
    """How often a picture that looks copied is a test picture by chance; `chance_of_nearest`: the nearest of any sample
    is."""
    chance_of_nearest: float

    @property
    def copies(self) -> int:
        return self.of_training + self.of_test

    @property
    def memorised(self) -> Estimate:
        """Share of samples that look like copies of training pictures, less what chance gives.

        Chance gives as many for each training picture as for each test picture. With k of n samples that look like
        copies, a part p of these of test pictures: `k / n * (1 - p / chance)`, or 0 where that is less; bounds of the
        interval are those of both shares.
        """
        share = share_estimate(self.copies, self.samples)
        of_test = share_estimate(self.of_test, self.copies) if self.copies else Estimate(self.chance, 0.0, 1.0)
        beyond = [max(0.0, 1 - part / self.chance) for part in of_test]
        bounds = [each * part for each in share[1:] for part in beyond[1:]]
        return Estimate(share.value * beyond[0], min(bounds), max(bounds))

    def measures(self) -> AgainstTest:
        return AgainstTest(
            of_training=self.of_training,
            of_test=self.of_test,
            chance=self.chance,
            chance_of_nearest=self.chance_of_nearest,
            memorised=as_measure(self.memorised),
            nearest_is_training=as_measure(share_estimate(self.nearest_is_training, self.samples)),
        )


def found_among(samples: Compared, trained: Compared, tested: Compared, origins: Origins) -> Found:
    """By chance, the nearest picture is any of its class equally often, but for the one whose caption is the prompt."""
    sources, before = origins.sources, len(trained.pixels)
    nearest = nearest_trained(
        samples, beside(trained, tested), without=np.where(sources >= 0, before + sources, sources)
    )
    copies, of_test = nearest.ratio < COPY_RATIO, nearest.place >= before
    classes = np.concatenate([origins.trained, origins.tested])[nearest.place]
    train, test = (class_sizes(each, classes) for each in (origins.every, origins.tested))
    others = test - ((sources >= 0) & (origins.tested[sources] == classes))
    chance = others / (train + others)
    return Found(
        of_training=int((copies & ~of_test).sum()),
        of_test=int((copies & of_test).sum()),
        nearest_is_training=int((~of_test).sum()),
        samples=len(of_test),
        chance=float(chance[copies].mean() if copies.any() else chance.mean()),
        chance_of_nearest=float(chance.mean()),
    )


def class_sizes(labels: Places, classes: Int[np.ndarray, " some"]) -> Int[np.ndarray, " some"]:
    """How many pictures there are of each of these classes."""
    return np.bincount(labels - NULL_LABEL, minlength=int(classes.max()) - NULL_LABEL + 1)[classes - NULL_LABEL]


def copy_verdict(samples: Nearest, real: Nearest, found: Found | None = None) -> tuple[CopyVerdict, str]:
    """Whether samples are copies, and a sentence; `real`: held-out pictures, or training pictures among the others.

    A model copies if more samples than real pictures look like copies of training pictures, and chance, as seen in test
    pictures that look copied as well, does not explain it; or if more than `TOLERATED` is beyond chance, also where
    real pictures look like copies as often.
    """
    more = difference_of_shares(samples.share_of_copies, real.share_of_copies)
    ours, theirs = (f"{each.copies:,} of {len(each.ratio):,}" for each in (samples, real))
    sentence = f"{ours} samples and {theirs} real pictures look like copies of a training picture"
    enough, at_most, explained, beyond = len(samples.ratio) >= FEWEST_FOR_A_SHARE, more.high, False, False
    if found is not None and found.copies:
        sentence += (
            f"; searched among test pictures as well, which training has not seen, {found.copies:,} samples look like "
            f"copies, {found.of_test:,} of them of a test picture, where chance alone gives "
            f"{found.chance * found.copies:.1f}"
        )
        beyond = found.memorised.low > TOLERATED
        explained = found.of_test > 0 and found.memorised.low <= 0
        if found.of_test and found.chance * found.copies >= 1:  # of less, a single test picture would acquit
            at_most = min(at_most, found.memorised.high)
    if enough and (beyond or (more.low > 0 and not explained)):
        return COPIES, sentence
    if enough and at_most <= TOLERATED:
        return DOES_NOT_COPY, sentence
    return TOO_FEW, f"{sentence}; more samples would tell"


# -- Of a run ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MemorisationResult:
    measures: Memorisation
    pairs: Sequence[tuple[int, int]] = ()
    """Of the samples most like copies: its index, and the row of its nearest training picture."""


def memorisation(
    samples: Compared,
    compared: Callable[[Rows, bool], Compared],
    small: Callable[[Rows], Iterable[SmallPixels]],
    train: Rows,
    test: Rows,
    labels: Int[Tensor, " pictures"],
    sources: Rows,
) -> MemorisationResult:
    """`compared` gives the pictures of these rows, with their mirror images or without; `small` their pixels, in parts.

    `labels` are the classes of all pictures, `sources` the rows whose captions are the samples' prompts: -1 for none.

    Of more than `MOST_SEARCHED` training pictures, those that a thumbnail tells to be near a sample or a test picture
    are compared, too: a copy of any of them is found, and samples and test pictures are treated alike.
    """
    rows = evenly(train, MOST_SEARCHED)
    if len(rows) < 3:
        reason = f"a copy is told apart by its neighbours, and there are {len(rows)} training pictures"
        return MemorisationResult(Memorisation(verdict=TOO_FEW, sentence=reason))
    trained, note = compared(rows, False), ""
    real = among = nearest_trained(trained, trained, themselves=True)
    found = None
    if len(rows) < len(train):
        note = f"{len(rows):,} of {len(train):,} training pictures were searched"
    if len(test) >= FEWEST_FOR_A_SHARE:
        tested = compared(test[: len(samples.pixels)], True)
        if note:
            near = train[nearest_by_thumbnails(np.concatenate([samples.pixels, tested.pixels]), small(train))]
            more = near[~torch.isin(near, rows)]
            if len(more):
                trained, rows = beside(trained, compared(more, False)), torch.cat([rows, more])
            note = f"all {len(train):,} training pictures were searched by thumbnails, and {len(rows):,} by features"
        real = nearest_trained(tested, trained)
        others = evenly(test, MOST_SEARCHED)
        of_rows, of_others, every = (labels[each].numpy() for each in (rows, others, train))
        origins = Origins(of_rows, of_others, every, places_among(sources, others))
        found = found_among(samples, trained, compared(others, False), origins)
        found = found if found.chance else None  # of one test picture a class nothing is left to compare with
    of_samples = nearest_trained(samples, trained)
    verdict, sentence = copy_verdict(of_samples, real, found)
    measures = Memorisation(
        verdict=verdict,
        sentence=sentence,
        samples=_copies(of_samples),
        real=_copies(real),
        real_are="training pictures, each beside the others" if real is among else "test pictures",
        among_test=found and found.measures(),
        duplicates=as_measure(among.share_of_duplicates),
        n=(len(of_samples.place), len(real.place), len(rows)),
        note=note,
    )
    likest = np.argsort(of_samples.ratio)[:SHOWN_PAIRS]
    return MemorisationResult(measures, [(int(index), int(rows[of_samples.place[index]])) for index in likest])


def places_among(rows: Rows, others: Int[Tensor, " others"]) -> Places:
    """Where each row is among the others; -1 for one that is not."""
    place_of = {row: place for place, row in enumerate(others.tolist())}
    return np.array([place_of.get(row, -1) for row in rows.tolist()], np.int64)


def beside(some: Compared, others: Compared) -> Compared:
    """The rows of both; mirror images are left out."""
    return Compared(
        *(np.concatenate([getattr(each, name) for each in (some, others)]) for name in ("features", "pixels"))
    )


def _copies(nearest: Nearest) -> Copies:
    return Copies(
        copies=as_measure(nearest.share_of_copies),
        ratio_median=float(np.median(nearest.ratio)),
        apart_median=float(np.median(nearest.apart)),
        feature_distance_median=float(np.median(nearest.feature_distance)),
    )


def nearness(samples: Features, held_out: Others, trained: Float[np.ndarray, "trained channel"]) -> Nearness:
    """How near samples lie to training pictures in feature space, compared with held-out pictures."""
    n = (len(samples), len(held_out), len(trained))
    if not len(held_out) or not len(trained):
        reason = "no picture of the comparison is held out, or none was trained on"
        return Nearness(samples_median=None, held_out_median=None, nearer=None, reason=reason, n=n)
    ours, theirs = (pairwise_distances(rows, trained).min(1) for rows in (samples, held_out))
    near = share_estimate(int((ours < np.percentile(theirs, 5)).sum()), len(samples))
    return Nearness(
        samples_median=float(np.median(ours)), held_out_median=float(np.median(theirs)), nearer=as_measure(near), n=n
    )
