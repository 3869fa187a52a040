"""Modules that the networks share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from calotype.devices import is_host
from calotype.types import Latents

Network = TypeVar("Network", bound=nn.Module)
Precision = Literal["float32", "bfloat16"]
Vector = Float[Tensor, "batch features"]
Tokens = Float[Tensor, "batch token features"]
Recoloured = Float[Tensor, "batch _ height width"]  # an image of the same size, with channels of its own
Resized = Float[Tensor, "batch _ _ _"]  # an image of another size
Activations = Float[Tensor, "batch ..."]
Heads = Float[Tensor, "batch head _ width"]  # queries, keys or values

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


class DropoutGenerators:
    """One an image, on a CPU."""

    def __init__(self, seeds: Int[Tensor, " batch"]) -> None:
        self.seeds = seeds

    @cached_property
    def generators(self) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in self.seeds.tolist()]

    def mask(self, values: Activations, kept: float) -> Activations:
        """1 with the probability `kept`, else 0."""
        drawn = zip(values.split(1), self.generators, strict=True)
        return torch.cat([torch.empty_like(part).bernoulli_(kept, generator=generator) for part, generator in drawn])


_generators: ContextVar[DropoutGenerators | None] = ContextVar("generators", default=None)


@contextmanager
def dropout_seeds(seeds: Int[Tensor, " batch"], device: torch.device) -> Iterator[None]:
    """Within it, dropout draws from these seeds, which are on the host.

    On a CPU the masks of an image do not depend on its batch. On a GPU, where each draw is a kernel of its own, all
    are drawn by torch's own generator from the first seed, as a compiled network can.
    """
    if not is_host(device):
        torch.manual_seed(int(seeds[0]))
        yield
        return
    token = _generators.set(DropoutGenerators(seeds))
    try:
        yield
    finally:
        _generators.reset(token)


def dropout(values: Activations, probability: float, training: bool) -> Activations:
    """Dropout (Srivastava et al., JMLR 15, 2014): on a CPU by the generators of `dropout_seeds`, else by torch's."""
    if not training or not probability:
        return values
    return _drop(values, probability) if is_host(values.device) else F.dropout(values, probability)


def _dropped(values: Activations, probability: float) -> Activations:
    if (generators := _generators.get()) is None:
        return F.dropout(values, probability)
    return values * generators.mask(values, 1 - probability) / (1 - probability)


_drop: Callable[[Activations, float], Activations] = _dropped


def exclude_dropout_from_graphs() -> None:
    """Before blocks are compiled: generators are none of the tensors that a compiler knows.

    A decorator would import torch's compiler, which takes a second, into every command.
    """
    global _drop  # noqa: PLW0603
    if _drop is _dropped:
        _drop = torch.compiler.disable(_dropped)


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
        inner = dropout(F.silu(inner), self.dropout, self.training)
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
