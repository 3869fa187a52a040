"""Fits the priors of a run to batches of its training images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from calotype.data.captions import shorter_versions
from calotype.priors.captions import CaptionedMixture
from calotype.priors.fit import Examples, Validation, fit_prior
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.priors.prior import MOST_VALUES
from calotype.recipe import Recipe
from calotype.spaces.pixel import Space
from calotype.spaces.tiling import half_overlapping
from calotype.training.examples import Bucket
from calotype.training.loop import BatchSource
from calotype.types import Batch, Rng, Text

VALIDATION_IMAGES = 512
"""By which the prior is chosen."""
PATCHES = 2**19
"""Low-resolution pixels, with the high-resolution patches below them, to which a patch prior is fitted."""
UNCAPTIONED = 0.2
"""Share of images that training gives no caption."""


def fit_mixture(
    recipe: Recipe, buckets: Sequence[Bucket], space: Space
) -> tuple[GaussianMixture | CaptionedMixture, CrossFitted | None]:
    """The prior of the first stage, from as many training latents as `MOST_VALUES` allows, and its cross-fitted form.

    With several aspect buckets it is fitted to the largest square that fits into all, in windows of each.
    """
    rng = Rng((recipe.seed, "gaussian"))
    train_rows = [bucket.pictures.train_indices for bucket in buckets]
    few = take(buckets, [bucket.pictures.validation_indices for bucket in buckets], VALIDATION_IMAGES, rng)
    most = max(2, MOST_VALUES // few.clean[0].numel())
    many = take(buckets, train_rows, most, rng)

    def examples(batch: Batch, rng: Rng, place: int) -> Examples:
        texts = ("",) * len(batch) if batch.text is None else batch.text.prompts
        drawn = Rng(("telling", place))  # as in version 0.1: another name would draw other numbers
        shorter = shortened(texts, recipe.denoiser.caption_dropout, drawn)
        return Examples(on_solver(space.sample(batch.clean, rng)), on_solver(batch.labels), texts, shorter)

    train, validation = examples(many, rng, 0), examples(few, rng, 2)
    more = None
    if any(train.captions):
        more = examples(take(buckets, train_rows, most, rng, 1), rng.at("again"), 1)
    sigma = recipe.denoiser.schedule.draw(len(few), rng.at("sigma")).to(validation.latents)
    noise = rng.at("noise").normal(*validation.latents.shape).to(validation.latents)
    folds = None if many.fold is None else on_solver(many.fold)
    prior, crossed = fit_prior(train, Validation(validation, sigma, noise), folds, more)
    if crossed is None:
        return prior, None
    return prior, CrossFitted(tuple(mixture.to(few.clean.device) for mixture in crossed.mixtures))


def take(buckets: Sequence[Bucket], rows: Sequence[Tensor], most: int, rng: Rng, turn: int = 0) -> Batch:
    """At most `most` of these images, of each bucket in proportion; in the next turn, the next ones."""
    side, total = common_side(buckets), sum(map(len, rows))
    counts = [min(len(chosen), math.ceil(most * len(chosen) / total)) for chosen in rows]
    sources = (bucket.examples(chosen) for bucket, chosen in zip(buckets, rows, strict=True))
    drawn = (source.batch(turn * count, count) for source, count in zip(sources, counts, strict=True) if count)
    return joined([random_windows(batch, side, rng.at("window", turn, place)) for place, batch in enumerate(drawn)])


def common_side(buckets: Sequence[Bucket]) -> int:
    """Of the largest square that fits into all buckets, as they are cached."""
    return min(side for bucket in buckets for side in bucket.examples(torch.arange(1)).batch(0, 1).clean.shape[-2:])


def random_windows(batch: Batch, side: int, rng: Rng) -> Batch:
    """Of each image, one of the windows in which the prior denoises it."""
    places = list(product(*(half_overlapping(length, side) for length in batch.clean.shape[-2:])))
    drawn = (places[place] for place in rng.integers(len(places), len(batch)).tolist())
    squares = [image[:, row.read, column.read] for image, (row, column) in zip(batch.clean, drawn, strict=True)]
    return replace(batch, clean=torch.stack(squares))


def joined(batches: Sequence[Batch]) -> Batch:
    """All their images, interleaved: so the first n of them are of each batch in proportion."""
    turns = torch.cat([(torch.arange(len(one)) + 0.5) / len(one) for one in batches]).argsort(stable=True)
    clean = torch.cat([one.clean for one in batches])[turns].contiguous(memory_format=torch.channels_last)
    labels = torch.cat([one.labels for one in batches])[turns]
    folds = [one.fold for one in batches if one.fold is not None]
    texts = [text for one in batches if one.text for text in one.text.prompts]
    fold = torch.cat(folds)[turns] if folds else None
    return Batch(clean, labels, None, fold, Text(tuple(texts)).at(turns.tolist()) if texts else None)


def shortened(captions: Sequence[str], caption_dropout: float, rng: Rng) -> list[str]:
    """Captions as caption dropout leaves them: "" or the first part, about as often as training drops all or a part."""
    nothing = UNCAPTIONED / (UNCAPTIONED + caption_dropout)
    empty = (rng.at("silent").uniform(len(captions)) < nothing).tolist()
    shorter = [shorter_versions(caption)[:1] for caption in captions]
    return ["" if dropped or not part else part[0] for dropped, part in zip(empty, shorter, strict=True)]


def on_solver(values: Tensor) -> Tensor:
    """Where linear algebra is complete: on CUDA, else on the CPU."""
    return values if values.device.type == "cuda" else values.cpu()


def fit_patches(prior: PatchPrior, train: BatchSource, crop: int) -> PatchPrior:
    """Fits a patch prior to crops of training images."""
    batch = max(1, PATCHES // 16 // (crop // prior.factor) ** 2)
    batches = (train.batch(index * batch, batch) for index in range(16))
    pairs = [(on_solver(one.low_res), on_solver(one.clean)) for one in batches if one.low_res is not None]
    prior.to(pairs[0][0].device).fit(pairs)
    return prior
