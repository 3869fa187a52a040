"""Routes that change something: pictures to make, stars, and runs to start, stop and resume."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from calotype.files import remove
from calotype.run import Run
from calotype.serve.answers import RefusedRequest, json_response
from calotype.serve.api import can_sample, sampling_fields
from calotype.serve.gallery import Gallery
from calotype.serve.gallery_page import gallery_figure
from calotype.serve.launching import StartedRun, is_run_name, training_command
from calotype.serve.requests import (
    EDITS,
    MOST_PICTURES,
    NewRun,
    PageSampling,
    Resumption,
    Starring,
    read_body,
    read_form,
    require_used,
    validated,
)
from calotype.serve.sampling import Job, Queue
from calotype.serve.trained import is_at_hand
from calotype.serve.uploading import COUNTING, upload, uploads
from calotype.serve.views import folder_of, launcher_of

SEARCHED_AT_ONCE = 16
"""Pictures of a gallery in a request for the nearest training pictures."""


# -- Pictures ----------------------------------------------------------------------------------------------------------


async def make_pictures(request: Request) -> Response:
    """Puts a request for pictures into the queue; they go into the gallery of the run. Answers with the job."""
    run, folder = request.path_params["run"], await run_in_threadpool(folder_of, request)
    files: dict[str, bytes] = {}
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        asked, files = await read_form(request, PageSampling)
    else:
        asked = await read_body(request, PageSampling)
    job = await run_in_threadpool(job_of, asked, folder, files)
    return await accepted(request, job, keep_in_gallery(run, job))


async def accepted(request: Request, job: Job, keeping: Coroutine[Any, Any, None]) -> Response:
    """Puts a job into the queue; `keeping` waits for its end, and puts its pictures where they belong."""
    try:
        await request.app.state.queue.put(job)
    except RefusedRequest:
        keeping.close()
        raise
    task = asyncio.create_task(keeping)
    request.app.state.tasks.add(task)
    task.add_done_callback(request.app.state.tasks.discard)
    return json_response(job.as_json(), 202, {"Location": f"/api/jobs/{job.id}"})


def job_of(asked: PageSampling, folder: Path, files: dict[str, bytes]) -> Job:
    """Raises `RefusedRequest` where it cannot be done."""
    require_used(asked)
    gallery = Gallery(folder)
    gallery.require_room(MOST_PICTURES)
    if not can_sample(folder):
        raise RefusedRequest(
            409, "this run has no checkpoint yet; its denoiser gets the first a minute after it begins"
        )
    sent = pictures_sent(asked, gallery, files)
    fields = sampling_fields(asked, folder, 1 if asked.kind in ("develop", "enlarge") else asked.count, asked.size)
    if asked.kind == "interpolate":
        after = fields["seed"] + 1 if asked.seed_after is None else asked.seed_after
        fields |= {"seed_after": after, "count": max(2, asked.count), "label_after": asked.label_after}
    in_turn = asked.kind == "sample" and not asked.prompt and not fields.get("label")
    kept = {"of": asked.of, "model": folder.name, "turn": Run.open(folder).state.classes if in_turn else []}
    return Job(asked.kind, folder, {**fields, **kept}, sent, kept=False)


def pictures_sent(asked: PageSampling, gallery: Gallery, files: dict[str, bytes]) -> list[bytes]:
    """The picture of a request, and its mask, if it has them. Raises `RefusedRequest`."""
    if asked.of is not None and "image" in files:
        raise RefusedRequest(400, "of and image both name a picture; give one", "image")
    if "mask" in files and asked.kind != "edit":
        raise RefusedRequest(400, f"a request of kind {asked.kind} takes no mask; leave it out", "mask")
    picture = files.get("image") if asked.of is None else gallery.file(asked.of).read_bytes()
    if (asked.kind in EDITS) != (picture is not None):
        needed = "needs a picture: of, or the file image" if picture is None else "takes no picture; leave it out"
        raise RefusedRequest(400, f"a request of kind {asked.kind} {needed}", "of" if picture is None else "image")
    return [content for content in (picture, files.get("mask")) if content is not None]


async def find_nearest(request: Request) -> Response:
    """Searches the nearest training pictures of the newest pictures that lack one; answers with the job, if any."""
    run, folder = request.path_params["run"], await run_in_threadpool(folder_of, request)
    gallery = Gallery(folder)
    chosen = await run_in_threadpool(gallery.unsearched, SEARCHED_AT_ONCE)
    if not chosen:
        return json_response({"state": "finished"})
    files = [await run_in_threadpool(gallery.file(picture).read_bytes) for picture in chosen]
    job = Job("nearest", folder, {}, files, kept=False)
    return await accepted(request, job, keep_nearest(run, job, chosen))


async def keep_nearest(run: str, job: Job, chosen: Sequence[str]) -> None:
    def keep() -> dict[str, Any]:
        gallery = Gallery(job.folder)
        for picture, content, note in zip(chosen, job.pictures, job.notes, strict=False):
            with contextlib.suppress(RefusedRequest):  # it was removed meanwhile
                gallery.keep_nearest(picture, content, note)
        return figures_of(run, gallery, chosen)

    await keep_once_ended(job, keep)


async def keep_in_gallery(run: str, job: Job) -> None:
    """Puts the pictures of a job into the gallery once it has ended, also of one that was cancelled on the way."""

    def keep() -> dict[str, Any]:
        gallery, about = Gallery(job.folder), {**job.asked, "kind": job.kind, "order": time.time()}
        return figures_of(run, gallery, gallery.add(job.pictures, about))

    await keep_once_ended(job, keep)


def figures_of(run: str, gallery: Gallery, ids: Sequence[str]) -> dict[str, Any]:
    """Markup of these pictures, as far as they have not been removed meanwhile."""
    entries = {entry["id"]: entry for entry in gallery.entries()}
    there = [each for each in ids if each in entries]
    return {"ids": there, "figures": [gallery_figure(run, entries[each]).code for each in there]}


async def keep_once_ended(job: Job, keep: Callable[[], Any]) -> None:
    """Calls `keep`, where there are pictures, once a job has ended; what it returns is attached to the job."""
    try:
        await job.wait()
        if job.pictures:
            job.attached = await run_in_threadpool(keep)
            job.pictures = []
    except (RefusedRequest, OSError) as problem:
        why = getattr(problem, "strerror", None) or problem
        job.state, job.reason = "failed", f"the pictures could not be kept: {why}"
    finally:
        job.kept = True
        job.tell()


async def job_json(request: Request) -> Response:
    job: Job = request.app.state.queue.find(request.path_params["job"])
    return json_response({**job.as_json(), "gallery": (job.attached or {}).get("ids", [])})


async def cancel_job(request: Request) -> Response:
    queue: Queue = request.app.state.queue
    job = queue.find(request.path_params["job"])
    await queue.cancel(job)
    return json_response(job.as_json(), 202)


async def change_picture(request: Request) -> Response:
    """Gives a picture a star, or takes it."""
    gallery, picture = Gallery(await run_in_threadpool(folder_of, request)), request.path_params["picture"]
    if request.method == "DELETE":
        await run_in_threadpool(gallery.remove, picture)
        return json_response({"removed": picture})
    asked = await read_body(request, Starring)
    await run_in_threadpool(gallery.star, picture, asked.star)
    return json_response({"id": picture, "star": asked.star})


# -- Runs --------------------------------------------------------------------------------------------------------------


async def start_run(request: Request) -> Response:
    """Trains on a folder of this machine, on what was uploaded, or on the embedded portraits."""
    asked = await read_body(request, NewRun)
    return json_response(await run_in_threadpool(started, request, asked), 202)


def started(request: Request, asked: NewRun) -> dict[str, str]:
    launcher = launcher_of(request)
    options = ["--size", str(asked.size), "--budget", asked.budget, "--kind", asked.kind]
    device = request.app.state.device
    options += [] if device == "auto" else ["--device", device]
    pictures = pictures_argument(launcher.folder, asked)
    try:
        run = launcher.train(asked.name, [*training_command(pictures), *options])
    except (RefusedRequest, OSError):
        if asked.upload:  # so that the next request finds them
            with COUNTING:
                Path(*pictures).rename(uploads(launcher.folder) / asked.upload)
        raise
    if asked.upload:
        with COUNTING:
            remove(uploads(launcher.folder) / f"{asked.upload}.count")  # it is taken
    return {"id": run, "page": f"/runs/{run}"}


def pictures_argument(folder: Path, asked: NewRun) -> list[str]:
    """The folder of the pictures, as an argument; none for the embedded portraits."""
    if asked.path and asked.upload:
        raise RefusedRequest(400, "path and upload both name pictures; give one", "path")
    if asked.upload:
        with COUNTING:
            return [str(named_upload(folder, asked))]
    return [named_folder(asked.path)] if asked.path else []


def named_upload(folder: Path, asked: NewRun) -> Path:
    """The pictures that were uploaded, by the name of their run where it is free. Raises `RefusedRequest`."""
    place, named = uploads(folder) / asked.upload, uploads(folder) / asked.name
    if not place.is_dir():
        raise RefusedRequest(404, "nothing was uploaded under this id", "upload")
    return place.rename(named) if is_run_name(asked.name) and not os.path.lexists(named) else place


def named_folder(path: str) -> str:
    """A folder of this machine, by its whole path. Raises `RefusedRequest`."""
    try:
        place = Path(path.strip()).expanduser()
        is_folder = place.is_absolute() and place.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, or the home of nobody
        is_folder = False
    if not is_folder:
        raise RefusedRequest(
            400, f"path is {path!r:.80}, but must be the whole path of a folder on this machine", "path"
        )
    return str(place)


def cancel_run(request: Request) -> Response:
    launcher_of(request).cancel(started_of(request))
    return json_response({"asked": "to end"}, 202)


def forget_run(request: Request) -> Response:
    started = started_of(request)
    launcher_of(request).forget(started)
    return json_response({"forgotten": started.id})


def started_of(request: Request) -> StartedRun:
    """Raises `RefusedRequest` where the run in the address has a plan, or was never started."""
    started = launcher_of(request).started_run(request.path_params["run"])
    if started is None:
        folder_of(request)
        raise RefusedRequest(409, "its plan has been made and it has begun; stop it instead")
    return started


def stop_run(request: Request) -> Response:
    launcher_of(request).stop(request.path_params["run"], folder_of(request))
    return json_response({"asked": "to stop"}, 202)


async def resume_run(request: Request) -> Response:
    asked = await read_body(request, Resumption) if await request.body() else validated(Resumption, {})
    folder = await run_in_threadpool(folder_of, request)
    options = await run_in_threadpool(resume_options, folder, asked)
    await run_in_threadpool(launcher_of(request).resume, request.path_params["run"], folder, options)
    return json_response({"asked": "to go on"}, 202)


def resume_options(folder: Path, asked: Resumption) -> list[str]:
    """Of the command line. Raises `RefusedRequest` where something is missing, before a process says so."""
    run = Run.open(folder)
    if not asked.path and not is_at_hand(run):
        raise RefusedRequest(400, "its pictures are not where they were; say where they are now", "path")
    if not asked.budget and run.state.status == "finished":
        raise RefusedRequest(400, "the run is finished; say for how long its networks are trained further", "budget")
    options = ["--data", named_folder(asked.path)] if asked.path else []
    return [*options, "--budget", asked.budget] if asked.budget else options


CHANGES = {
    ("POST", "/api/runs"): start_run, ("POST", "/api/runs/{run}/stop"): stop_run,
    ("POST", "/api/runs/{run}/resume"): resume_run, ("POST", "/api/runs/{run}/cancel"): cancel_run,
    ("POST", "/api/runs/{run}/forget"): forget_run, ("POST", "/api/runs/{run}/samples"): make_pictures,
    ("POST", "/api/runs/{run}/nearest"): find_nearest,
    ("POST", "/api/runs/{run}/pictures/{picture}"): change_picture,
    ("DELETE", "/api/runs/{run}/pictures/{picture}"): change_picture, ("POST", "/api/uploads/{upload}"): upload,
    ("GET", "/api/jobs/{job}"): job_json, ("DELETE", "/api/jobs/{job}"): cancel_job,
}  # fmt: skip
