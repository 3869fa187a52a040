"""The track's pictures: the embedded portraits in four folders that no run and no choice may mix.

`train` is all that a method may learn from, `validation` all that choices may look at, `test` is what samples are held
against, and `floor` are other real pictures, whose distance to `test` is the best that can be hoped for.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from calotype.demo.describing import Facts
from calotype.demo.portraits import STYLES, read_drawn, read_portraits
from calotype.files import read_json, sha256, whole_folder, write_json
from calotype.types import UserError

PARTS = {"test": 1000, "floor": 1000, "validation": 500}
"""Taken in this order; `train` is the rest."""
FACTS, HASHES = "facts.json", "hashes.json"
Pixels = UInt8[np.ndarray, "count 3 size size"]


def prepare(cache: Path, size: int) -> Path:
    """The folder of the split, written at the first call and checked at later ones.

    It holds `PART/STYLE/NAME.png`, what is drawn on each in `facts.json`, and the hash of each file in `hashes.json`.
    """
    pictures, drawn = read_portraits(size), read_drawn(size)
    folder = cache / f"portraits-{size}-{pictures.content[:12]}"
    if not folder.exists():
        pixels, styles = pictures.pixels.numpy(), [STYLES[label] for label in pictures.labels.tolist()]
        with whole_folder(folder) as path:
            write(path, pixels, styles, drawn, split(pixels, styles))
    verify(folder)
    return folder


def split(pixels: Pixels, styles: Sequence[str]) -> dict[str, list[int]]:
    """Rows of each part; every part has as many of each style, to one.

    The order is that of the hashes of the pixels, so it hangs on no name and no seed. Of pictures with equal pixels
    only the first counts, so none is on two sides.
    """
    hashes = [hashlib.sha256(picture.tobytes()).hexdigest() for picture in pixels]
    of_style: dict[str, dict[str, int]] = defaultdict(dict)
    for row in range(len(pixels)):
        of_style[styles[row]].setdefault(hashes[row], row)
    in_order = ([rows[key] for key in sorted(rows)] for _, rows in sorted(of_style.items()))
    order = [row for row in chain.from_iterable(zip_longest(*in_order)) if row is not None]
    parts, start = {}, 0
    for part, count in PARTS.items():
        parts[part] = order[start : start + count]
        start += count
    return parts | {"train": order[start:]}


def write(
    folder: Path, pixels: Pixels, styles: Sequence[str], drawn: Sequence[Facts], parts: dict[str, list[int]]
) -> None:
    facts = {}
    for part, rows in parts.items():
        for place, row in enumerate(rows):
            name = f"{part}/{styles[row]}/{place:05d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[row].transpose(1, 2, 0)).save(folder / name)
            facts[name] = drawn[row]
    write_json(folder / FACTS, facts)
    write_json(folder / HASHES, {name: sha256(folder / name) for name in (FACTS, *facts)})


def verify(folder: Path) -> None:
    """Raises `UserError` unless the folder holds the files that were written, and no others."""
    hashes = read_json(folder / HASHES)
    there = {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")} | {FACTS}
    wrong = there ^ set(hashes) or {name for name, known in hashes.items() if sha256(folder / name) != known}
    if wrong:
        raise UserError(
            f"{folder} is not as it was written: {len(wrong)} files differ, such as {min(wrong)}; "
            "delete the folder, and it is written again"
        )


def read_part(folder: Path, part: str, count: int | None = None) -> tuple[Pixels, list[Facts]]:
    """The first `count` pictures of a part, evenly over the styles, and what is drawn on them."""
    facts = json.loads((folder / FACTS).read_text())
    names = sorted((name for name in facts if name.startswith(f"{part}/")), key=lambda name: Path(name).name)[:count]
    return stacked(Image.open(folder / name) for name in names), [facts[name] for name in names]


def stacked(pictures: Iterable[Image.Image]) -> Pixels:
    return np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])
