"""A random permutation of any number of indices that is computed where it is asked for, and never as a whole.

A Feistel network (Luby and Rackoff, SIAM Journal on Computing 17, 1988) is a bijection of pairs of words, whatever its
round function is. Cycle walking (Black and Rogaway, Ciphers with arbitrary finite domains, CT-RSA 2002) restricts it to
the first `count` numbers: what lands outside is permuted again, until it lands inside.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt64
from torch import Tensor, from_numpy

from calotype.types import Rng

LARGE_SET = 2**17
"""Pictures above which an epoch's permutation is computed a batch at a time, and latents are mapped; smaller sets have
the order that they have had in all versions."""
FEISTEL_ROUNDS = 8
"""Four suffice with random round functions; a mixed hash is not quite one."""
MIXING = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
"""Of the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""

Unsigned = UInt64[np.ndarray, " _"]


@dataclass(frozen=True)
class FeistelPermutation:
    """A bijection of 0 ... count - 1, keyed by `rng`: equal paths give the same one. It takes constant memory."""

    count: int
    rng: Rng

    def at(self, places: Int[Tensor, " places"]) -> Int[Tensor, " places"]:
        """What stands at these places, each below `count`; fewer than four rounds of walking a place on average."""
        keys = self.rng.generator().integers(2**64, size=FEISTEL_ROUNDS, dtype=np.uint64)
        half = np.uint64(max(1, ((self.count - 1).bit_length() + 1) // 2))
        words = _encrypted(places.numpy().astype(np.uint64), half, keys)
        while (outside := np.flatnonzero(words >= self.count)).size:
            words[outside] = _encrypted(words[outside], half, keys)
        return from_numpy(words.astype(np.int64))


def _encrypted(words: Unsigned, half: np.uint64, keys: Unsigned) -> Unsigned:
    """A bijection of words of `2 * half` bits."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = words >> half, words & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(words: Unsigned) -> Unsigned:
    """Every bit of the result depends on every bit of the word."""
    words = (words ^ (words >> np.uint64(30))) * MIXING[0]
    words = (words ^ (words >> np.uint64(27))) * MIXING[1]
    return words ^ (words >> np.uint64(31))
