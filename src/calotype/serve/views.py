"""Routes that read: pages, pictures, and the same as JSON and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from PIL import Image
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from calotype.data.images import UnreadableError, read_image
from calotype.files import read_bytes
from calotype.report.folder import legs_of, previews, read_run
from calotype.run import Run
from calotype.serve.answers import KEPT, RefusedRequest, json_response
from calotype.serve.gallery import Gallery
from calotype.serve.gallery_page import page_of_gallery
from calotype.serve.launching import Launcher, is_running, why_stopped
from calotype.serve.library import SUMMARY_KEYS, Library, as_json, file_stamp
from calotype.serve.list_page import RunList, index_page, list_of_runs
from calotype.serve.pages import MOST_SIDE_BY_SIDE, compare_page, new_page, setting_rows, words_page
from calotype.serve.run_page import RunView, page_of_run, page_of_start, parts_of_run
from calotype.serve.words import NAMES, TERMS
from calotype.training.process import owner_of
from calotype.types import UserError

COVER_SIZE = (144, 96)
MOST_COVERS = 1000
SIGNATURES = {b"\x89PNG": "image/png", b"RIFF": "image/webp", b"\xff\xd8\xff": "image/jpeg"}
FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""At the start of a cell a spreadsheet would take it for a formula."""


def library_of(request: Request) -> Library:
    library: Library = request.app.state.library
    return library


def launcher_of(request: Request) -> Launcher:
    launcher: Launcher = request.app.state.launcher
    return launcher


def folder_of(request: Request) -> Path:
    """Of the run in the address. Raises `RefusedRequest`."""
    return library_of(request).find(request.path_params["run"])


def view_of(request: Request) -> RunView:
    run, folder = request.path_params["run"], folder_of(request)
    launcher = launcher_of(request)
    about, lines = launcher.about(run), launcher.last_lines(run)
    newest = file_stamp(launcher.noted(run)) > file_stamp(folder / "run.json")
    if "code" in about and not newest:
        del about["code"]  # it has been trained since by a process that the page has not started
        lines = []
    starting, stopping = newest and is_running(about), launcher.is_stopping(run, owner_of(folder))
    return RunView(run, read_run(folder), about, lines, starting, stopping)


# -- Pages -------------------------------------------------------------------------------------------------------------


def runs_shown(request: Request) -> RunList:
    return list_of_runs(library_of(request).summaries(), launcher_of(request).started())


def index(request: Request) -> Response:
    return HTMLResponse(index_page(runs_shown(request)))


def list_parts(request: Request) -> Response:
    """The list for a page that is open; 304 where its version, an entity tag, is what that page has."""
    runs = runs_shown(request)
    headers = {"ETag": f'"{runs.version}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(None, 304, headers)
    return json_response(runs.as_json(), headers=headers)


def new(request: Request) -> Response:
    return HTMLResponse(new_page())


def words(request: Request) -> Response:
    return HTMLResponse(words_page())


def run_page(request: Request) -> Response:
    run, launcher = request.path_params["run"], launcher_of(request)
    if (started := launcher.started_run(run)) is not None:
        return HTMLResponse(page_of_start(started, launcher.about(run), launcher.last_lines(run)))
    return HTMLResponse(page_of_run(view_of(request)))


def run_parts(request: Request) -> Response:
    return json_response(parts_of_run(view_of(request)))


def gallery(request: Request) -> Response:
    return HTMLResponse(page_of_gallery(request.path_params["run"], read_run(folder_of(request))))


def chosen_runs(request: Request) -> list[tuple[str, Path]]:
    ids = list(dict.fromkeys(request.query_params.getlist("runs")))
    if not 2 <= len(ids) <= MOST_SIDE_BY_SIDE:
        raise RefusedRequest(400, f"mark 2 to {MOST_SIDE_BY_SIDE} runs in the list; {len(ids)} are marked", "runs")
    return [(run, library_of(request).find(run)) for run in ids]


def compared_runs(request: Request) -> Response:
    return HTMLResponse(compare_page(chosen_runs(request)))


# -- Pictures ----------------------------------------------------------------------------------------------------------


def read_inside(folder: Path, file: Path) -> bytes:
    """A file of a run. Raises `UserError` where it cannot be read, or a link leads out of the folder."""
    if not leads_inside(folder, file):
        raise UserError(f"{file.name} is a link that leads out of its run")
    return read_bytes(file)


def leads_inside(folder: Path, file: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def picture_response(folder: Path, file: Path, changes: bool = False) -> Response:
    """A picture of a run's folder, kept by browsers unless it `changes`. Raises `RefusedRequest` for what is none."""
    try:
        content = read_inside(folder, file)
    except UserError:
        raise RefusedRequest(404, "there is no such picture (yet)") from None
    kind = next((kind for start, kind in SIGNATURES.items() if content.startswith(start)), None)
    if kind is None:
        raise RefusedRequest(404, "the file is no picture")
    return Response(content, 200, {"Cache-Control": "private, no-cache"} if changes else KEPT, kind)


def has_time(request: Request) -> bool:
    """Whether the address has the time of the file in it, so that what is at it never changes."""
    return "at" in request.query_params


def grid_picture(request: Request) -> Response:
    folder = folder_of(request)
    return picture_response(folder, folder / "samples" / "grid.png", not has_time(request))


def nearest_picture(request: Request) -> Response:
    folder = folder_of(request)
    return picture_response(folder, folder / "previews" / "nearest.png", not has_time(request))


def preview_picture(request: Request) -> Response:
    run, leg, index = read_run(folder_of(request)), request.path_params["leg"], request.path_params["index"]
    made = previews(run, leg) if leg in legs_of(run) else []
    if index >= len(made):
        raise RefusedRequest(404, "there is no such preview")
    return picture_response(run.folder, made[index].file, not has_time(request))


def kept_picture(request: Request) -> Response:
    folder = folder_of(request)
    return picture_response(folder, Gallery(folder).file(request.path_params["picture"]))


def nearest_of_picture(request: Request) -> Response:
    folder = folder_of(request)
    return picture_response(folder, Gallery(folder).nearest(request.path_params["picture"]))


def cover(request: Request) -> Response:
    """A small part of the newest pictures, for the list."""
    file = cover_file(folder_of(request))
    content = small_cover(file, file_stamp(file) if file else None)
    return Response(content, 200, {"Cache-Control": "private, max-age=10"}, "image/png")


def cover_file(folder: Path) -> Path | None:
    """The grid of samples, else the newest preview of a denoiser, else that of an autoencoder."""
    made = (sorted((folder / "previews").glob(f"{leg}-0*.png")) for leg in ("denoiser", "autoencoder"))
    files = (folder / "samples" / "grid.png", *(file for files in made for file in reversed(files)))
    return next((file for file in files if file.is_file() and leads_inside(folder, file)), None)


@lru_cache(MOST_COVERS)
def small_cover(file: Path | None, stamp: tuple[int, int] | None) -> bytes:
    """Of a file while its `file_stamp` is this one; without a file, a pixel that cannot be seen."""
    image = Image.new("RGBA", (1, 1))
    if file is not None:
        try:
            whole = read_image(file)
            width = min(whole.width, whole.height * 3 // 2)
            image = whole.crop((0, 0, width, width * 2 // 3)).resize(COVER_SIZE, Image.Resampling.LANCZOS)
        except UnreadableError:
            pass
    image.save(content := io.BytesIO(), "PNG")
    return content.getvalue()


# -- Files -------------------------------------------------------------------------------------------------------------


def report_file(request: Request) -> Response:
    folder = folder_of(request)
    try:
        content = read_inside(folder, folder / "report.html")
    except UserError:
        raise RefusedRequest(404, "this run has no report yet") from None
    return attachment(content, "text/html; charset=utf-8", f"{plain_name(folder.name)}.html")


def gallery_archive(request: Request) -> Response:
    folder = folder_of(request)
    parts = Gallery(folder).zipped(request.query_params.get("starred") == "1")
    return StreamingResponse(parts, 200, as_file(f"{plain_name(folder.name)}-pictures.zip"), "application/zip")


def attachment(content: bytes, kind: str, name: str) -> Response:
    return Response(content, 200, as_file(name), kind)


def as_file(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def plain_name(name: str) -> str:
    """For a header: letters of ASCII, digits, and - _ . alone."""
    return re.sub("[^A-Za-z0-9._-]", "_", name)[:80]


# -- JSON and CSV ------------------------------------------------------------------------------------------------------


def runs_json(request: Request) -> Response:
    return json_response({"runs": [as_json(run, summary) for run, summary in library_of(request).summaries()]})


def runs_csv(request: Request) -> Response:
    rows = [as_json(run, summary) for run, summary in library_of(request).summaries()]
    heads = ["id", "folder", *SUMMARY_KEYS]
    return csv_response("runs.csv", heads, [[row[head] for head in heads] for row in rows])


def run_json(request: Request) -> Response:
    """What is known of a run: summary, state of its legs, plan, and why it has stopped."""
    view = view_of(request)
    summary = as_json(view.id, library_of(request).summary(view.run.folder))
    stopped = why_stopped(view.run, view.about, view.lines)
    return json_response({**summary, "legs": view.run.state.legs, "classes": view.run.state.classes,
                          "plan": view.run.plan.get("choices", []), "stopped": stopped})  # fmt: skip


def compare_table(request: Request) -> tuple[list[str], list[list[Any]]]:
    """Settings that differ, and the figures of the list: a row each."""
    chosen = chosen_runs(request)
    runs: dict[str, Run] = dict(zip(ascii_uppercase, (read_run(folder) for _, folder in chosen), strict=False))
    summaries = [as_json(run, library_of(request).summary(folder)) for run, folder in chosen]
    figures = [[key, *(summary[key] for summary in summaries)] for key in ("folder", *SUMMARY_KEYS)]
    return ["setting", *(run for run, _ in chosen)], [*figures, *([key, *values] for key, values in setting_rows(runs))]


def compare_json(request: Request) -> Response:
    heads, rows = compare_table(request)
    return json_response({"runs": heads[1:], "rows": {row[0]: row[1:] for row in rows}})


def compare_csv(request: Request) -> Response:
    return csv_response("runs.csv", *compare_table(request))


def csv_response(name: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Response:
    writer = csv.writer(file := io.StringIO())
    writer.writerow(heads)
    writer.writerows([[harmless(value) for value in row] for row in rows])
    return attachment(file.getvalue().encode("utf-8", "backslashreplace"), "text/csv; charset=utf-8", name)


def harmless(value: Any) -> Any:
    """A text that no spreadsheet takes for a formula."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value


def terms(request: Request) -> Response:
    return json_response({"terms": TERMS, "names": NAMES})


Endpoint = Callable[[Request], Response]
PAGES: dict[str, Endpoint] = {
    "/": index, "/parts": list_parts, "/new": new, "/words": words, "/compare": compared_runs,
    "/runs/{run}": run_page, "/runs/{run}/parts": run_parts, "/runs/{run}/gallery": gallery,
    "/runs/{run}/gallery.zip": gallery_archive, "/runs/{run}/report": report_file, "/runs/{run}/cover": cover,
    "/runs/{run}/grid": grid_picture, "/runs/{run}/nearest": nearest_picture,
    "/runs/{run}/previews/{leg}/{index:int}": preview_picture, "/runs/{run}/pictures/{picture}": kept_picture,
    "/runs/{run}/pictures/{picture}/nearest": nearest_of_picture,
    "/words.json": terms,
}  # fmt: skip
DATA: dict[str, Endpoint] = {
    "/api/runs": runs_json, "/api/runs.csv": runs_csv, "/api/runs/{run}": run_json, "/api/compare": compare_json,
    "/api/compare.csv": compare_csv,
}  # fmt: skip
