"""Caches on disk: decoded pixels, encodings of a frozen text encoder; for latents see `latents`.

A cache is named after a hash of all that it depends on, and holds one of its own content. It is made under another
name, brought to the disk, and then renamed; one that is missing or damaged is made again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from safetensors import safe_open
from torch import Tensor

from calotype.data.captions import Captions
from calotype.data.images import shown
from calotype.files import abandoned, checked, read_as, require_regular, sha256, whole_file, write_json, write_tensors
from calotype.machine import ranks_here
from calotype.nets.frozen import EncodingTable, FrozenEncoder, PretrainedEncoder, encode_all
from calotype.types import Progress, UserError, no_progress

Pixels = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]  # (count, 3, height, width)
MAX_FACTS = 2**30
"""Bytes of the JSON beside pixels: it has a line for each picture."""
LEFT_SECONDS = 24 * 3600.0
Fill = Callable[[Pixels], Any]  # writes the pixels, and returns what else is known of them, as JSON

# -- Pixels ------------------------------------------------------------------------------------------------------------


def fit_into(needed: int, free: int) -> bool:
    """Whether pixels of so many bytes are kept in memory of which so many are free; else, and where several ranks share
    it, they are mapped."""
    return needed <= free / 4 and ranks_here() == 1


def cached_pixels(
    path: Path | None, shape: tuple[int, int, int, int], fill: Fill, facts: Any = Any
) -> tuple[Pixels, Any]:
    """Pixels, and what `fill` returned for them: in memory without a path, else mapped from the file at `path`.

    `fill` is called only where there is no such file, or it is damaged; `facts` is the type of what it returns. Raises
    `UserError` where there is too little memory, or space on the disk.
    """
    if path is None:
        needed, free = math.prod(shape), psutil.virtual_memory().available
        if needed > free:
            raise UserError(
                f"the pictures take {needed / 1e9:.1f} GB at this size, but only {free / 1e9:.1f} GB of memory are "
                f"free; choose a smaller size, or fewer pictures"
            )
        pixels: Pixels = np.empty(shape, np.uint8)
        return pixels, fill(pixels)
    stored = open_pixels(path, facts)
    return stored if stored and stored[0].shape == shape else _write_pixels(path, shape, fill)


def open_pixels(path: Path, facts: Any = Any) -> tuple[Pixels, Any] | None:
    """Pixels mapped from a file (writing to them changes memory only), and the facts in the JSON beside them.

    None where they are missing, damaged, or of an earlier version, which had no hash.
    """
    try:
        require_regular(path)
        stored = read_as(path.with_suffix(".json"), dict[str, Any], MAX_FACTS)
        if stored["sha256"] != sha256(path):
            return None
        pixels = np.lib.format.open_memmap(path, "c")
        known = checked(stored["facts"], facts, path.with_suffix(".json"))
        return (pixels, known) if pixels.dtype == np.uint8 else None
    except Exception:  # whatever a wrong header makes numpy raise
        return None


def _write_pixels(path: Path, shape: tuple[int, int, int, int], fill: Fill) -> tuple[Pixels, Any]:
    """The JSON is written last, so that it vouches for the pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    needed, free = math.prod(shape), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"the pictures take {needed / 1e9:.1f} GB at this size, but only {free / 1e9:.1f} GB are free in "
            f"{shown(path.parent)}; choose a smaller size or another disk"
        )
    with whole_file(path) as temporary:
        pixels = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        allocate(temporary)
        facts = fill(pixels)
        pixels.flush()
        del pixels  # Windows does not rename a file that is mapped
        digest = sha256(temporary)
    write_json(path.with_suffix(".json"), {"sha256": digest, "facts": facts})
    return np.lib.format.open_memmap(path, "c"), facts


def remove_leftovers(folder: Path) -> None:
    """Removes pixels that killed processes had begun to write a day ago or more: in a folder that is no run nobody else
    does, and a process on another host may be at work on newer ones."""
    for path in folder.glob(".pixels-*.tmp"):
        with suppress(OSError):
            if abandoned(path) and time.time() - path.stat().st_mtime > LEFT_SECONDS:
                path.unlink()


def allocate(path: Path) -> None:
    """Takes the space of a file on the disk now: writing to a map of it when the disk is full would kill the process.

    Raises `OSError` where there is too little; some file systems cannot do it.
    """
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                    raise


# -- Tensors -----------------------------------------------------------------------------------------------------------


def cached_tensors(
    path: Path, make: Callable[[], Mapping[str, Tensor]], fits: Callable[..., bool], outdated: str
) -> dict[str, Tensor]:
    """The tensors of a safetensors file; made where the file is missing, damaged, or they do not fit.

    Where they have to be made, other files that match `outdated` go.
    """
    with suppress(TypeError):  # other names than those that `fits` takes
        if (stored := open_cache(path)) is not None and fits(**stored):
            return stored
    write_cache(path, make())
    for other in path.parent.glob(outdated):
        if other != path:
            other.unlink()
    made = open_cache(path)
    assert made is not None, f"{path} changed while it was written"
    return made


def write_cache(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_tensors(path, tensors, {"sha256": tensors_hash(tensors)})


def open_cache(path: Path) -> dict[str, Tensor] | None:
    """None where the tensors are missing, damaged, or of an earlier version, which had no hash."""
    try:
        require_regular(path)
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            digest = (file.metadata() or {}).get("sha256")
    except Exception:  # the package raises nothing narrower for what is wrong in a header
        return None
    return tensors if digest == tensors_hash(tensors) else None


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """Of names, shapes and contents."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def cache_encodings(
    frozen: FrozenEncoder, captions: Captions, folder: Path, device: torch.device, progress: Progress
) -> None:
    """Gives `frozen` a table of the encodings of all captions and their shortened versions: each is encoded once."""
    texts = captions.distinct

    def make() -> dict[str, Tensor]:
        table = encode_on(frozen.pretrained, texts, device, progress)
        return {"ends": table.ends, "context": table.context, "pooled": table.pooled}

    key = hashlib.sha256(f"{frozen.pretrained.digest} {json.dumps(texts)}".encode()).hexdigest()[:16]

    def fits(ends: Tensor, context: Tensor, pooled: Tensor) -> bool:
        width = frozen.pretrained.width
        shapes = ends.shape, context.shape[1:], pooled.shape, context.dtype, pooled.dtype
        known = shapes == ((len(texts) + 1,), (width,), (len(texts), width), torch.half, torch.half)
        return known and bool((ends.diff() >= 0).all()) and ends[[0, -1]].tolist() == [0, len(context)]

    tensors = cached_tensors(folder / f"words-{key}.safetensors", make, fits, "words-*.safetensors")
    frozen.table = EncodingTable({text: row for row, text in enumerate(texts)}, **tensors)


def encode_on(
    pretrained: PretrainedEncoder, texts: Sequence[str], device: torch.device, progress: Progress = no_progress
) -> EncodingTable:
    """Encodes on this device, and moves the encoder back to the CPU, where the few later prompts are encoded."""
    pretrained.network.to(device)
    try:
        return encode_all(pretrained, texts, progress)
    finally:
        pretrained.network.cpu()
