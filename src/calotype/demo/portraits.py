"""The embedded portraits: 9,000 drawings in six styles, stored as vectors, so available at any size."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.resources import files
from io import BytesIO
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from calotype.data.caches import Pixels, cached_pixels, open_pixels
from calotype.data.captions import Captions
from calotype.data.folder import HashedFile, Pictures, assemble, check_size, with_captions, without_duplicates
from calotype.data.images import in_threads, shown
from calotype.data.layout import class_notes
from calotype.data.listing import note
from calotype.data.split import SplitRule, stratified_split
from calotype.demo.describing import Facts, describe
from calotype.files import make_folder, write_png, write_whole
from calotype.places import cache_home
from calotype.types import Progress, UserError, no_progress

STYLES = ("adventurer", "lorelei", "micah", "notionists", "open-peeps", "personas")
PORTRAIT_COUNT = 9000
PIXELS = 4e9
"""How many are rendered where no count is asked for: 3,815 portraits of 1024 px, which take a core seven minutes."""
STEP = 16_000  # drawings times pixels of a side that are rendered at once: about half a second of work


def read_portraits(
    size: int, count: int | None = None, progress: Progress = no_progress, rule: SplitRule = stratified_split
) -> Pictures:
    """`count` portraits, evenly over the styles, which are the classes; rendered once, then cached for the user.

    Without `count` all 9,000 up to 666 px, and fewer above, since both time and disk grow with the pixels.
    Their captions, one in English and one in Vietnamese, are made from their attributes.
    """
    pixels, facts = _cached(size, count, progress)
    files = [HashedFile(*fact) for fact in facts["sources"]]
    notes = [*facts["notes"], *class_notes([file.folder for file in files], STYLES)]
    if count is None and count_at(size) < PORTRAIT_COUNT:
        notes.insert(0, f"the first {count_at(size):,} of {PORTRAIT_COUNT:,} portraits: at {size} px rendering is slow")
    pictures = assemble(pixels, files, STYLES, size, notes, rule)
    return with_captions(pictures, Captions(tuple(map(describe, facts["drawn"])), optional=True))


def count_at(size: int) -> int:
    """How many portraits are read at a size where no count is asked for."""
    check_size(size)
    return min(PORTRAIT_COUNT, max(1, round(PIXELS / size**2)))


def read_drawn(size: int, count: int | None = None) -> list[Facts]:
    """The attributes of the portraits of `read_portraits`, in their order."""
    return list(_cached(size, count, no_progress)[1]["drawn"])


def write_portraits(size: int, count: int | None, folder: Path, progress: Progress = no_progress) -> None:
    """PNG files in one subfolder a style, their attributes and captions in `metadata.jsonl`, and the licence."""
    count = _checked_count(count, size)
    if folder.is_file() or (folder.exists() and any(folder.iterdir())):
        state = "is a file" if folder.is_file() else "is not empty"
        raise UserError(f"{shown(folder)} {state}; name a new or an empty folder for the portraits")
    members = dict(_members())
    names, facts = _first_names(members, count), _facts(members)
    for style, own in groupby(sorted(names), lambda name: str(PurePosixPath(name).parent)):
        make_folder(folder / style)
        lines = "".join(json.dumps(_metadata(facts[name]), ensure_ascii=False) + "\n" for name in own)
        write_whole(folder / style / "metadata.jsonl", lines)
    write_whole(folder / "LICENSE.md", members["LICENSE.md"])
    paths = [(folder / name).with_suffix(".png") for name in names]
    _render([members[name] for name in names], size, lambda row, image: write_png(paths[row], image), progress)


def drawings() -> dict[str, tuple[bytes, Facts]]:
    """Every drawing (SVG) with its attributes, by `style/file`."""
    members = dict(_members())
    return {name: (members[name], facts) for name, facts in _facts(members).items()}


def rendered(drawings: Sequence[bytes], size: int) -> Pixels:
    """Pixels of drawings (SVG), (count, 3, size, size)."""
    pixels: Pixels = np.empty((len(drawings), 3, size, size), np.uint8)
    _render_into(pixels, drawings, no_progress)
    return pixels


def _cached(size: int, count: int | None, progress: Progress) -> tuple[Pixels, Any]:
    """Pixels and facts, rendered now or by an earlier call."""
    count = count_at(size) if count is None else _checked_count(count, size)
    fingerprint = hashlib.sha256(_archive() + f"{resvg_py.__version__}, with what is drawn".encode()).hexdigest()[:12]
    path = cache_home() / f"portraits-{size}-{count}-{fingerprint}.npy"
    if (cached := open_pixels(path)) is not None:
        return cached
    members = dict(_members())
    hashed = [HashedFile(hashlib.sha256(members[name]).hexdigest(), name) for name in _first_names(members, count)]
    unique, attributes = without_duplicates(hashed), _facts(members)
    drawn = [attributes[file.name] for file in unique]

    def fill(pixels: Pixels) -> Any:
        _render_into(pixels, [members[file.name] for file in unique], progress)
        return {"sources": unique, "notes": note(len(hashed) - len(unique), "duplicate", "left out"), "drawn": drawn}

    shape = (len(unique), 3, size, size)
    try:
        return cached_pixels(path, shape, fill)
    except (OSError, UserError):  # without a place to cache them they are rendered by each command
        return cached_pixels(None, shape, fill)


def _render_into(pixels: Pixels, drawings: Sequence[bytes], progress: Progress) -> None:
    def keep(row: int, image: Image.Image) -> None:
        pixels[row] = np.asarray(image).transpose(2, 0, 1)

    _render(drawings, pixels.shape[-1], keep, progress)


def _render(drawings: Sequence[bytes], size: int, keep: Callable[[int, Image.Image], None], progress: Progress) -> None:
    """Calls `keep(row, image)` for each, from several threads at once."""
    total, step = len(drawings), max(1, STEP // size)
    pngs = _pngs if total <= step else _pngs_of_a_process

    def render(start: int) -> int:
        orders = [_order(drawing.decode(), size) for drawing in drawings[start : start + step]]
        for row, png in enumerate(pngs(orders), start):
            keep(row, Image.open(BytesIO(png)).convert("RGB"))
        return start + len(orders)

    for done in in_threads(render, range(0, total, step), most=1):
        progress(done, total)


def _order(drawing: str, size: int) -> dict[str, Any]:
    """The renderer's arguments, without the mask by the picture's own outline, which takes half of the time at 1024 px.

    Below 256 px it stays: without it the renderer draws what touches the border up to a pixel off (64 px: 4% more
    error in the mean). From 256 px on at most 0.2% of the pixels change, all of them on edges, by at most 64 of 255.
    """
    svg = drawing if size < 256 else drawing.replace('<g mask="url(#viewboxMask)">', "<g>", 1)
    return {"svg_string": svg, "width": size, "height": size, "background": "#ffffff", "skip_system_fonts": True}


def _pngs(orders: Sequence[dict[str, Any]]) -> list[bytes]:
    return [resvg_py.svg_to_bytes(**order) for order in orders]


_RENDERER = """
import base64, json, sys, resvg_py
for order in sys.stdin:
    print(base64.b64encode(resvg_py.svg_to_bytes(**json.loads(order))).decode())
"""


def _pngs_of_a_process(orders: Sequence[dict[str, Any]]) -> list[bytes]:
    """The renderer holds Python's lock, so each thread starts a Python process of its own.

    A pool of `multiprocessing` would import the user's script, and torch with it, in each worker.
    """
    lines = "\n".join(json.dumps(order) for order in orders)
    command = [sys.executable, "-P", "-c", _RENDERER]
    pngs = subprocess.run(command, input=lines, encoding="ascii", check=True, capture_output=True).stdout
    return [base64.b64decode(png) for png in pngs.splitlines()]


def _first_names(names: Iterable[str], count: int) -> list[str]:
    """The first drawing of each style, then the second of each, and so on."""
    drawings = (PurePosixPath(name) for name in names if name.endswith(".svg"))
    return [str(path) for path in sorted(drawings, key=lambda path: (path.stem, path.parent))[:count]]


def _metadata(facts: Facts) -> Facts:
    """Attributes and captions of a PNG file."""
    return {**facts, "file_name": facts["file_name"].replace(".svg", ".png"), "captions": describe(facts)}


def _facts(members: dict[str, bytes]) -> dict[str, Facts]:
    """Attributes by the name of the drawing."""
    lines = {style: members[f"{style}/metadata.jsonl"].decode().splitlines() for style in STYLES}
    return {f"{style}/{fact['file_name']}": fact for style in STYLES for fact in map(json.loads, lines[style])}


def _archive() -> bytes:
    return (files("calotype.demo") / "portraits.tar.xz").read_bytes()


def _members() -> Iterator[tuple[str, bytes]]:
    """Files of the archive, read into memory and never onto the disk."""
    with tarfile.open(fileobj=BytesIO(_archive()), mode="r:xz") as archive:
        for member in archive:
            if (file := archive.extractfile(member) if member.isreg() else None) is not None:
                yield member.name.removeprefix("./"), file.read()


def _checked_count(count: int | None, size: int) -> int:
    check_size(size)
    if count is not None and not 1 <= count <= PORTRAIT_COUNT:
        raise UserError(f"asked for {count} portraits, but there are 1 to {PORTRAIT_COUNT:,}; try {PORTRAIT_COUNT}")
    return count or PORTRAIT_COUNT
