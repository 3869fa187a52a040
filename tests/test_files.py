import contextlib
import errno
import json
import os
import shutil
import stat
from pathlib import Path

import pytest
import torch

from calotype.files import damage, is_whole, read_json, whole_folder, write_json, write_whole
from calotype.finite import is_finite
from calotype.types import UserError


class Disk:
    """Counts what must reach the disk, and fails at one of the calls."""

    def __init__(self, patch, fails_at=None, *others):
        self.calls, self.fails_at = 0, fails_at
        for owner, name in ((os, "fsync"), (Path, "replace"), (Path, "rename"), *others):
            patch.setattr(owner, name, self.counting(getattr(owner, name)))

    def counting(self, real):
        def call(*arguments, **more):
            self.calls += 1
            if self.calls - 1 == self.fails_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **more)

        return call


def every_failure(work, *others):
    """Calls `work` once for each of the calls that can fail, and tells which one does."""
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, None, *others)
        work(None)
    assert disk.calls
    for fails_at in range(disk.calls):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, fails_at, *others)
            work(fails_at)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_two(path, text):
    with whole_folder(path) as folder:
        write_whole(folder / "a.txt", text)
        write_json(folder / "b.json", {"text": text})


@pytest.mark.parametrize("content", ["", "ünï\n", b"\x00\xff" * 1000])
def test_a_file_is_written_as_given(tmp_path, content):
    write_whole(tmp_path / "new" / "folder" / "file", content)
    expected = content if isinstance(content, bytes) else content.encode()
    assert contents(tmp_path) == {"new/folder/file": expected}


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    """Its content reaches the disk first, then it takes the name, then the name reaches the disk."""
    steps = ["content", "name", "name on disk"]

    def work(fails_at):
        (tmp_path / "file").write_text("old")
        if fails_at is None:
            write_whole(tmp_path / "file", "new")
        else:
            with pytest.raises(OSError, match="No space"):
                write_whole(tmp_path / "file", "new")
        old = fails_at is not None and steps[fails_at] != "name on disk"
        assert contents(tmp_path) == {"file": b"old" if old else b"new"}

    every_failure(work)


def test_who_reads_the_old_file_goes_on_reading_it(tmp_path):
    write_whole(tmp_path / "file", "old")
    (tmp_path / "again").hardlink_to(tmp_path / "file")
    write_whole(tmp_path / "file", "new")
    assert contents(tmp_path) == {"file": b"new", "again": b"old"}


@pytest.mark.parametrize("before", [{}, {"a.txt": b"old"}], ids=["nothing", "old"])
def test_a_folder_is_the_old_one_or_the_new_one(tmp_path, before):
    """Wherever the disk is full, and without a trace of the attempt."""
    write_two(tmp_path / "model" / "folder", "old")

    def work(fails_at):
        path = tmp_path / str(fails_at) / "folder"
        if before:
            shutil.copytree(tmp_path / "model", path.parent)
        with contextlib.nullcontext() if fails_at is None else pytest.raises(OSError, match="No space"):
            write_two(path, "new")
        found = contents(path.parent)
        texts = {Path(name).name: text for name, text in found.items() if name.endswith("a.txt")}
        assert texts == {"a.txt": b"new"} if fails_at is None else texts in (before, {"a.txt": b"new"})
        assert len(found) == 3 * len(texts) and is_whole(path) == bool(texts)

    every_failure(work)


def test_a_folder_that_is_given_up_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_manifest_tells_of_every_file_and_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_two(tmp_path / "folder", "text")
    finally:
        os.umask(before)
    manifest = read_json(tmp_path / "folder" / "manifest.json")
    assert sorted(manifest) == ["a.txt", "b.json"] and manifest["a.txt"]["bytes"] == 4
    modes = {stat.S_IMODE((tmp_path / "folder" / name).stat().st_mode) for name in (*manifest, "manifest.json")}
    assert modes == {0o666 & ~umask}


def test_all_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_the_name(tmp_path, monkeypatch):
    """Also those that were not written by `write_whole`; after a crash, what has a manifest is complete."""
    order, names = [], {}

    def record(owner, name, what):
        real = getattr(owner, name)

        def call(first, *more):
            order.append(what(first))
            return real(first, *more)

        monkeypatch.setattr(owner, name, call)

    record(os, "fsync", lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink().name)
    record(Path, "rename", lambda path: "rename")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "other.txt").write_text("not flushed by who wrote it")
        names["temporary"] = folder.name
    manifest = next(place for place, name in enumerate(order) if name.startswith(".manifest.json."))
    assert order.index("other.txt") < manifest < order.index(names["temporary"]) < order.index("rename")
    assert order[-1] == tmp_path.name


def damages(folder):
    """Every way to damage each of the files in a folder."""
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        for new in (flipped, content[:middle], b"", None):
            yield path, new


def test_every_damage_is_seen_and_named(tmp_path):
    folder = tmp_path / "folder"
    write_two(folder, "text")
    assert is_whole(folder) and damage(folder) == ""
    for path, damaged in damages(folder):
        sound = path.read_bytes()
        path.unlink() if damaged is None else path.write_bytes(damaged)
        assert not is_whole(folder), (path.name, damaged)
        named = "other content" if path.name != "manifest.json" else ""  # a flipped bit there may name any file
        expected = f"{path.name} is missing" if damaged is None else named if len(damaged) == len(sound) else path.name
        assert expected in damage(folder) and "\n" not in damage(folder)
        path.write_bytes(sound)
    assert is_whole(folder) and damage(tmp_path / "elsewhere") == "manifest.json is missing"


@pytest.mark.parametrize("manifest", ["{}", "[]", "1", "null", '{"a.txt": 1}', '{"a.txt": {}}', "{", "\xff"])
def test_a_manifest_that_is_none_vouches_for_nothing(tmp_path, manifest):
    write_two(tmp_path / "folder", "text")
    (tmp_path / "folder" / "manifest.json").write_bytes(manifest.encode("latin-1"))
    assert not is_whole(tmp_path / "folder")


def test_json_comes_back(tmp_path):
    value = {"ü": [1, 2.5, None, True, float("inf")], "": {}}
    write_json(tmp_path / "value.json", value)
    assert read_json(tmp_path / "value.json") == value
    assert json.loads((tmp_path / "value.json").read_text()) == value


@pytest.mark.parametrize(
    ("content", "message"), [(None, "is missing"), (b"{", "is not JSON"), (b"\xff", "is not JSON")]
)
def test_what_is_not_json_is_the_users_to_mend(tmp_path, content, message):
    if content is not None:
        (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(tmp_path / "x.json")
    assert "x.json" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("place", [0, 6, 9])
def test_a_tensor_is_checked_for_nan_a_part_at_a_time(monkeypatch, place):
    monkeypatch.setattr("calotype.finite.CHECKED_AT_ONCE", 4)
    values = torch.zeros(2, 5)
    assert is_finite(values) and is_finite(values.T) and is_finite(torch.empty(0, 3)) and is_finite(torch.tensor(1))
    values.view(-1)[place] = float("nan")
    assert not is_finite(values) and not is_finite(values.T)
