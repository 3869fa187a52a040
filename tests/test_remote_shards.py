"""Shards of a list, and at addresses, give the pictures of their folder, and are read in ranges."""

import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest
from small import Keeper, be_quick, request, write_pictures
from test_shards import fields, message, png, tar

from calotype.cli import commands
from calotype.cli.commands.resuming import place_of_pictures, read_unchanged
from calotype.cli.commands.training import set_name
from calotype.data import packing, remote, shard_sets
from calotype.data.folder import read_folder
from calotype.data.packing import write_shards
from calotype.data.remote import remote_address
from calotype.data.shard_sets import find_shards
from calotype.data.shards import INDEX, MANIFEST
from calotype.run import Run
from calotype.settings import parse_recipe, read_recipe
from calotype.training import pipeline

MEMORY = "memory://shards"


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "SHARD_PICTURES", 4)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))


@pytest.fixture
def folder(tmp_path):
    folder = write_pictures(tmp_path / "pictures", 10)
    (folder / "a" / "0.txt").write_text("a red one\n")
    return folder


@pytest.fixture
def shards(folder, tmp_path):
    write_shards(folder, tmp_path / "shards")
    return tmp_path / "shards"


@pytest.fixture
def memory(shards):
    """The address of the shards in a file system in memory."""
    system = fsspec.filesystem("memory")
    system.put(f"{shards}/", "/shards/", recursive=True)
    yield system
    system.rm("/shards", recursive=True)


class Server(ThreadingHTTPServer):
    """Serves a folder; `sent` has path, first byte and number of bytes of each answer with content."""

    def __init__(self, folder, knows_ranges=True):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.knows_ranges, self.sent = folder, knows_ranges, []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def sent_of(self, suffix):
        return [each for each in self.sent if each[0].endswith(suffix)]


class Handler(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.answer(False)

    def do_GET(self):
        self.answer(True)

    def answer(self, with_content):
        path = self.server.folder / self.path.strip("/")
        if path.is_dir():
            content = "".join(f'<a href="{each.name}">{each.name}</a>' for each in path.iterdir()).encode()
        elif path.is_file():
            content = path.read_bytes()
        else:
            self.send_error(404)
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")) if self.server.knows_ranges else None
        start, end = (int(asked[1]), min(int(asked[2]) + 1, len(content))) if asked else (0, len(content))
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(end - start))
        self.send_header("Accept-Ranges", "bytes" if self.server.knows_ranges else "none")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.end_headers()
        if with_content:
            self.server.sent.append((self.path, start, end - start))
            self.wfile.write(content[start:end])

    def log_message(self, *given):
        pass


@pytest.fixture
def served(shards):
    pytest.importorskip("aiohttp")
    server = Server(shards)
    yield server
    server.shutdown()


# -- The same pictures -------------------------------------------------------------------------------------------------


def test_an_address_of_a_folder_gives_its_pictures(folder, memory):
    assert fields(read_folder(Path(MEMORY), 16)) == fields(read_folder(folder, 16))
    assert [str(shard) for shard in find_shards(Path(MEMORY))] == [
        f"{MEMORY}/shard-{number:06}.tar" for number in range(3)
    ]


@pytest.mark.parametrize("lines", [
    "# all\n\nshards/shard-000000.tar\n  {folder}/shards/shard-000001.tar\r\nmemory://shards/shard-000002.tar\n",
    "memory://shards/shard-000002.tar\nmemory://shards/shard-000000.tar\nshards/shard-000001.tar",
])  # fmt: skip
def test_a_list_has_paths_and_addresses(lines, folder, memory, tmp_path):
    (tmp_path / "list.txt").write_bytes(lines.format(folder=tmp_path).encode())
    assert fields(read_folder(tmp_path / "list.txt", 16)) == fields(read_folder(folder, 16))


def test_a_list_at_an_address_is_relative_to_it(folder, memory):
    memory.pipe("/shards/list.txt", b"shard-000000.tar\nshard-000001.tar\nshard-000002.tar\n")
    assert fields(read_folder(Path(f"{MEMORY}/list.txt"), 16)) == fields(read_folder(folder, 16))


def test_over_http_pictures_alone_are_read(folder, served, shards):
    """Indices whole, of the shards just the ranges of the pictures; nothing is read again where the indices are."""
    assert fields(read_folder(Path(served.address), 16)) == fields(read_folder(folder, 16))
    assert len(served.sent_of(INDEX)) == 3
    sizes = {f"/{shard.name}": shard.stat().st_size for shard in shards.glob("*.tar")}
    read = served.sent_of(".tar")
    assert len({*read}) == len(read) == 10 and sum(size for *_, size in read) < 0.5 * sum(sizes.values())
    served.sent.clear()
    read_folder(Path(served.address), 16)
    assert not served.sent_of(INDEX) and sorted(served.sent_of(".tar")) == sorted(read)


def test_a_shard_of_others_is_read_once_for_its_index(served, shards, monkeypatch):
    monkeypatch.setattr(remote, "BUFFER_BYTES", 4096)
    other = tar(shards / "others" / "0.tar", [(f"{number}.png", png(number)) for number in range(8)])
    place = Path(f"{served.address}/others/0.tar")
    assert len(read_folder(place, 16)) == 8
    assert max(size for *_, size in served.sent_of(".tar")) < 0.5 * other.stat().st_size
    served.sent.clear()
    assert len(read_folder(place, 16)) == 8
    assert sum(size for *_, size in served.sent_of(".tar")) < 0.8 * other.stat().st_size


def test_a_shard_that_was_exchanged_has_another_index(memory, shards, tmp_path):
    assert len(read_folder(Path(MEMORY), 16)) == 10
    memory.rm("/shards", recursive=True)
    other = tar(tmp_path / "others" / "0.tar", [(f"{number}.png", png(number)) for number in range(3)])
    memory.put(str(other), "/shards/shard-000000.tar")
    assert len(read_folder(Path(MEMORY), 16)) == 3


# -- Runs --------------------------------------------------------------------------------------------------------------


def test_a_run_trains_on_an_address_and_goes_on_with_a_list(memory, shards, tmp_path, monkeypatch):
    be_quick(monkeypatch)
    monkeypatch.setattr(pipeline, "require_fit", lambda *given: None)
    run = commands.train(request(Path(MEMORY), tmp_path / "run"), Keeper())
    assert Run.open(run).state.data == MEMORY
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{shard}\n" for shard in sorted(shards.glob("*.tar"))))
    again, recipe = Run.open(run), parse_recipe(read_recipe(run / "recipe.toml"))
    assert place_of_pictures(again, None) == Path(MEMORY)
    assert len(read_unchanged(again, recipe, listed, Keeper())) == 10 and again.state.data == str(listed)


@pytest.mark.parametrize(("place", "name"), [
    ("s3://bucket/cats", "cats"), ("s3://bucket/cats/list.txt", "list"), ("cats", "cats"), ("x/0.tar", "0"),
    ("https://host:8000", "host-8000"), ("https://host/x?y=1", "x-y=1"),
])  # fmt: skip
def test_a_run_has_the_name_of_its_pictures(place, name):
    assert set_name(Path(place)) == name


def test_what_is_an_address_and_what_a_path(tmp_path, monkeypatch):
    assert remote_address(Path("s3://bucket/a b")) == "s3://bucket/a b"
    assert remote_address(Path("https://host:80/x?y=1")) == "https://host:80/x?y=1"
    for path in ("C:/pictures", "/s3://x", "pictures", "file:///pictures", "s3:", "s3://", "a/s3://b"):
        assert remote_address(Path(path)) is None, path
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "x").mkdir(parents=True)
    assert remote_address(Path("s3://x")) is None  # a folder of this name is here


# -- What is wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lines", "words"), [
    ("", "line 1: expected a list of shards, but it is empty"),
    ("shards/shard-000000.tar\n\npictures/a\n", "line 3: expected the path or address of a shard, which ends"),
    ("shards/shard-000009.tar\n", "line 1: expected a shard, but there is none at"),
    ("memory://shards/shard-000009.tar\n", "there is nothing at memory://shards/shard-000009.tar"),
    ("\x00\xff.png", "line 1: expected the path or address"),
])  # fmt: skip
def test_what_is_wrong_with_a_list_is_a_line_that_names_it(lines, words, memory, tmp_path):
    (tmp_path / "list.txt").write_bytes(lines.encode("latin-1"))
    text = message(lambda: read_folder(tmp_path / "list.txt", 16))
    assert words in text and ("memory" in lines or str(tmp_path / "list.txt") in text)


def test_what_is_wrong_at_an_address_is_a_line_that_names_it(memory):
    assert "memory://nothing" in message(lambda: read_folder(Path("memory://nothing"), 16))
    memory.pipe("/other/picture.png", png())
    assert "there are no shards" in message(lambda: read_folder(Path("memory://other"), 16))
    assert "Protocol not known: nowhere" in message(lambda: read_folder(Path("nowhere://x"), 16))
    memory.rm("/shards/shard-000001.tar")
    assert f"{MEMORY}/shard-000001.tar is missing" in message(lambda: read_folder(Path(MEMORY), 16))
    memory.pipe(f"/shards/{MANIFEST}", b'{"content": "x"}')
    assert "are not finished" in message(lambda: read_folder(Path(MEMORY), 16))


def test_a_shard_alone_is_read(folder, shards, tmp_path):
    (tmp_path / "list.txt").write_text("shards/shard-000001.tar")
    alone = fields(read_folder(shards / "shard-000001.tar", 16))
    assert alone == fields(read_folder(tmp_path / "list.txt", 16)) and len(alone[2]) == 4


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("login failed")])
def test_a_store_that_cannot_be_reached_is_one_line(error, monkeypatch):
    """Some file systems connect when they are made."""

    def url_to_fs(address):
        raise error

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    text = message(lambda: read_folder(Path("sftp://host/x"), 16))
    assert text == f"sftp://host/x cannot be read: {error}; try again later"


def test_a_chain_of_addresses_is_refused():
    """Else one in a list could lead to any file of this machine."""
    assert "chain of addresses" in message(lambda: read_folder(Path("zip://0.tar::file:///pictures.zip"), 16))


@pytest.mark.parametrize(
    "place",
    [
        "https://me:hidden@host/x", "ftp://:hidden@host/0.tar", "s3://key:hidden@bucket", "https://hidden@host/x",
        "simplecache::https://me:hidden@host/x", "zip://0.tar::https://hidden@host/x.zip",
    ],
)  # fmt: skip
def test_an_address_with_a_password_or_token_is_refused_and_not_shown(place, tmp_path):
    """It would stand in `run.json`, in the report and in the log of who has started it."""
    text = message(lambda: read_folder(Path(place), 16))
    assert ("chain of addresses to host" if "::" in place else "password") in text and "hidden" not in text
    (tmp_path / "list.txt").write_text(f"{place.removesuffix('/0.tar')}/0.tar")
    assert "hidden" not in message(lambda: read_folder(tmp_path / "list.txt", 16))


@pytest.mark.parametrize("with_index", [True, False])
def test_a_cache_that_cannot_be_written_to_stops_no_command(with_index, folder, memory, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    if not with_index:
        for number in range(3):
            memory.rm(f"/shards/shard-{number:06}{INDEX}")
    assert fields(read_folder(Path(MEMORY), 16)) == fields(read_folder(folder, 16))


def test_a_damaged_index_at_an_address_is_named_and_not_kept(folder, memory):
    """A copy that could not be finished there may be whole the next time."""
    sound = memory.cat_file("/shards/shard-000001.index")
    memory.pipe("/shards/shard-000001.index", sound[:100])
    assert f"{MEMORY}/shard-000001.index" in message(lambda: read_folder(Path(MEMORY), 16))
    memory.pipe("/shards/shard-000001.index", sound)
    assert fields(read_folder(Path(MEMORY), 16)) == fields(read_folder(folder, 16))


@pytest.mark.parametrize("name", ["list.txt", ""])
def test_a_list_that_is_too_long_is_not_cut_off(name, memory, monkeypatch):
    """Shards would be missing without a word."""
    memory.pipe("/shards/list.txt", b"shard-000000.tar\nshard-000001.tar\n")
    monkeypatch.setattr(shard_sets, "MOST_LISTED", 17)
    assert "but a list or shards.json has at most 17" in message(lambda: read_folder(Path(f"{MEMORY}/{name}"), 16))


def test_a_missing_package_is_named(monkeypatch):
    def url_to_fs(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    assert 'pip install "calotype[fsspec]"' in message(lambda: read_folder(Path("s3://bucket/x"), 16))


@pytest.mark.parametrize("failures", [2, 1000])
def test_a_request_that_fails_is_sent_again_and_no_picture_is_left_out_for_it(failures, folder, memory, monkeypatch):
    """Else a set would be another one after each trouble of a network."""
    left, real, lock = [failures], type(memory).cat_file, threading.Lock()

    def cat_file(self, path, **ranges):
        with lock:
            left[0] -= path.endswith(".tar")
        if path.endswith(".tar") and left[0] >= 0:
            raise ConnectionError("reset")
        return real(self, path, **ranges)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    if failures == 2:
        assert len(read_folder(Path(MEMORY), 16)) == 10
    else:
        assert "cannot be read: reset; try again later" in message(lambda: read_folder(Path(MEMORY), 16))


def test_a_server_that_knows_no_ranges_is_named(shards):
    pytest.importorskip("aiohttp")
    server = Server(shards, knows_ranges=False)
    try:
        assert "is not read in ranges" in message(lambda: read_folder(Path(server.address), 16))
    finally:
        server.shutdown()
