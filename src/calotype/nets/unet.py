"""A UNet: residual blocks on a ladder of resolutions, attention on the lowest (arXiv 2006.11239, B; 2105.05233)."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from calotype.bounds import MAX_LEVELS, BlockCount, Channels, DropoutRate, Level, PatchSide, WidthMultiple
from calotype.nets.blocks import (
    AttentionBlock,
    ChannelNorm,
    Recoloured,
    ResidualBlock,
    Resized,
    TextContext,
    Upsample,
    Vector,
    faint,
)
from calotype.types import Config, Latents


class UnetConfig(Config):
    kind: Literal["unet"] = "unet"
    patch: PatchSide = 1
    """Side of the patches that become one pixel of the network (arXiv 2301.11093, section 3.2)."""
    width: Channels = 128
    """Channels at the first level, and the width of the conditioning vector."""
    multiples: tuple[WidthMultiple, ...] = Field(default=(1, 2), min_length=1, max_length=MAX_LEVELS)
    """Channels of each level as a multiple of `width`; each level halves the image."""
    blocks: BlockCount = 2
    """Residual blocks per level (one more on the way up)."""
    attention_levels: tuple[Level, ...] = (1,)
    """Levels with attention after each block; 0 is the first. Without any, the network is local, for crops."""
    dropout: DropoutRate = Field(default=0.0, description="Dropout rate in the residual blocks.")


class Unet(nn.Module):
    """(batch, in_channels, height, width) and (batch, config.width) -> (batch, out_channels, height, width).

    Height and width must be multiples of `patch * 2 ** (levels - 1)`. Beside the
    network, a noise-conditioned linear layer maps each pixel: a patch of noise has more values than a narrow network
    has channels. With a `context_width` it attends to texts, too.
    """

    def __init__(self, config: UnetConfig, in_channels: int, out_channels: int, context_width: int = 0) -> None:
        super().__init__()
        widths = [config.width * multiple for multiple in config.multiples]

        def level(index: int, in_width: int, out_width: int) -> UnetLevel:
            attention = index in config.attention_levels
            return UnetLevel(in_width, out_width, config, attention, context_width)

        self.patch = config.patch
        self.conv_in = nn.Conv2d(in_channels * config.patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList()
        skips = [widths[0]]
        for index, width in enumerate(widths):
            for _ in range(config.blocks):
                self.down.append(level(index, skips[-1], width))
                skips.append(width)
            if index + 1 < len(widths):
                self.down.append(Downsample(width))
                skips.append(width)
        self.middle = nn.ModuleList(
            [level(len(widths) - 1, widths[-1], widths[-1]), UnetLevel(widths[-1], widths[-1], config, attention=False)]
        )
        self.up = nn.ModuleList()
        here = widths[-1]
        for index, width in reversed(list(enumerate(widths))):
            for _ in range(config.blocks + 1):
                self.up.append(level(index, here + skips.pop(), width))
                here = width
            if index > 0:
                self.up.append(Upsample(width))
        self.norm = ChannelNorm(here)
        self.conv_out = faint(nn.Conv2d(here, out_channels * config.patch**2, 3, padding=1))
        self.through = faint(nn.Linear(config.width, out_channels * in_channels))

    def forward(self, image: Latents, vector: Vector, words: TextContext | None = None) -> Recoloured:
        mixing = self.through(F.silu(vector)).unflatten(1, (-1, image.shape[1]))
        passed = torch.einsum("boi,bihw->bohw", mixing, image)
        image = self.conv_in(F.pixel_unshuffle(image, self.patch))
        skips = [image]
        for block in self.down:
            image = block(image) if isinstance(block, Downsample) else block(image, vector, words)
            skips.append(image)
        for block in self.middle:
            image = block(image, vector, words)
        for block in self.up:
            if isinstance(block, Upsample):
                image = block(image)
            else:
                image = block(torch.cat([image, skips.pop()], 1), vector, words)
        return passed + F.pixel_shuffle(self.conv_out(F.silu(self.norm(image))), self.patch)


class UnetLevel(nn.Module):
    """One residual block of a level, and attention where the level has it."""

    def __init__(
        self, in_width: int, out_width: int, config: UnetConfig, attention: bool, context_width: int = 0
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(in_width, out_width, config.width, config.dropout)
        self.attention = AttentionBlock(out_width, context_width=context_width) if attention else None

    def forward(self, image: Latents, vector: Vector, words: TextContext | None = None) -> Recoloured:
        image = self.residual(image, vector)
        return image if self.attention is None else self.attention(image, words)


class Downsample(nn.Module):
    """Half the side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, image: Latents) -> Resized:
        return self.conv(image)
