"""The one way a picture file becomes pixels: upright, sRGB, 8 bits, over white, its centre square at one size."""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from calotype.data.formats import (
    DECODING_MEMORY,
    PictureFile,
    RefusedError,
    buffer_bytes,
    check_deep_colours,
    picture_bytes,
    require_reachable,
    why_not_opened,
    with_picture,
)
from calotype.data.png import make_transparent, transparent_colour
from calotype.data.remote import RemoteFile, remote_address
from calotype.data.rgb import (
    DEEP_COLOURS,
    FIRST_SIDEWAYS,
    TURNS,
    UPRIGHT,
    Levels,
    Range,
    as_srgb,
    colour_extremes,
    customary_range,
    decode_low_bytes,
    deep_kind,
    extremes,
    inner_extremes,
    is_profiled_grey,
    orientation_of,
    range_of,
    reduction_of,
    spread_colours,
)
from calotype.data.tiff import is_put_right, white_is_zero
from calotype.escaping import plain
from calotype.machine import cores, ranks_here
from calotype.types import Images, Progress, UserError, no_progress

# Shrinking by whole numbers to this many times the size, and only from there by Lanczos, is 2.5 times as fast on a
# 12-megapixel picture (6 times where the JPEG decoder shrinks), and differs by 0.1 to 0.3 of 255 in the mean.
GAP = 3.0
PLAIN = 3
"""The most that values of a picture of one colour differ, of 255."""
ANIMATED, OF_PAGES = "animated", "of several pages"
"""Properties of files of which the first frame or page alone is read."""
LARGEST_PART, WAITING = 64, 4
"""Items of a thread in one go, and such parts for each thread that are in work or wait."""

Square = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]  # (size, size, 3)
Item = TypeVar("Item")
Output = TypeVar("Output")


class UnreadableError(UserError):
    """A file that is no readable picture; `reason` does not name it, for lists that do."""

    def __init__(self, path: PictureFile, reason: str) -> None:
        super().__init__(f"{shown(path)} cannot be read as a picture: {reason}")
        self.reason = reason


def shown(name: PictureFile | RemoteFile | str) -> str:
    """A file's name on one line, whatever its bytes are; of an address the address."""
    name = (remote_address(name) if isinstance(name, Path) else None) or name
    return plain(str(name))


def in_threads(
    work: Callable[[Item], Output], items: Sequence[Item], progress: Progress = no_progress, most: int = LARGEST_PART
) -> Iterator[Output]:
    """The results for all items, in their order. Pillow decodes, resizes and converts without holding Python's lock.

    A few parts of at most `most` items are in work at a time, so that the memory does not grow with their number. Where
    the results are no longer wanted, as after Ctrl-C, items that have not begun are left out.
    """
    workers = cores() * ranks_here()  # the other ranks wait
    size = max(1, min(most, len(items) // (WAITING * workers)))
    parts = (items[start : start + size] for start in range(0, len(items), size))
    ended = threading.Event()

    def all_of(part: Sequence[Item]) -> list[Output]:
        return [work(item) for item in part if not ended.is_set()]

    with ThreadPoolExecutor(workers) as pool:
        try:
            waiting = deque(pool.submit(all_of, part) for part in islice(parts, WAITING * workers))
            done = 0
            while waiting:
                results = waiting.popleft().result()
                waiting.extend(pool.submit(all_of, part) for part in islice(parts, 1))
                for result in results:
                    done += 1
                    progress(done, len(items))
                    yield result
        finally:
            ended.set()
            pool.shutdown(wait=False, cancel_futures=True)


class ReadPicture(NamedTuple):
    """A picture in mode RGB, upright, and what its file says of it."""

    image: Image.Image
    size: tuple[int, int]
    """Width and height of the file, upright."""
    properties: tuple[str, ...]
    """Such as "CMYK"; none of them hinders training."""
    over_black: bool
    """Whether it is transparent, and would be invisible over white."""
    put_right: bool
    """Whether earlier versions read it otherwise than its file says; see `tiff`, `png` and `is_profiled_grey`."""


def read_image(path: PictureFile, shortest: int | None = None, levels: Levels | None = None) -> Image.Image:
    """The picture in mode RGB; see `read_picture`."""
    return read_picture(path, shortest, levels).image


def read_picture(path: PictureFile, shortest: int | None = None, levels: Levels | None = None) -> ReadPicture:
    """The picture in a file; of an animation, its first frame. Raises `UnreadableError`.

    With `shortest`, a large picture may be downsampled while it is decoded, but no side below `shortest`. `levels` are
    black and white of pictures with more than 8 bits; without them, each is spread by its own values.
    """

    def read(image: ImageFile.ImageFile) -> ReadPicture:
        check_deep_colours(image)
        size, properties, buffers = image.size, _properties(image), buffer_bytes(image)
        turned_by_pillow = image.format == "TIFF" and orientation_of(image) != UPRIGHT
        if shortest is not None:
            image.draft(None, (shortest, shortest))
        factor = reduction_of(image, shortest)
        converted = 8 * image.width * image.height // factor**2  # once more where it is turned
        decoded = picture_bytes(image) * (2 if deep_kind(image) == DEEP_COLOURS else 1)
        with DECODING_MEMORY.reserved(buffers + decoded + converted):
            rgb, over_black = as_srgb(image, _load(path, image, levels), factor)
            orientation = orientation_of(image)
            upright = rgb.transpose(TURNS[orientation]) if orientation in TURNS else rgb
        if orientation >= FIRST_SIDEWAYS:
            size = size[::-1]
        turned = ["turned by EXIF"] * (orientation != UPRIGHT or turned_by_pillow)
        more = [OF_PAGES if image.format == "TIFF" else ANIMATED] * _has_more(image)
        put_right = is_put_right(image) or is_profiled_grey(image)
        return ReadPicture(upright, size, (*turned, *properties, *more), over_black, put_right)

    return _reading(path, read)


def deep_range(path: PictureFile, inner: bool = False) -> tuple[str, float, float] | None:
    """The kind (see `deep_kind`), smallest and largest value of a picture with more than 8 bits; None for others.

    `inner`: of the values that are not stray, as `inner_extremes` has them. Raises `UnreadableError`.
    """

    def read(image: ImageFile.ImageFile) -> tuple[str, float, float] | None:
        if (kind := deep_kind(image)) is None:
            return None
        check_deep_colours(image)
        with DECODING_MEMORY.reserved(buffer_bytes(image) + picture_bytes(image) * (1 + (kind == DEEP_COLOURS))):
            image.load()
            if kind == DEEP_COLOURS:
                return kind, *_colour_extremes(path, image, inner)[0]
            return kind, *(inner_extremes(image) if inner else extremes(image))

    return _reading(path, read)


def _load(path: PictureFile, image: ImageFile.ImageFile, levels: Levels | None) -> Range | None:
    """Decodes the picture; returns black and white of a deep grey one. Deep colours that use a part of their range are
    spread here, and get opacity where one stands for transparent: their low bytes are decoded from the file once more.
    The caller has reserved memory for both."""
    kind = deep_kind(image)
    image.load()
    if kind is None:
        return None
    span, low = (levels or {}).get(kind), None
    if kind != DEEP_COLOURS:
        span = span or range_of(kind, *extremes(image))
        return span[::-1] if white_is_zero(image) else span
    if span is None:
        ends, low = _colour_extremes(path, image)
        span = range_of(kind, *ends)
    if (clear := transparent_colour(image)) is not None:
        low = low or with_picture(path, decode_low_bytes)
        make_transparent(image, low, clear)
    if span != customary_range(kind, *span):
        spread_colours(image, with_picture(path, decode_low_bytes) if low is None else low, span)
    return None


def _colour_extremes(
    path: PictureFile, image: ImageFile.ImageFile, inner: bool = False
) -> tuple[Range, Image.Image | None]:
    """Of a picture whose high bytes are decoded; and the low ones where the range is narrow: they count there alone."""
    ends = colour_extremes(image, inner=inner)
    if range_of(DEEP_COLOURS, *ends) == customary_range(DEEP_COLOURS, *ends):
        return ends, None
    low = with_picture(path, decode_low_bytes)
    return colour_extremes(image, low, inner), low


def _reading(path: PictureFile, work: Callable[[ImageFile.ImageFile], Output]) -> Output:
    try:
        with np.errstate(all="ignore"):
            return with_picture(path, work)
    except UserError:  # a shard that cannot be reached any more: not the fault of this picture
        raise
    except Exception as error:  # decoders raise errors of all kinds for damaged files
        require_reachable(path, error)
        raise UnreadableError(path, _reason(path, error)) from error


def read_mask(path: Path) -> Image.Image:
    """As `read_image`, in mode RGBA where some of it is transparent."""

    def opacity(image: ImageFile.ImageFile) -> Image.Image | None:
        if not image.has_transparency_data:
            return None
        with DECODING_MEMORY.reserved(buffer_bytes(image) + picture_bytes(image)):
            alpha, orientation = image.convert("RGBA").getchannel("A"), orientation_of(image)
        return alpha.transpose(TURNS[orientation]) if orientation in TURNS else alpha

    mask = read_image(path)
    if (alpha := _reading(path, opacity)) is not None and alpha.getextrema() != (255, 255):
        mask.putalpha(alpha)
    return mask


def _properties(image: Image.Image) -> list[str]:
    """What can be said before the picture is decoded."""
    layout = f"{image.mode} {[tile[3] for tile in getattr(image, 'tile', [])]}"
    found = {
        "CMYK": image.mode == "CMYK",
        "palette": image.mode == "P",
        "more than 8 bits": image.mode in {"I", "F"} or ";16" in layout,
        "transparent": image.has_transparency_data,
    }
    return [name for name, holds in found.items() if holds]


def _has_more(image: Image.Image) -> bool:
    """Whether frames or pages follow the first; in JPEGs of phones and cameras a preview or a second view may."""
    try:
        return image.format != "MPO" and bool(getattr(image, "is_animated", False))
    except Exception:  # the second frame is damaged
        return True


def fit(image: Image.Image, size: int) -> Square:
    """The centre square, resized."""
    return np.asarray(cut(image, size, size))


def is_plain(square: UInt8[np.ndarray, "rows columns 3"]) -> bool:
    """Whether a picture is of one colour, but for what compression adds."""
    return int(np.ptp(square, axis=(0, 1)).max()) <= PLAIN


def cut(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest part of this aspect ratio in the middle, resized; a picture of this size is not changed."""
    part = min(image.width, image.height * width / height), min(image.height, image.width * height / width)
    left, top = (image.width - part[0]) / 2, (image.height - part[1]) / 2
    box = (left, top, left + part[0], top + part[1])
    return image.resize((width, height), Image.Resampling.LANCZOS, box, GAP)


def images_from_pixels(pixels: UInt8[Tensor, "batch 3 height width"]) -> Images:
    return pixels.float() / 127.5 - 1


def images_from_pil(picture: Image.Image) -> Images:
    """A batch of one image."""
    return images_from_pixels(torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None])


def pixels_from_images(images: Images) -> UInt8[Tensor, "batch 3 height width"]:
    return ((images.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def rounded(images: Images) -> Images:
    """Rounded to 8 bits, as in a file."""
    return images_from_pixels(pixels_from_images(images))


def pils_from_images(images: Images) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pixels_from_images(images).permute(0, 2, 3, 1).cpu().numpy()]


def grid(pictures: list[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Pictures of one size in rows on white, `gap` pixels apart."""
    width, height = (side + gap for side in pictures[0].size)
    columns = min(columns, len(pictures))
    sheet = Image.new("RGB", (columns * width - gap, math.ceil(len(pictures) / columns) * height - gap), "white")
    for place, picture in enumerate(pictures):
        sheet.paste(picture, (place % columns * width, place // columns * height))
    return sheet


def _reason(path: PictureFile, error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return why_not_opened(path)
        case Image.DecompressionBombError():
            return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller first"
        case RefusedError():
            return str(error)
        case MemoryError():
            return "there is too little memory to decode it; make it smaller first"
        case OSError(strerror=str(reason)) if reason:
            return reason[0].lower() + reason[1:]
        case _:
            return f"damaged or cut off ({shown(str(error).partition('. ')[0] or type(error).__name__)})"
