"""What happens rarely on a server: pictures that go while they are downloaded, long lines, many uploads at once."""

import asyncio
import errno
import io
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace

import pytest
from serving import ADDRESS, PORT, RUN, client_of
from test_report import fake_run, flat

from calotype.serve import sampling, uploading
from calotype.serve.answers import RefusedRequest
from calotype.serve.gallery import Gallery
from calotype.serve.sampling import Job, Queue, SamplingProcess
from calotype.serve.server import devices_of

WORKER = """
import sys
from calotype.serve.wire import packed, unpack
sys.stdout.buffer.write(packed({"ready": True}))
sys.stdout.flush()
while message := unpack(sys.stdin.buffer):
    sys.stdout.buffer.write(packed({"job": message[0]["job"], "end": "finished"}))
    sys.stdout.flush()
"""


def test_a_picture_that_is_removed_meanwhile_is_left_out_of_the_archive(tmp_path, monkeypatch):
    (tmp_path / "run.json").touch()
    gallery = Gallery(tmp_path)
    first, _ = gallery.add([b"one", b"two"], {"kind": "sample", "seed": 0, "order": 1.0})
    entries = gallery.entries()
    gallery.remove(first)
    monkeypatch.setattr(Gallery, "entries", lambda self: entries)
    with zipfile.ZipFile(io.BytesIO(b"".join(gallery.zipped(False)))) as archive:
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


def test_sampling_goes_on_after_the_system_has_refused_a_process(tmp_path, monkeypatch):
    """As while too many files are open, or memory is short."""
    start, refused = asyncio.create_subprocess_exec, []

    async def refusing(*arguments, **options):
        if len(refused) < 2:
            refused.append(OSError(errno.EMFILE, "Too many open files"))
            raise refused[-1]
        return await start(sys.executable, "-c", WORKER, **options)

    async def sampled():
        monkeypatch.setattr(sampling, "RETRY_SECONDS", 0.01)
        monkeypatch.setattr(asyncio, "create_subprocess_exec", refusing)
        async with Queue(["cpu"]).serving() as queue:
            job = await queue.put(Job("sample", tmp_path, {}))
            await asyncio.wait_for(job.wait(), 30)
            return job.state

    assert asyncio.run(sampled()) == "finished" and len(refused) == 2


def test_a_request_that_arrives_while_the_server_ends_is_answered(tmp_path):
    """It was still being read when the jobs were ended: nobody would end it later."""
    queue = Queue(["cpu"])
    queue.stop()
    with pytest.raises(RefusedRequest, match="has been stopped") as refused:
        asyncio.run(queue.put(Job("sample", tmp_path, {})))
    assert refused.value.status == 503 and not queue.jobs


def test_pictures_on_their_way_into_a_gallery_are_not_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "MAX_KEPT_BYTES", 0)
    queue = Queue(["cpu"])
    for kept in (True, False):
        job = Job("sample", tmp_path, {}, kept=kept, pictures=[b"picture"], state="finished")
        queue.jobs[job.id] = job
    queue._forget()
    assert [job.pictures for job in queue.jobs.values()] == [[], [b"picture"]]


def test_uploads_at_once_are_all_counted(tmp_path):
    store = partial(uploading.stored, tmp_path, "0" * 16)
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda index: store([f"{index}.png"], b"12"), range(40)))
    assert store(["last.png"], b"12") == {"files": 41, "bytes": 82}


def test_a_page_that_goes_before_it_is_answered_takes_no_place_of_those_that_listen(tmp_path):
    """Its answer is cancelled before it has begun."""
    fake_run(tmp_path / "run", flat)
    client, gate = client_of(tmp_path)
    heads = [(b"host", ADDRESS.removeprefix("http://").encode()), (b"authorization", f"Bearer {gate.token}".encode())]
    scope = {"type": "http", "method": "GET", "path": f"/runs/{RUN}/events", "query_string": b"", "headers": heads}

    async def leave():
        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            await asyncio.sleep(0.05)

        await client.app({**scope, "server": ("127.0.0.1", PORT)}, receive, send)

    asyncio.run(asyncio.wait_for(leave(), 30))
    assert client.app.app.state.listeners == 0


def test_a_job_that_is_cancelled_on_its_way_to_a_process_is_not_begun(tmp_path):
    begun = []

    class Process:
        job = None

        async def ready(self):
            return True

        async def died(self):
            await asyncio.sleep(60)

        async def work(self, job):
            begun.append(job)
            job.end("finished")

    async def cancel_and_go_on():
        queue = Queue(["cpu"])
        queue.workers = [Process()]
        first, second = await queue.put(Job("sample", tmp_path, {})), await queue.put(Job("sample", tmp_path, {}))
        real, taken = queue._next, []

        async def take():
            taken.append(await real())
            await queue.cancel(first)
            return taken[-1]

        queue._next = take
        serving = asyncio.create_task(queue._serve(queue.workers[0]))
        await asyncio.wait_for(second.wait(), 30)
        serving.cancel()
        return taken == [first, second], first.state, begun == [second]

    assert asyncio.run(cancel_and_go_on()) == (True, "cancelled", True)


def test_a_job_beyond_its_time_is_given_up_and_its_process_replaced(tmp_path, monkeypatch):
    """By the one that waits."""
    monkeypatch.setattr(sampling, "JOB_SECONDS", 0.2)
    started, hanging = [], [sys.executable, "-c", "import time; time.sleep(600)"]

    async def start():
        pipes = {"stdin": asyncio.subprocess.PIPE, "stdout": asyncio.subprocess.PIPE}
        started.append(await asyncio.create_subprocess_exec(*hanging, **pipes))
        return started[-1]

    async def give_up():
        queue = Queue(["cpu"])
        (worker,) = queue.workers
        worker._start = start
        async with queue.serving():
            for place in range(2):
                job = await queue.put(Job("sample", tmp_path, {}))
                await asyncio.wait_for(job.wait(), 30)
                assert job.state == "failed" and "has taken more than 0 seconds, and was given up" in job.reason
                await asyncio.wait_for(started[place].wait(), 30)
                while worker.process is started[place]:
                    await asyncio.sleep(0.01)
                assert worker.process is started[place + 1] and worker.alive

    asyncio.run(asyncio.wait_for(give_up(), 60))


def test_each_device_has_a_process_that_works_beside_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [devices_of(name) for name in ("auto", "cuda:1", "cpu")] == [["cuda:0", "cuda:1"], ["cuda:1"], ["cpu"]]

    async def work_together():
        queue, together, worked = Queue(devices_of("auto")), asyncio.Barrier(2), {}
        for worker in queue.workers:

            async def ready():
                return True

            async def work(job, device=worker.device):
                await together.wait()  # one after the other would wait for ever
                worked[device] = job
                job.end("finished")

            worker.ready, worker.work, worker.died = ready, work, asyncio.Event().wait
        async with queue.serving():
            jobs = [await queue.put(Job("sample", tmp_path, {})) for _ in range(2)]
            await asyncio.gather(*(job.wait() for job in jobs))
        assert {*worked} == {"cuda:0", "cuda:1"} and [job in worked.values() for job in jobs] == [True, True]

    asyncio.run(asyncio.wait_for(work_together(), 30))
