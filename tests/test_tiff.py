"""TIFF pictures of scientists and scanners: planes, white as the smallest value, byte orders, pages, forms not read."""

import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from calotype.data import images
from calotype.data.folder import HashedFile, content_hash, read_folder
from calotype.data.formats import buffer_bytes, with_picture
from calotype.data.images import UnreadableError, deep_range, read_image, read_picture
from calotype.data.rgb import colour_extremes
from calotype.data.survey import survey
from calotype.data.tiff import PREMULTIPLIED
from calotype.files import sha256

SIDE, GREY, RGB, SIGNED, FLOAT, YCBCR, LAB = 16, 1, 2, 2, 3, 6, 8


def tiff(values, photometric=RGB, order="<", packed=False, separate=False, form=1, rows=SIDE, *, turn=1, more=()):
    """Of an array (rows, columns, channels), in strips of so many rows. `more`: tags, or other values of them."""
    height, width, channels = values.shape
    values = values.astype(values.dtype.newbyteorder(order))
    planes = [values[..., [channel]] for channel in range(channels)] if separate else [values]
    strips = [plane[top : top + rows].tobytes() for plane in planes for top in range(0, height, rows)]
    strips = [zlib.compress(strip) for strip in strips] if packed else strips
    tags = {256: [width], 257: [height], 258: [8 * values.itemsize] * channels, 259: [8 if packed else 1]}
    tags |= {262: [photometric], 273: strips, 274: [turn], 277: [channels], 278: [rows], 279: [*map(len, strips)]}
    tags |= {284: [2 if separate else 1], 339: [form] * channels}
    tags = dict(sorted((tags | dict(more)).items()))
    place = 8 + 2 + 12 * len(tags) + 4
    starts = [place + 4 * sum(len(each) for each in tags.values() if len(each) > 1)]
    for strip in strips:
        starts.append(starts[-1] + len(strip))
    entries, long = b"", b""
    for tag, own in tags.items():
        content = struct.pack(f"{order}{len(own)}I", *(starts[:-1] if tag == 273 else own))
        if len(own) > 1:
            content, long = struct.pack(f"{order}I", place + len(long)), long + content
        entries += struct.pack(f"{order}HHI", tag, 4, len(own)) + content
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(f"{order}IH", 8, len(tags))
    return b"".join((head, entries, bytes(4), long, *strips))


def with_tags(content, tags):
    """A little-endian TIFF with other values of these tags, of which each has one."""
    for place in range(10, 10 + 12 * content[8], 12):
        tag, kind, count, _ = struct.unpack_from("<HHII", content, place)
        if tag in tags:
            content = content[:place] + struct.pack("<HHII", tag, kind, count, tags[tag]) + content[place + 12 :]
    return content


def noise(top, channels, kind=np.uint16):
    values = np.random.default_rng(channels).integers(top, size=(SIDE, SIDE, channels)).astype(kind)
    values[0, :2] = [[top - 1], [0]]
    return values


def read(folder, content, **more):
    (folder / "a.tif").write_bytes(content)
    return np.asarray(read_image(folder / "a.tif", **more)).astype(int)


ORDERS = pytest.mark.parametrize("order", "<>")
PACKED = pytest.mark.parametrize("packed", [False, True])


@ORDERS
@PACKED
@pytest.mark.parametrize("rows", [5, SIDE])
@pytest.mark.parametrize("channels", [1, 3])
def test_planes_of_16_bits_are_read_with_all_their_levels(tmp_path, order, packed, rows, channels):
    """As `tifffile` writes arrays (3, height, width), without a word."""
    for top in (300, 4096, 2**16):
        values = noise(top, channels)
        kind = GREY if channels == 1 else RGB
        pixels = read(tmp_path, tiff(values, kind, order, packed, separate=True, rows=rows))
        assert np.abs(pixels - values * (255 / (top - 1))).max() <= 1, top


@pytest.mark.parametrize("packed", [False, True])
def test_planes_are_turned_together(tmp_path, packed):
    values = noise(4096, 3)
    pixels = read(tmp_path, tiff(values, packed=packed, separate=True, turn=6))
    assert np.abs(pixels - np.rot90(values, -1) * (255 / 4095)).max() <= 1


@pytest.mark.parametrize(("kind", "more"), [(np.uint8, False), (np.uint16, True)])
def test_planes_of_16_bits_alone_need_more_memory(tmp_path, kind, more):
    needed = []
    for separate in (False, True):
        (tmp_path / "a.tif").write_bytes(tiff(noise(256, 3, kind), separate=separate))
        needed.append(with_picture(tmp_path / "a.tif", buffer_bytes))
    assert (needed[1] > needed[0]) == more


@ORDERS
@PACKED
@pytest.mark.parametrize("kind", [np.uint16, np.float32])
def test_where_the_smallest_value_is_white_pictures_are_inverted(tmp_path, order, packed, kind):
    """As scanners and X-ray machines write them."""
    values = noise(4096, 1, kind)
    form = FLOAT if kind is np.float32 else 1
    pixels = read(tmp_path, tiff(values, 0, order, packed, form=form))
    assert np.abs(pixels - (255 - values * (255 / 4095))).max() <= 1


@ORDERS
@PACKED
@pytest.mark.parametrize(("kind", "form"), [(np.float32, FLOAT), (np.int16, 2), (np.int32, 2)])
def test_grey_of_every_byte_order_is_read(tmp_path, order, packed, kind, form):
    values = noise(4096, 1).astype(kind) - kind(1000)
    pixels = read(tmp_path, tiff(values, GREY, order, packed, form=form))
    least = values.min()
    assert np.abs(pixels - (values - least) * (255 / (3095 - least))).max() <= 1


@pytest.mark.parametrize("bits", [1, 8])
def test_one_plane_is_read_as_a_picture_without_planes(tmp_path, bits):
    """Pillow does not invert it where the smallest value is white, so to earlier versions it was another picture."""
    values = np.packbits(noise(2, 1, np.uint8)[..., 0], 1)[..., None] if bits == 1 else noise(256, 1, np.uint8)
    content = {separate: tiff(values, 0, separate=separate) for separate in (False, True)}
    if bits == 1:  # of so many values a byte
        content = {separate: with_tags(whole, {256: SIDE, 258: 1}) for separate, whole in content.items()}
    assert (read(tmp_path, content[True]) == read(tmp_path, content[False])).all()
    expected = np.unpackbits(values[..., 0], 1) * 255 if bits == 1 else values[..., 0]
    assert (255 - read(tmp_path, content[True])[..., 0] == expected).all()
    for separate in (False, True):
        (tmp_path / "a.tif").write_bytes(content[separate])
        assert read_picture(tmp_path / "a.tif").put_right == separate


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_planes_with_opacity_in_the_colours_are_read(tmp_path, kind):
    values = noise(np.iinfo(kind).max + 1, 4, kind)
    values[..., 3] = np.iinfo(kind).max
    values[0, 0, :3] = 0
    pixels = read(tmp_path, tiff(values, separate=True, more={338: [PREMULTIPLIED]}))
    assert np.abs(pixels - values[..., :3] * (255 / np.iinfo(kind).max)).max() <= 1


@PACKED
@pytest.mark.parametrize(("channels", "kind", "more"), [(2, GREY, {338: [2]}), (3, LAB, {}), (5, RGB, {338: [2, 0]})])
def test_planes_that_pillow_mixes_up_are_named(tmp_path, packed, channels, kind, more):
    """Grey with opacity was read as nearly white, Lab with wrong colours, and a fifth channel was called damage."""
    content = tiff(noise(256, channels, np.uint8), kind, packed=packed, separate=True, more=more)
    with pytest.raises(UnreadableError, match=f"a TIFF of {channels} channels of 8-bit whole numbers in planes, a"):
        read(tmp_path, content)


@PACKED
def test_grey_with_opacity_in_it_is_read(tmp_path, packed):
    values = noise(256, 2, np.uint8)
    values[..., 0] = np.minimum(values[..., 0], values[..., 1])
    pixels = read(tmp_path, tiff(values, GREY, packed=packed, more={338: [PREMULTIPLIED]}))
    assert np.abs(pixels - (values[..., :1] + 255.0 - values[..., 1:])).max() <= 2


@PACKED
def test_subsampled_colours_are_read(tmp_path, packed):
    """Four values of brightness and one pair of colours for each square of four pixels."""
    blocks = noise(256, 6, np.uint8)
    blocks[..., 4:] = 100 + blocks[..., 4:] // 5
    tags = {256: [2 * SIDE], 257: [2 * SIDE], 258: [8] * 3, 277: [3], 278: [2 * SIDE], 339: [1] * 3, 530: [2, 2]}
    bright = blocks[..., :4].reshape(SIDE, SIDE, 2, 2).swapaxes(1, 2).reshape(2 * SIDE, 2 * SIDE, 1)
    whole = np.concatenate([bright, blocks[..., 4:].repeat(2, 0).repeat(2, 1)], 2)
    expected = np.asarray(Image.frombytes("YCbCr", (2 * SIDE, 2 * SIDE), whole.tobytes()).convert("RGB")).astype(int)
    assert np.abs(read(tmp_path, tiff(blocks, YCBCR, packed=packed, more=tags)) - expected).max() <= 3
    del tags[530]  # halves are the default
    assert np.abs(read(tmp_path, tiff(blocks, YCBCR, packed=packed, more=tags)) - expected).max() <= 3


def test_whole_colours_without_the_tag_of_subsampling_are_read(tmp_path):
    """The default is halves, but there are bytes for all colours."""
    values = noise(256, 3, np.uint8)
    expected = np.asarray(Image.frombytes("YCbCr", (SIDE, SIDE), values.tobytes()).convert("RGB")).astype(int)
    assert np.abs(read(tmp_path, tiff(values, YCBCR)) - expected).max() <= 1


def test_of_a_large_file_the_planes_alone_are_read(tmp_path):
    """Pages that follow may have gigabytes."""
    (tmp_path / "a.tif").write_bytes(tiff(noise(300, 3), separate=True, rows=5))
    with (tmp_path / "a.tif").open("ab") as file:
        file.truncate(2**26)
    read_image(tmp_path / "a.tif")
    tracemalloc.start()
    read_image(tmp_path / "a.tif")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_planes_that_overlap_are_not_read_again_and_again(tmp_path):
    own, more = (struct.pack("<3I", *[size] * 3) for size in (2 * SIDE**2, 4 * SIDE**2))
    with pytest.raises(UnreadableError, match="its strips or tiles overlap"):
        read(tmp_path, tiff(noise(300, 3), separate=True).replace(own, more) + bytes(2 * SIDE**2))


READ_OTHERWISE = {
    "planes": ({"separate": True}, True), "packed planes": ({"separate": True, "packed": True}, False),
    "white": ({"photometric": 0}, True), "grey": ({"photometric": GREY}, False), "colours": ({}, False),
    "order": ({"photometric": GREY, "form": FLOAT, "packed": True, "order": ">"}, True),
    "other order": ({"photometric": GREY, "form": FLOAT, "packed": True}, False),
}  # fmt: skip


@pytest.mark.parametrize(("layout", "otherwise"), READ_OTHERWISE.values(), ids=READ_OTHERWISE)
def test_to_a_run_that_read_a_picture_otherwise_it_is_another(tmp_path, layout, otherwise):
    kind = np.float32 if layout.get("form") == FLOAT else np.uint16
    values = noise(2**16, 1 if "photometric" in layout else 3, kind)
    (tmp_path / "a.tif").write_bytes(tiff(values, **layout))
    before = content_hash([HashedFile(sha256(tmp_path / "a.tif"), "")], SIDE)
    assert (read_folder(tmp_path, SIDE).content != before) == otherwise


def test_no_value_is_black(tmp_path):
    values = noise(4096, 1, np.float32) - 1000
    values[1, :4, 0] = np.nan, np.inf, -np.inf, 3.4e38
    assert (read(tmp_path, tiff(values, GREY, form=FLOAT))[1, :4] == 0).all()


@pytest.mark.parametrize("top", [200, 700, 4096])
def test_the_range_of_colours_is_exact(tmp_path, top):
    for separate in (False, True):
        (tmp_path / "a.tif").write_bytes(tiff(noise(top, 3), separate=separate))
        assert deep_range(tmp_path / "a.tif") == ("RGB;16", 0, top - 1)
    assert f"with values from 0 to {top - 1:,}: 0 is black" in str(read_folder(tmp_path, SIDE).notes)


@pytest.mark.parametrize("top", [200, 300, 5000])
def test_inner_extremes_of_colours_are_those_of_the_sorted_values(top):
    values = np.sort(noise(top, 3, np.uint16), None)
    high, low = (Image.fromarray((noise(top, 3) >> shift & 255).astype(np.uint8)) for shift in (8, 0))
    assert colour_extremes(high, low, inner=True) == (0, values[-2]) and colour_extremes(high, low) == (0, values[-1])


FORMS = {
    "64-bit floating point": (noise(99, 1, np.float64), GREY, FLOAT, "1 channel of 64-bit floating point"),
    "colours in floating point": (noise(99, 3, np.float32), RGB, FLOAT, "3 channels of 32-bit floating point"),
    "two channels": (noise(99, 2), GREY, 1, "2 channels of 16-bit whole numbers"),
    "signed bytes": (noise(99, 1, np.int8), GREY, SIGNED, "1 channel of 8-bit signed whole numbers"),
}


@pytest.mark.parametrize(("values", "kind", "form", "what"), FORMS.values(), ids=FORMS)
def test_a_form_that_is_not_read_is_named_and_not_called_damaged(tmp_path, values, kind, form, what):
    whole = tiff(values, kind, form=form)
    with pytest.raises(UnreadableError) as refused:
        read(tmp_path, whole)
    assert (
        refused.value.reason
        == f"it is a TIFF of {what}, a form that is not read; save it as grey or RGB of 8 or 16 bits"
    )
    with pytest.raises(UnreadableError, match="found a damaged picture"):
        read(tmp_path, whole[:40])


def test_forms_of_large_files_are_named(tmp_path):
    """BigTIFF: of more channels than are read, and in the byte order that Pillow does not read."""
    tags = {256: SIDE, 257: SIDE, 258: 8, 262: RGB, 273: 500, 277: 7}
    entries = b"".join(struct.pack("<HHQQ", tag, 4, 1, value) for tag, value in tags.items())
    whole = struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(tags)) + entries + bytes(8)
    with pytest.raises(UnreadableError, match="it is a TIFF of 7 channels of 8-bit whole numbers"):
        read(tmp_path, whole)
    with pytest.raises(UnreadableError, match="found a damaged picture"):
        read(tmp_path, whole[:40])
    with pytest.raises(UnreadableError, match="it is a BigTIFF in big-endian byte order, a form that is not read"):
        read(tmp_path, struct.pack(">2sHHHQ", b"MM", 43, 8, 0, 16) + bytes(100))


def test_frames_and_pages_after_the_first_are_named_but_not_previews_of_phones(tmp_path):
    first, other = (Image.fromarray(noise(256, 3, np.uint8)[::step]) for step in (1, -1))
    for name, options in {"pages.tif": {}, "moving.gif": {}, "phone.jpg": {"format": "MPO"}}.items():
        first.save(tmp_path / name, save_all=True, append_images=[other], **options)
    first.rotate(90).save(tmp_path / "one.tif")
    expected = "2 pictures were read without the frames or pages after the first; save those that count as files: "
    (note,) = [note for note in read_folder(tmp_path, SIDE).notes if "frames or pages" in note]
    assert note.startswith(expected) and {*note.removeprefix(expected).split(", ")} == {"pages.tif", "moving.gif"}
    properties = {picture.name: picture.properties for picture in survey(tmp_path, SIDE).pictures}
    assert properties["pages.tif"] == ("of several pages",) and "animated" in properties["moving.gif"]
    assert properties["phone.jpg"] == properties["one.tif"] == ()
    assert read_picture(tmp_path / "phone.jpg").size == (SIDE, SIDE) and images.ANIMATED == "animated"
