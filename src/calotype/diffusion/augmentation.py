"""What is done on purpose to the smaller picture that a stage looks at, so that it learns not to trust it too much."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveFloat
from torch import Tensor

from calotype.types import Config, Images, Rng, Sigmas, per_image


class NoiseAugmentation(Config):
    """Gaussian noise of a random level, which the network is told (arXiv 2106.15282, section 4.2): for small ones."""

    kind: Literal["noise"] = "noise"
    most: PositiveFloat = 0.2
    """Standard deviation; pictures are in [-1, 1]."""
    share: float = Field(default=0.5, ge=0, le=1)
    """How often a picture is augmented at all: a short training must know the plain ones well."""

    def draw(self, count: int, rng: Rng) -> Sigmas:
        return draw_levels(self.most, self.share, count, rng)

    def noise(self, level: Sigmas) -> Sigmas:
        """Standard deviation of the noise that is put on the smaller picture."""
        return level

    def deviation(self, level: Sigmas) -> Sigmas:
        """Standard deviation of what the enlarged picture has of the noise: bicubic interpolation keeps 0.86 of it."""
        return 0.86 * level

    def apply(self, low_res: Images, level: Sigmas, noise: Tensor) -> Images:
        return low_res + per_image(level) * noise


class BlurAugmentation(Config):
    """Gaussian blur on half of the examples (arXiv 2106.15282, section 4.1): for large smaller pictures."""

    kind: Literal["blur"] = "blur"
    most: PositiveFloat = 1.0
    """Standard deviation of the blur in pixels of the smaller picture."""
    share: float = Field(default=0.5, ge=0, le=1)

    def draw(self, count: int, rng: Rng) -> Sigmas:
        return draw_levels(self.most, self.share, count, rng)

    def noise(self, level: Sigmas) -> Sigmas:
        """Blur puts none on it."""
        return torch.zeros_like(level)

    def deviation(self, level: Sigmas) -> Sigmas:
        """Blur takes away little that the stage does not add anyway."""
        return torch.zeros_like(level)

    def apply(self, low_res: Images, level: Sigmas, noise: Tensor) -> Images:
        """`noise` is not used."""
        return blurred(low_res, level, math.ceil(3 * self.most))


Augmentation = Annotated[NoiseAugmentation | BlurAugmentation, Field(discriminator="kind")]


def draw_levels(most: float, share: float, count: int, rng: Rng) -> Sigmas:
    """Evenly between 0 and `most`, for this share of the pictures; 0 for the others."""
    return most * rng.at("level").uniform(count) * (rng.at("share").uniform(count) < share)


def blurred(images: Images, spread: Sigmas, radius: int) -> Images:
    """Each image under a Gaussian of its own spread in pixels, up to `radius` pixels away; 0 leaves it as it is."""
    places = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-(places**2) / (2 * spread.clamp(min=1e-2)[:, None] ** 2), 1)
    count, channels, *_ = images.shape
    kernels = weights.repeat_interleave(channels, 0)[:, None]
    planes = F.pad(images, [radius] * 4, mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=count * channels)
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=count * channels)
    return planes[0].unflatten(0, (count, channels))
