"""Text encoders, and the wrapper that conditions a backbone on them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from pydantic import Field, model_validator
from torch import Tensor, nn

from calotype.bounds import Channels, Depth, HeadCount
from calotype.nets.blocks import Migrated, Recoloured, RmsNorm, TextContext, Tokens, Vector, zero
from calotype.types import Config, Latents

LETTERS = 12
"""Bytes of a token; longer words are several tokens."""
WORD = re.compile(r"\w+[^\w\s]* ?|[^\w\s]+ ?|\s")
"""A word with the punctuation and the space behind it; matches cover the whole text."""


@runtime_checkable
class TextEncoder(Protocol):
    """Texts to embeddings; an empty text has no words."""

    width: int

    def __call__(self, texts: Sequence[str]) -> TextContext: ...

    def truncated(self, text: str) -> str:
        """The end of a text that exceeds the encoder's length; "" where it does not."""
        ...


class NoText(Config):
    kind: Literal["none"] = "none"


class BytesConfig(Config):
    """Trained from scratch together with the denoiser, for captions in any language."""

    kind: Literal["bytes"] = "bytes"
    width: Channels = Field(default=64, description="Width of a token.")
    depth: Depth = Field(default=1, description="Number of transformer blocks.")
    heads: HeadCount = Field(default=2, description="Attention heads; `width` is a multiple of them.")
    words: int = Field(default=64, strict=True, ge=1, le=512)
    """Number of words; longer texts are truncated."""

    @model_validator(mode="after")
    def _heads(self) -> BytesConfig:
        if self.width % self.heads:
            raise ValueError(f"width is {self.width}, but must be a multiple of heads = {self.heads}")
        return self


class BytesEncoder(nn.Module):
    """A small transformer over words, each the sum of embeddings of its bytes and their positions (as in
    arXiv 2404.14408, so that a caption costs less than an image). Upper case is lowered.

    A convolution over neighbouring words encodes their order (arXiv 2006.11477).
    """

    def __init__(self, config: BytesConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.letters = nn.Embedding(256 * LETTERS, config.width, padding_idx=0)
        self.norm_in = RmsNorm(config.width, eps=1e-6)
        self.neighbours = nn.Conv1d(config.width, config.width, 5, padding=2)
        self.blocks = nn.ModuleList(TextBlock(config.width, config.heads) for _ in range(config.depth))
        self.norm = RmsNorm(config.width, eps=1e-6)

    def forward(self, texts: Sequence[str]) -> TextContext:
        return self.encode(tokens_of(texts, self.config.words).to(self.letters.weight.device))

    def encode(self, letters: Int[Tensor, "batch word 12"]) -> TextContext:
        """Of the bytes of `tokens_of`."""
        mask = letters.any(2)
        places = 256 * torch.arange(LETTERS, device=letters.device)
        tokens = self.norm_in(self.letters((letters + places) * (letters > 0)).sum(2)) * mask[..., None]
        tokens = tokens + self.neighbours(tokens.transpose(1, 2)).transpose(1, 2)
        attended = mask | ~mask.any(1, keepdim=True)  # attention over no token at all would be NaN
        for block in self.blocks:
            tokens = block(tokens, attended)
        tokens = self.norm(tokens)
        together = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1).sqrt()
        return TextContext(tokens, mask, together)

    def truncated(self, text: str) -> str:
        return text_of(pieces(text)[self.config.words :])


class TextBlock(nn.Module):
    """Attention, then a feed-forward network; both start as the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attend, self.norm_feed = (RmsNorm(width, eps=1e-6) for _ in range(2))
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.norm_query, self.norm_key = (RmsNorm(width // heads, eps=1e-6) for _ in range(2))
        self.out = zero(nn.Linear(width, width, bias=False))
        self.up, self.down = nn.Linear(width, 4 * width), zero(nn.Linear(4 * width, width))

    def forward(self, tokens: Tokens, mask: Bool[Tensor, "batch token"]) -> Tokens:
        heads = self.query_key_value(self.norm_attend(tokens)).unflatten(2, (3, self.heads, -1))
        query, key, value = heads.transpose(1, 3).unbind(2)
        query, key = self.norm_query(query).to(value.dtype), self.norm_key(key).to(value.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, mask[:, None, None])
        tokens = tokens + self.out(mixed.transpose(1, 2).flatten(2))
        return tokens + self.down(F.gelu(self.up(self.norm_feed(tokens))))


class TextConditioned(Migrated):
    """A backbone that attends to the words of a text; the pooled text is added to its conditioning vector."""

    old_names: ClassVar = {"whole.": "pooled_projection."}

    def __init__(self, backbone: nn.Module, encoder: TextEncoder, width: int) -> None:
        super().__init__()
        self.backbone, self.encoder = backbone, encoder
        self.pooled_projection = nn.Linear(encoder.width, width, bias=False)

    def forward(self, image: Latents, vector: Vector, texts: Sequence[str] | None = None) -> Recoloured:
        if texts is None:
            return self.backbone(image, vector)
        return self.with_words(image, vector, self.encoder(texts))

    def with_words(self, image: Latents, vector: Vector, words: TextContext) -> Recoloured:
        """Of texts that are encoded already."""
        return self.backbone(image, vector + self.pooled_projection(words.pooled), words)


def tokens_of(texts: Sequence[str], most: int) -> Int[Tensor, "batch word 12"]:
    """The bytes of each text's first `most` words, 0 where a word or a text has ended."""
    read = [pieces(text)[:most] for text in texts]
    longest = max(1, *map(len, read))
    rows = [b"".join(word.ljust(LETTERS, b"\0") for word in words).ljust(longest * LETTERS, b"\0") for words in read]
    return torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).reshape(-1, longest, LETTERS).long()


@lru_cache(maxsize=2**16)
def pieces(text: str) -> tuple[bytes, ...]:
    """The words of a text as UTF-8, in lower case, long ones in parts."""
    words = (word.encode("utf-8", "replace") for word in WORD.findall(text.lower().replace("\0", " ")))
    return tuple(word[start : start + LETTERS] for word in words for start in range(0, len(word), LETTERS))


def text_of(words: Sequence[bytes]) -> str:
    return b"".join(words).decode("utf-8", "replace")
