"""From what a decoder gives to 8-bit sRGB: range of deep pictures, background of transparent ones, colour profile.

All of it is done in strips, so that a large picture is in memory once, and is downsampled before it is converted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms

Range = tuple[float, float]
Levels = Mapping[str, Range]
"""The values of black and white, by `deep_kind`."""

STRIP_PIXELS = 2**22
LARGE_PIXELS = 40_000_000
"""Larger pictures are downsampled in strips; smaller ones only when they are resized, as before there were strips."""
NARROW = 0.5
"""Deep pictures that use less of their customary range are spread over the range that they have."""
NO_DATA = 1e30
"""Floating-point values from this size on stand for none, as -3.4e38 does in maps."""
STRAY = 1000
"""Of so many values of a picture one, the smallest and the largest, may be stray."""
NEARLY_WHITE = 224
"""A transparent picture all of whose values over white are at least this lies over black instead."""
NEARLY_BLACK = 31
"""If all of its values over black are at most this, it has no shape, and lies over white."""
UPRIGHT, FIRST_SIDEWAYS = 1, 5
"""Orientations as EXIF counts them; from 5 on width and height are exchanged."""
ORIENTATION_TAG = 274
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip


def orientation_of(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ORIENTATION_TAG, UPRIGHT)
    except Exception:  # with broken EXIF data the picture itself can be read
        return UPRIGHT
    return orientation if orientation in TURNS else UPRIGHT


def reduction_of(image: Image.Image, shortest: int | None) -> int:
    """The factor by which a large picture is downsampled, so that no side is below `shortest`."""
    if shortest is None or image.width * image.height <= LARGE_PIXELS:
        return 1
    return max(1, min(image.size) // shortest)


def as_srgb(image: Image.Image, levels: Levels | None, factor: int) -> tuple[Image.Image, bool]:
    """A decoded picture in mode RGB, downsampled by `factor`, and whether it lies over black instead of white.

    Without `levels`, a deep picture is spread by its own values.
    """
    kind = deep_kind(image.mode)
    span = None if kind is None else (levels or {}).get(kind) or range_of(kind, *extremes(image))
    white = _in_strips(image, span, "white", factor)
    if not image.has_transparency_data or np.asarray(white).min() < NEARLY_WHITE:
        return white, False
    black = _in_strips(image, span, "black", factor)
    if np.asarray(black).max() <= NEARLY_BLACK:
        return white, False
    return black, True


def _in_strips(image: Image.Image, span: Range | None, background: str, factor: int) -> Image.Image:
    rows = max(1, STRIP_PIXELS // (image.width * factor)) * factor
    if image.height <= rows:
        return _converted(_reduced(image, span, factor), background)
    result = Image.new("RGB", (math.ceil(image.width / factor), math.ceil(image.height / factor)))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        result.paste(_converted(_reduced(strip, span, factor), background), (0, top // factor))
    return result


def _reduced(image: Image.Image, span: Range | None, factor: int) -> Image.Image:
    """In 8 bits and downsampled; colours that are transparent count as much as they are opaque."""
    if span is not None:
        image = _in_eight_bits(image, span)
    if factor == 1:
        return image
    if image.has_transparency_data:
        return image.convert("RGBA").convert("RGBa").reduce(factor).convert("RGBA")
    return (image.convert("RGB") if image.mode in ("P", "1") else image).reduce(factor)


def _converted(image: Image.Image, background: str) -> Image.Image:
    profile = image.info.get("icc_profile")
    image = _over(background, image)
    transform = _to_srgb(profile, image.mode) if profile else None
    return transform.apply(image) if transform else image.convert("RGB")


def _over(background: str, image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA")).convert("RGB")


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """None where the profile is sRGB, broken, or for another mode."""
    try:
        given = ImageCms.ImageCmsProfile(BytesIO(profile))
        if ImageCms.getProfileDescription(given).startswith("sRGB"):
            return None
        return ImageCms.buildTransform(given, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return None


# -- More than 8 bits --------------------------------------------------------------------------------------------------


def deep_kind(mode: str) -> str | None:
    """Of grey pictures with more than 8 bits: "I;16", "I" (32 bits) or "F" (floating point)."""
    return "I;16" if mode.startswith("I;16") else mode if mode in ("I", "F") else None


def extremes(image: Image.Image) -> Range:
    """The smallest and the largest value of a decoded deep picture; 0 where there is none."""
    low, high = math.inf, -math.inf
    for values in _values(image):
        if values.size:
            low, high = min(low, values.min()), max(high, values.max())
    return (float(low), float(high)) if low <= high else (0.0, 0.0)


def inner_extremes(image: Image.Image) -> Range:
    """The same without the values that may be stray: one of `STRAY` at either end, and at least one."""
    stray = max(1, image.width * image.height // STRAY)
    least, most = np.empty(0, bool), np.empty(0, bool)  # of the type of the values, once there are some
    for values in _values(image):
        least, most = np.append(least, values), np.append(most, values)
        if len(least) > stray:
            least, most = np.partition(least, stray)[: stray + 1], np.partition(most, -stray - 1)[-stray - 1 :]
    return (float(least.max()), float(most.min())) if len(least) > stray else extremes(image)


def _values(image: Image.Image) -> Iterator[Shaped[np.ndarray, " _"]]:
    """Those of a decoded deep picture, in strips, without what stands for none."""
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height)))).ravel()
        yield values[np.abs(values) < NO_DATA] if image.mode == "F" else values


def range_of(kind: str, low: float, high: float) -> Range:
    """The values of black and white: the customary ones, unless these values use less than half of their range."""
    black, white = customary_range(kind, low, high)
    return (low, high) if low < high < low + NARROW * (white - black) else (black, white)


def customary_range(kind: str, low: float, high: float) -> Range:
    """White is the next customary maximum above `high`."""
    if kind == "I;16":
        return 0.0, 65535.0
    customary = (1.0, 255.0, 65535.0) if kind == "F" else (255.0, 65535.0)
    return min(0.0, low), next((white for white in customary if high <= white), high)


def _in_eight_bits(image: Image.Image, span: Range) -> Image.Image:
    values = np.asarray(image)
    if deep_kind(image.mode) == "I;16":
        return Image.fromarray(_scaled(np.arange(2**16), span)[values])
    return Image.fromarray(_scaled(values, span))


def _scaled(values: Shaped[np.ndarray, "*shape"], span: Range) -> UInt8[np.ndarray, "*shape"]:
    black, white = span
    finite = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    scaled: UInt8[np.ndarray, "*shape"] = ((finite - black) * (255 / (white - black))).round().clip(0, 255).astype("u1")
    return scaled
