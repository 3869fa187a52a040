import errno
import os
import shutil
import subprocess
import sys
from collections import namedtuple

import numpy as np
import pytest
import torch
from PIL import Image

from calotype.data import captions, hashes, images, listing
from calotype.data import folder as module
from calotype.data.folder import Pictures, read_folder
from calotype.data.images import fit, read_image
from calotype.types import NULL_LABEL, UserError


def picture(path, seed, size=20):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(path)
    return path


def album(folder, count, first=0):
    return [picture(folder / f"{seed:04}.png", seed) for seed in range(first, first + count)]


def rows(pictures: Pictures, chosen=slice(None)):
    """As a set, whatever the order."""
    return {bytes(row.numpy().tobytes()) for row in pictures.pixels[chosen]}


def pixels_of(path, size=16):
    return fit(read_image(path), size).transpose(2, 0, 1).tobytes()


def noted(pictures, *words):
    return any(all(word in note for word in words) for note in pictures.notes)


def test_each_picture_is_there_once_as_the_decoder_gives_it(tmp_path):
    paths = [*album(tmp_path, 3), *album(tmp_path / "deeper" / "still", 3, first=3)]
    pictures = read_folder(tmp_path, 16)
    assert pictures.pixels.shape == (6, 3, 16, 16) and rows(pictures) == {pixels_of(path) for path in paths}
    assert pictures.classes == () and (pictures.labels == NULL_LABEL).all()
    assert pictures.notes == pictures.split.notes


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist there")
def test_downsampling_a_few_at_a_time_is_as_all_at_once(tmp_path, monkeypatch):
    album(tmp_path, 7)
    pictures = read_folder(tmp_path, 16)
    means = pictures.pixels.double().reshape(7, 3, 8, 2, 8, 2).mean((3, 5))
    monkeypatch.setattr(module, "SHRUNK_VALUES", 2 * 3 * 16**2)
    seen, shrunk = [], module.shrunk
    monkeypatch.setattr(module, "shrunk", lambda images, factor: seen.append(len(images)) or shrunk(images, factor))
    small = pictures.shrunk(8)
    assert (small.pixels - means).abs().max() <= 0.5 and seen == [2, 2, 2, 1]
    assert torch.equal(pictures.first(3, 2).pixels, small.pixels[:6:2])
    assert torch.equal(pictures.first(3).pixels, pictures.pixels[:6:2])
    assert torch.equal(pictures.first(3).labels, pictures.labels[:6:2])


def test_names_make_no_difference(tmp_path):
    names = [
        "ảnh 猫.PNG",
        "a\nb.png",
        "-rf.png",
        "x.tar.gz.Png",
        os.fsdecode(b"\xff\xfe.png"),
        "\u202egpj.png",
        "%s{}.png",
    ]
    for seed, name in enumerate(names):
        picture(tmp_path / "odd" / name, seed)
        picture(tmp_path / "plain" / f"{seed}.png", seed)
    odd, plain = read_folder(tmp_path / "odd", 16), read_folder(tmp_path / "plain", 16)
    assert odd.content == plain.content and torch.equal(odd.pixels, plain.pixels)
    assert all(torch.equal(inside, plain.split.sets[name]) for name, inside in odd.split.sets.items())


def test_content_tells_the_pictures_and_the_size(tmp_path):
    album(tmp_path, 3)
    seen = {read_folder(tmp_path, 16).content, read_folder(tmp_path, 17).content}
    picture(tmp_path / "0001.png", seed=77)
    seen.add(read_folder(tmp_path, 16).content)
    picture(tmp_path / "new.png", seed=78)
    seen.add(read_folder(tmp_path, 16).content)
    assert len(seen) == 4


def test_equal_files_are_read_once(tmp_path):
    paths = album(tmp_path, 4)
    for name in ("copy.png", "deeper.png"):
        shutil.copy(paths[0], tmp_path / name)
    pictures = read_folder(tmp_path, 16)
    assert len(pictures) == 4 and noted(pictures, "2 duplicates were left out")


def test_what_cannot_be_read_is_left_out_and_reported(tmp_path):
    paths = album(tmp_path, 12)
    paths[3].write_bytes(paths[3].read_bytes()[:-300])
    paths[7].write_text("no picture")
    pictures = read_folder(tmp_path, 16)
    assert rows(pictures) == {pixels_of(path) for path in paths if path not in (paths[3], paths[7])}
    assert noted(pictures, "2 of 12 files could not be read", "0003.png (damaged", "0007.png (found text")


def test_a_picture_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    paths = album(tmp_path, 4)
    read_picture = module.read_picture

    def growing(path, *rest):
        if path == paths[2]:
            path.write_bytes(path.read_bytes() + b"more")
        if path == paths[1]:
            path.unlink()
        return read_picture(path, *rest)

    monkeypatch.setattr(module, "read_picture", growing)
    pictures = read_folder(tmp_path, 16)
    assert len(pictures) == 2
    assert noted(pictures, "2 of 4 files", "0001.png (no such file", "0002.png (it changed while it was read")


FAILING = {"hash": (hashes, "sha256"), "decode": (module, "read_picture"), "open": (images, "with_picture"),
           "stamp": (module, "stamp"), "captions": (captions, "decode_text"), "list": (listing.os, "walk")}  # fmt: skip


@pytest.mark.parametrize(("place", "name"), FAILING.values(), ids=FAILING)
@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE])
def test_a_disk_that_fails_ends_the_command_and_makes_no_smaller_set(tmp_path, monkeypatch, place, name, number):
    paths, done = album(tmp_path, 4), getattr(place, name)
    paths[1].with_suffix(".txt").write_text("a caption")

    def failing(path, *rest, **more):
        error = OSError(number, os.strerror(number), str(tmp_path))
        if name == "walk":
            more["onerror"](error)
        if name == "decode_text" or path == paths[1]:
            raise error
        return done(path, *rest, **more)

    monkeypatch.setattr(place, name, failing)
    with pytest.raises(UserError, match=f"cannot be read: {os.strerror(number)}; no set is made without it"):
        read_folder(tmp_path, 16)


def test_small_pictures_are_enlarged_and_reported(tmp_path):
    album(tmp_path, 3)
    picture(tmp_path / "small.png", 9, size=15)
    pictures = read_folder(tmp_path, 16)
    assert len(pictures) == 4 and noted(pictures, "1 picture was smaller than 16 px, and enlarged")


def test_subfolders_are_classes(tmp_path):
    for place, name in enumerate(("dog", "cat", "cow")):
        album(tmp_path / name / "deeper", 3, first=10 * place)
    picture(tmp_path / "beside.png", 99)
    pictures = read_folder(tmp_path, 16)
    assert pictures.classes == ("cat", "cow", "dog")
    for label, name in enumerate(pictures.classes):
        paths = (tmp_path / name).rglob("*.png")
        assert rows(pictures, pictures.labels == label) == {pixels_of(path) for path in paths}
    assert rows(pictures, pictures.labels == NULL_LABEL) == {pixels_of(tmp_path / "beside.png")}
    assert noted(pictures, "3 classes", "cat 3") and noted(pictures, "1 picture was left without a label")


def test_one_subfolder_is_not_a_class(tmp_path):
    album(tmp_path / "only", 3)
    (tmp_path / "empty").mkdir()
    assert read_folder(tmp_path, 16).classes == ()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_that_lead_outside_are_not_followed(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    album(inside, 2), album(outside, 3, first=10)
    (inside / "one.png").symlink_to(outside / "0010.png")
    (inside / "all").symlink_to(outside)
    (inside / "again").symlink_to(inside)
    (inside / "broken.png").symlink_to(inside / "gone.png")
    pictures = read_folder(inside, 16)
    assert rows(pictures) == {pixels_of(inside / f"000{n}.png") for n in range(2)}
    assert noted(pictures, "2 links were not followed")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files there")
def test_hidden_files_pipes_and_other_files_are_passed_over(tmp_path):
    album(tmp_path, 2), album(tmp_path / ".trash", 2, first=10)
    picture(tmp_path / ".hidden.png", 20)
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("notes.txt", "a.heic", "b.HEIC", "none"):
        (tmp_path / name).write_text("")
    pictures = read_folder(tmp_path, 16)
    assert len(pictures) == 2 and noted(pictures, "2 files were passed over", ".txt 1", "none 1")
    assert noted(pictures, "1 picture was a pipe, a device or a broken link, not a file: pipe.png")
    assert noted(pictures, "2 hidden items were passed over")
    assert noted(pictures, "2 HEIC pictures were left out; install")


def refusal(folder, size=16):
    with pytest.raises(UserError) as refused:
        read_folder(folder, size)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_a_wrong_folder_is_refused_with_the_way_out(tmp_path):
    path = picture(tmp_path / "holiday" / "a.png", 0)
    assert f"did you mean {tmp_path / 'holiday'}?" in refusal(tmp_path / "holidya")
    assert "there is no folder" in refusal(tmp_path / "nowhere" / "at all")
    assert str(path.parent) in refusal(path) and "is a file" in refusal(path)
    assert "size of the pictures is 0 px" in refusal(path.parent, size=0)


def test_a_folder_without_pictures_is_refused_with_what_was_found(tmp_path):
    assert ".webp" in refusal(tmp_path) and "it is empty" in refusal(tmp_path)
    (tmp_path / "a.heic").write_text("")
    assert "1 HEIC picture was left out; install" in refusal(tmp_path)
    (tmp_path / "a.png").write_text("")
    assert "a.png (found nothing (0 bytes)" in refusal(tmp_path)


def test_progress_counts_every_picture(tmp_path):
    album(tmp_path, 5)
    seen = []
    read_folder(tmp_path, 16, progress=lambda *step: seen.append(step))
    assert seen == [(done, 5) for done in range(1, 6)]


@pytest.fixture
def no_memory(monkeypatch):
    monkeypatch.setattr(module.psutil, "virtual_memory", lambda: namedtuple("Memory", "available")(100))


def unreadable(*_, **__):
    raise AssertionError("decoded again")


def test_pictures_on_disk_are_those_in_memory_and_are_decoded_once(tmp_path, monkeypatch, request):
    paths = album(tmp_path / "album", 12)
    paths[5].write_text("no picture")
    in_memory = read_folder(tmp_path / "album", 16, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    request.getfixturevalue("no_memory")
    for _ in range(2):
        on_disk = read_folder(tmp_path / "album", 16, tmp_path / "cache")
        assert torch.equal(on_disk.pixels, in_memory.pixels) and torch.equal(on_disk.labels, in_memory.labels)
        assert (on_disk.content, on_disk.notes) == (in_memory.content, in_memory.notes)
        monkeypatch.setattr(module, "read_picture", unreadable)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_that_was_cut_off_is_written_again(tmp_path, no_memory):
    album(tmp_path / "album", 4)
    first = read_folder(tmp_path / "album", 16, tmp_path / "cache")
    expected = first.pixels.clone()
    (stored,) = (tmp_path / "cache").glob("*.npy")
    stored.write_bytes(stored.read_bytes()[:1000])
    assert torch.equal(read_folder(tmp_path / "album", 16, tmp_path / "cache").pixels, expected)


def test_a_stop_while_the_cache_is_written_leaves_nothing_behind(tmp_path, no_memory):
    def stop(done, total):
        raise KeyboardInterrupt

    album(tmp_path / "album", 4)
    with pytest.raises(KeyboardInterrupt):
        read_folder(tmp_path / "album", 16, tmp_path / "cache", stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_what_a_killed_process_has_left_a_day_ago_is_removed(tmp_path, no_memory):
    album(tmp_path / "pictures", 2)
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    (tmp_path / "cache").mkdir()
    old, new = (tmp_path / "cache" / f".pixels-{name}.npy.{child.pid}.tmp" for name in ("old", "new"))
    for file in (old, new):
        file.write_bytes(b"left")
    os.utime(old, (0, 0))
    read_folder(tmp_path / "pictures", 16, tmp_path / "cache")
    assert not old.exists() and new.exists()


def test_a_full_disk_is_reported_before_anything_is_decoded(tmp_path, no_memory, monkeypatch):
    album(tmp_path / "album", 4)
    monkeypatch.setattr("shutil.disk_usage", lambda _: namedtuple("Usage", "free")(100))
    monkeypatch.setattr(module, "read_picture", unreadable)
    with pytest.raises(UserError, match=r"only 0\.0 GB are free"):
        read_folder(tmp_path / "album", 16, tmp_path / "cache")
