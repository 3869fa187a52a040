"""`calotype interpolate`."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.cli.commands.sampling import read_size
from calotype.cli.console import Console
from calotype.data.images import grid
from calotype.files import write_whole
from calotype.model import load
from calotype.types import UserError

FRAME_MILLISECONDS = 100
FILES = (".webp", ".gif", ".png")
SEPARATORS = {",": "a comma", "|": "a bar |"}
"""Of two values; prompts contain commas."""


def interpolate(
    folder: Path, seeds: str, frames: int, labels: str | None, size: str | None, out: Path, device: str,
    console: Console, **changes: Any,
) -> Path:  # fmt: skip
    """Writes an animation between two pictures, or a strip where `out` ends in .png.

    `changes` are prompts (`prompts` as one text) and sampling settings.
    """
    if out.suffix.lower() not in FILES:
        raise UserError(f"--out {out} must end in .webp or .gif (an animation) or .png (a strip)")
    ends, classes = two("--seeds", seeds), two("--labels", labels) if labels else None
    if not all(re.fullmatch(r"-?\d+", seed) for seed in ends):
        raise UserError(f"--seeds is {seeds!r}, but must be two whole numbers, as in --seeds 1,2")
    if changes.get("prompts") is not None:
        changes["prompts"] = two("--prompts", changes["prompts"], "|")
    model = load(folder, device)
    for warning in model.truncations(changes.get("prompts") or changes.get("prompt")):
        console.say(warning)
    with console.bar("frames"), warnings.catch_warnings(action="ignore", category=UserWarning):
        pictures = model.interpolate((int(ends[0]), int(ends[1])), frames, classes, read_size(size), **changes)
    write_whole(out, animated(pictures, out.suffix.lower()))
    return out


def animated(pictures: list[Image.Image], suffix: str) -> bytes:
    """The content of the file, which repeats for ever. WebP is lossless; GIF has 256 colours a frame."""
    file = io.BytesIO()
    if suffix == ".png":
        grid(pictures, len(pictures)).save(file, "PNG")
    else:
        settings: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0, "lossless": True}
        pictures[0].save(file, suffix[1:].upper(), duration=FRAME_MILLISECONDS, **settings)
    return file.getvalue()


def two(option: str, text: str, separator: str = ",") -> tuple[str, str]:
    first, found, second = (part.strip() for part in text.partition(separator))
    if not (first and found and second) or separator in second:
        raise UserError(f"{option} is {text!r}, but must be two, with {SEPARATORS[separator]} between them")
    return first, second
