"""Captions as bags of hashed n-grams of words (feature hashing: Weinberger et al., arXiv 0902.2206)."""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

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


def vocabulary_of(captions: Iterable[str]) -> NgramVocabulary:
    """The most frequent buckets, rising; may be empty."""
    count = Counter(bucket for caption in captions for bucket in buckets(caption))
    most = sorted(bucket for bucket, times in count.most_common(MOST_WORDS) if times >= FEWEST_CAPTIONS)
    return torch.tensor(most, dtype=torch.long)


def bags_of(captions: Sequence[str], vocabulary: NgramVocabulary) -> Bags:
    """1 where a caption has an n-gram of that bucket, else 0."""
    columns = {bucket: column for column, bucket in enumerate(vocabulary.tolist())}
    bags = torch.zeros(len(captions), len(vocabulary))
    for row, caption in enumerate(captions):
        bags[row, [columns[bucket] for bucket in buckets(caption) if bucket in columns]] = 1
    return bags


@lru_cache(maxsize=2**16)
def buckets(caption: str) -> Sequence[int]:
    """Buckets of a caption's n-grams, in two bytes each, as those of many captions are cached."""
    words = TOKEN.findall(caption.lower())
    ngrams = {" ".join(words[at : at + length]) for length in range(1, LONGEST_NGRAM + 1) for at in range(len(words))}
    return array("H", {zlib.crc32(ngram.encode("utf-8", "replace")) % BUCKETS for ngram in ngrams})
