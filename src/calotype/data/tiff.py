"""TIFF pictures that Pillow reads otherwise than their tags say, and a name for those that it does not read."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from io import SEEK_END, BytesIO
from itertools import accumulate
from typing import IO, Any

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES_A_PIXEL, PLANES, EXTRA, SAMPLE_FORMAT, SUBSAMPLING = (
    256, 257, 258, 259, 262, 277, 284, 338, 339, 530
)  # fmt: skip
PLACES = ((273, 279), (324, 325))
"""Where the strips, or the tiles, begin, and how many bytes they have."""
LAYOUT = (WIDTH, HEIGHT, COMPRESSION, 266, 274, 278, 317, 322, 323)
"""Size, compression, order of bits, orientation, rows of a strip, predictor, size of a tile."""
PUT_RIGHT = "put right"
MINIMUM_IS_WHITE, MINIMUM_IS_BLACK, SEPARATE, PREMULTIPLIED, SIGNED, FLOATING_POINT = 0, 1, 2, 1, 2, 3
UNCOMPRESSED, DEFLATE, TIFF_HEADER, BIG_TIFF_HEADER, BIG_TIFF = 1, 8, 8, 16, 43
NATIVE = {
    "I;16S": "I;16NS", "I;16BS": "I;16NS", "I;32S": "I;32NS", "I;32BS": "I;32NS", "F;32F": "F;32NF", "F;32BF": "F;32NF",
}  # fmt: skip
"""Raw modes in the byte order of a file, and in that of this machine, in which libtiff gives values."""
MIXED_UP = {"LA", "La", "PA", "LAB", "RGBAX", "RGBAXX", "RGBaX", "RGBaXX"}
"""Raw modes whose planes Pillow puts in other places, or does not read, where each is on its own."""

TiffImagePlugin.OPEN_INFO.setdefault((b"MM", MINIMUM_IS_WHITE, (1,), 1, (16,), ()), ("I;16B", "I;16B"))


def put_right(image: ImageFile.ImageFile) -> None:
    """Before a TIFF is decoded; `is_put_right` says whether its pixels are others by that. Others stay as they are.

    Pillow takes parts that libtiff has decoded for bytes in the order of the file. Where planes are not compressed it
    decodes each by one letter of the raw mode, which is right for planes of 8 bits whose names are letters, as R, G, B.
    Where colours are not compressed but subsampled (YCbCr), it takes them for whole.

    Raises `UnidentifiedImageError` for planes that Pillow would mix up, and for signed bytes, which it takes for
    unsigned ones.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    tags = image.tag_v2
    image.info[PUT_RIGHT] = white_is_zero(image) and image.mode not in ("1", "L")
    if tags.get(PLANES) == SEPARATE and not image.use_load_libtiff:
        letters = "".join(dict.fromkeys(_raw_modes(image)))
        _leave_to_libtiff(image)
        image.info[PUT_RIGHT] |= _raw_modes(image) != [letters]
    elif image.mode == "YCbCr" and not image.use_load_libtiff and _is_subsampled(image):
        _leave_to_libtiff(image)
        image.info[PUT_RIGHT] = True
    elif image.use_load_libtiff:
        image.info[PUT_RIGHT] |= any("B" in mode for mode in _raw_modes(image) if mode in NATIVE)
    mixed_up = tags.get(PLANES) == SEPARATE and MIXED_UP & {*_raw_modes(image)}
    if mixed_up or (tags.get(SAMPLE_FORMAT) == (SIGNED,) and tags.get(BITS) == (8,)):
        raise UnidentifiedImageError
    if image.use_load_libtiff:
        image.tile = [tile._replace(args=_native(tile.args)) for tile in image.tile]


def _is_subsampled(image: TiffImagePlugin.TiffImageFile) -> bool:
    """As its tag says. Without the tag, halves are the default, unless the file has bytes for all colours."""
    if SUBSAMPLING in image.tag_v2:
        return bool(image.tag_v2[SUBSAMPLING] != (1, 1))
    sizes = (image.tag_v2.get(sizes, ()) for _, sizes in PLACES)
    return sum(map(sum, sizes)) < 3 * image.width * image.height


def _leave_to_libtiff(image: TiffImagePlugin.TiffImageFile) -> None:
    """Has Pillow leave decoding to libtiff, as if the picture were compressed; libtiff reads the tags of the file."""
    compression, image.tag_v2[COMPRESSION] = image.tag_v2.get(COMPRESSION, UNCOMPRESSED), DEFLATE
    image._setup()
    image.tag_v2[COMPRESSION], image.info["compression"] = compression, "raw"


def _raw_modes(image: ImageFile.ImageFile) -> list[str]:
    return [tile.args[0] for tile in image.tile if isinstance(tile.args, tuple)]


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
    """Each plane of a TIFF of 16-bit colours as a grey picture: a file with the strips or tiles of that plane alone.

    Raises `ValueError` where these overlap, so that together they could be larger than the file.
    """
    assert isinstance(image, TiffImagePlugin.TiffImageFile) and image.fp is not None
    tags, order = image.tag_v2, "<" if image.tag_v2.prefix == b"II" else ">"
    layout = {tag: (tags[tag],) for tag in LAYOUT if tag in tags}
    layout |= {BITS: (16,), PHOTOMETRIC: (MINIMUM_IS_BLACK,), SAMPLES_A_PIXEL: (1,)}
    starts, lengths = next((start, length) for start, length in PLACES if start in tags)
    if sum(tags[lengths]) > image.fp.seek(0, SEEK_END):
        raise ValueError("its strips or tiles overlap")
    count = len(tags[starts]) // tags[SAMPLES_A_PIXEL]
    for band in range(len(image.getbands())):
        own, parts = slice(band * count, (band + 1) * count), []
        for start, length in zip(tags[starts][own], tags[lengths][own], strict=True):
            image.fp.seek(start)
            parts.append(image.fp.read(length))
        sizes = [*map(len, parts)]
        content = [*accumulate(sizes, initial=TIFF_HEADER)]
        directory = _directory({**layout, starts: content[:-1], lengths: sizes}, order, content[-1])
        header = tags.prefix + struct.pack(f"{order}HI", 42, content[-1])
        with Image.open(BytesIO(b"".join((header, *parts, directory))), formats=["TIFF"]) as grey:
            yield Image.fromarray(np.array(grey).astype(np.uint16))


def _directory(tags: Mapping[int, Sequence[int]], order: str, start: int) -> bytes:
    """A directory of these tags, all of 32-bit whole numbers, that stands at the byte `start` of a file."""
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
        header = file.read(TIFF_HEADER)
        if header[3] == BIG_TIFF:
            return "a BigTIFF in big-endian byte order"
        header += file.read(BIG_TIFF_HEADER - TIFF_HEADER) if header[2] == BIG_TIFF else b""
        tags = TiffImagePlugin.ImageFileDirectory_v2(header)
        file.seek(tags.next)
        tags.load(file)
        bits, form, samples = tags[BITS][0], tags.get(SAMPLE_FORMAT, (1,))[0], tags.get(SAMPLES_A_PIXEL, 1)
        whole = {WIDTH, HEIGHT} <= {*tags} and any(start in tags for start, _ in PLACES)
    except Exception:  # whatever a damaged file makes Pillow raise
        return ""
    of = {FLOATING_POINT: "floating point", SIGNED: "signed whole numbers"}.get(form, "whole numbers")
    channels = f"{samples} channel{'s' * (samples != 1)}"
    apart = " in planes" if samples != 1 and tags.get(PLANES) == SEPARATE else ""
    return f"a TIFF of {channels} of {bits}-bit {of}{apart}" if whole and isinstance(samples, int) else ""
