"""Small pictures and files of captions whose bytes are changed at random."""

import io
import json
import random
import struct
import zlib

import numpy as np
from PIL import Image, features

SIDE = 16
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pictures():
    """Whole files, by a suffix that tells their kind."""
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    rgb = Image.fromarray(pixels)
    more = [Image.fromarray(255 - pixels), rgb]
    moving = {"save_all": True, "append_images": more}
    rgba = rgb.copy()
    rgba.putalpha(Image.fromarray(pixels[..., 0]))
    deep, exif = pixels[..., 0].astype(np.uint16) * 16, Image.Exif()
    exif[274] = 6
    files = {
        "rgb.png": saved(rgb, "PNG", exif=exif), "rgba.png": saved(rgba, "PNG"),
        "palette.png": saved(rgb.quantize(), "PNG"), "a.bmp": saved(rgb, "BMP"),
        "deep.png": saved(Image.fromarray(deep), "PNG"), "moving.png": saved(rgb, "PNG", **moving),
        "a.jpg": saved(rgb, "JPEG", exif=exif), "progressive.jpg": saved(rgb, "JPEG", progressive=True),
        "cmyk.jpg": saved(rgb.convert("CMYK"), "JPEG"), "a.gif": saved(rgb, "GIF", **moving),
        "plain.tif": saved(rgb, "TIFF", exif=exif), "lzw.tif": saved(rgb, "TIFF", compression="tiff_lzw"),
        "jpeg.tif": saved(rgb, "TIFF", compression="jpeg"), "pages.tif": saved(rgb, "TIFF", **moving),
        "float.tif": saved(Image.fromarray(deep.astype("f4")), "TIFF"),
        "fax.tif": saved(rgb.convert("1"), "TIFF", compression="group4"),
        "a.webp": saved(rgb, "WEBP"), "lossless.webp": saved(rgba, "WEBP", lossless=True),
        "moving.webp": saved(rgb, "WEBP", **moving),
    }  # fmt: skip
    if features.check("avif"):
        files |= {"a.avif": saved(rgb, "AVIF"), "moving.avif": saved(rgb, "AVIF", **moving)}
    return files


def captions(name):
    """Files of captions of the picture with this name."""
    entry = {"file_name": name, "text": "một con mèo"}
    coco = {"images": [{"id": 1, "file_name": name}], "annotations": [{"image_id": 1, "caption": "a cat"}]}
    return {
        "metadata.jsonl": (json.dumps(entry) + "\n").encode() * 3,
        "captions.json": json.dumps(coco).encode(),
        "by name.json": json.dumps({name: ["a", "b"]}).encode(),
        "captions.csv": f'file_name,caption\n{name},"a cat, sitting"\n'.encode(),
        "captions.tsv": f"image\ttext\n{name}\ta cat\n".encode("utf-16"),
        "captions.txt": f"image|caption\n{name}|a cat\n".encode(),
    }


def mutated(content, rng):
    """With one to four changes, or cut off."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place, kind = rng.randrange(len(data)), rng.randrange(6)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[place] = rng.randrange(256)
        elif kind == 2:
            value = struct.pack(rng.choice("<>") + "I", rng.choice(INTERESTING))[: rng.choice((2, 4))]
            data[place : place + len(value)] = value
        elif kind == 3:
            del data[place : place + rng.randint(1, 16)]
        elif kind == 4:
            data[place:place] = data[rng.randrange(len(data)) :][: rng.randint(1, 32)]
        else:
            del data[max(place, 4) :]
        data = data or bytearray(b"\0")
    return bytes(data)


def inflated(content, rng):
    """With one or two numbers that may be the picture's width or height replaced by 13,000."""
    data, order = bytearray(content), rng.choice("<>")
    places = [
        place for place in range(len(data) - 1) if struct.unpack_from(order + "H", data, place)[0] in (SIDE - 1, SIDE)
    ]
    for place in rng.sample(places, min(len(places), rng.randint(1, 2))):
        struct.pack_into(order + "H", data, place, 13_000)
    return bytes(data)


def with_checksums(png):
    """The chunks of a PNG with the checksums that they should have, so that decoders look at their content."""
    fixed, place = bytearray(png[:8]), 8
    while place + 12 <= len(png):
        length = struct.unpack_from(">I", png, place)[0]
        chunk = png[place + 4 : place + 8 + length]
        fixed += png[place : place + 4] + chunk + struct.pack(">I", zlib.crc32(chunk))
        place += 12 + length
    return bytes(fixed)


def mutations(files, count, seed):
    """`count` changed files: (name, content)."""
    rng, names = random.Random(seed), sorted(files)
    for index in range(count):
        name = names[index % len(names)]
        content = inflated(files[name], rng) if rng.random() < 0.2 else mutated(files[name], rng)
        yield f"{index:05} {name}", with_checksums(content) if name.endswith(".png") and rng.random() < 0.7 else content
