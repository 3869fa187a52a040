"""Pictures that were made on the page, kept in the folder of their run with how they were made."""

from __future__ import annotations

import io
import json
import os
import re
import threading
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from typing import Any

from calotype.files import make_folder, read_json, write_json, write_whole
from calotype.serve.answers import RefusedRequest
from calotype.tables import number
from calotype.types import UserError

GALLERY_FOLDER = "gallery"
LARGEST_GALLERY = 10_000
"""Pictures in a gallery."""
PICTURE_ID = re.compile(r"[0-9a-f]{20}")
GALLERY_SUFFIXES = (".png", ".webp")
SUFFIX_OF, NEAREST_SUFFIX = {"interpolate": ".webp"}, ".nearest.png"
CHANGING = threading.Lock()
"""Held while the notes of a picture are read and written again: requests are answered by several threads."""
UNREADABLE = "unreadable"
"""The note of a picture that cannot be decoded, with the reason: it is not searched again."""
MADE_BY = (
    "kind",
    "seed",
    "index",
    "label",
    "prompt",
    "negative",
    "steps",
    "guidance",
    "strength",
    "seed_after",
    "width",
    "height",
    "of",
)


@dataclass(frozen=True)
class Gallery:
    """The gallery of the run in `folder`."""

    folder: Path

    @property
    def place(self) -> Path:
        return self.folder / GALLERY_FOLDER

    def add(self, pictures: Sequence[bytes], about: dict[str, Any]) -> list[str]:
        """Ids of the pictures. Raises `RefusedRequest` where the gallery is full."""
        self.require_room(len(pictures))
        if not os.path.lexists(self.folder / "run.json"):
            raise RefusedRequest(404, "the run has been removed meanwhile")
        make_folder(self.place)
        return [self._add(content, {**about, "index": index}) for index, content in enumerate(pictures)]

    def require_room(self, count: int) -> None:
        if self.place.is_symlink():
            raise RefusedRequest(409, "the gallery of this run is a link, which may lead anywhere; make it a folder")
        if self.place.is_dir() and len(list(self.place.glob("*.json"))) + count > LARGEST_GALLERY:
            raise RefusedRequest(
                409, f"the gallery has {LARGEST_GALLERY:,} pictures; remove some, or download them first"
            )

    def _add(self, content: bytes, about: dict[str, Any]) -> str:
        picture, kind = token_hex(10), str(about.get("kind"))
        kept = {name: about[name] for name in MADE_BY if about.get(name) is not None}
        if turn := about.get("turn"):
            kept["label"] = turn[about["index"] % len(turn)]
        order = about.get("order", 0.0) - about["index"] * 1e-6
        write_whole(self.place / f"{picture}{SUFFIX_OF.get(kind, '.png')}", content)
        write_json(self.place / f"{picture}.json", {**kept, "order": order, "star": False})
        return picture

    def entries(self) -> list[dict[str, Any]]:
        """How each picture was made, newest first; damaged ones are left out."""
        return sorted(self._entries(), key=lambda entry: -entry["order"])

    def _entries(self) -> Iterator[dict[str, Any]]:
        for file in [] if self.place.is_symlink() else self.place.glob("*.json"):
            if PICTURE_ID.fullmatch(file.stem) and not file.is_symlink() and self._has_picture(file.stem):
                try:
                    about = read_json(file)
                except UserError:
                    continue
                if is_sound(about):
                    yield {**about, "id": file.stem}

    def _has_picture(self, picture: str) -> bool:
        return any((self.place / f"{picture}{suffix}").is_file() for suffix in GALLERY_SUFFIXES)

    def file(self, picture: str) -> Path:
        """Raises `RefusedRequest` for an unknown id."""
        if PICTURE_ID.fullmatch(picture) and not self.place.is_symlink():
            for suffix in GALLERY_SUFFIXES:
                file = self.place / f"{picture}{suffix}"
                if file.is_file() and not file.is_symlink():
                    return file
        raise RefusedRequest(404, "there is no such picture here; it may have been removed", "picture")

    def about(self, picture: str) -> dict[str, Any]:
        self.file(picture)
        about = read_json(self.place / f"{picture}.json")
        return about if isinstance(about, dict) else {}

    def star(self, picture: str, star: bool) -> None:
        self._note(picture, {"star": star})

    def _note(self, picture: str, news: dict[str, Any]) -> None:
        with CHANGING:
            write_json(self.place / f"{picture}.json", {**self.about(picture), **news})

    def remove(self, picture: str) -> None:
        with CHANGING:
            self.file(picture).unlink()
            for suffix in (".json", NEAREST_SUFFIX):
                (self.place / f"{picture}{suffix}").unlink(missing_ok=True)

    def unsearched(self, most: int) -> list[str]:
        """Ids of the newest pictures whose nearest training picture is not known yet, and can be searched."""
        kinds = ("sample", "edit", "enlarge")
        entries = (entry for entry in self.entries() if entry.get("kind") in kinds)
        return [entry["id"] for entry in entries if not {"nearest", UNREADABLE} & {*entry}][:most]

    def keep_nearest(self, picture: str, content: bytes, note: dict[str, Any]) -> None:
        """The nearest training picture of a picture, and what is known of it; or that the picture is unreadable."""
        if UNREADABLE in note:
            self._note(picture, note)
            return
        with CHANGING:
            self.file(picture)
            write_whole(self.place / f"{picture}{NEAREST_SUFFIX}", content)
        self._note(picture, {"nearest": note})

    def nearest(self, picture: str) -> Path:
        """Raises `RefusedRequest` where it is not known."""
        file = self.file(picture).with_name(f"{picture}{NEAREST_SUFFIX}")
        if not file.is_file() or file.is_symlink():
            raise RefusedRequest(404, "its nearest training picture is not known yet", "picture")
        return file

    def zipped(self, starred: bool) -> Iterator[bytes]:
        """All pictures, or those with a star, each by its seed; and how they were made as JSON. Part by part."""
        chosen = [entry for entry in self.entries() if entry.get("star") or not starred]
        with zipfile.ZipFile(file := Outgoing(), "w", zipfile.ZIP_STORED) as archive:
            names = {}
            for entry in chosen:
                try:
                    path = self.file(entry["id"])
                    content = path.read_bytes()
                except (RefusedRequest, FileNotFoundError):  # removed meanwhile
                    continue
                names[file_name(entry, path.suffix)] = {key: entry[key] for key in entry if key != "order"}
                archive.writestr(file_name(entry, path.suffix), content)
                yield file.take()
            archive.writestr("pictures.json", json.dumps(names, indent=1))
        yield file.take()


class Outgoing(io.BytesIO):
    """A file of which only the end is in memory: what `take` has returned is not written again."""

    taken = 0

    def take(self) -> bytes:
        content = self.getvalue()
        self.taken += len(content)
        super().seek(0)
        self.truncate()
        return content

    def tell(self) -> int:
        return self.taken + super().tell()

    def seek(self, place: int, whence: int = 0) -> int:
        """From the beginning of the whole file."""
        return self.taken + super().seek(place - self.taken, whence)


def is_sound(about: Any) -> bool:
    """Whether the notes of a picture can be shown: an order, whole numbers and texts where they belong."""
    if not isinstance(about, dict) or number(about.get("order")) is None:
        return False
    nearest = about.get("nearest", {"file": "", "apart": 0})
    if not (
        isinstance(nearest, dict) and isinstance(nearest.get("file"), str) and number(nearest.get("apart")) is not None
    ):
        return False
    whole = all(isinstance(about.get(name, 0), int) for name in ("seed", "index", "seed_after"))
    return whole and all(isinstance(about.get(name, ""), str) for name in ("kind", "label", "prompt", "negative"))


def file_name(entry: dict[str, Any], suffix: str) -> str:
    """`seed-index-label-id.png`."""
    words = str(entry.get("label") or entry.get("prompt") or entry.get("kind") or "")
    name = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in words)[:40] or "picture"
    return f"{entry.get('seed', 0)}-{entry.get('index', 0):03d}-{name}-{entry['id'][:6]}{suffix}"
