"""What legs train on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.latents import LatentCache
from calotype.data.sources import LatentSource, PictureSource
from calotype.learning.train import Source
from calotype.recipe import Recipe, leg_above
from calotype.vocabulary import Rng

MOST_VALUES = 2**26
"""Closed forms are fitted to as many pictures, or latents, as have so many values in all."""

Examples = Callable[[Tensor], Source]
"""From the indices of pictures to batches of them, as a denoiser wants them."""


def as_read(recipe: Recipe, pictures: Pictures) -> Pictures:
    """Without captions where nothing reads them."""
    return pictures if recipe.denoiser.text.kind != "none" else replace(pictures, captions=None)


def picture_source(recipe: Recipe, pictures: Pictures, device: torch.device) -> PictureSource:
    """For the autoencoder."""
    crop = recipe.autoencoder.crop or recipe.chain[0]
    return PictureSource(pictures, pictures.train_indices, Rng((recipe.seed, "pictures")), device, crop, recipe.flip)


def latent_examples(recipe: Recipe, pictures: Pictures, cache: LatentCache, device: torch.device) -> Examples:
    rng = Rng((recipe.seed, "latents"))
    return lambda chosen: LatentSource(cache, pictures.labels, chosen, rng, device, pictures.captions)


def picture_examples(recipe: Recipe, pictures: Pictures, device: torch.device) -> Examples:
    rng, size = Rng((recipe.seed, "base")), recipe.chain[0]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, size, recipe.flip)


def crop_examples(recipe: Recipe, size: int, pictures: Pictures, device: torch.device) -> Examples:
    """With their smaller pictures, for the stage that makes pictures of this size."""
    rng, crop = Rng((recipe.seed, leg_above(size))), recipe.enlarger(size).crop or size
    factor = size // recipe.chain[recipe.chain.index(size) - 1]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, crop, recipe.flip, factor)
