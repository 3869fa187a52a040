"""A diffusion transformer (arXiv 2212.09748) with RMSNorm, SwiGLU, rotary positions and normalised queries and keys."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from calotype.bounds import Channels, Depth, DropoutRate, Expansion, HeadCount, PatchSide
from calotype.nets.blocks import (
    Migrated,
    Recoloured,
    RmsNorm,
    Seeds,
    TextAttention,
    TextContext,
    Tokens,
    Vector,
    attend,
    dropout,
    faint,
    layer_seeds,
    zero,
)
from calotype.types import Config, Latents

Rotation = tuple[Float[Tensor, "token half"], Float[Tensor, "token half"]]


class DitConfig(Config):
    kind: Literal["dit"] = "dit"
    width: Channels = 256
    """Width of a token, and of the conditioning vector."""
    depth: Depth = Field(default=8, description="Number of transformer blocks.")
    heads: HeadCount = Field(default=4, description="Attention heads; `width` is a multiple of 4 times them.")
    patch: PatchSide = 1
    """Side of the square of pixels that becomes one token."""
    expansion: Expansion = 2.6667
    """Inner width of the feed-forward part over `width`; three SwiGLU matrices at 8/3 cost as much as two at 4."""
    dropout: DropoutRate = Field(default=0.0, description="Dropout rate in the blocks.")

    @model_validator(mode="after")
    def _heads(self) -> DitConfig:
        if self.width % (4 * self.heads):
            raise ValueError(f"width is {self.width}, but must be a multiple of 4 * heads = {4 * self.heads}")
        return self


class Dit(nn.Module):
    """(batch, in_channels, height, width) and (batch, config.width) -> (batch, out_channels, height, width).

    Height and width must be multiples of `config.patch`. With a `context_width` it attends to texts, too.
    """

    def __init__(self, config: DitConfig, in_channels: int, out_channels: int, context_width: int = 0) -> None:
        super().__init__()
        self.patch, self.head_width, self.dropout = config.patch, config.width // config.heads, config.dropout
        self.embed = nn.Linear(in_channels * config.patch**2, config.width)
        self.place = nn.Linear(32, config.width, bias=False)
        self.blocks = nn.ModuleList(DitBlock(config, context_width) for _ in range(config.depth))
        self._compiled: Callable[..., Tokens] | None = None
        self.norm = nn.RMSNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(config.width, 2 * config.width))
        self.out = faint(nn.Linear(config.width, out_channels * config.patch**2))

    def hidden_matrices(self) -> list[nn.Parameter]:
        """Those of the blocks that map tokens to tokens."""
        named = self.blocks.named_parameters()
        return [weight for name, weight in named if weight.ndim == 2 and "modulation" not in name]

    def compile_blocks(self, on: bool = True) -> None:
        """From now on the blocks are compiled for training, each size of a batch anew; or no longer.

        Sampling and validation, whose sizes differ, run as before. All blocks are one code, compiled once.
        """
        self._compiled = torch.compile(DitBlock.forward, dynamic=False) if on else None

    def forward(self, image: Latents, vector: Vector, words: TextContext | None = None) -> Recoloured:
        patches = F.pixel_unshuffle(image, self.patch)
        height, width = patches.shape[-2:]
        sides = (torch.arange(side, device=image.device) for side in (height, width))
        places = torch.cartesian_prod(*sides).float()
        rotation = rotations(places, self.head_width)
        tokens = self.embed(patches.flatten(2).transpose(1, 2)) + self.place(place_features(places, height, width))
        vector = F.silu(vector)
        call = self._compiled if self._compiled and self.training else DitBlock.__call__
        drops = self.training and self.dropout > 0
        for block in self.blocks:
            tokens = call(block, tokens, vector, rotation, words, layer_seeds() if drops else None)
        scale, shift = self.modulation(vector)[:, None].chunk(2, -1)
        tokens = self.out(self.norm(tokens) * (1 + scale) + shift)
        return F.pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height, width)), self.patch)


class DitBlock(Migrated):
    """Attention and a feed-forward network with adaLN-zero: scale, shift and gate by the vector; gates start at 0."""

    old_names: ClassVar = {"listen.": "text_attention."}

    def __init__(self, config: DitConfig, context_width: int = 0) -> None:
        super().__init__()
        inner = 32 * math.ceil(config.width * config.expansion / 32)
        self.heads, self.dropout = config.heads, config.dropout
        self.norm = nn.RMSNorm(config.width, eps=1e-6, elementwise_affine=False)
        self.modulation = zero(nn.Linear(config.width, 6 * config.width))
        self.query_key_value = nn.Linear(config.width, 3 * config.width, bias=False)
        self.norm_query, self.norm_key = (RmsNorm(config.width // config.heads, eps=1e-6) for _ in range(2))
        self.attention_out = nn.Linear(config.width, config.width, bias=False)
        self.gate_up = nn.Linear(config.width, 2 * inner, bias=False)
        self.down = nn.Linear(inner, config.width, bias=False)
        self.text_attention = TextAttention(config.width, config.heads, context_width) if context_width else None

    def forward(
        self, tokens: Tokens, vector: Vector, rotation: Rotation, words: TextContext | None = None,
        seeds: Seeds | None = None,
    ) -> Tokens:  # fmt: skip
        scale1, shift1, gate1, scale2, shift2, gate2 = self.modulation(vector)[:, None].chunk(6, -1)
        tokens = tokens + gate1 * self._attend(self.norm(tokens) * (1 + scale1) + shift1, rotation, words)
        return tokens + gate2 * self._feed(self.norm(tokens) * (1 + scale2) + shift2, seeds)

    def _attend(self, tokens: Tokens, rotation: Rotation, words: TextContext | None) -> Tokens:
        query, key, value = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        query, key = rotate(self.norm_query(query), rotation), rotate(self.norm_key(key), rotation)
        mixed = attend(query, key, value.to(query.dtype), self.text_attention, words)
        return self.attention_out(mixed.transpose(1, 2).flatten(2))

    def _feed(self, tokens: Tokens, seeds: Seeds | None) -> Tokens:
        """SwiGLU (arXiv 2002.05202, eq. 6)."""
        gate, up = self.gate_up(tokens).chunk(2, -1)
        return dropout(self.down(F.silu(gate) * up), self.dropout, self.training, seeds)


def rotations(places: Float[Tensor, "token 2"], head_width: int) -> Rotation:
    """Cosines and sines of axial RoPE: half of a head for the row, half for the column (arXiv 2104.09864, eq. 34)."""
    frequencies = 100.0 ** -torch.linspace(0, 1, head_width // 4, device=places.device)
    angles = (places[:, :, None] * frequencies).flatten(1)
    return angles.cos(), angles.sin()


def rotate(
    heads: Float[Tensor, "batch head token width"], rotation: Rotation
) -> Float[Tensor, "batch head token width"]:
    cos, sin = rotation
    first, second = heads.chunk(2, -1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], -1).to(heads.dtype)


def place_features(places: Float[Tensor, "token 2"], height: int, width: int) -> Float[Tensor, "token 32"]:
    """Fourier features of a token's row and column relative to the image, in [-1, 1] at any size."""
    within = torch.stack([(2 * places[:, 0] + 1) / height - 1, (2 * places[:, 1] + 1) / width - 1], 1)
    angles = within[:, :, None] * math.pi * 2.0 ** torch.arange(-1, 7, device=places.device)
    return torch.cat([angles.cos(), angles.sin()], 1).flatten(1)
