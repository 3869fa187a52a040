"""Captions in the forms that people have them: text in several encodings, JSON, lines of JSON, and tables."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

MAX_BYTES = 2**16
"""Of a text file beside a picture, or a line of JSON; longer ones are refused."""
MAX_TABLE_BYTES = 2**27
"""Of a file of JSON or a table, which are parsed as a whole."""
LINES = (".jsonl", ".ndjson")
FILE_KEYS = (
    "file_name", "filename", "file", "image_file", "image_path", "image_name", "image", "img_path", "img", "file_path",
    "filepath", "path", "name", "key", "image_id", "id",
)  # fmt: skip
"""Where an entry may name its picture, and an image of COCO its file."""
CAPTION_KEYS = (
    ("text", "caption", "captions", "texts"),
    ("prompt", "prompts"),
    ("description", "descriptions"),
    ("sentence", "sentences", "raw", "comment", "alt_text", "alt", "tags"),
)
"""Where an entry may hold a caption, or a list of them; the first group of which there is one is read."""
EXPECTED = "expected file_name and one of text, caption, prompt or description"
FOREIGN_SHARE = 0.45
"""Text with more characters beyond ASCII than this is not in Windows-1252, but in another old encoding."""
NUMBERS_ALONE = re.compile(r"[\d\s.eE+-]+")
BOX = 5
"""Numbers in a line of a file of boxes: a class, a place and a size."""
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


class CaptionRow(NamedTuple):
    """An entry of a file of captions, or why there is none."""

    place: str
    """Such as "line 3 of "; empty for an entry of JSON."""
    content: Mapping[str, Any] | Exception
    encoding: str = "UTF-8"


class DecodedText(NamedTuple):
    text: str
    encoding: str


# -- Text --------------------------------------------------------------------------------------------------------------


def decode_text(content: bytes, most: int = MAX_BYTES) -> DecodedText:
    """UTF-8, UTF-16 or Windows-1252. Raises `ValueError` for other content, or above `most` bytes."""
    if len(content) > most:
        raise ValueError(f"longer than {most // 1024} kB")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    if marked not in (None, "utf-8") or b"\0" in content:
        return _utf_16(content, marked)
    try:
        return DecodedText(content.decode("utf-8-sig"), "UTF-8")
    except UnicodeDecodeError:
        return _windows_1252(content)


def _utf_16(content: bytes, marked: str | None) -> DecodedText:
    little_endian = content[1::2].count(0) >= content[::2].count(0)
    try:
        text = content.decode(marked or ("utf-16-le" if little_endian else "utf-16-be"))
    except UnicodeDecodeError:
        raise ValueError("damaged UTF-16" if marked else "holds NUL bytes") from None
    if "\0" in text or not (marked or any(letter.isascii() for letter in text)):
        raise ValueError("holds NUL bytes")
    return DecodedText(text, "UTF-16")


def _windows_1252(content: bytes) -> DecodedText:
    try:
        text = content.decode("cp1252")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    if sum(not letter.isascii() for letter in text) > FOREIGN_SHARE * len(text):
        raise ValueError("not UTF-8")
    return DecodedText(text, "Windows-1252")


def lines_of_text(text: str) -> list[str]:
    """One caption a line. Raises `ValueError` for boxes, which object detectors keep in such files."""
    lines = [line for line in text.splitlines() if line.strip()]
    if lines and all(NUMBERS_ALONE.fullmatch(line) and len(line.split()) >= BOX for line in lines):
        raise ValueError("boxes of objects, not words")
    return lines


# -- Entries -----------------------------------------------------------------------------------------------------------


def file_of(entry: Mapping[str, Any]) -> str:
    """The picture that an entry is about. Raises `ValueError` where it says none."""
    for key in FILE_KEYS:
        if isinstance(value := entry.get(key), str | int) and not isinstance(value, bool):
            return str(value)
    raise ValueError("no file_name")


def captions_of(entry: Mapping[str, Any]) -> list[str]:
    """Raises `ValueError` where there is something else than text."""
    for keys in CAPTION_KEYS:
        if found := [text for key in keys for text in _texts(key, entry.get(key))]:
            return found
    return []


def has_caption_key(entry: Mapping[str, Any]) -> bool:
    return any(key in entry for keys in CAPTION_KEYS for key in keys)


def _texts(key: str, value: Any) -> Iterator[str]:
    if key == "tags" and isinstance(value, list) and all(isinstance(tag, str) for tag in value):
        value = ", ".join(value)  # they are one caption
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, dict):
            yield from captions_of(text)
        elif text is not None and not isinstance(text, str):
            raise ValueError(f"{key} is not text")
        elif text:
            yield text


def lowered(entry: Mapping[Any, Any]) -> dict[str, Any]:
    """With the keys in lower case."""
    return {str(key).strip().lower(): value for key, value in entry.items()}


# -- Files of entries --------------------------------------------------------------------------------------------------


def caption_rows(path: Path, is_picture: Callable[[str], bool]) -> Iterator[CaptionRow]:
    """The entries of a file, by its suffix. Raises `ValueError` and `RecursionError` where it cannot be parsed."""
    if path.suffix.lower() in LINES:
        yield from _rows_of_lines(path)
        return
    if (size := path.stat().st_size) > MAX_TABLE_BYTES:
        raise ValueError(f"{size / 1e6:,.0f} MB, but at most {MAX_TABLE_BYTES / 1e6:.0f} MB are read")
    text, encoding = decode_text(path.read_bytes(), MAX_TABLE_BYTES)
    if path.suffix.lower() != ".json":
        rows = _rows_of_table(text, is_picture)
    elif _are_lines(text):
        rows = (_row_of_line(f"line {number:,} of ", line.encode()) for number, line in _numbered(text))
    else:
        rows = _rows_of_json(text)
    yield from (row._replace(encoding=encoding) for row in rows)


def _rows_of_lines(path: Path) -> Iterator[CaptionRow]:
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            yield _row_of_line(f"line {number:,} of ", line)


def _row_of_line(place: str, line: bytes) -> CaptionRow:
    try:
        text, encoding = decode_text(line)
        return _row_of(place, parse_json(text), encoding)
    except (ValueError, RecursionError) as error:
        return CaptionRow(place, error)


def _row_of(place: str, entry: Any, encoding: str = "UTF-8") -> CaptionRow:
    return CaptionRow(place, lowered(entry) if isinstance(entry, dict) else ValueError("no file_name"), encoding)


def _lines(path: Path) -> Iterator[bytes]:
    """Lines of a file, truncated above `MAX_BYTES`, so that no file fills the memory."""
    with path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            file.seek(0)
            yield from decode_text(file.read(MAX_TABLE_BYTES), MAX_TABLE_BYTES).text.encode().splitlines()
            return
        file.seek(0)
        while line := file.readline(MAX_BYTES + 1):
            yield line
            while len(line) > MAX_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_BYTES + 1)


def parse_json(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise ValueError("not JSON") from None


def _numbered(text: str) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())


def _are_lines(text: str) -> bool:
    """Whether these are JSON lines in a file called .json: the first two are objects of their own."""
    first = [line for _, line in islice(_numbered(text), 2)]
    try:
        return len(first) == 2 and all(isinstance(parse_json(line), dict) for line in first)
    except (ValueError, RecursionError):
        return False


def _rows_of_json(text: str) -> Iterator[CaptionRow]:
    """A list of entries; images and annotations of COCO; or captions by the name of their picture."""
    content = parse_json(text)
    if isinstance(content, dict):
        if isinstance(content.get("annotations"), list) and isinstance(content.get("images"), list):
            content = _joined(content["images"], content["annotations"])
        else:
            lists = [
                value for value in content.values() if isinstance(value, list) and value and isinstance(value[0], dict)
            ]
            content = lists[0] if len(lists) == 1 else [_named(name, value) for name, value in content.items()]
    for entry in content if isinstance(content, list) else []:
        yield _row_of("", entry)


def _named(name: str, value: Any) -> dict[str, Any]:
    return {**value, "file_name": name} if isinstance(value, dict) else {"file_name": name, "text": value}


def _joined(images: Sequence[Any], annotations: Sequence[Any]) -> list[dict[str, Any]]:
    """Annotations with the file of their image in place of its number."""
    files = {str(image.get("id")): file_of(lowered(image)) for image in images if isinstance(image, dict) and image}
    own = [image for image in images if isinstance(image, dict) and has_caption_key(lowered(image))]
    of_images = [
        {**entry, "file_name": files.get(str(entry["image_id"]), "")}
        for entry in annotations
        if isinstance(entry, dict) and "image_id" in entry
    ]
    return own + of_images


def _rows_of_table(text: str, is_picture: Callable[[str], bool]) -> Iterator[CaptionRow]:
    """A table with a header, or one without whose first column names pictures; separated by , ; | or tabs."""
    first = text.partition("\n")[0]
    separator = max("\t,;|", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        header = next(reader, [])
        keys = [key.strip().lower() for key in header]
        if header and not set(keys) & set(FILE_KEYS) and is_picture(header[0]):
            keys = ["file_name", "text"]
            yield CaptionRow("line 1 of ", _entry(keys, header, separator))
        for cells in reader:
            if cells:
                yield CaptionRow(f"line {reader.line_num:,} of ", _entry(keys, cells, separator))
    except csv.Error as error:
        yield CaptionRow(f"line {reader.line_num:,} of ", error)


def _entry(keys: Sequence[str], cells: Sequence[str], separator: str) -> dict[str, str]:
    """What is more than the header has belongs to the last column: text with separators that is not quoted."""
    last = len(keys) - 1
    return dict(zip(keys, [*cells[:last], f"{separator} ".join(cells[last:]).strip()], strict=False))
