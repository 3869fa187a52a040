"""Decoded pictures in memory, or in a file that memory maps."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calotype.data.images import shown
from calotype.files import read_json, write_json
from calotype.types import UserError

Pixels = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]  # (count, 3, size, size)
Fill = Callable[[Pixels], Any]  # writes the pixels, and returns what else is to be known of them, as JSON


def in_memory(shape: tuple[int, int, int, int], fill: Fill) -> tuple[Pixels, Any]:
    pixels = np.empty(shape, np.uint8)
    return pixels, fill(pixels)


def on_disk(path: Path, shape: tuple[int, int, int, int], fill: Fill) -> tuple[Pixels, Any]:
    """What `fill` made when `path` was first asked for."""
    return stored(path) or _store(path, shape, fill)


def stored(path: Path) -> tuple[Pixels, Any] | None:
    """Pixels mapped from a file (writing to them changes memory only), and the facts beside them."""
    try:
        return _mapped(path), read_json(path.with_suffix(".json"))
    except (OSError, ValueError):  # not there, or not whole
        return None


def _store(path: Path, shape: tuple[int, int, int, int], fill: Fill) -> tuple[Pixels, Any]:
    """Under another name until it is whole; the facts come last, so that they vouch for the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _check_room(path.parent, math.prod(shape))
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        facts = fill(pixels)
        del pixels  # Windows does not rename a file that is mapped
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(path.with_suffix(".json"), facts)
    return _mapped(path), facts


def _mapped(path: Path) -> Pixels:
    pixels: Pixels = np.load(path, mmap_mode="c", allow_pickle=False)
    return pixels


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the pictures take {needed / 1e9:.1f} GB at this size, but only {free / 1e9:.1f} GB are free in "
            f"{shown(folder)}; choose a smaller size or another disk"
        )
