"""Server-sent events: the log of a run by its byte offsets, its state, and the progress of a job."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import StreamingResponse

from calotype.serve.answers import RefusedRequest
from calotype.serve.library import Library, file_stamp, state_key
from calotype.serve.sampling import Job

POLL_SECONDS, PULSE_SECONDS = 0.5, 15.0
MOST_LISTENERS = 400
MOST_AT_ONCE = 2**18
"""Bytes of the log that are sent at a time."""
STREAM_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event(data: Any, kind: str, place: int | None = None) -> str:
    """JSON has no line breaks, so that it is one line of an event."""
    lines = [f"event: {kind}", *[f"id: {place}"] * (place is not None)]
    return "\n".join([*lines, f"data: {json.dumps(data)}", "", ""])


def stream(request: Request, events: AsyncIterator[str]) -> StreamingResponse:
    """Raises `RefusedRequest` where too many listen already."""
    state = request.app.state
    if state.listeners >= MOST_LISTENERS:
        raise RefusedRequest(429, f"{MOST_LISTENERS} pages are listening already; close some", retry_after=30)

    async def counted() -> AsyncIterator[str]:
        state.listeners += 1  # here: where the client has gone away before, nothing of this ever runs
        try:
            async for text in events:
                yield text
        finally:
            state.listeners -= 1

    return StreamingResponse(counted(), media_type="text/event-stream", headers=STREAM_HEADERS)


async def run_events(request: Request) -> StreamingResponse:
    """Lines of the log from `Last-Event-ID` on, or from its end; and `state` whenever anything else has changed."""
    library: Library = request.app.state.library
    folder = await run_in_threadpool(library.find, request.path_params["run"])
    since = request.headers.get("last-event-id", request.query_params.get("since", ""))
    place = int(since) if since.isdecimal() and len(since) < 16 else file_stamp(folder / "log.jsonl")[1]
    return stream(request, log_events(request, folder, place))


async def log_events(request: Request, folder: Path, place: int) -> AsyncIterator[str]:
    log, noted, quiet = folder / "log.jsonl", request.app.state.launcher.noted(request.path_params["run"]), 0.0
    key: tuple[Any, ...] | None = None
    place = min(place, file_stamp(log)[1])
    yield "retry: 1000\n\n"
    while not (request.app.state.queue.stopped or await request.is_disconnected()):
        lines, place = await run_in_threadpool(lines_from, log, place)
        for line, end in lines:
            yield event(line, "log", end)
        now = await run_in_threadpool(state_key, folder), file_stamp(noted)  # a process may end before it changes a run
        if now != key:
            key, quiet = now, 0.0
            yield event({"changed": True}, "state", place)
        if quiet >= PULSE_SECONDS:
            quiet = 0.0
            yield ": still here\n\n"
        await asyncio.sleep(POLL_SECONDS)
        quiet += POLL_SECONDS


def lines_from(log: Path, place: int) -> tuple[list[tuple[Any, int]], int]:
    """Whole lines behind a byte offset, each with the offset of its end; damaged lines are left out."""
    if not log.is_file():
        return [], place
    with log.open("rb") as file:
        file.seek(place)
        content = file.read(MOST_AT_ONCE)
    if b"\n" not in content and len(content) == MOST_AT_ONCE:  # no line of ours
        return [], place + len(content)
    found = []
    for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
        place += len(line)
        try:
            found.append((json.loads(line), place))
        except (ValueError, RecursionError):
            continue
    return found, place


async def job_events(request: Request) -> StreamingResponse:
    """The progress of a job, to its end."""
    return stream(request, progress_events(request, request.app.state.queue.find(request.path_params["job"])))


async def progress_events(request: Request, job: Job) -> AsyncIterator[str]:
    while not await request.is_disconnected():
        changed = job.changed
        about = {**job.as_json(), "before": request.app.state.queue.place(job), "gallery": job.attached}
        if not job.ended or job.kept:
            yield event(about, "job")
        if job.ended and job.kept:
            return
        try:
            async with asyncio.timeout(PULSE_SECONDS):
                await changed.wait()
        except TimeoutError:
            yield ": still here\n\n"
