"""Captions in files beside the pictures, read as text (nothing that they name is opened), and caption dropout."""

from __future__ import annotations

import json
import posixpath
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from calotype.data.images import shown
from calotype.data.listing import plural
from calotype.types import Rng, Text

METADATA = "metadata.jsonl"
KEYS = ("text", "caption", "captions", "texts")
"""Where a line of metadata may hold a caption, or a list of them."""
MAX_BYTES = 2**16
"""Of a file of captions, or a line of metadata; longer ones are refused."""
MAX_CHARACTERS = 2000
"""Longer captions are truncated."""
MAX_SHORTENED = 3
"""Shortened versions of a caption. They are fixed, so that a frozen encoder can encode all of them beforehand."""
PHRASE = re.compile(r".+?(?:(?<!\d)[,;|]++|[,;|]++(?!\d)|[,;:.!?|]++(?=\s|$)|[，；：。！？、।]+|$)\s*", re.DOTALL)
"""A tag, phrase or sentence with its punctuation. Full stops end it only before a space, and commas not in numbers."""
PUNCTUATION = ",;:|，；：、 "


@dataclass(frozen=True)
class Captions:
    of: tuple[tuple[str, ...], ...]
    """Of each picture; one without captions is unconditional."""
    optional: bool = False
    """Read only if a text encoder is configured: for the embedded portraits, which have labels as well."""

    def at(self, chosen: Iterable[int]) -> Captions:
        return Captions(tuple(self.of[index] for index in chosen), self.optional)

    def first(self, chosen: Iterable[int]) -> Text:
        """The first caption of each of these pictures, as prompts."""
        return Text(tuple(next(iter(self.of[index]), "") for index in chosen))

    @property
    def captioned(self) -> int:
        """The number of pictures with captions."""
        return sum(map(bool, self.of))

    @property
    def distinct(self) -> list[str]:
        """All texts that training may use: the captions and their shortened versions, sorted."""
        texts = {text for captions in self.of for text in captions}
        return sorted(texts.union(*map(shorter_versions, texts)))


# -- Caption dropout ---------------------------------------------------------------------------------------------------


@lru_cache(maxsize=2**16)
def shorter_versions(caption: str) -> tuple[str, ...]:
    """Up to `MAX_SHORTENED` shorter versions of a caption, always the same; none of a single word.

    Each keeps some phrases in their order, or, of a caption of one phrase, some consecutive words; equally likely one,
    two, ... or all but one.
    """
    generator = random.Random(zlib.crc32(caption.encode("utf-8", "replace")))
    phrases, words = PHRASE.findall(caption), caption.split()
    if len(phrases) > 1:
        versions = [_some_phrases(phrases, generator) for _ in range(MAX_SHORTENED)]
    else:
        versions = [_consecutive_words(words, generator) for _ in range(MAX_SHORTENED if len(words) > 1 else 0)]
    return tuple(version for version in dict.fromkeys(versions) if version and version != caption)


def _some_phrases(phrases: Sequence[str], generator: random.Random) -> str:
    kept = generator.sample(range(len(phrases)), generator.randrange(1, len(phrases)))
    return "".join(phrases[index] for index in sorted(kept)).strip(PUNCTUATION)


def _consecutive_words(words: Sequence[str], generator: random.Random) -> str:
    kept = generator.randrange(1, len(words))
    start = generator.randrange(len(words) - kept + 1)
    return " ".join(words[start : start + kept])


def drop_phrases(captions: Sequence[str], probability: float, rng: Rng) -> tuple[str, ...]:
    """Caption dropout: replaces each caption by one of its shortened versions with this probability."""
    draws = rng.at("partly").uniform(len(captions)).tolist()
    positions = rng.at("which").uniform(len(captions)).tolist()
    dropped = []
    for caption, draw, position in zip(captions, draws, positions, strict=True):
        versions = shorter_versions(caption) if draw < probability else ()
        dropped.append(versions[int(position * len(versions))] if versions else caption)
    return tuple(dropped)


# -- Reading -----------------------------------------------------------------------------------------------------------


@dataclass
class CaptionFiles:
    """Captions by the name of their picture, and what was irregular about their files."""

    folder: Path
    captions: dict[str, list[str]] = field(default_factory=dict)
    sources: Counter[str] = field(default_factory=Counter)
    """Pictures with captions, by the kind of file that holds these."""
    files: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)
    cleaned: int = 0
    unmatched: int = 0
    outside: int = 0

    def add(self, name: str, captions: Sequence[str], source: str) -> None:
        texts = [clean(caption) for caption in captions]
        self.cleaned += sum(text != _normalized(caption) for text, caption in zip(texts, captions, strict=True))
        if texts := [text for text in texts if text]:
            self.captions.setdefault(name, []).extend(texts)
            self.sources[source] += 1

    def refuse(self, what: str, error: Exception) -> None:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", "") or error
        self.refused.append(f"{what} ({reason})")

    def notes(self, names: Sequence[str]) -> list[str]:
        captioned = sum(name in self.captions for name in names)
        sources = " and ".join(f"{source} ({count:,})" for source, count in sorted(self.sources.items()))
        missing = f"; {plural(len(names) - captioned, 'picture')} without a caption" if captioned < len(names) else ""
        more = f" and {len(self.refused) - 5:,} more" if len(self.refused) > 5 else ""
        counts = {
            f"captions of {plural(captioned, 'picture')}, from {sources}{missing}": captioned,
            f"not read as captions: {', '.join(self.refused[:5])}{more}": len(self.refused),
            f"{plural(self.cleaned, 'caption')} lost control or format characters, or a long end": self.cleaned,
            f"{plural(self.outside, 'line')} of metadata named files outside the folder: ignored": self.outside,
            f"{plural(self.unmatched, 'line')} of metadata named no picture that was read": self.unmatched,
        }
        return [note for note, count in counts.items() if count]


def read_captions(folder: Path, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
    """Captions of the pictures with these names (relative to `folder`, with "/"), in their order; None without any.

    They are in `NAME.txt` beside the picture, one a line, and in `metadata.jsonl` there or above, as `text` or
    `caption` beside `file_name`. Files that are links to somewhere outside are not opened.
    """
    read, known = CaptionFiles(folder), set(names)
    for parent in sorted({str(parent) for name in names for parent in PurePosixPath(name).parents}):
        _read_metadata(read, posixpath.normpath(posixpath.join(parent, METADATA)), known)
    for name in names:
        _read_text(read, name)
    of = tuple(tuple(read.captions.get(name, ())) for name in names)
    return (Captions(of) if any(of) else None), read


def _read_text(read: CaptionFiles, name: str) -> None:
    path = str(PurePosixPath(name).with_suffix(".txt"))
    if not _is_inside(read.folder, path):
        return
    read.files.add(path)
    try:
        with (read.folder / path).open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        read.add(name, [line for line in decode_text(content).splitlines() if line.strip()], ".txt files")
    except (OSError, ValueError) as error:
        read.refuse(shown(path), error)


def _read_metadata(read: CaptionFiles, path: str, known: set[str]) -> None:
    if not _is_inside(read.folder, path):
        return
    read.files.add(path)
    try:
        for number, line in enumerate(_lines(read.folder / path), 1):
            try:
                _read_line(read, posixpath.dirname(path), line, known)
            except (ValueError, RecursionError) as error:
                read.refuse(f"line {number:,} of {shown(path)}", error)
    except OSError as error:
        read.refuse(shown(path), error)


def _read_line(read: CaptionFiles, parent: str, line: bytes, known: set[str]) -> None:
    if not line.strip():
        return
    try:
        entry = json.loads(decode_text(line))
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        raise ValueError("no file_name")
    name = posixpath.normpath(posixpath.join(parent, entry["file_name"]))
    if name.startswith(("..", "/")):
        read.outside += 1
    elif name not in known:
        read.unmatched += 1
    else:
        read.add(name, list(_captions_in(entry)), METADATA)


def _captions_in(entry: dict[str, Any]) -> Iterator[str]:
    for key in KEYS:
        value = entry.get(key)
        texts = value if isinstance(value, list) else [value]
        if not all(text is None or isinstance(text, str) for text in texts):
            raise ValueError(f"{key} is not text")
        yield from filter(None, texts)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, truncated above `MAX_BYTES`, so that no file fills the memory."""
    with path.open("rb") as file:
        while line := file.readline(MAX_BYTES + 1):
            yield line
            while len(line) > MAX_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_BYTES + 1)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether it is a file, and in the folder even if it is a link."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def decode_text(content: bytes) -> str:
    """UTF-8, with or without a byte order mark. Raises `ValueError` for other content, or above `MAX_BYTES`."""
    if len(content) > MAX_BYTES:
        raise ValueError(f"longer than {MAX_BYTES // 1024} kB")
    if b"\0" in content:
        raise ValueError("holds NUL bytes")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None


def clean(text: str) -> str:
    """On one line, in normal form C, without control and format characters, at most `MAX_CHARACTERS` long."""
    kept = (character for character in _normalized(text) if unicodedata.category(character)[0] != "C")
    return " ".join("".join(kept).split())[:MAX_CHARACTERS]


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split()))


def as_prompts(prompt: str | Sequence[str] | None) -> list[str]:
    """One prompt for all pictures, or several, cleaned as captions are."""
    return [clean(text) for text in ([prompt] if isinstance(prompt, str) else prompt or [])]
