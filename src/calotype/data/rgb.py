"""From what a decoder gives to 8-bit sRGB: range of deep pictures, background of transparent ones, colour profile.

All of it is done in strips, so that a large picture is in memory once, and is downsampled before it is converted.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from io import BytesIO

import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageCms, ImageFile

from calotype.data.png import transparent_colour
from calotype.data.tiff import are_separate, planes

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
DEEP_COLOURS = "RGB;16"
GREY_AND_OPACITY, ALL_BYTES = "LA;16B", "RGBA"
OTHER_BYTES = {f"{bands};16{order}": f"{bands};16{other}" for bands in ("RGB", "RGBA", "RGBX") for order, other in
               (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))}  # fmt: skip
OTHER_BYTES |= {GREY_AND_OPACITY: ALL_BYTES}
"""Raw modes of Pillow that decode the high byte of each 16-bit value, and for each one that decodes the low byte."""
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


def as_srgb(image: Image.Image, span: Range | None, factor: int) -> tuple[Image.Image, bool]:
    """A decoded picture in mode RGB, downsampled by `factor`, and whether it lies over black instead of white.

    `span`: the values of black and white of a deep grey picture.
    """
    if image.mode == "La":  # grey multiplied by its opacity, which Pillow converts to nothing else
        image = image.convert("LA")
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
        reduced = image.convert("RGBA").convert("RGBa").reduce(factor).convert("RGBA")
        return reduced.convert("LA") if image.mode in ("L", "LA") else reduced
    return (image.convert("RGB") if image.mode in ("P", "1") else image).reduce(factor)


def _converted(image: Image.Image, background: str) -> Image.Image:
    profile, grey = image.info.get("icc_profile"), image.mode in ("L", "LA")
    image = _over(background, image)
    if grey and is_of_grey(profile):
        image = image.convert("L")
    transform = _to_srgb(profile, image.mode) if profile else None
    return transform.apply(image) if transform else image.convert("RGB")


def _over(background: str, image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image.convert("RGBA")).convert("RGB")


def is_of_grey(profile: bytes | None) -> bool:
    """Whether it is a colour profile of grey pictures, by its header (ICC.1:2022, section 7.2.6)."""
    return profile is not None and profile[16:20] == b"GRAY"


def is_profiled_grey(image: Image.Image) -> bool:
    """Whether a picture has such a profile, and more than 8 bits, or transparency: earlier versions passed it over."""
    transparent = image.mode in ("L", "LA") and image.has_transparency_data
    return is_of_grey(image.info.get("icc_profile")) and (transparent or image.mode[0] in "IF")


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


def deep_kind(image: Image.Image) -> str | None:
    """Of pictures with more than 8 bits that are not decoded yet: "I;16", "I" (32 bits) or "F" (floating point) of grey
    ones, "RGB;16" of those in colour, of which Pillow decodes the high bytes alone."""
    if (modes := _raw_modes(image)) and OTHER_BYTES.keys() >= set(modes):
        return DEEP_COLOURS
    return "I;16" if image.mode.startswith("I;16") else image.mode if image.mode in ("I", "F") else None


def _raw_modes(image: Image.Image) -> list[str]:
    """Of the parts of a picture that is not decoded yet."""
    arguments = [tile[3] or "" for tile in getattr(image, "tile", [])]
    return [each if isinstance(each, str) else str(each[0]) for each in arguments]


def decode_low_bytes(image: ImageFile.ImageFile) -> Image.Image:
    """Decodes a picture of 16-bit colours as if its low bytes were its high ones."""
    if are_separate(image):
        return Image.merge(
            image.mode, [Image.fromarray((np.asarray(plane) & 255).astype("u1")) for plane in planes(image)]
        )
    modes = _raw_modes(image)
    for index, mode in enumerate(modes):
        tile, other = image.tile[index], OTHER_BYTES[mode]
        rest = tile.args[1:] if isinstance(tile.args, tuple) else ()
        image.tile[index] = tile._replace(args=(other, *rest) if rest else other)
    image.load()
    if GREY_AND_OPACITY not in modes:
        return image
    _, low, opacity, _ = image.split()
    return Image.merge("RGBA", [low, low, low, opacity])


def spread_colours(high: Image.Image, low: Image.Image, span: Range) -> None:
    """From the high and low bytes of 16-bit colours to 8 bits, in place; opacity stays."""
    eight_bits, rows = _scaled(np.arange(2**16), span), max(1, STRIP_PIXELS // high.width)
    for top in range(0, high.height, rows):
        box = 0, top, high.width, min(top + rows, high.height)
        values, below = (np.array(part.crop(box)) for part in (high, low))
        values[..., :3] = eight_bits[256 * values[..., :3].astype(np.uint16) + below[..., :3]]
        high.paste(Image.fromarray(values), box)


def colour_extremes(high: Image.Image, low: Image.Image | None = None, inner: bool = False) -> Range:
    """0, and the largest value of a picture by its high and low bytes, of 65,535; without the low ones, the most that
    it can be. `inner`: without the values that may be stray, see `inner_extremes`."""
    counts = np.sum(np.reshape(high.histogram(), (-1, 256))[:3], 0)
    stray = max(1, int(counts.sum()) // STRAY) if inner else 0
    top = _largest_above(counts, stray)
    if low is None:
        return 0.0, 256.0 * top + 255
    own = np.zeros(256, np.int64)
    for band in range(3):
        mask = high.getchannel(band).point([255 * (value == top) for value in range(256)])
        own += low.getchannel(band).histogram(mask)
    return 0.0, 256.0 * top + _largest_above(own, stray - int(counts[top + 1 :].sum()))


def _largest_above(counts: Shaped[np.ndarray, " _"], stray: int) -> int:
    """The largest value, of those with these counts, that is not one of so many at the end."""
    return int(np.flatnonzero(counts[::-1].cumsum()[::-1] > stray).max(initial=0))


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
    if kind in ("I;16", DEEP_COLOURS):
        return 0.0, 65535.0
    customary = (1.0, 255.0, 65535.0) if kind == "F" else (255.0, 65535.0)
    return min(0.0, low), next((white for white in customary if high <= white), high)


def _in_eight_bits(image: Image.Image, span: Range) -> Image.Image:
    """In mode L; in LA where one value stands for transparent."""
    values = np.asarray(image)
    if not image.mode.startswith("I;16"):
        return _with_profile_of(image, Image.fromarray(_scaled(values, span)))
    grey = Image.fromarray(_scaled(np.arange(2**16), span)[values])
    if (clear := transparent_colour(image)) is not None:
        grey.putalpha(Image.fromarray(255 * (values != clear[0]).astype("u1")))
    return _with_profile_of(image, grey)


def _with_profile_of(image: Image.Image, grey: Image.Image) -> Image.Image:
    if is_of_grey(profile := image.info.get("icc_profile")):
        grey.info["icc_profile"] = profile
    return grey


def _scaled(values: Shaped[np.ndarray, "*shape"], span: Range) -> UInt8[np.ndarray, "*shape"]:
    """What stands for no value is black."""
    black, white = span
    given = values.astype(np.float64)
    given[~(np.abs(given) < NO_DATA)] = black
    scaled: UInt8[np.ndarray, "*shape"] = ((given - black) * (255 / (white - black))).round().clip(0, 255).astype("u1")
    return scaled
