"""The patch critic: a discriminator of real and reconstructed patches (arXiv 1611.07004, section 3.2.2)."""

from __future__ import annotations

from itertools import pairwise

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from calotype.bounds import MAX_LEVELS, Channels
from calotype.nets.blocks import ChannelNorm
from calotype.types import Config, Images


class CriticConfig(Config):
    width: Channels = Field(default=32, description="Channels of the first layer.")
    depth: int = Field(default=3, strict=True, ge=1, le=MAX_LEVELS)
    """Downsamplings; the receptive field is about `2 ** (depth + 3)` pixels."""


class Critic(nn.Module):
    """Images (batch, 3, height, width) -> one logit a patch; above 0 is real."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        widths = [min(config.width * 2**level, 8 * config.width) for level in range(config.depth)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for width, next_width in pairwise(widths):
            layers += [nn.Conv2d(width, next_width, 4, 2, 1), ChannelNorm(next_width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(widths[-1], 1, 3, padding=1))

    def forward(self, images: Images) -> Float[Tensor, "batch 1 height width"]:
        return self.layers(images)
