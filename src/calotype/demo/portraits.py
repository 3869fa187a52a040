"""The pictures that come with this project: 9,000 drawn portraits in six styles, kept as drawings, so of any size."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.resources import files
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import resvg_py
from PIL import Image

from calotype.data.captions import Captions
from calotype.data.folder import (
    Pictures,
    Progress,
    Source,
    assemble,
    check_size,
    class_notes,
    distinct,
    duplicates_note,
    in_threads,
    with_captions,
)
from calotype.data.images import shown
from calotype.data.pixels import Pixels, in_memory, on_disk, stored
from calotype.data.split import Rule, three_sets
from calotype.demo.describing import Facts, describe
from calotype.types import UserError

STYLES = ("adventurer", "lorelei", "micah", "notionists", "open-peeps", "personas")
COUNT = 9000
STEP = 16_000  # drawings times pixels of a side: about half a second's work


def read_portraits(
    size: int, count: int | None = None, progress: Progress | None = None, rule: Rule = three_sets
) -> Pictures:
    """`count` portraits, evenly over the styles, which are the classes; drawn once, then kept in the user's cache.

    Their captions, one in English and one in Vietnamese, are made from what is drawn.
    """
    pixels, facts = _kept(size, count, progress)
    sources = [Source(*fact) for fact in facts["sources"]]
    pictures = assemble(pixels, sources, STYLES, size, [*facts["notes"], *class_notes(sources, STYLES)], rule)
    return with_captions(pictures, Captions(tuple(map(describe, facts["drawn"])), optional=True))


def read_drawn(size: int, count: int | None = None) -> list[Facts]:
    """What is drawn on the portraits of `read_portraits`, in their order."""
    return list(_kept(size, count)[1]["drawn"])


def write_portraits(size: int, count: int | None, folder: Path, progress: Progress | None = None) -> None:
    """PNG files in one subfolder a style, what is drawn on each in `metadata.jsonl`, and the licence."""
    count = _checked_count(count, size)
    _check_empty(folder)
    members = dict(_members())
    names = _chosen(members, count)
    for style in {str(PurePosixPath(name).parent) for name in names}:
        (folder / style).mkdir(parents=True)
        lines = _metadata(members[f"{style}/metadata.jsonl"], style, set(names))
        (folder / style / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "LICENSE.md").write_bytes(members["LICENSE.md"])
    paths = [(folder / name).with_suffix(".png") for name in names]
    _render([members[name] for name in names], size, lambda row, image: image.save(paths[row]), progress)


def drawings() -> dict[str, tuple[bytes, Facts]]:
    """Every drawing (SVG), and what is drawn on it, by `style/file`."""
    members = dict(_members())
    return {name: (members[name], facts) for name, facts in _facts(members).items()}


def rendered(drawings: Sequence[bytes], size: int) -> Pixels:
    """Pixels of drawings (SVG), (count, 3, size, size)."""
    pixels, _ = in_memory((len(drawings), 3, size, size), partial(_paint, drawings, facts=None, progress=None))
    return pixels


def licence() -> str:
    """Who drew the styles, and under which licences."""
    return next(content for name, content in _members() if name == "LICENSE.md").decode()


def _kept(size: int, count: int | None, progress: Progress | None = None) -> tuple[Pixels, Any]:
    """Drawn now, or by an earlier call."""
    count = _checked_count(count, size)
    path = _cache_folder() / f"portraits-{size}-{count}-{_fingerprint()}.npy"
    return stored(path) or _drawn(path, size, count, progress)


def _drawn(path: Path, size: int, count: int, progress: Progress | None) -> tuple[Pixels, Any]:
    members = dict(_members())
    sources = [Source(hashlib.sha256(members[name]).hexdigest(), name) for name in _chosen(members, count)]
    unique = distinct(sources)
    drawn = _facts(members)
    facts = {
        "sources": unique,
        "notes": duplicates_note(sources, unique),
        "drawn": [drawn[source.name] for source in unique],
    }
    shape = (len(unique), 3, size, size)
    fill = partial(_paint, [members[source.name] for source in unique], facts=facts, progress=progress)
    try:
        return on_disk(path, shape, fill)
    except (OSError, UserError):  # no place to keep them: they are drawn again the next time
        return in_memory(shape, fill)


def _paint(drawings: Sequence[bytes], pixels: Pixels, facts: Any, progress: Progress | None) -> Any:
    def keep(row: int, image: Image.Image) -> None:
        pixels[row] = np.asarray(image).transpose(2, 0, 1)

    _render(drawings, pixels.shape[-1], keep, progress)
    return facts


def _render(
    drawings: Sequence[bytes], size: int, keep: Callable[[int, Image.Image], None], progress: Progress | None
) -> None:
    """Calls `keep(row, image)` for each, from several threads at once."""
    total, step = len(drawings), max(1, STEP // size)
    pngs = _pngs if total <= step else _pngs_of_a_process

    def render(start: int) -> int:
        orders = [_order(drawing.decode(), size) for drawing in drawings[start : start + step]]
        for row, png in enumerate(pngs(orders), start):
            keep(row, Image.open(BytesIO(png)).convert("RGB"))
        return start + len(orders)

    for done in in_threads(render, range(0, total, step)):
        if progress is not None:
            progress(done, total)


def _order(drawing: str, size: int) -> dict[str, Any]:
    order = {"svg_string": _simplified(drawing, size), "width": size, "height": size}
    return order | {"background": "#ffffff", "skip_system_fonts": True}


def _pngs(orders: Sequence[dict[str, Any]]) -> list[bytes]:
    return [resvg_py.svg_to_bytes(**order) for order in orders]


_RENDERER = """
import base64, json, sys, resvg_py
for order in sys.stdin:
    print(base64.b64encode(resvg_py.svg_to_bytes(**json.loads(order))).decode())
"""


def _pngs_of_a_process(orders: Sequence[dict[str, Any]]) -> list[bytes]:
    """The renderer holds Python's lock, so each thread has a bare Python render for it.

    A pool of `multiprocessing` would import the user's script, and torch with it, in every worker.
    """
    lines = "\n".join(json.dumps(order) for order in orders)
    command = [sys.executable, "-P", "-c", _RENDERER]
    pngs = subprocess.run(command, input=lines, encoding="ascii", check=True, capture_output=True).stdout
    return [base64.b64decode(png) for png in pngs.splitlines()]


def _simplified(drawing: str, size: int) -> str:
    """Without the mask by the picture's own outline, which hides nothing, but takes half of the time at 1024 px.

    At small sizes it stays: without it the renderer draws what touches the border up to a pixel off (64 px: 4% more
    error in the mean). From 256 px on at most 0.2% of the pixels change, all of them on edges, by at most 64 of 255.
    """
    return drawing if size < 256 else drawing.replace('<g mask="url(#viewboxMask)">', "<g>", 1)


def _chosen(names: Iterable[str], count: int) -> list[str]:
    """The first drawing of each style, then the second of each, and so on."""
    drawings = (PurePosixPath(name) for name in names if name.endswith(".svg"))
    return [str(path) for path in sorted(drawings, key=lambda path: (path.stem, path.parent))[:count]]


def _metadata(lines: bytes, style: str, wanted: set[str]) -> Iterator[str]:
    for fact in map(json.loads, lines.decode().splitlines()):
        if f"{style}/{fact['file_name']}" in wanted:
            named = {"file_name": fact["file_name"].replace(".svg", ".png"), "captions": describe(fact)}
            yield json.dumps(fact | named, ensure_ascii=False) + "\n"


def _facts(members: dict[str, bytes]) -> dict[str, Facts]:
    """What is drawn, by the name of the drawing."""
    lines = {style: members[f"{style}/metadata.jsonl"].decode().splitlines() for style in STYLES}
    return {f"{style}/{fact['file_name']}": fact for style in STYLES for fact in map(json.loads, lines[style])}


def _archive() -> bytes:
    return (files("calotype.demo") / "portraits.tar.xz").read_bytes()


def _members() -> Iterator[tuple[str, bytes]]:
    """Read into memory, never onto the disk; only regular files."""
    with tarfile.open(fileobj=BytesIO(_archive()), mode="r:xz") as archive:
        for member in archive:
            if (file := archive.extractfile(member) if member.isreg() else None) is not None:
                yield member.name.removeprefix("./"), file.read()


def _fingerprint() -> str:
    return hashlib.sha256(_archive() + f"{resvg_py.__version__}, with what is drawn".encode()).hexdigest()[:12]


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "calotype"


def _checked_count(count: int | None, size: int) -> int:
    check_size(size)
    if count is not None and not 1 <= count <= COUNT:
        raise UserError(f"asked for {count} portraits, but there are 1 to {COUNT:,} to choose from; try {COUNT}")
    return count or COUNT


def _check_empty(folder: Path) -> None:
    if folder.is_file():
        raise UserError(f"{shown(folder)} is a file; name a new or an empty folder for the portraits")
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{shown(folder)} is not empty; name a new or an empty folder for the portraits")
