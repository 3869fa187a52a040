"""With what captions are read, and why."""

from __future__ import annotations

from typing import Any

from calotype.data.captions import Captions
from calotype.data.folder import Pictures
from calotype.nets.frozen import FolderConfig, MiniLmConfig
from calotype.nets.text import BytesConfig, NoText
from calotype.recipe import Recipe
from calotype.types import UserError


def choose_text(captions: Captions | None, width: int, depth: int) -> dict[str, Any]:
    """Half as wide as the denoiser and a quarter as deep: about a tenth of its cost."""
    if captions is None or captions.optional:
        return {"kind": "none"}
    return {"kind": "bytes", "width": width // 2, "heads": max(1, width // 64), "depth": max(1, depth // 4)}


def describe_text(recipe: Recipe) -> str:
    match recipe.denoiser.text:
        case NoText():
            return "none"
        case BytesConfig() as text:
            return f"bytes, width {text.width}, depth {text.depth}, up to {text.words} words"
        case MiniLmConfig() as text:
            return f"MiniLM (English), frozen, up to {text.words} tokens"
        case FolderConfig() as text:
            return f"{text.path} (sha256 {text.digest[:12]}), frozen, up to {text.words} tokens"


def reason_of_text(captions: Captions) -> str:
    if captions.optional:
        return "the labels say less and are learned sooner; --set denoiser.text.kind=bytes reads the captions"
    return f"{captions.told:,} of {len(captions.of):,} pictures have captions; the encoder learns with the denoiser"


def check_text(recipe: Recipe, pictures: Pictures) -> None:
    if recipe.denoiser.text.kind != "none" and not pictures.captions:
        raise UserError(
            f"denoiser.text.kind is {recipe.denoiser.text.kind}, but none of the pictures has a caption; write them "
            f"into .txt files beside the pictures or into metadata.jsonl, or set it to none"
        )
