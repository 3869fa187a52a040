"""What a frozen text encoder says of all captions, on disk, so that it runs once a caption and not once a step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from calotype.data.caption_dropout import parts
from calotype.data.captions import Captions
from calotype.files import write_tensors
from calotype.nets.frozen import Frozen, Reader, Table, encode_all, no_progress


def cache_words(
    frozen: Frozen, captions: Captions, folder: Path, device: torch.device, progress: Callable[[int, int], None]
) -> None:
    """From here on `frozen` looks captions up; they are read, or an earlier call with equal ones has written them."""
    texts = distinct(captions)
    path = folder / f"words-{cache_key(frozen.reader.digest, texts)}.safetensors"
    if (table := read_table(path, texts)) is None:
        made = read_on(frozen.reader, texts, device, progress)
        write_tensors(path, {"ends": made.ends, "context": made.context, "pooled": made.pooled})
        for old in folder.glob("words-*.safetensors"):
            if old != path:
                old.unlink()
        table = read_table(path, texts)
    assert table is not None
    frozen.table = table


def read_on(
    reader: Reader, texts: Sequence[str], device: torch.device, progress: Callable[[int, int], None] = no_progress
) -> Table:
    """On this device, which has its memory back then: the few prompts that come later are read on the CPU."""
    reader.network.to(device)
    try:
        return encode_all(reader, texts, progress)
    finally:
        reader.network.cpu()


def distinct(captions: Captions) -> list[str]:
    """With what they say in parts, as training may tell them."""
    return sorted({one for some in captions.of for text in some for one in (text, *parts(text))})


def read_table(path: Path, texts: Sequence[str]) -> Table | None:
    """Mapped from the file; None where there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            ends, context, pooled = (file.get_tensor(name) for name in ("ends", "context", "pooled"))
    except (FileNotFoundError, SafetensorError):
        return None
    return Table({text: row for row, text in enumerate(texts)}, ends, context, pooled)


def cache_key(digest: str, texts: Sequence[str]) -> str:
    """Changes with the encoder and the captions, and with nothing else."""
    return hashlib.sha256(f"{digest} {json.dumps(texts)}".encode()).hexdigest()[:16]
