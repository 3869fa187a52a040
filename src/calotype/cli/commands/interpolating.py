"""Pictures between pictures."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image

from calotype.cli.commands.sampling import read_size
from calotype.cli.commands.talk import Console
from calotype.data.images import grid
from calotype.files import write_whole
from calotype.model import load
from calotype.types import UserError

FRAME_MILLISECONDS = 100
FILES = (".webp", ".gif", ".png")
BETWEEN = {",": "comma", "|": "bar |"}
"""What may stand between two; captions have commas in them."""


def interpolate(
    folder: Path, seeds: str, frames: int, labels: str | None, size: str | None, out: Path, device: str,
    console: Console, **wanted: Any,
) -> Path:  # fmt: skip
    """Writes the way from one picture to another: an animation, or a strip where `out` ends in .png.

    `wanted` is what else `Model.interpolate` takes; `prompts` as one text.
    """
    if out.suffix.lower() not in FILES:
        raise UserError(f"--out {out} must end in .webp or .gif (an animation) or .png (a strip)")
    ends, told = two("--seeds", seeds), two("--labels", labels) if labels else None
    if wanted.get("prompts") is not None:
        wanted["prompts"] = two("--prompts", wanted["prompts"], "|")
    if not all(re.fullmatch(r"-?\d+", seed) for seed in ends):
        raise UserError(f"--seeds is {seeds!r}, but must be two whole numbers, as in --seeds 1,2")
    model = load(folder, device)
    for warning in model.cuts(wanted.get("prompts") or wanted.get("prompt")):
        console.say(warning)
    with console.bar("frames"), warnings.catch_warnings(action="ignore", category=UserWarning):
        pictures = model.interpolate((int(ends[0]), int(ends[1])), frames, told, read_size(size), **wanted)
    write_whole(out, animated(pictures, out.suffix.lower()))
    return out


def animated(pictures: list[Image.Image], suffix: str) -> bytes:
    """The file's content; it plays for ever. WebP keeps every pixel, GIF 256 colours a frame."""
    file = io.BytesIO()
    if suffix == ".png":
        grid(pictures, len(pictures)).save(file, "PNG")
    else:
        more: dict[str, Any] = {"save_all": True, "append_images": pictures[1:], "loop": 0, "lossless": True}
        pictures[0].save(file, suffix[1:].upper(), duration=FRAME_MILLISECONDS, **more)
    return file.getvalue()


def two(option: str, text: str, between: str = ",") -> tuple[str, str]:
    one, found, other = (part.strip() for part in text.partition(between))
    if not (one and found and other) or between in other:
        raise UserError(f"{option} is {text!r}, but must be two, with a {BETWEEN[between]} between them")
    return one, other
