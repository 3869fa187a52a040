"""PNG pictures whose transparent colour Pillow reads otherwise than it stands in the file."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFile

from calotype.data.tiff import PUT_RIGHT

MULTIPLIED = {"L;2": 85, "L;4": 17}
"""Raw modes of grey of 2 and 4 bits, and by how much Pillow multiplies their values, but not the transparent one."""
DEEP_MODES = ("I;16B", "RGB;16B")
"""Raw modes of 16 bits: Pillow compares 8 bits of colours with 16 of the transparent one, and of grey nothing."""


def put_right_png(image: ImageFile.ImageFile) -> None:
    """Before a picture is decoded; `is_put_right` says whether its pixels are others by that. Other than PNGs with a
    transparent colour stay as they are."""
    if image.format != "PNG" or (clear := transparent_colour(image)) is None:
        return
    modes = {str(tile.args) for tile in image.tile}
    for mode in modes & MULTIPLIED.keys():
        image.info["transparency"] = MULTIPLIED[mode] * clear[0]
    image.info[PUT_RIGHT] = bool(modes & {*MULTIPLIED, *DEEP_MODES})


def transparent_colour(image: Image.Image) -> tuple[int, ...] | None:
    """The value, or red, green and blue, that stands for transparent; None where there is none, or a palette."""
    clear = image.info.get("transparency")
    if clear is None or isinstance(clear, bytes) or image.mode == "P":
        return None
    return clear if isinstance(clear, tuple) else (clear,)


def make_transparent(image: Image.Image, low: Image.Image, clear: tuple[int, ...]) -> None:
    """Gives a picture of 16-bit colours, by its high and low bytes, opacity: none where it has the transparent one."""
    differ = np.zeros((image.height, image.width), bool)
    for band, value in enumerate(clear):
        for part, byte in ((image, value >> 8), (low, value & 255)):
            differ |= np.asarray(part.getchannel(band)) != byte
    image.info.pop("transparency", None)
    image.putalpha(Image.fromarray(255 * differ.astype("u1")))
