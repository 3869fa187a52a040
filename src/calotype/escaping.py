"""Text from outside, as a terminal or a page may show it: names of classes and files, prompts, settings."""

from __future__ import annotations

import unicodedata

STEERING = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
"""Categories of Unicode: control characters, marks of direction, lone surrogates, private letters, line separators."""
JOINERS = "\u200c\u200d"
"""Between letters of Persian and of Indic scripts, and in emoji: they only shape what stands beside them."""


def plain(text: str, kept: str = "") -> str:
    """The text with an escape such as `\\x1b` in the place of each character that would steer its reader.

    Those in `kept` stay, such as line breaks.
    """
    if text.isprintable():
        return text
    kept += JOINERS
    return "".join(
        letter if letter in kept or unicodedata.category(letter) not in STEERING else ascii(letter)[1:-1]
        for letter in text
    )
