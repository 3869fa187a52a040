"""The one way a picture file becomes pixels: upright, sRGB, 8 bits, over white, its centre square at one size."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from calotype.types import Images, Progress, UserError, no_progress

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".gif", ".bmp")
# Shrinking by whole numbers to this many times the size, and only from there by Lanczos, is 2.5 times as fast on a
# 12-megapixel picture (6 times where the JPEG decoder shrinks), and differs by 0.1 to 0.3 of 255 in the mean.
GAP = 3.0

# Pillow's warnings are harmless or refused below, and `catch_warnings` around each call is not safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

Square = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]  # (size, size, 3)
Item = TypeVar("Item")
Output = TypeVar("Output")


class UnreadableError(UserError):
    """A file that is no readable picture; `reason` does not name it, for lists that do."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{shown(path)} cannot be read as a picture: {reason}")
        self.reason = reason


def shown(name: Path | str) -> str:
    """A file's name on one line, whatever its bytes are."""
    return str(name) if str(name).isprintable() else ascii(str(name))


def in_threads(
    work: Callable[[Item], Output], items: Sequence[Item], progress: Progress = no_progress
) -> Iterator[Output]:
    """The results for all items, in their order. Pillow decodes, resizes and converts without holding Python's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done, result in enumerate(pool.map(work, items), 1):
            progress(done, len(items))
            yield result


def read_image(path: Path, shortest: int | None = None) -> Image.Image:
    """The picture in mode RGB; of an animation, its first frame.

    With `shortest`, a JPEG may be decoded at a half, a quarter or an eighth, but no side below `shortest`.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if shortest is not None:
                image.draft(None, (shortest, shortest))
            image.load()
            return _as_srgb(_upright(image))
    except Exception as error:  # decoders raise errors of all kinds for damaged files
        raise UnreadableError(path, _reason(path, error)) from error


def read_mask(path: Path) -> Image.Image:
    """As `read_image`, in mode RGBA where the file has transparency."""
    mask = read_image(path)
    with Image.open(path, formats=FORMATS) as image:
        if image.has_transparency_data:
            mask.putalpha(_upright(image).convert("RGBA").getchannel("A"))
    return mask


def fit(image: Image.Image, size: int) -> Square:
    """The centre square, resized."""
    return np.asarray(cut(image, size, size))


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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # as above; with broken EXIF data the picture itself can be read
        return image


def _as_srgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    image = _over_white(_in_eight_bits(image))
    transform = _to_srgb(profile, image.mode) if profile else None
    return transform.apply(image) if transform else image.convert("RGB")


def _in_eight_bits(image: Image.Image) -> Image.Image:
    if image.mode not in {"I", "F"} and not image.mode.startswith("I;16"):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64), posinf=0, neginf=0)
    black, white = _range(image.mode, values.min(), values.max())
    return Image.fromarray(((values - black) * (255 / (white - black))).round().astype(np.uint8))


def _range(mode: str, low: float, high: float) -> tuple[float, float]:
    """The values of black and white: for more than 16 bits, white is the next customary maximum above `high`."""
    if mode.startswith("I;16"):
        return 0.0, 65535.0
    customary = (1.0, 255.0, 65535.0) if mode == "F" else (255.0, 65535.0)
    return min(0.0, low), next((white for white in customary if high <= white), high)


def _over_white(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB") if image.mode == "P" else image
    white = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")


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


def _reason(path: Path, error: Exception) -> str:
    match error:
        case UnidentifiedImageError():
            return f"found {_kind_of_file(path)} instead of {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
        case Image.DecompressionBombError():
            return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; make it smaller first"
        case OSError(strerror=str(reason)) if reason:
            return reason[0].lower() + reason[1:]
        case _:
            return f"damaged or cut off ({shown(str(error).partition('. ')[0] or type(error).__name__)})"


_SIGNATURES = {
    "nothing (0 bytes)": rb"$",
    "a damaged picture": rb"\xff\xd8|\x89PNG|RIFF....WEBP|GIF8|BM.{4}\0{4}|II\*|MM\x00\*",
    "a HEIC picture": rb"....ftyp(hei|hev|mif|msf)",
    "an AVIF picture": rb"....ftypavi",
    "a PDF": rb"%PDF",
    "an SVG drawing": rb"\s*(<\?xml[^>]*>\s*)?<svg",
    "a web page": rb"\s*<(!doctype )?html",
    "text": rb"[\t\n\f\r -~\x80-\xff]+$",
}


def _kind_of_file(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(512)
    kinds = (kind for kind, pattern in _SIGNATURES.items() if re.match(pattern, start, re.DOTALL | re.IGNORECASE))
    return next(kinds, "data of another kind")
