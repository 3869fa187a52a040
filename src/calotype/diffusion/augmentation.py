"""Conditioning augmentation of low-resolution images, so that a stage tolerates the artefacts of the one before."""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from calotype.bounds import Fraction, PositiveLevel
from calotype.types import Config, Images, Rng, Sigmas, per_image


class NoiseAugmentation(Config):
    """Gaussian noise of a random level, which conditions the network (arXiv 2106.15282, 4.2): for small images."""

    kind: Literal["noise"] = "noise"
    most: PositiveLevel = 0.2
    """Largest standard deviation; images are in [-1, 1]."""
    share: Fraction = 0.5
    """Fraction of images that are augmented."""

    def sample_level(self, count: int, rng: Rng) -> Sigmas:
        return sample_levels(self.most, self.share, count, rng)

    def noise(self, level: Sigmas) -> Sigmas:
        """Standard deviation of the noise on the low-resolution image."""
        return level

    def deviation(self, level: Sigmas) -> Sigmas:
        """Standard deviation of the noise on the enlarged image: bicubic interpolation keeps 0.86 of it."""
        return 0.86 * level

    def apply(self, low_res: Images, level: Sigmas, noise: Tensor) -> Images:
        return low_res + per_image(level) * noise


class BlurAugmentation(Config):
    """Gaussian blur of a random level (arXiv 2106.15282, section 4.1): for low-resolution images of 128 px and more."""

    kind: Literal["blur"] = "blur"
    most: PositiveLevel = 1.0
    """Largest standard deviation of the blur, in low-resolution pixels."""
    share: Fraction = 0.5
    """Fraction of the images that are blurred."""

    def sample_level(self, count: int, rng: Rng) -> Sigmas:
        return sample_levels(self.most, self.share, count, rng)

    def noise(self, level: Sigmas) -> Sigmas:
        """0: blur adds no noise."""
        return torch.zeros_like(level)

    def deviation(self, level: Sigmas) -> Sigmas:
        """0: blur removes little that the stage does not add anyway."""
        return torch.zeros_like(level)

    def apply(self, low_res: Images, level: Sigmas, noise: Tensor) -> Images:
        """`noise` is not used."""
        return gaussian_blur(low_res, level, math.ceil(3 * self.most))


Augmentation = Annotated[NoiseAugmentation | BlurAugmentation, Field(discriminator="kind")]


def sample_levels(most: float, share: float, count: int, rng: Rng) -> Sigmas:
    """Uniform in [0, most) for this fraction of the images; 0 for the others."""
    return most * rng.at("level").uniform(count) * (rng.at("share").uniform(count) < share)


def gaussian_blur(images: Images, deviation: Sigmas, radius: int) -> Images:
    """Gaussian blur of each image's own standard deviation in pixels, cut off at `radius`; 0 leaves it as it is."""
    places = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-(places**2) / (2 * deviation.clamp(min=1e-2)[:, None] ** 2), 1)
    count, channels, *_ = images.shape
    kernels = weights.repeat_interleave(channels, 0)[:, None]
    planes = F.pad(images, [radius] * 4, mode="replicate").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels[:, :, :, None], groups=count * channels)
    planes = F.conv2d(planes, kernels[:, :, None, :], groups=count * channels)
    return planes[0].unflatten(0, (count, channels))
