"""Captions that say less: prompts do, so a model is trained on parts of its captions, too.

Tags, phrases and sentences are left out one by one; a caption of a single phrase is cut to some words in a row.
"""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Sequence
from functools import lru_cache

from calotype.types import Rng

PARTS = 3
"""Of each caption; always the same, so that a frozen encoder can have read them all."""
PHRASE = re.compile(r".+?(?:(?<!\d)[,;|]++|[,;|]++(?!\d)|[,;:.!?|]++(?=\s|$)|[，；：。！？、।]+|$)\s*", re.DOTALL)
"""With the mark behind it. Full stops end it only before a space, and commas not within numbers."""
MARKS = ",;:|，；：、 "


@lru_cache(maxsize=2**16)
def parts(text: str) -> tuple[str, ...]:
    """Up to `PARTS` different captions that say less than this one; none of a single word."""
    dice = random.Random(zlib.crc32(text.encode("utf-8", "replace")))
    phrases, words = PHRASE.findall(text), text.split()
    if len(phrases) > 1:
        found = dict.fromkeys(some_phrases(phrases, dice) for _ in range(PARTS))
    else:
        found = dict.fromkeys(words_in_a_row(words, dice) for _ in range(PARTS if len(words) > 1 else 0))
    return tuple(one for one in found if one and one != text)


def some_phrases(phrases: Sequence[str], dice: random.Random) -> str:
    """In their order; equally likely one, two, ... or all but one."""
    kept = dice.sample(range(len(phrases)), dice.randrange(1, len(phrases)))
    return "".join(phrases[place] for place in sorted(kept)).strip(MARKS)


def words_in_a_row(words: Sequence[str], dice: random.Random) -> str:
    """Equally likely one, two, ... or all but one."""
    kept = dice.randrange(1, len(words))
    start = dice.randrange(len(words) - kept + 1)
    return " ".join(words[start : start + kept])


def partly(texts: Sequence[str], share: float, rng: Rng) -> tuple[str, ...]:
    """Parts of about such a share of these captions, all of the others."""
    draws, places = rng.at("partly").uniform(len(texts)).tolist(), rng.at("which").uniform(len(texts)).tolist()
    shortened = []
    for text, draw, place in zip(texts, draws, places, strict=True):
        fewer = parts(text) if draw < share else ()
        shortened.append(fewer[int(place * len(fewer))] if fewer else text)
    return tuple(shortened)
