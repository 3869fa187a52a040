"""The picture sets of the track, each in four folders that no run and no choice may mix.

`train` is all that a method may learn from, `validation` all that choices may look at, `test` is what samples are held
against, and `floor` are other real pictures, whose distance to `test` is the best that can be hoped for.

portraits   the embedded portraits: six styles
drawings    clip art of the Debian package openclipart-svg (public domain): eleven subjects, with and without colour
photographs landscapes of endless-sky-high-dpi and surfaces of ufoai-textures, in tiles: many kinds, few pictures each
landscapes  300 pictures of one kind: halves of 150 landscape photographs, tested on halves of others

The packages are downloaded by `apt-get download` at the first call; their licences are in their copyright files.
"""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import tempfile
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import resvg_py
import torch
from jaxtyping import UInt8
from PIL import Image

from calotype.data.duplicates import near_duplicates, perceptual_hashes
from calotype.demo.portraits import STYLES, read_drawn, read_portraits
from calotype.files import read_json, sha256, whole_folder, write_json
from calotype.types import UserError

FACTS, HASHES = "facts.json", "hashes.json"
SUBJECTS = (
    "animals", "buildings", "education", "food", "geography", "office", "people", "plants", "recreation", "tools",
    "transportation",
)  # fmt: skip
"""Folders of clip art: without shapes and signs, most of which are geometry, and without icons of computers."""
MAPS = ("_nm", "_gm", "_sm", "_rm", "_dm")
"""Endings of textures that hold normals, gloss and the like, not colours."""
TILE = 256
"""Side of the tiles of a texture, at most four of which are used."""
Pixels = UInt8[np.ndarray, "count 3 size size"]


class Item(NamedTuple):
    """One picture. Those with the same `source`, as tiles of one photograph have, are in the same part."""

    source: str
    label: str
    picture: Image.Image
    facts: dict[str, Any]


@dataclass(frozen=True)
class PictureSet:
    """A name, the pictures at a size, and how many are in each part; `train` has the rest, or as many as it says."""

    name: str
    items: Callable[[int], Iterator[Item]]
    parts: dict[str, int]
    train: int | None = None

    def prepare(self, cache: Path, size: int) -> Path:
        """The folder of the split, written at the first call and checked at later ones.

        It holds `PART/CLASS/NUMBER.png`, what is known of each in `facts.json`, and the hash of each file in
        `hashes.json`.
        """
        folder = cache / f"{self.name}-{size}"
        if not folder.exists():
            with whole_folder(folder) as path:
                write(path, self.split(list(self.items(size))))
        verify(folder)
        return folder

    def split(self, items: Sequence[Item]) -> dict[str, list[Item]]:
        """Items of each part, each class in proportion; then near-duplicates of an earlier part are left out."""
        parts, rest = {}, in_order(items)
        taken = hashes_of([])
        for part, count in (self.parts | {"train": self.train or len(rest)}).items():
            fresh = [item for item, seen in zip(rest, near_duplicates(hashes_of(rest), taken), strict=True) if not seen]
            parts[part], rest = whole_sources(fresh, count)
            if not parts[part]:
                raise UserError(f"{self.name} has {len(items)} pictures, and none is left for {part}")
            taken = np.concatenate([taken, hashes_of(parts[part])])
        return parts


# -- The split ---------------------------------------------------------------------------------------------------------


def in_order(items: Iterable[Item]) -> list[Item]:
    """By the hashes of the sources, the classes in proportion: the first n are a fair sample, whatever the order was.

    Of pictures with equal sources and equal pixels only the first counts.
    """
    by_class: dict[str, dict[str, dict[bytes, Item]]] = defaultdict(lambda: defaultdict(dict))
    for item in items:
        key = hashlib.sha256(item.source.encode()).hexdigest()
        by_class[item.label][key].setdefault(item.picture.tobytes(), item)
    placed = [
        ((place + 0.5) / len(sources), label, list(sources[key].values()))
        for label, sources in by_class.items()
        for place, key in enumerate(sorted(sources))
    ]
    return [item for _, _, group in sorted(placed, key=lambda entry: entry[:2]) for item in group]


def whole_sources(items: Sequence[Item], count: int) -> tuple[list[Item], list[Item]]:
    """The first `count` items or a few more, so that no source is divided; and the rest."""
    end = min(count, len(items))
    while 0 < end < len(items) and items[end].source == items[end - 1].source:
        end += 1
    return list(items[:end]), list(items[end:])


def hashes_of(items: Sequence[Item]) -> Any:
    return (
        perceptual_hashes(pixels_of(items))
        if items
        else perceptual_hashes(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))[:0]
    )


def pixels_of(items: Sequence[Item]) -> torch.Tensor:
    return torch.from_numpy(stacked(item.picture for item in items))


def write(folder: Path, parts: dict[str, list[Item]]) -> None:
    facts = {}
    for part, items in parts.items():
        for number, item in enumerate(items):
            name = f"{part}/{item.label}/{number:05d}.png"
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            item.picture.save(folder / name)
            facts[name] = item.facts
    write_json(folder / FACTS, facts)
    write_json(folder / HASHES, {name: sha256(folder / name) for name in (FACTS, *facts)})


def verify(folder: Path) -> None:
    """Raises `UserError` unless the folder holds the files that were written, and no others."""
    hashes = read_json(folder / HASHES)
    present = {path.relative_to(folder).as_posix() for path in folder.glob("*/*/*")} | {FACTS}
    wrong = present ^ set(hashes) or {name for name, known in hashes.items() if sha256(folder / name) != known}
    if wrong:
        raise UserError(
            f"{folder} is not as it was written: {len(wrong)} files differ, such as {min(wrong)}; "
            "delete the folder, and it is written again"
        )


def fingerprint(folder: Path) -> str:
    """Of all files of a split."""
    return sha256(folder / HASHES)[:12]


def read_part(folder: Path, part: str, count: int | None = None) -> tuple[Pixels, list[str], list[dict[str, Any]]]:
    """The first `count` pictures of a part, their classes, and what is known of each."""
    facts = read_json(folder / FACTS)
    names = sorted((name for name in facts if name.startswith(f"{part}/")), key=lambda name: Path(name).name)[:count]
    pixels = stacked(Image.open(folder / name) for name in names)
    return pixels, [Path(name).parent.name for name in names], [facts[name] for name in names]


def stacked(pictures: Iterable[Image.Image]) -> Pixels:
    return np.stack([np.asarray(picture.convert("RGB")).transpose(2, 0, 1) for picture in pictures])


# -- Pictures ----------------------------------------------------------------------------------------------------------


def portraits(size: int) -> Iterator[Item]:
    pictures, drawn = read_portraits(size), read_drawn(size)
    for pixels, label, facts in zip(pictures.pixels.numpy(), pictures.labels.tolist(), drawn, strict=True):
        source = repr(sorted((key, str(value)) for key, value in facts.items()))
        yield Item(source, STYLES[label], Image.fromarray(pixels.transpose(1, 2, 0)), dict(facts))


def drawings(size: int) -> Iterator[Item]:
    """On white, cut to what is drawn; files that the renderer refuses and blank ones are passed over."""
    with package("openclipart-svg") as root:
        for path in sorted((root / "usr/share/openclipart/svg").rglob("*.svg")):
            subject = path.relative_to(root / "usr/share/openclipart/svg").parts[0]
            if subject in SUBJECTS and not path.is_symlink() and (picture := drawing(path, size)) is not None:
                yield Item(path.name, subject, picture, {"file": path.name})


def drawing(path: Path, size: int) -> Image.Image | None:
    try:
        png = resvg_py.svg_to_bytes(svg_string=path.read_text(errors="replace"), width=2 * size, dpi=96)
    except ValueError:
        return None
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    if (box := image.getchannel("A").getbbox()) is None:
        return None
    image = image.crop(box)
    side = round(1.04 * max(image.size)) + 1
    square = Image.new("RGB", (side, side), "white")
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2), image)
    square = square.resize((size, size), Image.Resampling.LANCZOS)
    return square if np.asarray(square).std() > 4 else None


def landscapes(size: int) -> Iterator[Item]:
    """Two halves of each photograph of 1440 x 720 px."""
    for item in landscape_halves(size):
        yield item._replace(label="landscape")


def landscape_halves(size: int) -> Iterator[Item]:
    """With the scene as class, as far as the name of the file says it for ten photographs and more."""
    with package("endless-sky-high-dpi") as root:
        paths = sorted(root.rglob("images/land/*.jpg"))
        scenes = [re.split(r"[^a-z]", path.stem)[0] for path in paths]
        for path, scene in zip(paths, scenes, strict=True):
            image = Image.open(path).convert("RGB")
            if image.size < (1440, 720):
                continue
            for half in (0, 1):
                square = image.crop((720 * half, 0, 720 * half + 720, 720))
                label = scene if scenes.count(scene) >= 10 else "landscape"
                yield Item(path.stem, label, square.resize((size, size), Image.Resampling.LANCZOS), {"file": path.name})


def photographs(size: int) -> Iterator[Item]:
    yield from landscape_halves(size)
    yield from textures(size)


def textures(size: int) -> Iterator[Item]:
    """Tiles of the colour textures, with the folder as class."""
    with package("ufoai-textures") as root, zipfile.ZipFile(next(root.rglob("*.pk3"))) as archive:
        for name in sorted(archive.namelist()):
            path = Path(name)
            if path.suffix.lower() not in (".jpg", ".png", ".tga") or path.stem.endswith(MAPS):
                continue
            kind = path.parts[1].removeprefix("tex_")
            image = Image.open(io.BytesIO(archive.read(name)))
            if kind in ("nature", "streets", "buildings", "material", "mattn", "base", "misc", "doors"):
                for tile in tiles(image.convert("RGB")):
                    yield Item(name, kind, tile.resize((size, size), Image.Resampling.LANCZOS), {"file": name})


def tiles(image: Image.Image) -> Iterator[Image.Image]:
    """At most four tiles from the upper left; none of a smaller picture, or of a nearly plain one."""
    for top in range(0, min(image.height, 2 * TILE) - TILE + 1, TILE):
        for left in range(0, min(image.width, 2 * TILE) - TILE + 1, TILE):
            tile = image.crop((left, top, left + TILE, top + TILE))
            if np.asarray(tile).std() > 4:
                yield tile


class package:  # noqa: N801
    """The unpacked files of a Debian package, while the context is open."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> Path:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        for command in (["apt-get", "download", self.name], ["dpkg", "-x", f"{self.name}.deb", "files"]):
            result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
            if result.returncode:
                raise UserError(f"{' '.join(command)} failed: {result.stderr.strip()[-300:]}; is this a Debian system?")
            for file in root.glob(f"{self.name}_*.deb"):
                file.rename(root / f"{self.name}.deb")
        return root / "files"

    def __exit__(self, *error: object) -> None:
        self.folder.cleanup()


SETS = {
    each.name: each
    for each in (
        PictureSet("portraits", portraits, {"test": 1000, "floor": 1000, "validation": 500}),
        PictureSet("drawings", drawings, {"test": 400, "floor": 400, "validation": 150}),
        PictureSet("photographs", photographs, {"test": 500, "floor": 500, "validation": 250}),
        PictureSet("landscapes", landscapes, {"test": 120, "floor": 84, "validation": 40}, train=300),
    )
}
