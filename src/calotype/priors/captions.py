"""The prior of captioned images: captions shift the means of the mixture and gate its groups.

A mixture of linear experts (Jordan and Jacobs, Neural Computation 6, 1994, section 2). Given its caption, an image of a
group is Gaussian around the ridge regression of latents on the caption's bag of words, and a softmax gate on that bag
gives the probability of the group.

Each class has two groups: images with whole captions, and with shortened captions or none. So what a caption leaves
open keeps the variance of the images.
"""

from __future__ import annotations

import copy
import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calotype.devices import sent
from calotype.priors.gaussian import Flat, GaussianMixture, Weights
from calotype.priors.prior import Prior
from calotype.types import Condition, Labels, Latents, Sigmas

NEGLIGIBLE = 1e-3
"""Components whose weight is below this fraction of the largest are skipped."""
UNSPACED = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
"""Thai, Japanese and Chinese have no spaces between words: each letter is a token, and n-grams do the rest."""
TOKEN = re.compile(rf"[{UNSPACED}]|(?:(?![{UNSPACED}])\w)+")
LONGEST_NGRAM = 3
"""The n of the longest n-grams."""
BUCKETS = 4096
"""Of the hash."""
MOST_WORDS = 1024
"""The vocabulary holds the most frequent buckets,"""
FEWEST_CAPTIONS = 8
"""of those that so many captions have."""

Bags = Float[Tensor, "count word"]
NgramVocabulary = Int[Tensor, " word"]


class CaptionedMixture(Prior):
    """A mixture whose groups are shifted and gated by the caption.

    With the bag of words `b` of a caption, the means of group g shift by `b @ regression_in[g] @ regression_out[g]`,
    and its probability is `softmax(b @ gate + gate_bias)[g]`. The weights of `mixture` are those within each group.
    """

    old_names: ClassVar = {
        "heard": "vocabulary",
        "into": "regression_in",
        "out": "regression_out",
        "vote": "gate",
        "bias": "gate_bias",
    }
    vocabulary: NgramVocabulary
    regression_in: Float[Tensor, "group word direction"]
    regression_out: Float[Tensor, "group direction dimension"]
    gate: Float[Tensor, "word group"]
    gate_bias: Float[Tensor, " group"]

    def __init__(self, mixture: GaussianMixture, groups: int, words: int, directions: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.register_buffer("vocabulary", torch.arange(words))
        self.register_buffer("regression_in", torch.zeros(groups, words, directions))
        self.register_buffer("regression_out", torch.zeros(groups, directions, mixture.means.shape[1]))
        self.register_buffer("gate", torch.zeros(words, groups))
        self.register_buffer("gate_bias", torch.zeros(groups))

    @classmethod
    def sized(cls, groups: int, words: int, directions: int, **mixture: int) -> CaptionedMixture:
        """An empty prior; `mixture` are the sizes of its mixture."""
        return cls(GaussianMixture(**mixture), groups, words, directions)

    @cached_property
    def columns(self) -> dict[int, int]:
        """The column of each bucket in a bag, on the host."""
        return columns_of(self.vocabulary)

    def _load_from_state_dict(self, *args: Any) -> None:
        self.__dict__.pop("columns", None)
        super()._load_from_state_dict(*args)

    @property
    def shape(self) -> dict[str, int]:
        groups, words, directions = self.regression_in.shape
        return {**self.mixture.shape, "groups": groups, "words": words, "directions": directions}

    def side(self, channels: int) -> int:
        return self.mixture.side(channels)

    def with_residual(self, factor: float) -> CaptionedMixture:
        """See `GaussianMixture.with_residual`."""
        scaled = copy.copy(self)
        scaled.mixture = self.mixture.with_residual(factor)
        return scaled

    def mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """A label overrides the gate; components that the gate makes negligible are skipped."""
        captions = ("",) * len(noisy) if condition.text is None else condition.text.prompts
        bags = sent(bags_of(captions, self.columns), noisy.device).to(noisy)
        weights = self.weights(bags, condition.labels)

        def shift(group: int, rows: Tensor) -> Flat:
            return bags[rows] @ self.regression_in[group] @ self.regression_out[group]

        return self.mixture.posterior_mean(weights, noisy, sigma, shift)

    def weights(self, bags: Bags, labels: Labels) -> Weights:
        """Of the components, given caption and label of each image."""
        logits = self.mixture.prior.log() + (bags @ self.gate + self.gate_bias)[:, self.mixture.group]
        weights = torch.softmax(logits.masked_fill(~self.mixture.admissible(labels), -torch.inf), 1)
        return weights.where(weights >= NEGLIGIBLE * weights.amax(1, keepdim=True), 0)


# -- Bags of hashed n-grams (feature hashing: Weinberger et al., arXiv 0902.2206) --------------------------------------


def vocabulary_of(captions: Iterable[str]) -> NgramVocabulary:
    """The most frequent buckets, rising; may be empty."""
    count = Counter(bucket for caption in captions for bucket in buckets(caption))
    most = sorted(bucket for bucket, times in count.most_common(MOST_WORDS) if times >= FEWEST_CAPTIONS)
    return torch.tensor(most, dtype=torch.long)


def columns_of(vocabulary: NgramVocabulary) -> dict[int, int]:
    return {bucket: column for column, bucket in enumerate(vocabulary.tolist())}


def bags_of(captions: Sequence[str], columns: Mapping[int, int]) -> Bags:
    """1 where a caption has an n-gram of the bucket that has this column, else 0."""
    bags = torch.zeros(len(captions), len(columns))
    for row, caption in enumerate(captions):
        bags[row, [columns[bucket] for bucket in buckets(caption) if bucket in columns]] = 1
    return bags


@lru_cache(maxsize=2**16)
def buckets(caption: str) -> Sequence[int]:
    """Buckets of a caption's n-grams, in two bytes each, as those of many captions are cached."""
    words = TOKEN.findall(caption.lower())
    ngrams = {" ".join(words[at : at + length]) for length in range(1, LONGEST_NGRAM + 1) for at in range(len(words))}
    return array("H", {zlib.crc32(ngram.encode("utf-8", "replace")) % BUCKETS for ngram in ngrams})
