"""Requests for pictures: a queue, one sampling process a device, progress, cancelling, and the death of a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from secrets import token_hex
from typing import Any, Literal

from calotype.escaping import plain
from calotype.serve.answers import RefusedRequest
from calotype.serve.wire import packed, receive_packet

QUEUE_LENGTH = 32
KEPT_JOBS = 512
"""Ended ones, which may still be asked about."""
MAX_KEPT_BYTES = 2**28
"""Of the pictures of ended jobs."""
JOB_SECONDS = 900.0
"""After which a request is given up, and its process replaced."""
LAST_WORDS = 20
"""Lines of a process that are kept, for when it dies."""
END_SECONDS = 1.0
"""For which a process whose pipe has ended is waited for before it is killed."""
RETRY_SECONDS = 0.5
"""Before a process that died at its start is started once more; doubled each time, up to a minute."""
STOPPED = "the server has been stopped"

End = Literal["finished", "cancelled", "refused", "failed"]


@dataclass
class Job:
    """A request for pictures, and what came of it."""

    kind: str
    folder: Path
    asked: dict[str, Any]
    files: Sequence[bytes] = ()
    id: str = field(default_factory=lambda: token_hex(8))
    state: Literal["queued", "running"] | End = "queued"
    reason: str = ""
    total: int = 0
    done: int = 0
    pictures: list[bytes] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    """What is known of each picture, where its process says it."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    attached: Any = None
    """Ids of its pictures in a gallery."""
    kept: bool = True
    """Whether its pictures are where they shall go; False until they are in the gallery."""

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    def tell(self) -> None:
        """Wakes whoever waits for news."""
        event, self.changed = self.changed, asyncio.Event()
        event.set()

    def end(self, state: End, reason: str = "") -> None:
        if not self.ended:
            self.state, self.reason, self.files = state, plain(reason), ()
            self.tell()

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id, "kind": self.kind, "state": self.state, "reason": self.reason, "total": self.total,
            "done": self.done, "pictures": len(self.pictures),
        }  # fmt: skip

    async def wait(self) -> None:
        """Until it has ended."""
        while not self.ended:
            await self.changed.wait()


class Queue:
    """Jobs in the order of their arrival, at most `QUEUE_LENGTH` that wait."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.devices = list(devices)
        self.waiting: deque[Job] = deque()
        self.jobs = OrderedDict[str, Job]()
        self.arrived = asyncio.Condition()
        self.workers = [SamplingProcess(device) for device in self.devices]
        self.tasks: list[asyncio.Task[None]] = []
        self.seconds = 5.0
        """Of a job, lately."""
        self.stopped = False

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Queue]:
        self.tasks = [asyncio.create_task(self._serve(worker)) for worker in self.workers]
        try:
            yield self
        finally:
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)
            for worker in self.workers:
                await worker.close()
            self.stop()

    def stop(self) -> None:
        """Ends all jobs, so that whoever waits for one is answered."""
        self.stopped = True
        for job in self.jobs.values():
            job.end("failed", STOPPED)

    async def put(self, job: Job) -> Job:
        """Raises `RefusedRequest` where the queue is full, or ends."""
        if self.stopped:  # a request that was still being read when the jobs were ended
            raise RefusedRequest(503, STOPPED, retry=False)
        if len(self.waiting) >= QUEUE_LENGTH:
            patience = max(1, round(self.seconds * len(self.waiting) / len(self.workers)))
            reason = f"{QUEUE_LENGTH} requests are waiting already; try again in {patience} s"
            raise RefusedRequest(429, reason, retry_after=patience)
        self.jobs[job.id] = job
        self._forget()
        async with self.arrived:
            self.waiting.append(job)
            self.arrived.notify()
        return job

    def find(self, job: str) -> Job:
        """Raises `RefusedRequest`."""
        if job not in self.jobs:
            raise RefusedRequest(404, "there is no such job; those that have ended are forgotten after a while", "job")
        return self.jobs[job]

    async def cancel(self, job: Job) -> None:
        if job.state == "queued":
            if job in self.waiting:
                self.waiting.remove(job)
            job.end("cancelled")  # also one that is on its way to a process
        for worker in self.workers:
            if worker.job is job:
                await worker.send({"cancel": job.id})

    def place(self, job: Job) -> int:
        """How many are before it."""
        return self.waiting.index(job) if job in self.waiting else 0

    def _forget(self) -> None:
        """The oldest jobs that have ended, and the pictures of those that take too much memory."""
        ended = [job for job in self.jobs.values() if job.ended and job.kept]  # not on their way into the gallery
        for job in ended[: max(0, len(self.jobs) - KEPT_JOBS)]:
            del self.jobs[job.id]
        held = sum(len(picture) for job in ended for picture in job.pictures)
        for job in ended:
            if held <= MAX_KEPT_BYTES:
                break
            held -= sum(map(len, job.pictures))
            job.pictures = []

    async def _next(self) -> Job:
        async with self.arrived:
            await self.arrived.wait_for(lambda: self.waiting)
            return self.waiting.popleft()

    async def _serve(self, worker: SamplingProcess) -> None:
        """Keeps a process running, and gives it one job after the other."""
        patience = RETRY_SECONDS
        while True:
            if not await worker.ready():
                await asyncio.sleep(patience)
                patience = min(60.0, 2 * patience)
                continue
            patience, job = RETRY_SECONDS, await self._next_or_death(worker)
            if job is None or job.ended:
                continue
            began = time.monotonic()
            await worker.work(job)
            self.seconds = 0.8 * self.seconds + 0.2 * (time.monotonic() - began)

    async def _next_or_death(self, worker: SamplingProcess) -> Job | None:
        """The next job; None where the process that was to do it has died meanwhile."""
        following, death = asyncio.create_task(self._next()), asyncio.create_task(worker.died())
        try:
            await asyncio.wait((following, death), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            following.cancel()
            raise
        finally:
            death.cancel()
        if following.done():
            return following.result()
        following.cancel()
        try:
            return await following  # it may have got one in the same moment
        except asyncio.CancelledError:
            return None


class SamplingProcess:
    """One process of `serve.worker`, and a second one that waits to take its place."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.process: asyncio.subprocess.Process | None = None
        self.spare: asyncio.Task[asyncio.subprocess.Process | None] | None = None
        self.words: deque[str] = deque(maxlen=LAST_WORDS)
        self.readers = set[asyncio.Task[None]]()
        self.job: Job | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def ready(self) -> bool:
        """Takes the process that waits where there is none that works; False where it has died at once."""
        if self.alive:
            return True
        spare = self.spare or asyncio.create_task(self._start())
        self.spare = None
        self.process = await spare
        if self.alive:
            self.spare = asyncio.create_task(self._start())
        return self.alive

    async def _start(self) -> asyncio.subprocess.Process | None:
        """A process that has imported all it needs; None where it has died meanwhile, or the system gives none."""
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-P", "-m", "calotype.serve.worker", self.device, stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, start_new_session=os.name != "nt",
            )  # fmt: skip
        except OSError:  # too many processes or open files, or no memory: for a while, perhaps
            return None
        self.readers.add(reader := asyncio.create_task(self._listen(process)))
        reader.add_done_callback(self.readers.discard)
        try:
            assert process.stdout is not None
            await receive_packet(process.stdout)
        except (asyncio.IncompleteReadError, ValueError):
            await ended(process, END_SECONDS)
            return None
        except asyncio.CancelledError:
            await ended(process)
            raise
        return process

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Reads what a process says of itself, so that it never waits for a reader."""
        assert process.stderr is not None
        while not process.stderr.at_eof():
            with contextlib.suppress(ValueError):  # a line of more than 64 KB, which is passed over
                if line := await process.stderr.readline():
                    self.words.append(line.decode("utf-8", "replace").rstrip())

    async def died(self) -> None:
        if self.process is not None:
            await self.process.wait()

    async def send(self, about: dict[str, Any], files: Sequence[bytes] = ()) -> None:
        with contextlib.suppress(ConnectionError):  # whoever reads the answers notices
            assert self.process is not None and self.process.stdin is not None
            self.process.stdin.write(packed(about, files))
            await self.process.stdin.drain()

    async def work(self, job: Job) -> None:
        """One job, to its end, whatever happens to the process."""
        self.job, job.state = job, "running"
        job.tell()
        try:
            async with asyncio.timeout(JOB_SECONDS):
                await self.send({**job.asked, "job": job.id, "kind": job.kind, "folder": str(job.folder)}, job.files)
                while not job.ended:
                    await self._hear(job)
        except TimeoutError:
            job.end("failed", f"it has taken more than {JOB_SECONDS:.0f} seconds, and was given up")
            await self.kill()
        except (asyncio.IncompleteReadError, ValueError):
            await self.kill(END_SECONDS)
            job.end("failed", self.last_words())
        except asyncio.CancelledError:
            job.end("failed", STOPPED)
            raise
        finally:
            self.job = None

    async def _hear(self, job: Job) -> None:
        """The next message of the process."""
        assert self.process is not None and self.process.stdout is not None
        about, pictures = await receive_packet(self.process.stdout)
        if about.get("job") != job.id:
            return
        job.pictures += pictures
        job.notes += [about["note"]] if "note" in about else []
        job.total, job.done = about.get("total", job.total), about.get("done", job.done)
        if "end" in about:
            job.end(about["end"], about.get("reason", ""))
        job.tell()

    def last_words(self) -> str:
        """Why it has died."""
        assert self.process is not None
        code = self.process.returncode or 0
        if code == -signal.SIGTERM or (os.name != "nt" and code == -signal.SIGKILL):
            memory = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
            why = f"it was killed (signal {-code}{memory})"
        else:
            why = f"exit code {code}" + (f": {self.words[-1]}" if self.words else "")
        return f"the process that was sampling has died: {why}; another one takes its place, so ask again"

    async def kill(self, patience: float = 0.0) -> None:
        if self.process is not None:
            await ended(self.process, patience)

    async def close(self) -> None:
        """Ends both."""
        await self.kill()
        if self.spare is not None:
            self.spare.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if (process := await self.spare) is not None:
                    await ended(process)


async def ended(process: asyncio.subprocess.Process, patience: float = 0.0) -> None:
    """Kills a process that has not ended by itself within `patience` seconds.

    One that has ended is never signalled: `Process.kill` polls before it sends, and so may take the exit code
    from the thread of asyncio that waits for it, which then says 255.
    """
    if patience:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), patience)
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
