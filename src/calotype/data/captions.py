"""Captions: what lies beside the pictures in words. They are read as text, and nothing that they name is opened."""

from __future__ import annotations

import json
import posixpath
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from calotype.data.images import shown
from calotype.types import Text

METADATA = "metadata.jsonl"
KEYS = ("text", "caption", "captions", "texts")
"""Where a line of metadata may hold a caption, or a list of them."""
MOST_BYTES = 2**16
"""Of a file of captions, or a line of metadata; more is no caption."""
MOST_LETTERS = 2000
"""Of a caption; the rest is left out."""


@dataclass(frozen=True)
class Captions:
    of: tuple[tuple[str, ...], ...]
    """Of each picture; one that has none is unconditional."""
    optional: bool = False
    """Not read unless asked for: the labels say as much."""

    def at(self, chosen: Iterable[int]) -> Captions:
        return Captions(tuple(self.of[index] for index in chosen), self.optional)

    def first(self, chosen: Iterable[int]) -> Text:
        """The first of each of these pictures, as prompts."""
        return Text(tuple(next(iter(self.of[index]), "") for index in chosen))

    @property
    def captioned(self) -> int:
        """How many pictures have one."""
        return sum(map(bool, self.of))


@dataclass
class Found:
    """Captions by the name of their picture, and what was odd about their files."""

    folder: Path
    captions: dict[str, list[str]] = field(default_factory=dict)
    described: Counter[str] = field(default_factory=Counter)
    """Pictures, by the kind of file that describes them."""
    files: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    cleaned: int = 0
    strangers: int = 0
    outside: int = 0

    def add(self, name: str, captions: Iterable[str], kind: str) -> None:
        texts = [clean(caption) for caption in captions]
        self.cleaned += sum(text != plain(caption) for text, caption in zip(texts, captions, strict=True))
        if texts := [text for text in texts if text]:
            self.captions.setdefault(name, []).extend(texts)
            self.described[kind] += 1

    def notes(self, names: Sequence[str]) -> list[str]:
        captioned = sum(name in self.captions for name in names)
        kinds = " and ".join(f"{kind} ({count:,})" for kind, count in sorted(self.described.items()))
        missing = f"; {many(len(names) - captioned, 'picture')} without a caption" if captioned < len(names) else ""
        more = f" and {len(self.refused) - 5:,} more" if len(self.refused) > 5 else ""
        counts = {
            f"captions of {many(captioned, 'picture')}, from {kinds}{missing}": captioned,
            f"passed over as captions: {', '.join(self.refused[:5])}{more}": len(self.refused),
            f"{many(self.cleaned, 'caption')} lost marks that control or turn text, or a long end": self.cleaned,
            f"{many(self.outside, 'line')} of metadata named files outside the folder: ignored": self.outside,
            f"{many(self.strangers, 'line')} of metadata named no picture that was read": self.strangers,
        }
        return [note for note, count in counts.items() if count]


def many(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def read_captions(folder: Path, names: Sequence[str]) -> tuple[Captions | None, Found]:
    """Of the pictures with these names (relative to `folder`, with "/"), in their order; None where there are none.

    They stand in `NAME.txt` beside the picture, one a line, and in `metadata.jsonl` there or above, as `text` or
    `caption` beside `file_name`. Files that are links to somewhere outside are not opened.
    """
    found, known = Found(folder), set(names)
    for place in sorted({str(parent) for name in names for parent in PurePosixPath(name).parents}):
        _read_metadata(found, posixpath.normpath(posixpath.join(place, METADATA)), known)
    for name in names:
        _read_text(found, name)
    of = tuple(tuple(found.captions.get(name, ())) for name in names)
    return (Captions(of) if any(of) else None), found


def _read_text(found: Found, name: str) -> None:
    beside = str(PurePosixPath(name).with_suffix(".txt"))
    if not _is_inside(found.folder, beside):
        return
    found.files.add(beside)
    try:
        with (found.folder / beside).open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        found.add(name, [line for line in decoded(content).splitlines() if line.strip()], ".txt files")
    except (OSError, ValueError) as problem:
        found.refused.append(f"{shown(beside)} ({_why(problem)})")


def _read_metadata(found: Found, path: str, known: set[str]) -> None:
    if not _is_inside(found.folder, path):
        return
    found.files.add(path)
    try:
        for number, line in enumerate(_lines(found.folder / path), 1):
            try:
                _read_line(found, posixpath.dirname(path), line, known)
            except (ValueError, RecursionError) as problem:
                found.refused.append(f"line {number:,} of {shown(path)} ({_why(problem)})")
    except OSError as problem:
        found.refused.append(f"{shown(path)} ({_why(problem)})")


def _read_line(found: Found, place: str, line: bytes, known: set[str]) -> None:
    if not line.strip():
        return
    try:
        fact = json.loads(decoded(line))
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(fact, dict) or not isinstance(fact.get("file_name"), str):
        raise ValueError("no file_name")
    name = posixpath.normpath(posixpath.join(place, fact["file_name"]))
    if name.startswith(("..", "/")):
        found.outside += 1
    elif name not in known:
        found.strangers += 1
    else:
        found.add(name, list(_captions_in(fact)), METADATA)


def _captions_in(fact: dict[str, Any]) -> Iterator[str]:
    for key in KEYS:
        value = fact.get(key)
        some = value if isinstance(value, list) else [value]
        if not all(one is None or isinstance(one, str) for one in some):
            raise ValueError(f"{key} is not text")
        yield from (one for one in some if one)


def _lines(path: Path) -> Iterator[bytes]:
    """Cut where they are longer than any caption, so that no file fills the memory."""
    with path.open("rb") as file:
        while line := file.readline(MOST_BYTES + 1):
            yield line
            while len(line) > MOST_BYTES and not line.endswith(b"\n"):
                line = file.readline(MOST_BYTES + 1)


def decoded(content: bytes) -> str:
    """Raises `ValueError` for what is not text of a bearable size."""
    if len(content) > MOST_BYTES:
        raise ValueError(f"longer than {MOST_BYTES // 1024} kB")
    if b"\0" in content:
        raise ValueError("holds NUL bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def clean(text: str) -> str:
    """On one line, composed, without marks that control or turn text, and not endless."""
    kept = (letter for letter in plain(text) if unicodedata.category(letter)[0] != "C")
    return " ".join("".join(kept).split())[:MOST_LETTERS]


def as_prompts(prompt: str | Sequence[str] | None) -> list[str]:
    """One for all pictures or several, in the letters that captions are read in."""
    return [clean(one) for one in ([prompt] if isinstance(prompt, str) else prompt or [])]


def plain(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def _is_inside(folder: Path, name: str) -> bool:
    """Whether it is a file, and in the folder even if it is a link."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def _why(problem: Exception) -> str:
    strerror = getattr(problem, "strerror", None)
    return str(strerror or problem if not isinstance(problem, RecursionError) else "nested too deeply")
