"""Shards that a text file lists, here or elsewhere: the same pictures, of which no shard is read as a whole."""

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from small import SETTINGS, Keeper, be_quick, request, write_pictures
from test_shards import fields

from calotype.cli import commands
from calotype.data import packing, remote
from calotype.data.folder import read_folder
from calotype.data.packing import write_shards
from calotype.run import Run
from calotype.types import UserError


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "SHARD_PICTURES", 4)
    monkeypatch.setattr(remote, "PAUSES", ())


@pytest.fixture
def shards(tmp_path):
    write_shards(write_pictures(tmp_path / "pictures"), tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def ranges(shards, monkeypatch):
    """The same shards in memory, and the ranges that are read of them."""
    memory, read, real = fsspec.filesystem("memory"), [], MemoryFileSystem.cat_file
    memory.store.clear()
    for file in shards.iterdir():
        memory.pipe_file(f"/shards/{file.name}", file.read_bytes())

    def cat_file(self, path, start=None, end=None, **more):
        read.append((path, start, end))
        return real(self, path, start=start, end=end, **more)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", cat_file)
    return read


def listed(folder, shards, place):
    names = sorted(path.name for path in shards.glob("*.tar"))
    assert len(names) == 3
    (folder / "list.txt").write_text("# three of them\n\n" + "".join(f"{place}/{name}\n" for name in names))
    return folder / "list.txt"


def test_listed_shards_are_those_of_their_folder(tmp_path, shards):
    expected = fields(read_folder(shards, 16))
    assert fields(read_folder(listed(tmp_path, shards, "shards"), 16)) == expected


def test_shards_elsewhere_are_read_by_ranges_and_never_whole(tmp_path, shards, ranges):
    expected = fields(read_folder(shards, 16))
    assert fields(read_folder(listed(tmp_path, shards, "memory://shards"), 16)) == expected
    pictures = [(start, end) for path, start, end in ranges if path.endswith(".tar")]
    sizes = {path.stat().st_size for path in (tmp_path / "pictures").rglob("*.png")}
    assert len(set(pictures)) == 10 and {end - start for start, end in pictures} == sizes


def test_a_run_is_trained_on_shards_elsewhere(tmp_path, shards, ranges, monkeypatch):
    be_quick(monkeypatch)
    file = listed(tmp_path, shards, "memory://shards")
    run = Run.open(commands.train(request(file, tmp_path / "run", settings=SETTINGS), Keeper()))
    assert run.state.status == "finished" and run.state.data == str(file)


def test_what_has_changed_elsewhere_is_refused(tmp_path, shards, ranges):
    file = listed(tmp_path, shards, "memory://shards")
    store = fsspec.filesystem("memory")
    (name, *_) = sorted(path.name for path in shards.glob("*.tar"))
    content = (shards / name).read_bytes()
    store.pipe_file(f"/shards/{name}", content[:-512])
    with pytest.raises(UserError, match="cut off"):
        read_folder(file, 16)
    store.pipe_file(f"/shards/{name}", bytes(len(content)))
    assert any("could not be read" in note for note in read_folder(file, 16).notes)
    store.rm(f"/shards/{name.replace('.tar', '.index')}")
    with pytest.raises(UserError, match=r"\.index cannot be read: .* needs its index beside it"):
        read_folder(file, 16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "lists no shards"),
        ("a.zip", r"line 1: 'a.zip' is no shard; expected a \.tar file"),
        ("#\nmissing.tar", "line 2: 'missing.tar' is no shard"),
        ("nowhere://x/a.tar", "nowhere://x/a.index cannot be opened by fsspec"),
    ],
)
def test_a_list_of_what_are_no_shards_is_one_line(text, message, tmp_path):
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_folder(tmp_path / "list.txt", 16)
    assert "\n" not in str(error.value)
