"""Which files are pictures, and how one is opened: regular files of known formats, within limits of memory."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import logging
import re
import stat
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from os import SEEK_CUR
from pathlib import Path
from typing import TypeVar

from PIL import Image, ImageFile, features
from PIL import _imaging as pillow_core

from calotype.data.png import put_right_png
from calotype.data.remote import RemoteFile
from calotype.data.tiff import are_separate, kind_of_tiff, put_right
from calotype.escaping import plain
from calotype.types import UserError

T = TypeVar("T")

MAX_FILE_BYTES = 2_000_000_000
MAX_DECODING_BYTES = 1_500_000_000
"""Of all pictures that are decoded at once."""
MAX_DEEP_COLOUR_BYTES = 700_000_000
BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""Of a decoded picture in memory, by mode; 4 for all others."""
BUFFERS = {"GIF": 2, "WEBP": 12, "AVIF": 12, "HEIF": 12}
"""Bytes a pixel that decoders need beside the picture, by format; for JPEG and TIFF see `buffer_bytes`."""
PROGRESSIVE_JPEG = 6
TIFF_ROWS_PER_STRIP, TIFF_DEEPEST, PLANES_DEEPEST = 278, 8, 20

TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
PROFILE_CHUNK = b"iCCP"

# Pillow's warnings are harmless or refused below, and `catch_warnings` around each call is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())  # without a handler, Python writes to standard error
with suppress(AttributeError, OSError):  # libtiff reports to standard error; where it is not found, it goes on so
    for _handler in ("TIFFSetErrorHandler", "TIFFSetWarningHandler"):
        getattr(ctypes.CDLL(pillow_core.__file__), _handler)(None)


UNREACHABLE = {errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENXIO, errno.EMFILE, errno.ENFILE, errno.ETIMEDOUT}


class RefusedError(ValueError):
    """The message is why a file is not read as a picture."""


@dataclass(frozen=True, slots=True)
class Member:
    """A picture in a shard, read by its offset."""

    shard: Path | RemoteFile
    name: str
    offset: int
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.shard}/{self.name}"

    def open(self) -> BytesIO:
        """Raises `RefusedError` where it is huge, or the shard has other content there than its index says, and
        `UserError` where a shard at an address cannot be read: that ends the command, as all pictures may be lost."""
        require_bounded(self.size)
        if isinstance(self.shard, RemoteFile):
            content = self.shard.read(self.offset, self.size)
        else:
            with self.shard.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise RefusedError(
                f"{self.shard.name} has other content there than its index says; copy both again, or remove the index"
            )
        return BytesIO(content)


PictureFile = Path | Member


# -- Formats -----------------------------------------------------------------------------------------------------------


def _register_heic() -> bool:
    """Whether the extra `heic` is installed; if so, Pillow opens such pictures."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


HEIC_SUFFIXES, AVIF_SUFFIXES = (".heic", ".heif", ".hif"), (".avif",)
READS_HEIC, READS_AVIF = _register_heic(), bool(features.check("avif"))
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", *["HEIF"] * READS_HEIC, *["AVIF"] * READS_AVIF, "BMP")
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp",
    *AVIF_SUFFIXES * READS_AVIF, *HEIC_SUFFIXES * READS_HEIC,
)  # fmt: skip
INSTALL_HEIC = 'install a decoder with: pip install "calotype[heic]"'
INSTALL_AVIF = "install a Pillow that reads them with: pip install --upgrade pillow"
UNAVAILABLE = {
    **({} if READS_HEIC else dict.fromkeys(HEIC_SUFFIXES, ("HEIC", INSTALL_HEIC))),
    **({} if READS_AVIF else dict.fromkeys(AVIF_SUFFIXES, ("AVIF", INSTALL_AVIF))),
}
"""Suffixes of pictures whose decoder is not installed: what they are, and what to do."""

TIFF = re.compile(rb"II[*+]\0|MM\0[*+]")
_SIGNATURES = {
    "nothing (0 bytes)": rb"$",
    "a damaged picture": rb"\xff\xd8|\x89PNG|RIFF....WEBP|GIF8|BM.{4}\0{4}|II[*+]|MM\x00[*+]",
    "a damaged HEIC picture" if READS_HEIC else f"a HEIC picture ({INSTALL_HEIC})": rb"....ftyp(hei|hev|mif|msf)",
    "a damaged AVIF picture" if READS_AVIF else f"an AVIF picture ({INSTALL_AVIF})": rb"....ftypavi",
    "a PDF": rb"%PDF",
    "an SVG drawing": rb"\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*|<!doctype svg[^>]*>\s*)*<svg",
    "a web page": rb"\s*<(!doctype )?html",
    "a pointer of Git LFS (get the file with: git lfs pull)": rb"version https://git-lfs",
    "text": rb"[\t\n\f\r -~\x80-\xff]+$",
}


def why_not_opened(path: PictureFile) -> str:
    """Why Pillow does not open a file: what it is instead of a picture, by its first bytes."""
    with opened_file(path) as file:
        start = file.read(512)
        if TIFF.match(start):
            file.seek(0)
            if kind := kind_of_tiff(file):
                return f"it is {kind}, a form that is not read; save it as grey or RGB of 8 or 16 bits"
    kinds = (kind for kind, pattern in _SIGNATURES.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
    return f"found {next(kinds, 'data of another kind')} instead of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


# -- Opening -----------------------------------------------------------------------------------------------------------


def regular_file(path: Path) -> Path:
    """The path. Raises `RefusedError` for folders and what could block or never end: pipes, devices, huge files."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RefusedError(f"it is a {'directory' if stat.S_ISDIR(status.st_mode) else 'pipe or a device'}, not a file")
    require_bounded(status.st_size)
    return path


def require_bounded(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise RefusedError(f"it has {size / 1e9:,.1f} GB, but at most {MAX_FILE_BYTES / 1e9:.0f} GB are read")


def require_reachable(path: PictureFile | str, error: Exception) -> None:
    """Raises `UserError` where the error is not of a file, but of its disk, share or this process: what cannot be read
    now would be left out, and the set be smaller each time."""
    if isinstance(error, OSError) and error.errno in UNREACHABLE:
        raise UserError(
            f"{plain(str(path))} cannot be read: {error.strerror}; no set is made without it: see whether the disk or "
            f"share is there and sound and how many files may be open (ulimit -n), or move that file away"
        ) from error


def opened_file(path: PictureFile) -> BufferedReader | BytesIO:
    """Raises `RefusedError` as `regular_file` does."""
    return path.open() if isinstance(path, Member) else regular_file(path).open("rb")


def with_picture(path: PictureFile, work: Callable[[ImageFile.ImageFile], T]) -> T:
    """What `work` makes of a file that is open but not decoded; again without chunks of a PNG that Pillow refuses.

    Raises whatever decoders raise for damaged files.
    """
    source = opened_file(path)  # given a name, Pillow maps the file: fatal if it is cut meanwhile
    for chunks in (TEXT_CHUNKS, (*TEXT_CHUNKS, PROFILE_CHUNK), ()):
        try:
            with source, Image.open(source, formats=FORMATS) as image:
                put_right(image)
                put_right_png(image)
                return work(image)
        except ValueError as error:
            if not chunks or "MAX_TEXT" not in str(error):  # the constants of Pillow that limit such chunks
                raise
        source = _without_chunks(path, chunks)
    raise AssertionError("the last try returns or raises")


def _without_chunks(path: PictureFile, kinds: tuple[bytes, ...]) -> BytesIO:
    """A PNG without its chunks of these kinds, which no pixel depends on; they are not read."""
    kept = BytesIO()
    with opened_file(path) as file:
        kept.write(file.read(8))
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind in kinds:
                file.seek(length + 4, SEEK_CUR)
            else:
                kept.write(head + file.read(length + 4))
    kept.seek(0)
    return kept


# -- Memory ------------------------------------------------------------------------------------------------------------


def picture_bytes(image: Image.Image) -> int:
    """Memory of a picture when it is decoded, about."""
    return BYTES_A_PIXEL.get(image.mode, 4) * image.width * image.height


def check_deep_colours(image: ImageFile.ImageFile) -> None:
    """Raises `RefusedError` for a PNG with so much 16-bit colour that its filters take longer than a few seconds."""
    deep = image.format == "PNG" and len(image.getbands()) > 1 and any(";16" in str(tile[3]) for tile in image.tile)
    if deep and (size := 2 * len(image.getbands()) * image.width * image.height) > MAX_DEEP_COLOUR_BYTES:
        raise RefusedError(f"it has {size / 1e9:.1f} GB of 16-bit colour, which take too long; save it with 8 bits")


def buffer_bytes(image: Image.Image) -> int:
    """Memory that the decoder needs beside the picture, about; of a JPEG before it is drafted."""
    match image.format:
        case "JPEG" | "MPO":
            return PROGRESSIVE_JPEG * image.width * image.height if image.info.get("progressive") else 0
        case "TIFF":
            rows = getattr(image, "tag_v2", {}).get(TIFF_ROWS_PER_STRIP, 1)
            deep = are_separate(image) and ";16" in str(getattr(image, "tile", ""))
            planes = PLANES_DEEPEST * image.width * image.height if deep else 0
            return planes + TIFF_DEEPEST * image.width * (
                min(rows, image.height) if isinstance(rows, int) else image.height
            )
        case name:
            return BUFFERS.get(name or "", 0) * image.width * image.height


class MemoryLimit:
    """Threads reserve bytes, and wait until together they have at most `total`."""

    def __init__(self, total: int) -> None:
        self.total, self.free, self.changed = total, total, threading.Condition()

    @contextmanager
    def reserved(self, needed: int) -> Iterator[None]:
        """Raises `RefusedError` where it is more than there can be."""
        if needed > self.total:
            raise RefusedError(
                f"it would take {needed / 1e9:.1f} GB of memory, but at most {self.total / 1e9:.1f} GB are used; "
                f"make it smaller first"
            )
        self._take(needed)
        try:
            yield
        finally:
            self._take(-needed)

    def _take(self, needed: int) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.free >= needed)
            self.free -= needed
            self.changed.notify_all()


DECODING_MEMORY = MemoryLimit(MAX_DECODING_BYTES)
