"""Captions in files beside the pictures, read as text (nothing that they name is opened), and caption dropout."""

from __future__ import annotations

import csv
import posixpath
import random
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from calotype.data.caption_files import (
    EXPECTED,
    LINES,
    MAX_BYTES,
    caption_rows,
    captions_of,
    decode_text,
    file_of,
    has_caption_key,
    lines_of_text,
    lowered,
    parse_json,
)
from calotype.data.formats import require_reachable
from calotype.data.images import shown
from calotype.data.layout import PICTURE_FOLDERS
from calotype.data.listing import Listing, first_names, normal_form, plural, visible_files
from calotype.types import Rng, Text

BESIDE = (".txt", ".caption", ".json")
"""Files of the captions of one picture, named like it."""
TABLES = (*LINES, ".json", ".csv", ".tsv", ".txt")
"""Files of the captions of many pictures."""
CAPTION_FOLDERS = ("captions", "caption", "texts", "text", "txt", "prompts", "labels", "annotations")
"""Beside a folder such as `images`."""
NUMBERED = re.compile(r"#\d+$")
"""Which caption of a picture it is, as in Flickr8k."""
MOST_UNUSED = 10_000
"""Entries of a file without a caption before them, after which it is not read further."""
MAX_CHARACTERS = 2000
"""Longer captions are truncated."""
MAX_NORMALIZED = 4 * MAX_CHARACTERS
"""Characters that are brought into normal form: of accents in a row the time grows with the square of their number."""
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
    """Those that were read as captions, or refused."""
    refused: list[str] = field(default_factory=list)
    recoded: dict[str, list[str]] = field(default_factory=dict)
    """Names of files by their encoding, where that is not UTF-8."""
    cleaned: int = 0
    unmatched: int = 0
    outside: int = 0
    unfit: list[str] = field(default_factory=list)
    """Names of text files that neither fit a picture nor name any."""

    def add(self, name: str, captions: Sequence[str], source: str) -> None:
        texts = [clean(caption) for caption in captions]
        self.cleaned += sum(text != _normalized(caption) for text, caption in zip(texts, captions, strict=True))
        if texts := [text for text in texts if text]:
            self.captions.setdefault(name, []).extend(texts)
            self.sources[source] += 1

    def refuse(self, what: str, error: Exception) -> None:
        reason = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "strerror", "") or error
        self.refused.append(f"{what} ({reason})")

    def decoded(self, path: str, encoding: str) -> None:
        if encoding != "UTF-8" and path not in (names := self.recoded.setdefault(encoding, [])):
            names.append(path)

    def notes(self, names: Sequence[str]) -> list[str]:
        captioned = sum(name in self.captions for name in names)
        sources = " and ".join(f"{source} ({count:,})" for source, count in sorted(self.sources.items()))
        missing = f"; {plural(len(names) - captioned, 'picture')} without a caption" if captioned < len(names) else ""
        more = f" and {len(self.refused) - 5:,} more" if len(self.refused) > 5 else ""
        counts = {
            f"captions of {plural(captioned, 'picture')}, from {sources}{missing}": captioned,
            f"not read as captions: {', '.join(self.refused[:5])}{more}": len(self.refused),
            **{
                f"read as {code}, as they are not UTF-8: {first_names(of)}": len(of)
                for code, of in self.recoded.items()
            },
            f"{plural(self.cleaned, 'caption')} lost control or format characters, or a long end": self.cleaned,
            f"{plural(self.outside, 'line')} of metadata named files outside the folder: ignored": self.outside,
            f"{plural(self.unmatched, 'line')} of metadata named no picture that was read": self.unmatched,
            f"{plural(len(self.unfit), 'text file')} fitted no picture: {first_names(self.unfit)}": len(self.unfit),
        }
        return [note for note, count in counts.items() if count]


def read_captions(folder: Path, names: Sequence[str]) -> tuple[Captions | None, CaptionFiles]:
    """Captions of the pictures with these names (relative to `folder`, with "/"), in their order; None without any.

    They are in a file of the same name (`.txt`, `.caption`, `.json`) beside the picture, or in a folder such as
    `captions` beside `images`; or in JSON, lines of JSON and tables that name pictures. Names are compared in normal
    form C; those of files beside pictures, where none fits as it is, in lower case too. Files that are links to
    somewhere outside are not opened.
    """
    read = CaptionFiles(folder)
    found = [path.relative_to(folder).as_posix() for path in visible_files(folder, Listing())]
    files = {name for name in found if name.lower().endswith(BESIDE + TABLES)}
    beside = {name: [path for path in _beside(name) if path in files] for name in names}
    own = {path for paths in beside.values() for path in paths}
    if others := {folded(path): path for path in sorted(files - own)}:  # in other letters
        for name in (name for name, paths in beside.items() if not paths):
            beside[name] += [others[path] for path in _beside(folded(name)) if path in others]
            own.update(beside[name])
    pictures = PictureIndex(names)
    for path in sorted(files - own):
        if path.lower().endswith(TABLES) and _is_inside(folder, path):
            _read_table(read, path, pictures)
    for name, paths in beside.items():
        for path in paths:
            if _is_inside(folder, path):
                _read_own(read, name, path)
    of = tuple(tuple(read.captions.get(name, ())) for name in names)
    return (Captions(of) if any(of) else None), read


class PictureIndex:
    """Finds pictures by what files of captions call them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = {normal_form(name): name for name in names}
        self.by_end: dict[str, list[str]] = {}
        for name in self.names:
            path = PurePosixPath(name)
            for end in {path.name, path.stem}:
                self.by_end.setdefault(end, []).append(name)

    def find(self, parent: str, file: str) -> str | None:
        """The name of the picture that a file in the folder `parent` calls `file`; None where none or several fit.

        Raises `ValueError` for a path that leads outside.
        """
        if len(file) > MAX_NORMALIZED:  # no path is as long
            return None
        parent, file = normal_form(parent), NUMBERED.sub("", normal_form(file.strip()))
        for spelling in (file, file.replace("\\", "/")):
            name = posixpath.normpath(posixpath.join(parent, spelling))
            if name in self.names:
                return self.names[name]
        if not (near := self._ending(spelling)) and name.startswith(("..", "/")):
            raise ValueError("outside")
        return near

    def _ending(self, file: str) -> str | None:
        """The only picture whose path ends like this, or is the end of this."""
        if ".." in (parts := PurePosixPath(file).parts):
            return None
        same = self.by_end.get(parts[-1] if parts else "", [])
        fits = [name for name in same if len(same) == 1 or f"/{name}".endswith(f"/{file}")]
        if not fits:  # a path from above the folder, as it was on the machine where the file was written
            fits = sorted((name for name in same if "/" in name and f"/{file}".endswith(f"/{name}")), key=len)[-1:]
        return self.names[fits[0]] if len(fits) == 1 else None


def folded(name: str) -> str:
    """As names are compared by who does not look at case."""
    return normal_form(name).casefold()


def _beside(name: str) -> Iterator[str]:
    """Where a file with captions of just this picture may be."""
    stem = str(PurePosixPath(name).with_suffix(""))
    parts = stem.split("/")
    stems = [stem, name] + [
        "/".join([*parts[:place], other, *parts[place + 1 :]])
        for place, part in enumerate(parts[:-1])
        if part.lower() in PICTURE_FOLDERS
        for other in CAPTION_FOLDERS
    ]
    yield from dict.fromkeys(each + suffix for each in stems for suffix in BESIDE)


def _read_own(read: CaptionFiles, name: str, path: str) -> None:
    """Captions of one picture; those that it has already are not added."""
    read.files.add(path)
    suffix = PurePosixPath(path).suffix.lower()
    try:
        with (read.folder / path).open("rb") as file:
            text, encoding = decode_text(file.read(MAX_BYTES + 1))
        captions = _captions_in_json(text) if suffix == ".json" else lines_of_text(text)
        known = read.captions.get(name, [])
        read.add(name, [caption for caption in captions if clean(caption) not in known], f"{suffix} files")
        read.decoded(path, encoding)
    except (OSError, ValueError, RecursionError) as error:
        require_reachable(path, error)
        read.refuse(shown(path), error)


def _captions_in_json(text: str) -> list[str]:
    entry = parse_json(text)
    entry = lowered(entry) if isinstance(entry, dict) else {"text": entry}
    if not has_caption_key(entry):
        raise ValueError(f"its keys are {first_names(entry)}; {EXPECTED}")
    return captions_of(entry)


def _read_table(read: CaptionFiles, path: str, pictures: PictureIndex) -> None:
    parent, label = posixpath.dirname(path), shown(path)
    keys, used, full, errors = dict[str, None](), 0, 0, list[tuple[str, Exception]]()

    def is_picture(file: str) -> bool:
        with suppress(ValueError):
            return pictures.find(parent, file) is not None
        return False

    try:
        for place, row, encoding in caption_rows(read.folder / path, is_picture):
            try:
                if isinstance(row, Exception):
                    raise row
                keys.update(dict.fromkeys(row))
                used += _read_row(read, parent, row, pictures, posixpath.basename(path))
                full += bool(captions_of(row))
                read.decoded(path, encoding)
            except (ValueError, RecursionError, csv.Error) as error:
                errors.append((f"{place}{label}", error))
                if not used and len(errors) == MOST_UNUSED:  # such as a log: of millions of lines all would be kept
                    break
    except (OSError, ValueError, RecursionError) as error:
        require_reachable(path, error)
        errors.append((label, error))
    if not keys and not errors:
        errors = [(label, ValueError("it has no entries"))]
    if keys and not used:
        errors = [(label, ValueError(f"its keys are {first_names(keys)}; {EXPECTED}"))]
    if used and not full and not errors:
        errors = [(label, ValueError("all its captions are empty"))]
    if path.lower().endswith(".txt") and not used:
        read.unfit.append(path)
        return
    read.files.add(path)
    for what, reason in errors:
        read.refuse(what, reason)


def _read_row(read: CaptionFiles, parent: str, row: Mapping[str, Any], pictures: PictureIndex, source: str) -> bool:
    """Whether the row has a place for captions."""
    file = file_of(row)
    try:
        name = pictures.find(parent, file)
    except ValueError:
        read.outside += 1
        return True
    if name is None:
        read.unmatched += has_caption_key(row)
    else:
        read.add(name, captions_of(row), source)
    return has_caption_key(row)


def _is_inside(folder: Path, name: str) -> bool:
    """Whether it is a file, and in the folder even if it is a link."""
    path = folder / name
    return path.is_file() and path.resolve().is_relative_to(folder.resolve())


def clean(text: str) -> str:
    """On one line, in normal form C, without control and format characters, at most `MAX_CHARACTERS` long.

    What is clean stays as it is: exports clean a prompt more than once.
    """
    kept = (character for character in _normalized(text) if unicodedata.category(character)[0] != "C")
    return _normalized("".join(kept))[:MAX_CHARACTERS].rstrip()


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split())[:MAX_NORMALIZED])


def as_prompts(prompt: str | Sequence[str] | None) -> list[str]:
    """One prompt for all pictures, or several, cleaned as captions are."""
    return [clean(text) for text in ([prompt] if isinstance(prompt, str) else prompt or [])]
