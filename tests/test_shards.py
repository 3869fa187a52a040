"""A folder of shards is read as the folder that it was made of; what is wrong with one is a line that names it."""

import io
import json
import os
import subprocess
import sys
import tarfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import Keeper, write_pictures

from calotype.cli.commands import FUNCTIONS
from calotype.cli.options import CheckOptions, ShardsOptions
from calotype.data import packing
from calotype.data.folder import read_folder
from calotype.data.packing import write_shards
from calotype.data.shards import MANIFEST, open_shard, scan
from calotype.types import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "SHARD_PICTURES", 4)


@pytest.fixture
def folder(tmp_path):
    """Ten pictures of two classes, captions in three forms, a copy, a file that is no picture, and a deep one."""
    folder = write_pictures(tmp_path / "pictures", 10)
    (folder / "a" / "0.txt").write_text("a red one\nand another\n")
    (folder / "metadata.jsonl").write_text('{"file_name": "b/1.png", "text": "1 2 3 4 5"}\n')
    (folder / "a" / "2.with.dots.png").write_bytes((folder / "a" / "2.png").read_bytes())
    (folder / "b" / "broken.png").write_bytes(b"\x89PNG, but no more")
    Image.fromarray(np.arange(256, dtype=np.uint16).reshape(16, 16) * 16).save(folder / "a" / "deep.png")
    Image.new("RGB", (16, 16), "red").save(folder / "a" / "2.jpg")
    return folder


def fields(pictures):
    return [
        pictures.content, pictures.pixels.tolist(), pictures.labels.tolist(), pictures.classes, pictures.captions,
        {name: inside.tolist() for name, inside in pictures.split.sets.items()},
        [(original.width, original.height) for original in pictures.originals],
    ]  # fmt: skip


def tar(path, members, whole=True):
    """A shard of (name, content), or of ready members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                out.addfile(content)
            else:
                (about := tarfile.TarInfo(name)).size = len(content)
                out.addfile(about, io.BytesIO(content))
    return path


def png(seed=0, size=16):
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def message(work):
    with pytest.raises(UserError) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    return text


def test_shards_give_the_pictures_of_their_folder(folder, tmp_path):
    packed = write_shards(folder, tmp_path / "shards")
    assert packed.pictures == 13 and packed.shards == 4
    assert fields(read_folder(tmp_path / "shards", 16)) == fields(read_folder(folder, 16))
    write_shards(tmp_path / "shards", tmp_path / "again")
    assert fields(read_folder(tmp_path / "again", 16)) == fields(read_folder(folder, 16))


def test_other_readers_of_the_layout_read_them(folder, tmp_path):
    """By keys that end at the first full stop of a name, as webdataset has them."""
    write_shards(folder, tmp_path / "shards")
    samples = {}
    for shard in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(shard) as opened:
            for member in opened:
                parent, _, file = member.name.rpartition("/")
                key, _, kind = file.partition(".")
                sample = samples.setdefault((parent, key), {})
                assert kind not in sample
                sample[kind] = opened.extractfile(member).read()
    assert len(samples) == 13 and all({"png", "jpg"} & {*sample} for sample in samples.values())
    assert samples["a", "0"]["txt"] == b"a red one\nand another"
    assert json.loads(samples["b", "1"]["json"]) == {"captions": ["1 2 3 4 5"]}
    assert all(sample["cls"] == (b"0" if parent == "a" else b"1") for (parent, _), sample in samples.items())


def test_shards_of_others_have_labels_and_captions_in_their_own_forms(tmp_path):
    """Keys that come again in other shards, classes in `cls` or JSON, and files that are passed over."""
    for number in range(2):
        members = [
            ("./0.png", png(10 * number)), ("./0.txt", b"one"), ("./0.cls", b"7"),
            ("1.png", png(10 * number + 1)), ("1.json", b'{"Caption": ["two", "three"], "label": "eight"}'),
            ("2.png", png(10 * number + 2)), ("2.mp4", b"film"), ("3.json", b"{"), (".hidden.png", b""),
        ]  # fmt: skip
        tar(tmp_path / "foreign" / f"{number}.tar", members)
    (tmp_path / "foreign" / "README.md").write_text("of others")
    before = sorted(path.name for path in (tmp_path / "foreign").iterdir())
    pictures = read_folder(tmp_path / "foreign", 16)
    assert len(pictures) == 6 and pictures.classes == ("7", "eight")
    words = {pictures.labels[row].item(): pictures.captions.of[row] for row in range(6)}
    assert words == {0: ("one",), 1: ("two", "three"), -1: ()}
    notes = "; ".join(pictures.notes)
    assert ".mp4 2" in notes and "3.json (not JSON)" in notes
    assert sorted(path.name for path in (tmp_path / "foreign").iterdir()) == before


def test_the_index_of_others_shards_is_kept(tmp_path, monkeypatch):
    shard = tar(tmp_path / "foreign" / "0.tar", [(f"{number}.png", png(number)) for number in range(3)])
    first = open_shard(shard)
    monkeypatch.setattr("calotype.data.shards.scan", None)
    assert torch.equal(open_shard(shard).offsets, first.offsets) and [*open_shard(shard).names] == [*first.names]


def test_a_folder_of_pictures_with_a_tar_is_a_folder(folder):
    tar(folder / "backup.tar", [("x.png", png(99))])
    assert "backup.tar" not in str(read_folder(folder, 16).originals)


def test_writing_goes_on_where_it_was_interrupted(folder, tmp_path, monkeypatch):
    write_shards(folder, tmp_path / "whole")
    written, real = [], packing._write_shard

    def interrupted(shard, part, source):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(shard.name)
        real(shard, part, source)

    monkeypatch.setattr(packing, "_write_shard", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tmp_path / "shards")
    assert "not finished" in message(lambda: read_folder(tmp_path / "shards", 16))
    (tmp_path / "shards" / written[0]).write_bytes(b"cut off")
    monkeypatch.setattr(packing, "_write_shard", lambda shard, *rest: written.append(shard.name) or real(shard, *rest))
    write_shards(folder, tmp_path / "shards")
    assert written[2:] == ["shard-000000.tar", "shard-000002.tar", "shard-000003.tar"]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "shards" / path.name).read_bytes()


def test_a_finished_set_stays_finished_where_writing_it_again_is_interrupted(folder, tmp_path):
    def interrupted(done, total):
        raise KeyboardInterrupt

    write_shards(folder, tmp_path / "shards")
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, tmp_path / "shards", interrupted)
    assert len(read_folder(tmp_path / "shards", 16)) == len(read_folder(folder, 16))


def test_shards_are_not_written_over_something_else(folder, tmp_path):
    assert "inside the pictures" in message(lambda: write_shards(folder, folder / "shards"))
    assert "not an empty folder" in message(lambda: write_shards(folder, write_pictures(tmp_path / "other")))
    write_shards(folder, tmp_path / "shards")
    (folder / "a" / "0.png").unlink()
    assert "other pictures" in message(lambda: write_shards(folder, tmp_path / "shards"))


@pytest.mark.parametrize("lost", [1, 600, 5000, 10240, 12000])
def test_a_shard_that_is_cut_off_is_named(lost, folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-lost])
    assert "shard-000001.tar is cut off" in message(lambda: read_folder(tmp_path / "shards", 16))


def test_without_an_index_a_shard_is_cut_off_where_its_end_is_missing(tmp_path):
    """A tar is filled up with zeros: the first block of them is its end, and the others are nothing."""
    shard = tar(tmp_path / "0.tar", [("0.png", png(0)), ("1.png", png(1)), ("1.txt", b"one")])
    whole, end = shard.read_bytes(), int(scan(shard).offsets[1]) + 1024 + 2 * 512
    assert not any(whole[end:]) and len(whole) > end + 512
    for size in (0, 100, 511, 512, 700, 1024, int(scan(shard).offsets[1]) + 5, end - 700, end - 512, end):
        shard.write_bytes(whole[:size])
        assert "0.tar" in message(lambda: scan(shard)), size
    shard.write_bytes(whole[: end + 512])
    assert len(scan(shard)) == 2


def test_a_shard_that_was_exchanged_or_is_missing_is_named(folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    first, second = (tmp_path / "shards" / f"shard-00000{number}.tar" for number in (0, 1))
    first.write_bytes(first.read_bytes() + bytes(10240))
    assert "shard-000000.tar is another one" in message(lambda: read_folder(tmp_path / "shards", 16))
    first.unlink()
    assert "shard-000000.tar is missing" in message(lambda: read_folder(tmp_path / "shards", 16))
    second.rename(second.with_name("x.tar"))
    second.with_suffix(".index").rename(second.with_name("x.index"))
    tar(first, [])
    second.write_bytes(b"")
    assert "x.tar is not one of the shards" in message(lambda: read_folder(tmp_path / "shards", 16))


def test_pictures_that_are_not_as_the_index_says_are_left_out_and_named(folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000000.tar"
    index = open_shard(shard)
    content = bytearray(shard.read_bytes())
    content[int(index.offsets[1]) + 20] ^= 1
    shard.write_bytes(content)
    pictures = read_folder(tmp_path / "shards", 16)
    assert any(index.names[1] in line and "other content" in line for line in pictures.notes)
    assert len(pictures) == 11  # without the broken one


def test_a_wrong_index_is_named(folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000000.tar"
    index = open_shard(shard)
    damages = {
        "offsets lie outside": {"offsets": index.offsets + 10**9},
        "lie outside the shard": {"sizes": -index.sizes},
        "different lengths": {"sizes": index.sizes[1:]},
        "do not end": {"names.ends": index.names.ends.flip(0)},
        "other types": {"digests": torch.zeros(0)},
        "strings do not": {"names.ends": index.names.ends + 1},
        "no index": {"about": torch.zeros(3)},
    }
    for words, change in damages.items():
        packing.write_tensors(shard.with_suffix(".index"), index.tensors() | change)
        text = message(lambda: read_folder(tmp_path / "shards", 16))
        assert words in text and "shard-000000.index" in text and "remove it" in text
    shard.with_suffix(".index").write_bytes(b"no tensors")
    assert "shard-000000.index" in message(lambda: read_folder(tmp_path / "shards", 16))


@pytest.mark.parametrize("changed", ["a caption", "a label", "names"])
def test_a_shard_of_equal_size_with_other_members_is_read_again(changed, folder, tmp_path):
    """And what the index of the other one says is not believed."""
    write_shards(folder, tmp_path / "shards")
    shard = tmp_path / "shards" / "shard-000000.tar"
    members = [("x/0.png", png(0)), ("x/0.txt", b"one"), ("x/0.cls", b"1")]
    tar(shard, members)
    packing.write_tensors(shard.with_suffix(".index"), scan(shard).tensors())
    assert not open_shard(shard).renewed and not open_shard(shard).renewed
    name = "y" if changed == "names" else "x"
    other = {"a caption": [*members[:1], ("x/0.txt", b"two"), members[2]], "a label": [*members[:2], ("x/0.cls", b"2")]}
    tar(shard, other.get(changed) or [(f"{name}{file[1:]}", content) for file, content in members])
    for _ in range(2):  # scanned, and from the cache
        index = open_shard(shard)
        assert index.renewed and [*index.names] == [f"{name}/0.png"]
        assert [*index.texts] == ["two" if changed == "a caption" else "one"]
        assert [*index.labels] == ["2" if changed == "a label" else "1"]


def test_a_plan_says_which_index_was_made_again(tmp_path):
    shard = tar(tmp_path / "0.tar", [("x/0.png", png(0))])
    packing.write_tensors(shard.with_suffix(".index"), scan(shard).tensors())
    tar(shard, [("y/0.png", png(0))])
    pictures = read_folder(tmp_path, 16)
    assert pictures.classes == ("y",) or "y/0.png" in pictures.file(0)
    assert any("1 shard was read again" in line and "0.tar" in line for line in pictures.notes)


def test_a_copied_shard_keeps_its_index(folder, tmp_path, monkeypatch):
    """Its time is another one, but all that can be read beside the pictures is equal."""
    write_shards(folder, tmp_path / "shards")
    before = fields(read_folder(tmp_path / "shards", 16))
    monkeypatch.setattr("calotype.data.shards.scan", None)
    for shard in (tmp_path / "shards").glob("*.tar"):
        shard.write_bytes(shard.read_bytes())
    assert fields(read_folder(tmp_path / "shards", 16)) == before


def test_what_killed_processes_have_left_is_removed(folder, tmp_path, monkeypatch):
    """So it does not count as room on the disk that is taken already."""
    out = tmp_path / "shards"
    write_shards(folder, out)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    left = out / f".shard-000001.tar.{child.pid}.tmp"
    own = out / f".shard-000009.tar.{os.getpid()}.tmp"
    for file in (left, own):
        file.write_bytes(bytes(10**6))
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=100))
    for path in out.glob("shard-*"):
        path.unlink()
    assert "the shards take" in message(lambda: write_shards(folder, out))
    assert not left.exists() and own.exists()


def link(kind):
    about = tarfile.TarInfo("link.png")
    about.type, about.linkname = kind, "/etc/passwd"
    return about


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("../outside.png", b"x", "leads outside"),
        ("a/../../outside.png", b"x", "leads outside"),
        ("/etc/outside.png", b"x", "leads outside"),
        ("x" * 5000 + ".png", b"x", "leads outside"),
        ("", link(tarfile.SYMTYPE), "is a link"),
        ("", link(tarfile.LNKTYPE), "is a link"),
        ("", link(tarfile.FIFOTYPE), "is a device"),
        ("", link(tarfile.CHRTYPE), "is a device"),
    ],
)  # fmt: skip
def test_members_that_are_no_files_or_lead_outside_are_refused(name, content, words, tmp_path):
    tar(tmp_path / "bad" / "0.tar", [("good.png", png()), (name, content)])
    text = message(lambda: read_folder(tmp_path / "bad", 16))
    assert words in text and "0.tar" in text and len(text) < 400


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b\x08 gzip", b"no tar at all" * 100, bytes(10)])
def test_what_is_no_tar_is_named(content, tmp_path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "0.tar").write_bytes(content)
    assert "0.tar" in message(lambda: read_folder(tmp_path / "bad", 16))


def test_damaged_manifests_are_named(folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    (tmp_path / "shards" / MANIFEST).write_text('{"content": 3}')
    assert MANIFEST in message(lambda: read_folder(tmp_path / "shards", 16))


def test_the_commands_take_them(folder, tmp_path):
    console = Keeper()
    FUNCTIONS[ShardsOptions](ShardsOptions(folder, tmp_path / "shards"), console)
    assert any(line.startswith("13 pictures in 4 shards") for line in console.printed)
    check = Keeper()
    FUNCTIONS[CheckOptions](CheckOptions(tmp_path / "shards", 16), check)
    printed = "\n".join(check.printed)
    assert "12 of 13 files can be read" in printed and "captions     2 in shards" in printed


def test_shards_of_shards_keep_pictures_whose_keys_are_equal(tmp_path):
    for place in range(2):
        pictures = [(f"{key}.png", noise_png(10 * place + key)) for key in range(3)]
        tar(tmp_path / "shards" / f"s{place}.tar", pictures)
    assert write_shards(tmp_path / "shards", tmp_path / "again").pictures == 6
    again, first = (read_folder(tmp_path / name, 16, tmp_path / name / "cache") for name in ("again", "shards"))
    assert len(again) == len(first) == 6 and again.content


def noise_png(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def test_a_damaged_header_in_the_middle_is_named(tmp_path):
    shard = tar(tmp_path / "shards" / "x.tar", [(f"{key}.png", noise_png(key)) for key in range(5)])
    with tarfile.open(shard) as whole:
        third = whole.getmembers()[2].offset
    content = bytearray(shard.read_bytes())
    content[third + 10] ^= 1
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"x.tar is damaged after 2 pictures, at byte {third:,}"):
        scan(shard)


@pytest.mark.parametrize("label", [".x", ".."])
def test_a_class_that_would_be_hidden_is_refused_and_its_picture_kept(label, tmp_path):
    tar(tmp_path / "shards" / "x.tar", [("0.png", noise_png(0)), ("0.cls", label.encode()), ("1.png", noise_png(1))])
    assert write_shards(tmp_path / "shards", tmp_path / "again").pictures == 2
    assert len(open_shard(tmp_path / "again" / "shard-000000.tar").digests) == 2


def test_a_caption_with_half_of_a_surrogate_pair_is_refused_by_name(tmp_path):
    shard = tar(tmp_path / "x.tar", [("0.png", noise_png(0)), ("0.json", b'{"caption": "a \\ud800 b"}')])
    index = scan(shard)
    assert len(index.digests) == 1 and "0.json" in index.facts.refused[0]
