"""TIFF pictures that Pillow reads otherwise than their tags say, and a name for those that it does not read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin

WIDTH, HEIGHT, BITS, PHOTOMETRIC, SAMPLES_A_PIXEL, PLANES, EXTRA, SAMPLE_FORMAT = 256, 257, 258, 262, 277, 284, 338, 339
PLACES = (273, 279, 324, 325)
"""Where the strips and tiles are, and how long."""
LAYOUT = (WIDTH, HEIGHT, 259, 266, 274, 278, 317, 322, 323)
"""Size, compression, order of bits, orientation, rows of a strip, predictor, size of a tile."""
PUT_RIGHT = "put right"
MINIMUM_IS_WHITE, MINIMUM_IS_BLACK, SEPARATE, PREMULTIPLIED, FLOATING_POINT = 0, 1, 2, 1, 3
NATIVE = {
    "I;16S": "I;16NS", "I;16BS": "I;16NS", "I;32S": "I;32NS", "I;32BS": "I;32NS", "F;32F": "F;32NF", "F;32BF": "F;32NF",
}  # fmt: skip
"""Raw modes in the byte order of a file, and in that of this machine, in which libtiff gives values."""

TiffImagePlugin.OPEN_INFO.setdefault((b"MM", MINIMUM_IS_WHITE, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


def put_right(image: ImageFile.ImageFile) -> None:
    """Before a TIFF is decoded; `is_put_right` says whether its pixels are others by that. Others stay as they are.

    Pillow takes parts that libtiff has decoded for bytes in the order of the file, and uncompressed planes of 16 and 32
    bits for planes of 8.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    image.info[PUT_RIGHT] = white_is_zero(image) and image.mode not in ("1", "L")
    if image.use_load_libtiff:
        modes = [tile.args[0] for tile in image.tile if isinstance(tile.args, tuple)]
        image.info[PUT_RIGHT] |= any("B" in mode for mode in modes if mode in NATIVE)
        image.tile = [tile._replace(args=_native(tile.args)) for tile in image.tile]
    elif are_separate(image) and image.tag_v2[BITS][0] in (16, 32):
        bits, size = image.tag_v2[BITS][0], (image.tag_v2[WIDTH], image.tag_v2[HEIGHT])
        raw = {"I;16": "I;16N", "I;16B": "I;16N", "I": f"I;{bits}NS", "F": "F;32NF"}.get(image.mode)
        args = raw or f"{image.mode};16N", False, image.tag_v2.offset
        image.tile = [image.tile[0]._replace(codec_name="libtiff", extents=(0, 0, *size), offset=0, args=args)]
        image.use_load_libtiff, image.info[PUT_RIGHT] = True, True


def is_put_right(image: Image.Image) -> bool:
    return bool(image.info.get(PUT_RIGHT))


def _native(arguments: tuple[Any, ...] | str | None) -> tuple[Any, ...] | str | None:
    """Of the decoder: the raw mode is the first."""
    if not isinstance(arguments, tuple):
        return arguments
    return (NATIVE.get(arguments[0], arguments[0]), *arguments[1:])


def are_separate(image: Image.Image) -> bool:
    """Whether it is a TIFF whose colours are one after the other, each a plane, and opacity is not in the colours."""
    tags = getattr(image, "tag_v2", {})
    return tags.get(PLANES) == SEPARATE and PREMULTIPLIED not in tags.get(EXTRA, ())


def white_is_zero(image: Image.Image) -> bool:
    """Whether it is a TIFF whose smallest value is white: Pillow inverts those of 8 bits alone."""
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == MINIMUM_IS_WHITE


def planes(image: ImageFile.ImageFile) -> Iterator[Image.Image]:
    """Each plane of a TIFF of 16-bit colours as a grey picture: the file with a directory of that plane alone."""
    assert isinstance(image, TiffImagePlugin.TiffImageFile) and image.fp is not None
    image.fp.seek(0)
    content, tags = image.fp.read(), image.tag_v2
    order, start = "<" if tags.prefix == b"II" else ">", len(content)
    for band in range(len(image.getbands())):
        own = {tag: (tags[tag],) for tag in LAYOUT if tag in tags}
        own |= {BITS: (16,), PHOTOMETRIC: (MINIMUM_IS_BLACK,), SAMPLES_A_PIXEL: (1,)}
        for tag in PLACES:
            if values := tags.get(tag):
                count = len(values) // tags[SAMPLES_A_PIXEL]
                own[tag] = values[band * count : (band + 1) * count]
        header = tags.prefix + struct.pack(f"{order}HI", 42, start)
        with Image.open(
            BytesIO(b"".join((header, content[8:], _directory(own, order, start)))), formats=["TIFF"]
        ) as grey:
            yield Image.fromarray(np.array(grey).astype(np.uint16))


def _directory(tags: Mapping[int, Sequence[int]], order: str, start: int) -> bytes:
    """As it stands at the place `start` of a file."""
    entries, more = b"", b""
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            place = start + 2 + 12 * len(tags) + 4 + len(more)
            packed, more = struct.pack(f"{order}I", place), more + packed
        entries += struct.pack(f"{order}HHI", tag, 4, len(values)) + packed
    return struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + more


def kind_of_tiff(file: IO[bytes]) -> str:
    """What a TIFF that Pillow does not open holds; empty where it is damaged."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
        file.seek(tags.next)
        tags.load(file)
        bits, form, samples = tags[BITS][0], tags.get(SAMPLE_FORMAT, (1,))[0], tags.get(SAMPLES_A_PIXEL, 1)
        whole = {WIDTH, HEIGHT} <= {*tags} and {*PLACES} & {*tags}
    except Exception:  # whatever a damaged file makes Pillow raise
        return ""
    of = "floating point" if form == FLOATING_POINT else "whole numbers"
    channels = f"{samples} channel{'s' * (samples != 1)}"
    return f"a TIFF of {channels} of {bits}-bit {of}" if whole and isinstance(samples, int) else ""
