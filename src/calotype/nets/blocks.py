"""Modules that the networks share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from itertools import count
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from calotype.devices import sent
from calotype.types import Latents

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["float32", "bfloat16"]
Vector = Float[Tensor, "batch features"]
Tokens = Float[Tensor, "batch token features"]
Recoloured = Float[Tensor, "batch _ height width"]  # an image of the same size, with channels of its own
Resized = Float[Tensor, "batch _ _ _"]  # an image of another size
Activations = Float[Tensor, "batch ..."]
Seeds = Int[Tensor, " batch"]
Heads = Float[Tensor, "batch head _ width"]  # queries, keys or values

MASK32, LAYER_STRIDE = 2**32 - 1, 0x9E3779B9
"""The low bits of a number, and how far apart the seeds of layers are: 2^32 by the golden ratio."""
MOST_KEYS_UNFUSED = 256
"""Keys up to which attention in bfloat16 on a CPU is computed step by step."""


class RmsNorm(nn.RMSNorm):
    """As `torch.nn.RMSNorm`, with its weight in the precision of the input: torch has a fused kernel for that alone."""

    def forward(self, x: Tensor) -> Tensor:
        weight = None if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


class TextContext(NamedTuple):
    """Output of a text encoder: one embedding a word, and one of the text."""

    context: Float[Tensor, "batch word features"]
    mask: Bool[Tensor, "batch word"]  # False for padding
    pooled: Vector  # of the text; 0 for an empty one


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[None]:
    """Mixed precision: float32 weights, bfloat16 arithmetic if `precision` says so; not where there are only shapes."""
    if device.type == "meta":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


_layer_seeds: ContextVar[Iterator[Seeds] | None] = ContextVar("layer_seeds", default=None)


@contextmanager
def dropout_seeds(seeds: Seeds, device: torch.device) -> Iterator[None]:
    """Within it, dropout draws from these seeds, one an image, which are on the host: the masks of an image depend
    neither on its batch nor on the device."""

    def of_layers() -> Iterator[Seeds]:
        own = sent(seeds ^ seeds >> 32, device)
        yield from (hash32(own + layer * LAYER_STRIDE) for layer in count())

    token = _layer_seeds.set(of_layers())
    try:
        yield
    finally:
        _layer_seeds.reset(token)


def layer_seeds() -> Seeds | None:
    """The seeds of the next layer with dropout; None outside of `dropout_seeds`."""
    layers = _layer_seeds.get()
    return None if layers is None else next(layers)


def hash32(numbers: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """An integer hash of the low 32 bits, in [0, 2^32): lowbias32 (C. Wellons, "Prospecting for hash functions", 2018).

    Other than draws of a generator, `torch.compile` fuses it with its neighbours.
    """
    low = numbers & MASK32
    low = (low ^ low >> 16) * 0x7FEB352D & MASK32
    low = (low ^ low >> 15) * 0x846CA68B & MASK32
    return low ^ low >> 16


def dropout(values: Activations, probability: float, training: bool, seeds: Seeds | None = None) -> Activations:
    """Dropout (Srivastava et al., JMLR 15, 2014) by the seed of each image, or without seeds by torch's generator."""
    if not training or not probability:
        return values
    if seeds is None:
        return F.dropout(values, probability)
    places = hash32(torch.arange(values.shape[1:].numel(), device=values.device))
    kept = hash32(seeds[:, None] ^ places) >= int(probability * 2**32)
    return values * kept.view(values.shape) / (1 - probability)


def fourier_features(levels: Float[Tensor, " batch"], width: int, highest: float) -> Vector:
    """Sines and cosines of `levels`, in [0, 1], at frequencies from 1 to `highest` (arXiv 2006.10739, eq. 4)."""
    frequencies = torch.logspace(0, math.log10(highest), width // 2, device=levels.device)
    angles = math.pi * levels[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], 1)


def zero(module: nn.Module) -> nn.Module:
    """The same module with weights of 0, so that its path starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def faint(module: Network) -> Network:
    """The same module with weights of standard deviation 0.001, for a last layer beside a prior.

    With zeros there and in the blocks (adaLN-zero) the network would start at a saddle: no layer before the last has a
    gradient.
    """
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=1e-3)
    return module


class Migrated(nn.Module):
    """A module that also loads tensors by the names of earlier versions."""

    old_names: ClassVar[Mapping[str, str]] = {}
    """How names of its tensors began in version 0.1, and how they begin now."""

    def migrate(self, tensors: MutableMapping[str, Tensor], prefix: str) -> None:
        """Changes tensors of earlier versions, in place, into those that this module has; their names start with
        `prefix`."""
        rename_keys(tensors, prefix, self.old_names)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self.migrate(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def rename_keys(tensors: MutableMapping[str, Tensor], prefix: str, names: Mapping[str, str]) -> None:
    """Gives tensors of earlier versions, in place, the names that they have now; `prefix` is that of their module."""
    for key in list(tensors):
        for old, new in names.items():
            if key.startswith(prefix + old):
                tensors.setdefault(prefix + new + key.removeprefix(prefix + old), tensors.pop(key))


def channels_last(module: Network) -> Network:
    """The memory format in which convolutions are fastest."""
    return module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class ChannelNorm(nn.Module):
    """RMS norm over the channels of each pixel (arXiv 1910.07467): no statistics across pixels, so tiles are exact."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, image: Latents) -> Latents:
        scale = torch.rsqrt(image.square().mean(1, keepdim=True) + 1e-6)
        return image * scale * self.weight[:, None, None]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a skip, with scale and shift by a conditioning vector (arXiv 2105.05233, section 3).

    The second convolution starts at 0, so a new block is the identity.
    """

    def __init__(
        self, channels: int, out_channels: int | None = None, vector_width: int = 0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        out_channels = out_channels or channels
        self.norm_in, self.norm_out = ChannelNorm(channels), ChannelNorm(out_channels)
        self.conv_in = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.conv_out = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        self.modulation = nn.Linear(vector_width, 2 * out_channels) if vector_width else None
        self.dropout = dropout

    def forward(self, image: Latents, vector: Vector | None = None) -> Recoloured:
        inner = self.norm_out(self.conv_in(F.silu(self.norm_in(image))))
        if self.modulation is not None and vector is not None:
            scale, shift = self.modulation(F.silu(vector))[:, :, None, None].chunk(2, 1)
            inner = inner * (1 + scale) + shift
        seeds = layer_seeds() if self.training and self.dropout else None
        inner = dropout(F.silu(inner), self.dropout, self.training, seeds)
        return self.skip(image) + self.conv_out(inner)


class Upsample(nn.Module):
    """Twice the side: every pixel four times, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, image: Latents) -> Resized:
        return self.conv(F.interpolate(image, scale_factor=2.0, mode="nearest"))


class TextAttention(nn.Module):
    """Joint attention: keys and values of the text are appended to those of the image (GLIDE, arXiv 2112.10741).

    An empty text changes nothing.
    """

    def __init__(self, width: int, heads: int, context_width: int) -> None:
        super().__init__()
        self.heads = heads
        self.key_value = nn.Linear(context_width, 2 * width, bias=False)
        self.norm_key = RmsNorm(width // heads, eps=1e-6)

    def forward(self, query: Heads, key: Heads, value: Heads, words: TextContext) -> Heads:
        key_values = self.key_value(words.context).unflatten(2, (2, self.heads, -1))
        more_keys, more_values = key_values.transpose(1, 3).unbind(2)
        keys = torch.cat([key, self.norm_key(more_keys).to(key.dtype)], 2)
        values = torch.cat([value, more_values.to(value.dtype)], 2)
        mask = F.pad(words.mask, (key.shape[2], 0), value=True)[:, None, None]
        return attention(query, keys, values, mask)


class AttentionBlock(Migrated):
    """Self-attention over pixels, with normalised queries and keys (arXiv 2302.05442, section 2.1)."""

    old_names: ClassVar = {"listen.": "text_attention."}

    def __init__(self, channels: int, head_width: int = 64, context_width: int = 0) -> None:
        super().__init__()
        self.heads = math.gcd(channels, max(1, channels // head_width))
        self.norm = ChannelNorm(channels)
        self.query_key_value = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))
        self.norm_query, self.norm_key = (RmsNorm(channels // self.heads, eps=1e-6) for _ in range(2))
        self.text_attention = TextAttention(channels, self.heads, context_width) if context_width else None

    def forward(self, image: Latents, words: TextContext | None = None) -> Latents:
        batch, channels, height, width = image.shape
        heads = self.query_key_value(self.norm(image)).reshape(batch, 3, self.heads, -1, height * width)
        query, key, value = heads.transpose(3, 4).unbind(1)
        mixed = attend(self.norm_query(query), self.norm_key(key), value, self.text_attention, words)
        return image + self.out(mixed.transpose(2, 3).reshape(batch, channels, height, width))


def attend(
    query: Heads, key: Heads, value: Heads, text_attention: TextAttention | None, words: TextContext | None
) -> Heads:
    """Attention to the image and, where there is a text, to its words."""
    if text_attention is None or words is None:
        return attention(query, key, value)
    return text_attention(query, key, value, words)


def attention(query: Heads, key: Heads, value: Heads, mask: Bool[Tensor, "batch 1 1 token"] | None = None) -> Heads:
    """Scaled dot-product attention (arXiv 1706.03762, eq. 1); `mask` is False for keys that are left out.

    In bfloat16 on CPUs the fused kernel of torch 2.13 spends more time on its backward pass than two matrix products
    and a softmax take for few tokens: at 64 tokens 10 ms against 2 ms (dev/LOG.md, 2026-11-28).
    """
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or key.shape[2] > MOST_KEYS_UNFUSED:
        return F.scaled_dot_product_attention(query, key, value, mask)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value
