import base64
import itertools
import os
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin

from calotype.data import images as images_module
from calotype.data import rgb
from calotype.data.formats import READS_AVIF, READS_HEIC, MemoryLimit
from calotype.data.images import (
    UnreadableError,
    fit,
    grid,
    images_from_pixels,
    in_threads,
    pils_from_images,
    read_image,
    read_picture,
    shown,
)
from calotype.types import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
HALF_RED = (255, 127, 127)  # over white


def corners(width=48, height=32):
    """Red, green, blue and white quarters."""
    image = Image.new("RGB", (width, height), WHITE)
    for place, colour in (((0, 0), RED), ((width // 2, 0), GREEN), ((0, height // 2), BLUE)):
        image.paste(colour, (*place, place[0] + width // 2, place[1] + height // 2))
    return image


def close(pixels, other, most=2):
    return np.abs(np.asarray(pixels, int) - np.asarray(other, int)).max() <= most


def ramp(last, dtype, height=4):
    return np.tile(np.linspace(0, last, 256), (height, 1)).astype(dtype)


# What Image.transpose undoes, by EXIF orientation
AS_STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}


@pytest.mark.parametrize("orientation", AS_STORED)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_a_picture_stands_upright_whatever_way_the_camera_was_held(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {"lossless": True} if suffix == "webp" else {}
    AS_STORED[orientation](corners()).save(path, exif=exif, **options)
    assert close(read_image(path), corners())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_data_does_not_cost_the_picture(tmp_path):
    corners().save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert close(read_image(tmp_path / "a.png"), corners())


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    corners().convert("CMYK").save(tmp_path / f"a.{suffix}", **({"quality": 100} if suffix == "jpg" else {}))
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.mode == "RGB"
    assert close(fit(image, 4)[[0, 0, 3], [0, 3, 0]], [RED, GREEN, BLUE], 3)


@pytest.mark.parametrize("dtype, last", [("<u2", 65535), (">u2", 65535), ("<i4", 65535), ("<f4", 1), ("<f4", 65535)])
def test_a_deep_grey_ramp_keeps_its_range(tmp_path, dtype, last):
    Image.fromarray(ramp(last, dtype)).save(tmp_path / "a.tif")
    assert close(np.asarray(read_image(tmp_path / "a.tif"))[0, :, 1], np.arange(256), 1)


def test_a_16_bit_png_keeps_its_range(tmp_path):
    Image.fromarray(ramp(65535, "u2")).save(tmp_path / "a.png")
    assert close(np.asarray(read_image(tmp_path / "a.png"))[0, :, 0], np.arange(256), 1)


def test_floats_beyond_every_customary_white_are_spread_not_clipped(tmp_path):
    Image.fromarray(np.array([[-1e6, 0, 1e6, np.nan]], "f4")).save(tmp_path / "a.tif")
    assert np.asarray(read_image(tmp_path / "a.tif"))[0, :, 0].tolist() == [0, 128, 255, 0]


def with_alpha(mode):
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 128))
    image.putpixel((1, 0), (0, 0, 255, 0))
    return image.convert(mode)


def test_what_is_transparent_lies_over_white(tmp_path):
    with_alpha("RGBA").save(tmp_path / "rgba.png")
    with_alpha("RGBA").quantize().save(tmp_path / "palette.png")
    for name in ("rgba.png", "palette.png"):
        assert close(read_image(tmp_path / name), [[HALF_RED, WHITE]]), name


def test_grey_with_alpha_lies_over_white(tmp_path):
    Image.merge("LA", [Image.new("L", (2, 1), 0), Image.fromarray(np.array([[255, 51]], "u1"))]).save(
        tmp_path / "a.png"
    )
    assert close(read_image(tmp_path / "a.png"), [[(0, 0, 0), (204, 204, 204)]])


@pytest.mark.parametrize("mode, colour", [("RGB", RED), ("L", 76)])
def test_a_transparent_colour_without_an_alpha_channel_is_white(tmp_path, mode, colour):
    Image.new(mode, (2, 2), colour).save(tmp_path / "a.png", transparency=colour)
    assert close(read_image(tmp_path / "a.png"), np.full((2, 2, 3), 255))


def png(rows, width, depth, colour, *chunks):
    """Of rows of packed samples."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    written = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


DEEP_CLEAR, DEEP_OTHER = (0x1234, 0x5678, 0x9ABC), (0x1235, 0x5678, 0xFFFF)


@pytest.mark.parametrize(
    "depth, colour, first, second, clear, shown_as",
    [
        (2, 0, b"\x55", b"\xaa", (1,), 170),
        (4, 0, b"\x33", b"\x77", (3,), 119),
        (16, 0, struct.pack(">2H", 0x2020, 0x2020), struct.pack(">2H", 0xB0B0, 0xB0B0), (0x2020,), 176),
        (16, 2, struct.pack(">6H", *DEEP_CLEAR * 2), struct.pack(">6H", *DEEP_OTHER * 2), DEEP_CLEAR, (18, 86, 255)),
        (16, 2, struct.pack(">6H", *DEEP_CLEAR * 2), struct.pack(">6H", *(0x123, 0x567, 0x7FF) * 2), DEEP_CLEAR, None),
    ],
    ids=["2 bits", "4 bits", "16 bits", "16-bit colours", "16-bit colours of a part of the range"],
)  # fmt: skip
def test_the_transparent_colour_of_a_png_of_any_depth_is_white(tmp_path, depth, colour, first, second, clear, shown_as):
    """Grey at 2 and 4 bits is scaled by Pillow, but the value that stands for transparent is not; at 16 bits it is
    compared with half of each value, or not at all."""
    file = tmp_path / "a.png"
    width = 2 if depth == 16 else 8 // depth
    file.write_bytes(png([first, second], width, depth, colour, (b"tRNS", struct.pack(f">{len(clear)}H", *clear))))
    picture = read_picture(file, levels={"RGB;16": (0.0, float(0x9ABC))} if shown_as is None else None)
    expected = [[np.round(255 * value / 0x9ABC) for value in (0x123, 0x567, 0x7FF)]] if shown_as is None else shown_as
    assert close(np.asarray(picture.image)[0], 255, 0) and close(np.asarray(picture.image)[1], expected, 0)
    assert picture.put_right and "transparent" in picture.properties


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_of_an_animation_the_first_frame_is_read(tmp_path, suffix):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert close(fit(read_image(tmp_path / f"a.{suffix}"), 1), [[RED]], 3)


def linear_light_profile():
    """sRGB's profile with its red, green and blue curves replaced by the identity."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    for entry in range(struct.unpack_from(">I", profile, 128)[0]):
        tag, place, length = struct.unpack_from(">4sII", profile, 132 + 12 * entry)
        if tag in (b"rTRC", b"gTRC", b"bTRC"):
            profile[place : place + length] = (b"curv" + bytes(8)).ljust(length, b"\0")
        if tag == b"desc":
            profile[place : place + length] = profile[place : place + length].replace(
                "sRGB".encode("utf-16-be"), b"\0L" * 4
            )
    return bytes(profile)


def test_a_colour_profile_is_applied(tmp_path):
    Image.new("RGB", (4, 4), (55, 55, 55)).save(tmp_path / "a.png", icc_profile=linear_light_profile())
    light = 55 / 255
    expected = 255 * (1.055 * light ** (1 / 2.4) - 0.055)  # IEC 61966-2-1
    assert close(read_image(tmp_path / "a.png"), np.full((4, 4, 3), expected))


@pytest.mark.parametrize("profile", [b"no profile", linear_light_profile()[:300]], ids=["no profile", "cut off"])
def test_a_broken_colour_profile_is_passed_over(tmp_path, profile):
    corners().save(tmp_path / "a.png", icc_profile=profile)
    assert close(read_image(tmp_path / "a.png"), corners(), 0)


def test_a_profile_for_another_kind_of_picture_is_passed_over(tmp_path):
    Image.new("L", (4, 4), 55).save(tmp_path / "a.png", icc_profile=linear_light_profile())
    assert close(read_image(tmp_path / "a.png"), np.full((4, 4, 3), 55), 0)


def linear_grey_profile():
    """Of grey pictures whose values are proportional to the light (ICC.1:2022)."""
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = {
        b"desc": b"desc" + struct.pack(">II", 0, 5) + b"Grey\0" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"kTRC": b"curv" + bytes(8),
    }
    place, table, content = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", place + len(content), len(data))
        content += data.ljust(-(-len(data) // 4) * 4, b"\0")
    head = b"\0\0\0\0" + b"\x02\x10\0\0" + b"mntrGRAYXYZ " + bytes(12) + b"acsp" + bytes(28) + white
    return struct.pack(">I", place + len(content)) + head.ljust(124, b"\0") + table + content


@pytest.mark.parametrize(
    "kind, suffix", [*itertools.product(["L", "LA", "I;16", "large"], ["png", "tif"]), ("F", "tif")]
)
def test_the_profile_of_a_grey_picture_is_applied_at_any_depth_and_with_opacity(tmp_path, monkeypatch, kind, suffix):
    """A scan in 16 bits, or with an alpha channel, is as bright as the same one in 8 bits without."""
    values = np.repeat(np.array([[0, 55, 111, 255]], "u1"), 4, 0)
    expected = [255 * (1.055 * (value / 255) ** (1 / 2.4) - 0.055) if value else 0 for value in values[0]]
    picture = Image.fromarray(values)
    if kind in ("LA", "large"):
        picture = Image.merge("LA", [picture, Image.new("L", picture.size, 255)])
    if kind == "large":
        monkeypatch.setattr(rgb, "LARGE_PIXELS", 1)
        picture = picture.resize((16, 16), Image.Resampling.NEAREST)
    if kind == "I;16":
        picture = Image.fromarray(values.astype(np.uint16) * 257)
    if kind == "F":
        picture = Image.fromarray(values.astype(np.float32) / 255)
    picture.save(tmp_path / f"a.{suffix}", icc_profile=linear_grey_profile())
    read = read_picture(tmp_path / f"a.{suffix}", 4)
    assert close(read.image, np.repeat(np.array(expected)[None, :, None], 4, 0)) and read.put_right == (kind != "L")


def bomb(width, height, depth=8, colour=2):
    """A PNG that promises so many pixels in 70 bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def test_text_and_profiles_of_any_size_do_not_cost_a_png_its_pixels(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3 * 2**20, zip=True)
    info.add_itxt("parameters", "y" * 2 * 2**20, zip=True)
    profile = linear_light_profile()
    corners().save(tmp_path / "a.png", pnginfo=info, icc_profile=profile + bytes(2**21))
    assert close(read_image(tmp_path / "a.png"), corners(), 0)
    plain = PngImagePlugin.PngInfo()
    for index in range(70):
        plain.add_text(str(index), "z" * 2**20)
    corners().save(tmp_path / "b.png", pnginfo=plain)
    assert close(read_image(tmp_path / "b.png"), corners(), 0)


def test_a_gif_is_read_if_its_first_frame_is_whole_wherever_it_is_cut(tmp_path):
    frames = [Image.new("L", (9, 9), grey) for grey in (40, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    whole, read = (tmp_path / "a.gif").read_bytes(), 0
    for length in range(len(whole)):
        (tmp_path / "cut.gif").write_bytes(whole[:length])
        try:
            picture = read_picture(tmp_path / "cut.gif")
        except UnreadableError as error:
            assert read == 0 and error.reason.isprintable()
        else:
            read += 1
            assert close(picture.image, np.full((9, 9, 3), 40))
    assert read > 20


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "CMYK", "I;16", "F"])
def test_a_large_picture_is_converted_in_strips_to_about_the_same(tmp_path, mode, monkeypatch):
    spots = np.random.default_rng(0).integers(0, 256, (6, 8), np.uint8)
    grey = Image.fromarray(spots).resize((162, 120), Image.Resampling.BICUBIC)
    image = Image.fromarray(np.asarray(grey).astype({"I;16": "u2", "F": "f4"}.get(mode, "u1")) * 1)
    image = image if mode in ("I;16", "F") else image.convert(mode)
    exif = Image.Exif()
    exif[274] = 6
    image.save(path := tmp_path / "a.tif", exif=exif)
    whole = read_picture(path, 20)
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 1600)
    assert close(read_picture(path, 20).image, whole.image, 0)
    monkeypatch.setattr(rgb, "LARGE_PIXELS", 1000)
    large = read_picture(path, 20)
    assert (large.size, large.image.size, whole.image.size) == ((120, 162), (20, 27), (120, 162))
    assert close(fit(large.image, 8), fit(whole.image, 8), 8)


def test_threads_share_the_memory_for_decoding():
    memory, most, used = MemoryLimit(10), [0], [0]

    def decode(needed):
        with memory.reserved(needed):
            used[0] += needed
            most[0] = max(most[0], used[0])
            time.sleep(0.002)
            used[0] -= needed

    list(in_threads(decode, [4, 6, 3, 10, 1] * 5))
    assert 4 < most[0] <= 10 and memory.free == 10
    with pytest.raises(ValueError, match="make it smaller first"), memory.reserved(11):
        pass


def test_one_rank_decodes_on_the_cores_of_all_that_wait_for_it(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(6), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    together = threading.Barrier(6, timeout=10)

    def work(item):
        together.wait()
        return threading.get_ident()

    assert len({*in_threads(work, range(12))}) == 6


def test_once_stopped_threads_begin_no_further_item(monkeypatch):
    monkeypatch.setattr(images_module, "cores", lambda: 2)
    begun = []

    def work(item):
        begun.append(item)
        time.sleep(0.001)

    def stop(done, total):
        assert total == 4096
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(in_threads(work, range(4096), stop))
    assert 10 <= len(begun) < 4 * 64 < 8 * 64  # of the parts that were waiting


def test_with_parts_of_one_item_its_result_waits_for_no_other(monkeypatch):
    monkeypatch.setattr(images_module, "cores", lambda: 2)
    released = threading.Event()

    def work(item):
        return item == 0 or released.wait(10)

    for result in in_threads(work, range(24), most=1):
        assert result, "the first result came after those of other items"
        released.set()


def test_what_would_take_too_long_or_is_no_file_is_refused_before_it_is_decoded(tmp_path):
    (path := tmp_path / "a.png").write_bytes(bomb(13_000, 13_000, 16, 6))
    with pytest.raises(UserError, match=r"1\.4 GB of 16-bit colour"):
        read_image(path)
    with path.open("wb") as file:
        file.truncate(2**41)
    with pytest.raises(UserError, match="at most 2 GB are read"):
        read_image(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe or a device, not a file"):
        read_image(path)


def test_avif_is_read_where_pillow_reads_it(tmp_path):
    if not READS_AVIF:
        pytest.skip("this Pillow has no AVIF")
    corners().save(tmp_path / "a.avif", quality=100)
    assert close(fit(read_image(tmp_path / "a.avif"), 4)[[0, 0, 3], [0, 3, 0]], [RED, GREEN, BLUE], 8)


HEIC = (
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAA"
    "ACJpbG9jAAAAAERAAAEAAQAAAAABoQABAAAAAAAAANcAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRt"
    "AAAAAAABAAAA/WlwcnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMA"
    "AAMAHroCQGEAAQAqQgEBA3AAAAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5j"
    "bHgAAQANAAaAAAAAFGlzcGUAAAAAAAAAQAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBp"
    "eGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWBAgMFhAAAAN9tZGF0AAAA0ygBrxmA70fvxJGmGwGtQj7etDauVOmpWCo2aiD8"
    "TpYP+kT5gBGnzdBYSJKUIMc8n5ijgJASIWI2QLH7vyxzOH5qV/ghqP8ggpRrq8RNNMMnWDypl/b543PZC6aQ0f26p/YR0QUYi3f/"
    "SRj3c3mVKXzM7gI6zDwTr8uBmolMW3SMFo6CFDW7Dwv1OMVgZNOqzRxTq/qTeTxhMyZ2Aevl/5MjEfb7nJ9GUvBl8NWin8A8AFWP"
    "fyQwA4CodB5zbNnu5HGcKmpbrnZ4mNvelwAJJH2Ca/A="
)


def test_heic_is_read_with_the_extra(tmp_path):
    pytest.importorskip("pillow_heif")
    (tmp_path / "a.heic").write_bytes(base64.b64decode(HEIC))
    assert READS_HEIC and read_image(tmp_path / "a.heic").size == (64, 48)
    (tmp_path / "cut.heic").write_bytes(base64.b64decode(HEIC)[:200])
    with pytest.raises(UserError, match="a damaged HEIC picture"):
        read_image(tmp_path / "cut.heic")


def jpeg(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "whole.jpg")
    return (tmp_path / "whole.jpg").read_bytes()


NAMED = {
    "HEIC": "a damaged HEIC picture" if READS_HEIC else "a HEIC picture (install",
    "AVIF": "a damaged AVIF picture" if READS_AVIF else "an AVIF picture (install",
}
BAD = {
    "truncated": (lambda whole: whole[: len(whole) // 2], "cut off"),
    "only a head": (lambda whole: whole[:10], "damaged"),
    "text": (lambda whole: "Xin chào, đây là chữ".encode(), "found text instead of JPEG, PNG"),
    "web page": (lambda whole: b"\n<!DOCTYPE html><p>404", "a web page"),
    "heic": (lambda whole: b"\0\0\0\x18ftypheic\0\0", NAMED["HEIC"]),
    "AVIF cut off": (lambda whole: b"\0\0\0\x1cftypavif\0\0\0\0", NAMED["AVIF"]),
    "zeros": (lambda whole: bytes(100), "data of another kind"),
    "nothing": (lambda whole: b"", "nothing (0 bytes)"),
    "bomb": (lambda whole: bomb(50_000, 50_000), "more than 178,956,970 pixels"),
    "large and cut off": (lambda whole: bomb(10_000, 10_000), "cut off"),
    "a broken chunk": (lambda whole: bomb(8, 8).replace(b"IDAT", b"IDAU"), "damaged"),
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("content, reason", BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_refused_in_one_line_with_the_name_and_what_was_found(tmp_path, content, reason):
    path = tmp_path / "tải xuống.jpg"
    path.write_bytes(content(jpeg(tmp_path)))
    with pytest.raises(UserError) as refused:
        read_image(path)
    assert str(path) in str(refused.value) and reason in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_not_there_or_is_a_folder_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(UserError, match=r"directory|permission"):
        read_image(tmp_path)


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_no_name_breaks_the_line_of_a_message(tmp_path):
    for name in (b"a\nb.jpg", b"\xff\xfe.jpg", b"\x1b[31m.jpg", "\u202egpj.jpg".encode()):
        line = shown(os.fsdecode(name))
        assert line.isprintable() and line.encode() and ".jpg" in line


def test_names_of_every_script_and_emoji_are_shown_as_they_are():
    """Persian and Indic letters, and emoji, are joined by characters that count as not printable."""
    for name in ("mèo con", "قطة", "گربه‌ها", "क्‍ष", "🏳️‍🌈 emoji"):
        assert shown(name) == name


@pytest.mark.parametrize("width, height", [(240, 80), (80, 240), (81, 80), (4, 200)])
def test_the_centre_square_is_sampled_at_the_centres_of_its_pixels(width, height):
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    fitted = fit(Image.fromarray(np.stack([across, down, 0 * down], -1).astype(np.uint8)), 8)
    steps = (np.arange(8) + 0.5) / 8 * min(width, height) - 0.5 - min(width, height) / 2
    places = np.broadcast_to(steps, (8, 8))
    inner = slice(2, -2)  # at the border of the picture itself the filter is one-sided
    assert close(fitted[inner, inner, 0], (places + width / 2)[inner, inner], 1)
    assert close(fitted[inner, inner, 1], (places.T + height / 2)[inner, inner], 1)


def test_a_picture_of_the_right_size_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    assert np.array_equal(fit(Image.fromarray(pixels), 16), pixels)


def test_shrinking_in_two_steps_and_in_the_decoder_is_close_to_shrinking_in_one(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize((1600, 1200), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "a.jpg", quality=95)
    whole = read_image(tmp_path / "a.jpg")
    at_once = np.asarray(whole.resize((32, 32), Image.Resampling.LANCZOS, (200, 0, 1400, 1200)))
    drafted = read_image(tmp_path / "a.jpg", shortest=96)
    assert 96 <= min(drafted.size) < min(whole.size)
    assert close(fit(whole, 32), at_once, 3) and close(fit(drafted, 32), at_once, 3)


def test_a_picture_is_never_decoded_below_the_size_asked_for(tmp_path):
    corners(200, 120).save(tmp_path / "a.jpg")
    for shortest in (1, 15, 16, 30, 61, 120, 500):
        assert min(read_image(tmp_path / "a.jpg", shortest).size) >= min(shortest, 120)


def test_every_pixel_value_comes_back_from_an_image():
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    images = images_from_pixels(pixels)
    assert (images.min(), images.max()) == (-1, 1)
    for image in pils_from_images(images):
        assert np.array_equal(np.asarray(image)[..., 2], pixels[0, 0].numpy())


def test_images_beyond_their_range_are_clamped():
    (image,) = pils_from_images(torch.tensor([-7.0, 7.0]).reshape(1, 1, 1, 2).expand(1, 3, 1, 2))
    assert list(np.asarray(image)[0, :, 0]) == [0, 255]


def test_a_grid_shows_each_picture_once_in_reading_order():
    sheet = np.asarray(grid([Image.new("RGB", (4, 3), (10 * n, 0, 0)) for n in range(5)], columns=2, gap=1))
    assert sheet.shape == (3 * 4 - 1, 2 * 5 - 1, 3)
    assert [sheet[4 * (n // 2), 5 * (n % 2), 0] for n in range(5)] == [0, 10, 20, 30, 40]
    assert (sheet[-1, -1] == 255).all() and (sheet[:, 4] == 255).all()
