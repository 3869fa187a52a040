"""What happens rarely on a server: pictures that go while they are downloaded, long lines, many uploads at once."""

import asyncio
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

from calotype.serve import actions, sampling
from calotype.serve.gallery import Gallery
from calotype.serve.sampling import Job, Queue, SamplingProcess


def test_a_picture_that_is_removed_meanwhile_is_left_out_of_the_archive(tmp_path, monkeypatch):
    (tmp_path / "run.json").touch()
    gallery = Gallery(tmp_path)
    first, _ = gallery.add([b"one", b"two"], {"kind": "sample", "seed": 0, "order": 1.0})
    entries = gallery.entries()
    gallery.remove(first)
    monkeypatch.setattr(Gallery, "entries", lambda self: entries)
    with zipfile.ZipFile(io.BytesIO(gallery.zipped(False))) as archive:
        pictures = [name for name in archive.namelist() if name != "pictures.json"]
        assert len(pictures) == 1 and archive.read(pictures[0]) == b"two"


def test_a_line_of_any_length_is_read_from_a_process():
    async def listen():
        stream = asyncio.StreamReader(limit=64)
        stream.feed_data(b"before\n" + b"x" * 200 + b"\nafter\n")
        stream.feed_eof()
        process = SamplingProcess("cpu")
        await asyncio.wait_for(process._listen(SimpleNamespace(stderr=stream)), 10)
        return list(process.words)

    assert asyncio.run(listen()) == ["before", "after"]


def test_pictures_on_their_way_into_a_gallery_are_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_KEPT_BYTES", 0)
    queue = Queue(["cpu"])
    for kept in (True, False):
        job = Job("sample", tmp_path, {}, kept=kept, pictures=[b"picture"], state="finished")
        queue.jobs[job.id] = job
    queue._forget()
    assert [job.pictures for job in queue.jobs.values()] == [[], [b"picture"]]


def test_uploads_at_once_are_all_counted(tmp_path):
    store = partial(actions.stored, tmp_path, "0" * 16)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda index: store([f"{index}.png"], b"12"), range(40)))
    assert store(["last.png"], b"12") == {"files": 41, "bytes": 82}
