import os
import time

import pytest

from calotype.data import hashes
from calotype.data.hashes import hash_files, hashes_file, read_hashes


@pytest.fixture
def album(tmp_path, monkeypatch):
    """Files that have not changed for a while, and a place of their own for their hashes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "FEWEST_KEPT", 3)
    (folder := tmp_path / "album").mkdir()
    for name in NAMES:
        (folder / name).write_text(name)
        settle(folder / name)
    return folder


NAMES = ["a.png", "b\n.png", "ü.png", 'quote".png']


@pytest.fixture(autouse=True)
def settled_at_once(monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 0)


def settle(path, seconds=10):
    before = time.time_ns() - seconds * 10**9
    os.utime(path, ns=(before, before))


def read_again(folder, monkeypatch, names=NAMES):
    """Names of the files whose hashes are taken, and the hashes."""
    taken, real = [], hashes.sha256
    with monkeypatch.context() as patch:
        patch.setattr(hashes, "sha256", lambda path: taken.append(path.name) or real(path))
        hashed, refused = hash_files(folder, names)
    assert not refused
    return sorted(taken), {name: digest for name, (digest, _) in hashed.items()}


def test_a_file_that_has_not_changed_is_hashed_once(album, monkeypatch):
    first, digests = read_again(album, monkeypatch)
    assert first == sorted(NAMES) and read_again(album, monkeypatch) == ([], digests)


def test_a_file_of_another_size_or_time_is_hashed_again(album, monkeypatch):
    digests = read_again(album, monkeypatch)[1]
    (album / "a.png").write_text("z.png")
    settle(album / "a.png", 5)
    (album / "ü.png").write_text("longer")
    settle(album / "ü.png", 10)
    again, changed = read_again(album, monkeypatch)
    assert again == ["a.png", "ü.png"] and {name for name in NAMES if changed[name] != digests[name]} == {*again}
    assert read_again(album, monkeypatch) == ([], changed)


def test_a_file_exchanged_for_one_of_equal_size_and_time_is_hashed_again(album, monkeypatch):
    """As `cp -p` and `rsync -t` do."""
    digests = read_again(album, monkeypatch)[1]
    time_before = (album / "a.png").stat().st_mtime_ns
    time.sleep(0.02)
    (album / "a.png").write_text("z" * (album / "a.png").stat().st_size)
    os.utime(album / "a.png", ns=(time_before, time_before))
    again, changed = read_again(album, monkeypatch)
    assert again == ["a.png"] and changed["a.png"] != digests["a.png"]


def test_the_hash_of_a_file_that_has_just_changed_is_not_kept(album, monkeypatch):
    monkeypatch.setattr(hashes, "SETTLED", 5 * 10**8)
    time.sleep(0.6)
    (album / "a.png").write_text("other")
    assert "a.png" in read_again(album, monkeypatch)[0] and read_again(album, monkeypatch)[0] == ["a.png"]


def test_other_files_are_forgotten_and_other_folders_are_others(album, monkeypatch):
    read_again(album, monkeypatch)
    read_again(album, monkeypatch, NAMES[:3])
    assert len(read_hashes(hashes_file(album))) == 3
    album.rename(album.with_name("moved"))
    assert read_again(album.with_name("moved"), monkeypatch)[0] == sorted(NAMES)


@pytest.mark.parametrize("damage", [b"", b"calotype hashes 2\n", b"calotype hashes 1\n\xff\xfe\x00 1 2\n"])
def test_a_damaged_cache_costs_time_alone(album, damage, monkeypatch):
    digests = read_again(album, monkeypatch)[1]
    hashes_file(album).write_bytes(damage)
    assert read_again(album, monkeypatch) == (sorted(NAMES), digests)
    kept = hashes_file(album).read_bytes()
    hashes_file(album).write_bytes(kept[:-20])
    assert len(read_again(album, monkeypatch)[0]) == 1 and hashes_file(album).read_bytes() == kept


def test_a_folder_without_a_place_for_the_cache_is_hashed(album, monkeypatch):
    hashes_file(album).parent.parent.mkdir(parents=True)
    hashes_file(album).parent.write_text("a file")
    assert read_again(album, monkeypatch)[0] == read_again(album, monkeypatch)[0] == sorted(NAMES)
