"""`/v1`: pictures as OpenAI's clients ask for them, and which models there are."""

from __future__ import annotations

import asyncio
import base64
import secrets
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from calotype.data.listing import normal_form
from calotype.run import Run
from calotype.serve.answers import RefusedRequest, json_response
from calotype.serve.library import Library
from calotype.serve.requests import Edit, Generation, read_body, read_form, sides
from calotype.serve.sampling import Job, Queue

STATUS_OF_END = {"refused": 400, "cancelled": 409, "failed": 503}


def can_sample(folder: Path) -> bool:
    """Whether there is a model, or a checkpoint of its denoiser."""
    return (folder / "model" / "model.json").is_file() or any((folder / "checkpoints").glob("denoiser-*"))


def models(request: Request) -> Response:
    """The runs that can be sampled."""
    library: Library = request.app.state.library
    listed = [
        {
            "id": summary.folder.name, "object": "model", "owned_by": "calotype",
            "created": seconds_of(summary.created), "state": summary.state, "kind": summary.kind,
            "sizes": summary.chain,
        }
        for _, summary in library.summaries() if can_sample(summary.folder)
    ]  # fmt: skip
    return json_response({"object": "list", "data": listed})


def seconds_of(date: str) -> int:
    try:
        return int(datetime.fromisoformat(date).timestamp())
    except ValueError:
        return 0


async def generations(request: Request) -> Response:
    """Samples of a model."""
    asked = await read_body(request, Generation)
    return await pictures(request, "sample", asked)


async def edits(request: Request) -> Response:
    """Variations of a picture, or of what its mask marks."""
    asked, files = await read_form(request, Edit)
    if "image" not in files:
        raise RefusedRequest(400, "an edit needs a picture in the field image", "image")
    return await pictures(request, "edit", asked, [files[name] for name in ("image", "mask") if name in files])


async def pictures(request: Request, kind: str, asked: Generation, files: Sequence[bytes] = ()) -> Response:
    """Waits for the pictures; where the client goes away before, they are cancelled."""
    library, queue = request.app.state.library, request.app.state.queue
    folder = await run_in_threadpool(library.named, asked.model)
    fields = sampling_fields(asked, folder, asked.n, asked.size)
    job = await queue.put(Job(kind, folder, {**fields, "model": folder.name}, files))
    await wait_or_cancel(request, queue, job)
    if job.state != "finished":
        raise RefusedRequest(STATUS_OF_END[job.state], job.reason or job.state, retry=False)
    data = [
        {"b64_json": base64.b64encode(picture).decode(), "seed": fields["seed"], "index": index}
        for index, picture in enumerate(job.pictures)
    ]
    job.pictures = []
    return json_response({"created": int(time.time()), "output_format": "png", "data": data})


def sampling_fields(asked: Any, folder: Path, count: int, size: str) -> dict[str, Any]:
    """As `serve.worker` takes them. Raises `RefusedRequest` for a size that cannot be."""
    about = asked.model_dump(include={"label", "negative", "steps", "guidance", "strength"}, exclude_none=True)
    about |= {"count": count, "seed": secrets.randbelow(2**31) if asked.seed is None else asked.seed, **sides(size)}
    classes = {normal_form(name) for name in Run.open(folder).state.classes}
    if asked.prompt and normal_form(asked.prompt) in classes and "label" not in about:  # clients know no labels
        return {**about, "label": asked.prompt}
    return {**about, "prompt": asked.prompt} if asked.prompt else about


async def wait_or_cancel(request: Request, queue: Queue, job: Job) -> None:
    waiting, leaving = asyncio.create_task(job.wait()), asyncio.create_task(left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not job.ended:
            await queue.cancel(job)
            await waiting
    finally:
        waiting.cancel()
        leaving.cancel()


async def left(request: Request) -> None:
    """Returns when the client has gone away."""
    while not await request.is_disconnected():
        await asyncio.sleep(0.5)
