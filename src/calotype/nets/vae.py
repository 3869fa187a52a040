"""The convolutional autoencoder: images to latents `reduction` times smaller, and back (arXiv 1312.6114; 2112.10752).

Encoder and decoder are a linear path over square patches plus a network whose last convolution starts at 0. The linear
path is the PCA of the patches, in closed form, and is not trained. Patches overlap by a lapped transform.
Between resolutions, pixels are folded into channels around each convolution (as DC-AE, arXiv 2410.10733, section 3.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from calotype.bounds import MAX_LEVELS, BlockCount, Channels, PatchSide
from calotype.nets.blocks import ChannelNorm, Precision, ResidualBlock, Resized, autocast, zero
from calotype.types import Config, Images, Latents

GAIN = 0.1
"""Of the networks beside the linear path: without it, Adam's first steps on their last layers undo the PCA start."""
START_LOG_VARIANCE = math.log(0.1**2)
"""Of the posterior: a standard deviation of 0.1 where latents have 1. Training lowers it to about 0.001, as a small KL
weight allows."""


class VaeConfig(Config):
    kind: Literal["vae"] = "vae"
    reduction: PatchSide = Field(default=8, description="Side of an image divided by the side of its latents.")
    channels: Channels = Field(default=16, description="Channels of the latents.")
    stem: PatchSide = Field(default=4, description="Side of the patches that become one pixel of the networks.")
    widths: tuple[Channels, ...] = Field(default=(96, 192), min_length=1, max_length=MAX_LEVELS)
    """Channels at each level, from `stem` down."""
    encoder_blocks: BlockCount = Field(default=1, description="Blocks per level of the encoder.")
    decoder_blocks: BlockCount = Field(default=2, description="Blocks per level of the decoder.")
    lapped: bool = False
    """Whether the patches of the linear path overlap; see `Lapping`. Those of earlier versions do not."""

    @model_validator(mode="after")
    def _ladder(self) -> VaeConfig:
        if self.stem * 2 ** (len(self.widths) - 1) != self.reduction:
            raise ValueError(
                f"reduction is {self.reduction}, but stem {self.stem} with {len(self.widths)} widths gives "
                f"{self.stem * 2 ** (len(self.widths) - 1)}; each width after the first halves the picture"
            )
        if self.lapped and self.reduction % 2:
            raise ValueError(f"reduction is {self.reduction}, but patches overlap by half of it; set lapped to false")
        for wide, narrow in pairwise(self.widths):
            if max(4 * wide, narrow) % min(4 * wide, narrow):
                raise ValueError(
                    f"widths are {wide} and {narrow} at neighbouring levels, but 4 * {wide} and {narrow} must divide "
                    f"one another; try {wide} and {2 * wide}"
                )
        return self


class Moments(NamedTuple):
    """The Gaussian posterior of an image's latents."""

    mean: Latents
    log_variance: Latents

    def sample(self, noise: Latents) -> Latents:
        """A draw from the posterior (arXiv 1312.6114, eq. 9)."""
        return self.mean + (self.log_variance / 2).exp() * noise


def kl_to_normal(moments: Moments) -> Latents:
    """KL divergence of the posterior from N(0, 1), one number a latent value, in nats (arXiv 1312.6114, appendix B)."""
    return 0.5 * (moments.mean.square() + moments.log_variance.exp() - 1 - moments.log_variance)


class Vae(nn.Module):
    """Images (batch, 3, height, width) <-> latents (batch, channels, height / reduction, width / reduction)."""

    def __init__(self, config: VaeConfig, precision: Precision = "float32") -> None:
        super().__init__()
        self.config, self.precision = config, precision
        values = 3 * config.reduction**2
        self.lapping = Lapping(config.reduction) if config.lapped else None
        self.linear_in = nn.Conv2d(values, config.channels, 1).requires_grad_(False)
        self.linear_out = nn.Conv2d(config.channels, values, 1).requires_grad_(False)
        self.encoder = VaeEncoder(config)
        self.decoder = VaeDecoder(config)

    def encode(self, images: Images) -> Moments:
        with autocast(images.device, self.precision):
            mean, log_variance = (GAIN * self.encoder(images).float()).chunk(2, 1)
        linear = self.linear_in(self._patches(images))
        return Moments(linear + mean, (START_LOG_VARIANCE + log_variance).clamp(-20, 10))

    def decode(self, latents: Latents) -> Images:
        with autocast(latents.device, self.precision):
            correction = GAIN * self.decoder(latents).float()
        linear = F.pixel_shuffle(self.linear_out(latents), self.config.reduction)
        return (linear if self.lapping is None else self.lapping.inverse(linear)) + correction

    def _patches(self, images: Images) -> Resized:
        return F.pixel_unshuffle(images if self.lapping is None else self.lapping(images), self.config.reduction)

    @torch.no_grad()
    def start_linear(self, batches: Iterable[Images]) -> None:
        """Sets the linear path to the PCA of the patches of all images, scaled to latents of mean 0 and variance 1.

        Batches are taken one after the other; there is one at least.
        """
        patches = (self._patches(images).cpu().double().transpose(0, 1).flatten(1) for images in batches)
        mean, variances, axes = principal_axes(patches)
        count = self.config.channels
        spreads, axes = variances[:count].clamp(min=max(1e-8, 1e-5 * float(variances[0]))).sqrt(), axes[:, :count]
        into, back = (axes / spreads).T, axes * spreads
        for conv, weight, bias in ((self.linear_in, into, -into @ mean), (self.linear_out, back, mean)):
            conv.weight.copy_(weight[:, :, None, None])
            conv.bias.copy_(bias[:, 0])  # type: ignore[union-attr]


def principal_axes(
    parts: Iterable[Float[Tensor, "value _"]],
) -> tuple[Float[Tensor, "value 1"], Float[Tensor, " axis"], Float[Tensor, "value axis"]]:
    """Mean, variances along the principal axes, falling, and the axes as columns, of the columns of all parts.

    In float64. Sums and products are added up, so that no part is kept.
    """
    count, total, products = 0, torch.zeros(()), torch.zeros(())
    for values in map(Tensor.double, parts):
        count += values.shape[1]
        total, products = total + values.sum(1, keepdim=True), products + values @ values.T
    mean = total / count
    variances, axes = torch.linalg.eigh((products - count * mean @ mean.T) / max(1, count - 1))
    return mean, variances.flip(0), axes.flip(1)


class Lapping(nn.Module):
    """An orthonormal transform across the borders of square patches, before they are cut: a lapped transform.

    What a patch then holds is twice as wide and fades towards its ends, so wrong latents show no borders of patches.
    The orthonormal prefilter of Tran, Liang and Tu, IEEE Transactions on Signal Processing 51, 2003 (LOT of type II);
    with a transform of the patches it is the lapped orthogonal transform (Malvar and Staelin, IEEE Transactions on
    Acoustics, Speech, and Signal Processing 37, 1989). At the edges of the image nothing overlaps.
    """

    matrix: Float[Tensor, "patch patch"]

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.overlap = patch // 2
        self.register_buffer("matrix", border_transform(patch), persistent=False)

    def forward(self, images: Images) -> Images:
        return self._along(self._along(images, 2, self.matrix), 3, self.matrix)

    def inverse(self, images: Images) -> Images:
        return self._along(self._along(images, 2, self.matrix.T), 3, self.matrix.T)

    def _along(self, images: Images, dim: int, matrix: Float[Tensor, "patch patch"]) -> Images:
        """`matrix` times the pixels on both sides of each border."""
        half, length = self.overlap, images.shape[dim]
        lines = images.transpose(dim, 3)
        borders = lines[..., half : length - half].unflatten(3, (-1, 2 * half)) @ matrix.T
        return torch.cat([lines[..., :half], borders.flatten(3), lines[..., length - half :]], 3).transpose(dim, 3)


def border_transform(patch: int) -> Float[Tensor, "patch patch"]:
    """Orthonormal: a butterfly, a rotation of the odd half, and the butterfly again."""
    half = patch // 2
    one, reverse, place = torch.eye(half), torch.eye(half).flip(0), torch.arange(half) + 0.5
    cosine_2 = torch.cos(math.pi / half * place * torch.arange(half)[:, None]) * math.sqrt(2 / half)
    cosine_2[0] /= math.sqrt(2)
    cosine_4 = torch.cos(math.pi / half * place * place[:, None]) * math.sqrt(2 / half)
    butterfly = torch.cat([torch.cat([one, reverse], 1), torch.cat([reverse, -one], 1)])
    rotation = torch.block_diag(one, reverse @ cosine_2.T @ cosine_4 @ reverse)
    return butterfly @ rotation @ butterfly / 2


class VaeEncoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.stem = config.stem
        layers: list[nn.Module] = [nn.Conv2d(3 * config.stem**2, config.widths[0], 3, padding=1)]
        for level, width in enumerate(config.widths):
            if level:
                layers.append(SpaceToChannel(config.widths[level - 1], width))
            layers += [ResidualBlock(width) for _ in range(config.encoder_blocks)]
        self.layers = nn.Sequential(*layers, ChannelNorm(config.widths[-1]), nn.SiLU())
        self.out = zero(nn.Conv2d(config.widths[-1], 2 * config.channels, 3, padding=1))

    def forward(self, images: Images) -> Latents:
        return self.out(self.layers(F.pixel_unshuffle(images, self.stem)))


class VaeDecoder(nn.Module):
    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.stem = config.stem
        layers: list[nn.Module] = [nn.Conv2d(config.channels, config.widths[-1], 3, padding=1)]
        for level, width in reversed(list(enumerate(config.widths))):
            layers += [ResidualBlock(width) for _ in range(config.decoder_blocks)]
            if level:
                layers.append(ChannelToSpace(width, config.widths[level - 1]))
        self.layers = nn.Sequential(*layers, ChannelNorm(config.widths[0]), nn.SiLU())
        self.out = zero(nn.Conv2d(config.widths[0], 3 * config.stem**2, 3, padding=1))

    def forward(self, latents: Latents) -> Images:
        return F.pixel_shuffle(self.out(self.layers(latents)), self.stem)


class SpaceToChannel(nn.Module):
    """Half the side: space to channel, a 1x1 convolution, and a residual that averages channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * channels, out_channels, 1)
        self.out_channels = out_channels

    def forward(self, image: Latents) -> Resized:
        folded = F.pixel_unshuffle(image, 2)
        return self.conv(folded) + match_channels(folded, self.out_channels)


class ChannelToSpace(nn.Module):
    """Twice the side: the inverse of `SpaceToChannel`."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 4 * out_channels, 1)
        self.out_channels = out_channels

    def forward(self, image: Latents) -> Resized:
        return F.pixel_shuffle(self.conv(image) + match_channels(image, 4 * self.out_channels), 2)


def match_channels(
    image: Float[Tensor, "batch channel height width"], count: int
) -> Float[Tensor, "batch matched height width"]:
    """`count` channels without weights: neighbours averaged, or each repeated."""
    channels = image.shape[1]
    if channels > count:
        return image.unflatten(1, (count, channels // count)).mean(2)
    return image.repeat_interleave(count // channels, 1)
