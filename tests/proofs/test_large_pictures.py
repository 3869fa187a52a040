"""Pictures of small files and many pixels, as bombs are: read within 2 GB and 5 s of processor time, or refused.

`make proofs` runs it; each picture is read by a process of its own, which says what it has taken.
"""

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_cli import python

SIDE, SIZE = 13_000, 64
MOST_BYTES, MOST_SECONDS = 2e9, 5.0
READ = """
import time
from pathlib import Path
from calotype.data.images import read_image
from calotype.types import UserError
began = time.process_time()
try:
    print(read_image(Path(FILE), SIZE).size)
except UserError as error:
    print(error)
(peak,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(1024 * int(peak.split()[1]), time.process_time() - began)
"""


def deep_png(path, side, colours, bands, row):
    """A PNG of 16 bits whose rows are all alike."""
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(b"\0" + row * (side * bands)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 16, colours, 0, 0, 0)
    chunks = [b"IHDR" + header, b"IDAT" + rows, b"IEND"]
    parts = [struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


PLAIN = {"L": 200, "LA": (200, 255), "RGB": (9, 99, 200), "RGBA": (9, 99, 200, 100), "CMYK": (9, 99, 200, 0), "1": 1}
DEEP = {
    "grey": (SIDE, 0, 1, b"\x01\x00"), "colours": (SIDE, 2, 3, b"\x01\x00"), "opacity": (SIDE, 6, 4, b"\xff\xff"),
    "12 bits, the largest": (10_800, 2, 3, b"\x0f\xff"), "grey with opacity": (SIDE, 4, 2, b"\x0f\xff"),
}  # fmt: skip


def taken(path):
    process = python(f"FILE, SIZE = {str(path)!r}, {SIZE}", READ, stderr=subprocess.STDOUT)
    *lines, last = process.communicate(timeout=200)[0].splitlines()
    memory, seconds = map(float, last.split())
    print(f"{path.name}: {memory / 1e9:.2f} GB, {seconds:.1f} s; {lines[-1]}")
    assert memory < MOST_BYTES and seconds < MOST_SECONDS, lines


@pytest.mark.parametrize("mode", [*PLAIN, "P"])
def test_a_large_picture_of_one_colour(tmp_path, mode):
    image = Image.new("L" if mode == "P" else mode, (SIDE, SIDE), PLAIN.get(mode, 3))
    if mode == "P":
        image = image.convert("P")
        image.info["transparency"] = 0
    path = tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}"
    image.save(path, **({"compression": "tiff_adobe_deflate"} if mode == "CMYK" else {}))
    taken(path)


@pytest.mark.parametrize("name", DEEP)
def test_a_large_picture_of_16_bits(tmp_path, name):
    deep_png(tmp_path / f"{name}.png", *DEEP[name])
    taken(tmp_path / f"{name}.png")
