"""Training examples of each leg."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.latents import StoredLatents
from calotype.data.sources import LatentSource, PictureSource
from calotype.data.views import DECODED_TIMES
from calotype.recipe import Recipe, leg_above
from calotype.training.loop import BatchSource
from calotype.types import Batch, Rng

Examples = Callable[[Tensor], PictureSource | LatentSource]
"""From the indices of pictures to batches of them for a denoiser."""


class Bucket(NamedTuple):
    """Pictures of one aspect ratio, and examples of them."""

    pictures: Pictures
    examples: Examples


@dataclass(frozen=True)
class MixedSource:
    """Batches of one bucket each, drawn as often as it has pictures: so every picture is as likely as any other."""

    sources: Sequence[BatchSource]
    counts: Sequence[int]
    rng: Rng

    def batch(self, images_seen: int, count: int) -> Batch:
        ends = list(accumulate(self.counts))
        position = int(self.rng.at("form", images_seen).integers(ends[-1], 1))
        return self.sources[bisect(ends, position)].batch(images_seen, count)


def main_bucket(buckets: Sequence[Bucket]) -> int:
    """The index of the bucket by which a leg is validated: that with the most validation pictures."""
    return max(range(len(buckets)), key=lambda index: len(buckets[index].pictures.validation_indices))


def bucket_with_training(buckets: Sequence[Bucket], main: int) -> int:
    """`main`, or the index of the bucket with the most training pictures where it has none: a subfolder named for
    validation may have all pictures of an aspect ratio."""
    counts = [len(bucket.pictures.train_indices) for bucket in buckets]
    return main if counts[main] else counts.index(max(counts))


def without_unread_captions(recipe: Recipe, pictures: Pictures) -> Pictures:
    """Without captions where no text encoder reads them."""
    return pictures if recipe.denoiser.text.kind != "none" else replace(pictures, captions=None)


def picture_source(recipe: Recipe, pictures: Pictures, device: torch.device) -> PictureSource:
    """Training pictures for the autoencoder."""
    crop = recipe.autoencoder.crop or recipe.chain[0]
    return PictureSource(pictures, pictures.train_indices, Rng((recipe.seed, "pictures")), device, crop, recipe.flip)


def latent_examples(recipe: Recipe, pictures: Pictures, cache: StoredLatents, device: torch.device) -> Examples:
    rng = Rng((recipe.seed, "latents"))
    return lambda chosen: LatentSource(cache, pictures.labels, chosen, rng, device, pictures.captions, pictures.file)


def picture_examples(recipe: Recipe, pictures: Pictures, device: torch.device) -> Examples:
    rng = Rng((recipe.seed, "base"))
    return lambda chosen: PictureSource(pictures, chosen, rng, device, 0, recipe.flip)


def of_view(source: PictureSource | LatentSource, view: int) -> PictureSource | LatentSource:
    """The same examples, each whole (0) or of one view; those in pixels are whole."""
    return replace(source, view=view) if isinstance(source, LatentSource) else source


def reads_larger(recipe: Recipe) -> bool:
    """Whether pictures are decoded again, larger than those of the first stage, to cut views from."""
    there = recipe.aspect_buckets == 1 and recipe.size >= DECODED_TIMES * recipe.chain[0]
    return recipe.denoiser.views > 0 and not there


def crop_examples(
    recipe: Recipe, size: int, pictures: Pictures, device: torch.device, crop: int | None = None
) -> Examples:
    """With their low-resolution versions, for the stage that makes pictures of this size; crops are those of training,
    or of another side."""
    rng, side = Rng((recipe.seed, leg_above(size))), crop or recipe.enlarging(size).crop or size
    factor = size // recipe.chain[recipe.chain.index(size) - 1]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, side, recipe.flip, factor)
