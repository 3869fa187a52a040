"""Pictures with more than 8 bits, transparent ones and those of one colour, in a folder."""

import errno
import struct
import threading
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from small import Keeper

from calotype.cli.commands import reading
from calotype.data import depth, images, rgb
from calotype.data.buckets import PixelSize, read_buckets
from calotype.data.folder import HashedFile, content_hash, read_folder
from calotype.data.formats import MemoryLimit
from calotype.data.images import read_image
from calotype.data.split import write_split
from calotype.data.survey import survey
from calotype.files import sha256
from calotype.run import Run, RunState
from calotype.types import UserError

SIDE = 16


def ramp(low, high, dtype):
    return Image.fromarray(np.linspace(low, high, SIDE**2).reshape(SIDE, SIDE).astype(dtype))


DEEP = {
    "12 bits": ("png", np.uint16, [(0, 1000), (100, 4095)]),
    "offset": ("png", np.uint16, [(30_000, 31_000), (31_000, 34_000)]),
    "Hounsfield": ("tif", np.float32, [(-1024, 0), (-200, 3071)]),
    "signed": ("tif", np.int32, [(-1024, 0), (0, 3071)]),
    "thousandths": ("tif", np.float32, [(0, 0.001), (0, 0.004)]),
    "16 bits": ("png", np.uint16, [(0, 20_000), (0, 65_535)]),
    "0 to 1": ("tif", np.float32, [(0, 0.25), (0, 1)]),
}


@pytest.mark.parametrize(("suffix", "dtype", "ranges"), DEEP.values(), ids=DEEP)
def test_deep_pictures_of_a_folder_are_spread_by_one_range_which_is_named(tmp_path, suffix, dtype, ranges):
    for index, (low, high) in enumerate(ranges):
        ramp(low, high, dtype).save(tmp_path / f"{index}.{suffix}")
    pictures = read_folder(tmp_path, SIDE)
    black, white = min(low for low, _ in ranges), max(high for _, high in ranges)
    for original, row in zip(pictures.originals, pictures.pixels, strict=True):
        expected = [255 * (value - black) / (white - black) for value in ranges[int(original.path.stem)]]
        assert np.abs(np.array([row.min(), row.max()]) - expected).max() <= 1
    (note,) = [note for note in pictures.notes if "grey picture" in note]
    assert f"{black:,g} is black and {white:,g} white" in note
    assert note in survey(tmp_path, SIDE).notes


def png(values, colours):
    """A PNG of 16 bits, of this colour type: Pillow writes grey ones alone."""
    height, width, _ = values.shape
    rows = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + rows, b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values, packed):
    """A TIFF of 16-bit colours in one strip."""
    height, width, bands = values.shape
    data = values.astype("<u2").tobytes()
    data = zlib.compress(data) if packed else data
    place = 8 + 2 + 12 * (6 + bands) + 4
    tags = [(256, width), (257, height), (258, place), (259, 8 if packed else 1), (262, 2), (273, place + 2 * bands)]
    tags += [(277, bands), (278, height), (279, len(data)), (338, 2)][:bands]
    entries = b"".join(struct.pack("<HHII", tag, 4, bands if tag == 258 else 1, value) for tag, value in tags)
    entries = entries.replace(struct.pack("<HHI", 258, 4, bands), struct.pack("<HHI", 258, 3, bands))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + struct.pack("<H", 16) * bands + data


COLOURS = {
    "png": (3, lambda values: png(values, 2)),
    "png with opacity": (4, lambda values: png(values, 6)),
    "grey png with opacity": (2, lambda values: png(values, 4)),
    "tif": (3, lambda values: tiff(values, False)),
    "packed tif": (3, lambda values: tiff(values, True)),
    "tif with opacity": (4, lambda values: tiff(values, True)),
}


@pytest.mark.parametrize(("bands", "encoded"), COLOURS.values(), ids=COLOURS)
def test_colours_of_12_bits_in_16_are_spread_with_all_their_levels(tmp_path, monkeypatch, bands, encoded):
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 200)
    expected = []
    for index, top in enumerate((1000, 4096)):
        values = np.random.default_rng(index).integers(top, size=(SIDE, SIDE, bands))
        values[0, 0] = top - 1
        if bands != 3:
            values[..., -1] = 65_535
        (tmp_path / f"{index}.{'tif' if encoded(values)[:2] == b'II' else 'png'}").write_bytes(encoded(values))
        expected.append((values[..., : bands // 3 * 2 + 1] * (255 / 4095)).round())
    pictures = read_folder(tmp_path, SIDE)
    for original, row in zip(pictures.originals, pictures.pixels.permute(0, 2, 3, 1).numpy(), strict=True):
        assert np.abs(row - expected[int(original.path.stem)]).max() <= 1
    assert "2 pictures of 16-bit colours, with values from 0 to 4,095: 0 is black and 4,095 white" in str(
        pictures.notes
    )


def test_colours_of_12_bits_do_not_wait_for_memory_that_they_have_themselves(tmp_path, monkeypatch):
    """Both bytes are reserved at once, or the picture is refused: a second reservation would wait for the first."""
    monkeypatch.setattr(images, "DECODING_MEMORY", MemoryLimit(15 * SIDE**2))

    def read():
        with pytest.raises(UserError, match="it would take"):
            read_folder(tmp_path, SIDE)

    (tmp_path / "a.png").write_bytes(png(np.full((SIDE, SIDE, 3), 1000), 2))
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(20)
    assert not reader.is_alive()


def test_runs_without_a_range_of_colours_read_them_as_before(tmp_path):
    (tmp_path / "a.png").write_bytes(png(np.full((SIDE, SIDE, 3), 1023), 2))
    assert read_folder(tmp_path, SIDE, levels={}).pixels.unique().tolist() == [1023 // 256]
    assert read_folder(tmp_path, SIDE).pixels.unique().tolist() == [255]


def test_colours_of_16_bits_stay_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "spread_colours", None)
    values = np.random.default_rng(0).integers(2**16, size=(SIDE, SIDE, 3))
    (tmp_path / "a.png").write_bytes(png(values, 2))
    pictures = read_folder(tmp_path, SIDE)
    assert np.array_equal(pictures.pixels[0].permute(1, 2, 0).numpy(), values // 256)
    assert pictures.content == content_hash([HashedFile(sha256(tmp_path / "a.png"), "")], SIDE)


def test_a_range_belongs_to_the_content_unless_it_is_the_customary_one(tmp_path):
    for name, high in (("deep", 4095), ("full", 65_535)):
        (tmp_path / name).mkdir()
        ramp(0, high, np.uint16).save(tmp_path / name / "a.png")
    before = [read_folder(tmp_path / name, SIDE).content for name in ("deep", "full")]
    as_before = [content_hash([HashedFile(sha256(tmp_path / name / "a.png"), "")], SIDE) for name in ("deep", "full")]
    assert before[0] != as_before[0] and before[1] == as_before[1]


def greys(folder, tops, dtype=np.uint16, suffix="png", stray=None):
    """Noise from 0 to each of `tops`, the first picture with one value `stray`."""
    folder.mkdir()
    for index, top in enumerate(tops):
        values = (np.random.default_rng(index).random((SIDE, SIDE)) * top).astype(dtype)
        if stray is not None and not index:
            values[0, 0] = stray
        Image.fromarray(values).save(folder / f"{index:02}.{suffix}")
    return folder


STRAY = {
    "a hot pixel": ("png", np.uint16, [4000] * 9, 65_535),
    "a cold pixel": ("tif", np.int32, [4000] * 9, -32_768),
    "no data in one": ("tif", np.float32, [3000] * 9, -3.4e38),
    "no data in the only one": ("tif", np.float32, [3000], -3.4e38),
}


@pytest.mark.parametrize(("suffix", "dtype", "tops", "stray"), STRAY.values(), ids=STRAY)
def test_one_stray_value_does_not_decide_for_a_folder(tmp_path, suffix, dtype, tops, stray):
    clean, dirty = (read_folder(greys(tmp_path / name, tops, dtype, suffix, value), SIDE) for name, value in
                    (("clean", None), ("dirty", stray)))  # fmt: skip
    (kind,) = clean.levels
    assert np.allclose(dirty.levels[kind], clean.levels[kind], atol=0.02 * max(tops))
    named = any("far from all others do not count" in note and "00." in note for note in dirty.notes)
    assert named == (abs(stray) < 1e30) and not any("do not count" in note for note in clean.notes)


@pytest.mark.parametrize("tops", [[400] * 9 + [4000], [400] * 5 + [4000] * 5, [4000] * 9 + [65_535], [400, 4000]])
def test_pictures_that_are_brighter_than_others_count(tmp_path, tops):
    pictures = read_folder(greys(tmp_path / "greys", tops), SIDE)
    assert pictures.levels["I;16"][1] > 0.97 * max(tops) and not any("do not count" in note for note in pictures.notes)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("side", [1, 2, 70])
def test_inner_extremes_are_those_of_the_sorted_values(monkeypatch, dtype, side):
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 200)
    values = (np.random.default_rng(side).random((side, side)) * 9000).astype(dtype)
    stray, ordered = max(1, side**2 // rgb.STRAY), np.sort(values.ravel())
    expected = (ordered[stray], ordered[-stray - 1]) if side > 1 else (ordered[0], ordered[0])
    assert rgb.inner_extremes(Image.fromarray(values)) == expected


def test_black_and_white_of_a_run_stay_and_no_picture_is_searched_for_stray_values(tmp_path, monkeypatch):
    pictures = greys(tmp_path / "greys", [4000] * 9, stray=65_535)
    monkeypatch.setattr(images, "inner_extremes", lambda image: searched.append(image) or (0.0, 4000.0))
    searched = []
    assert read_folder(pictures, SIDE, levels={"I;16": (0.0, 5000.0)}).levels == {"I;16": (0.0, 5000.0)}
    assert not searched and read_folder(pictures, SIDE).levels["I;16"][1] < 5000 and searched


@pytest.mark.parametrize("place", [(depth, "opened_file"), (images, "with_picture")])
def test_a_disk_that_fails_for_a_moment_ends_the_command_and_makes_no_other_range(tmp_path, monkeypatch, place):
    pictures, failures = greys(tmp_path / "greys", [400] * 3 + [4000]), [OSError(errno.EIO, "Input/output error")]
    done = getattr(*place)

    def failing(path, *more):
        if path.name == "03.png" and failures:
            raise failures.pop()
        return done(path, *more)

    monkeypatch.setattr(*place, failing)
    with pytest.raises(UserError, match=r"03\.png cannot be read: Input/output error; no set is made without it"):
        read_folder(pictures, SIDE)
    assert read_folder(pictures, SIDE).levels["I;16"][1] > 3900


def test_other_pictures_have_black_and_white_of_the_run(tmp_path):
    own = read_folder(greys(tmp_path / "own", [4000] * 12, stray=4095), SIDE)
    run = Run(tmp_path / "run", RunState(black_and_white=dict(own.levels), content=own.content))
    run.save()
    write_split(run.folder, own.split, own.content)
    dim = greys(tmp_path / "dim", [1000] * 3)
    run, cache = Run.open(run.folder), tmp_path / "cache"
    assert reading.read_as_run(run, dim, SIDE, cache, Keeper()).pixels.max() < 70 < read_folder(dim, SIDE).pixels.max()
    assert reading.read_as_run(run, tmp_path / "own", SIDE, cache, Keeper()).content == own.content
    assert reading.levels_in(run.folder) == own.levels and reading.levels_in(tmp_path) == {}


def test_aspect_buckets_have_the_black_and_white_of_the_folder(tmp_path):
    pictures = read_folder(greys(tmp_path / "greys", [400] * 9 + [4000] * 9, stray=4095), SIDE)
    (bucket,) = read_buckets(pictures, [PixelSize(SIDE, SIDE)], 1, tmp_path / "cache")
    assert (bucket.pixels == pictures.pixels).all()
    ramp(0, 4000, np.uint16).save(pictures.originals[3].path)
    with pytest.raises(UserError, match="cannot be read again: it changed while it was read; wait"):
        read_buckets(pictures, [PixelSize(SIDE, SIDE)], 1, tmp_path / "cache")


def icon(colour, width=3):
    image = Image.new("RGBA", (SIDE, SIDE), (0, 0, 0, 0))
    ImageDraw.Draw(image).line([(2, 3), (13, 12)], fill=colour, width=width)
    return image


def test_what_cannot_be_seen_on_white_lies_on_black(tmp_path):
    for name, colour in {"white": "white", "pale": "#eeeeee", "red": "red", "empty": (0, 0, 0, 0)}.items():
        icon(colour).save(tmp_path / f"{name}.png")
        corner = read_image(tmp_path / f"{name}.png").getpixel((0, 0))
        assert corner == ((0, 0, 0) if name in ("white", "pale") else (255, 255, 255)), name
    icon("white").quantize().save(tmp_path / "palette.png")
    Image.new("LA", (SIDE, SIDE), (255, 9)).save(tmp_path / "faint.png")
    pictures = read_folder(tmp_path, SIDE)
    assert "3 transparent pictures were put on black, because nothing of it is visible on white" in pictures.notes
    assert any("2 pictures were of one colour" in note and "empty.png" in note for note in pictures.notes)
    found = survey(tmp_path, SIDE)
    assert found.plain == ["empty.png", "faint.png"]
