"""Folders of pictures that are copied to the server, file by file, until a training takes them."""

from __future__ import annotations

import os
import re
import shutil
import threading
import time
from pathlib import Path, PurePosixPath
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from calotype.data.captions import BESIDE, TABLES
from calotype.data.formats import SUFFIXES, UNAVAILABLE
from calotype.escaping import plain
from calotype.files import make_folder, remove, write_whole
from calotype.run import read_mapping
from calotype.serve.answers import RefusedRequest, json_response
from calotype.serve.launching import HIDDEN
from calotype.serve.views import launcher_of

UPLOAD_ID = re.compile(r"[0-9a-f]{16}")
RESERVED = set(':*?"<>|') if os.name == "nt" else set()
"""Letters that no name of a file may have."""
UPLOADED = (*SUFFIXES, *BESIDE, *TABLES)
MOST_FILES, MOST_BYTES, MOST_PARTS = 20_000, 2**32, 6
"""Of an upload: files, bytes, and folders in each other."""
MOST_WAITING, WAITING_SECONDS = 2**34, 86_400.0
"""Of all uploads that no training has taken: bytes together, and how long each is kept."""
LEAST_FREE = 2**28
"""Bytes of the disk that uploads leave to runs that train."""
COUNTING = threading.Lock()


def uploads(folder: Path) -> Path:
    return folder / HIDDEN / "uploads"


async def upload(request: Request) -> Response:
    """One file of a folder that was dropped: its path below that folder in `path`, its bytes as the body."""
    batch = request.path_params["upload"]
    if not UPLOAD_ID.fullmatch(batch):
        raise RefusedRequest(400, "the id of an upload is 16 hexadecimal digits", "upload")
    parts = safe_parts(request.query_params.get("path", ""))
    content = await request.body()
    return json_response(await run_in_threadpool(stored, launcher_of(request).folder, batch, parts, content), 201)


def stored(folder: Path, batch: str, parts: list[str], content: bytes) -> dict[str, Any]:
    """Requests come on several threads; uploads are counted, named, taken and removed by one at a time."""
    place = uploads(folder) / batch
    held = place.parent / f"{batch}.count"
    with COUNTING:
        if not held.exists():
            remove_waiting(folder)
        return write_counted(place, held, parts, content)


def remove_waiting(folder: Path) -> None:
    """Removes uploads that no training has taken within a day; those that were taken are not counted any longer."""
    named = (read_mapping(file).get("data") for file in folder.glob("*/run.json"))
    used = {data for data in named if isinstance(data, str)}
    for held in uploads(folder).glob("*.count"):
        place, waited = held.with_suffix(""), time.time() - held.stat().st_mtime
        if UPLOAD_ID.fullmatch(held.stem) and waited > WAITING_SECONDS and str(place) not in used:
            remove(place)
            remove(held)


def write_counted(place: Path, held: Path, parts: list[str], content: bytes) -> dict[str, Any]:
    files, size = count_of(held)
    if files + 1 > MOST_FILES or size + len(content) > MOST_BYTES:
        raise RefusedRequest(
            413, f"an upload has at most {MOST_FILES:,} files and {MOST_BYTES >> 30} GB; give a path instead"
        )
    if sum(count_of(file)[1] for file in held.parent.glob("*.count")) + len(content) > MOST_WAITING:
        most = f"uploads that wait for a training have {MOST_WAITING >> 30} GB already"
        raise RefusedRequest(413, f"{most}, and are removed after a day; give a path instead")
    make_folder(held.parent)
    if (free := shutil.disk_usage(held.parent).free) < LEAST_FREE + len(content):
        raise RefusedRequest(
            507, f"{free >> 20:,} MB of the disk are free, and {LEAST_FREE >> 20} MB are left to runs that train; free "
            f"some space, or give a path instead", retry=False,
        )  # fmt: skip
    target = place.joinpath(*parts)
    if os.path.lexists(target):
        raise RefusedRequest(409, "this file was uploaded already", "path")
    try:
        make_folder(target.parent)
    except FileExistsError:
        raise RefusedRequest(409, "a file that was uploaded has the name of this folder", "path") from None
    write_whole(target, content)
    write_whole(held, f"{files + 1} {size + len(content)}")
    return {"files": files + 1, "bytes": size + len(content)}


def count_of(file: Path) -> tuple[int, int]:
    if not file.is_file():
        return 0, 0
    files, size = file.read_text().split()
    return int(files), int(size)


def safe_parts(path: str) -> list[str]:
    """The parts of a path that was sent, none of which leads anywhere else. Raises `RefusedRequest`."""
    parts = list(PurePosixPath(path.replace("\\", "/")).parts)
    wrong = [part for part in parts if part in ("..", "/") or part.startswith(".") or len(part.encode()) > 200
             or plain(part) != part or set(part) & RESERVED]  # fmt: skip
    if not parts or len(parts) > MOST_PARTS or wrong:
        raise RefusedRequest(400, f"path {path!r:.80} is no name of a file in a folder", "path")
    if (suffix := PurePosixPath(parts[-1]).suffix.lower()) in UNAVAILABLE:
        kind, advice = UNAVAILABLE[suffix]
        reason = f"{parts[-1]!r:.80} is a picture of the format {kind}, which is not read here; {advice}"
        raise RefusedRequest(400, reason, "path")
    if not parts[-1].lower().endswith(UPLOADED):
        raise RefusedRequest(400, f"{parts[-1]!r:.80} is neither a picture nor its caption, and was not taken", "path")
    return [f"{part}_" if os.name == "nt" and part.endswith((".", " ")) else part for part in parts]
