"""`/openapi.json`: our routes and their fields, made of the same schemas that check them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from calotype.serve.pages import MOST_SIDE_BY_SIDE
from calotype.serve.requests import Edit, Generation, NewRun, PageSampling, Resumption, Starring

Body = type[BaseModel] | None
NEEDED_FILES: dict[type[BaseModel], list[str]] = {Edit: ["image"], PageSampling: []}
"""Requests that may be a form with the files image and mask, and those which they need."""
MARKED = "Of the size of the picture: white, or fully transparent, where it is repainted."
FILES = {
    "image": {"type": "string", "format": "binary", "description": "A picture."},
    "mask": {"type": "string", "format": "binary", "description": MARKED},
}
RUNS = {"type": "array", "items": {"type": "string"}, "minItems": 2, "maxItems": MOST_SIDE_BY_SIDE}
OFFSET = {"type": "integer", "minimum": 0, "description": "Byte offset in the log; without one, from its end."}
PARAMETERS_OF: dict[str, list[tuple[str, str, bool, dict[str, Any]]]] = {
    "/api/compare": [("runs", "query", True, RUNS)],
    "/api/compare.csv": [("runs", "query", True, RUNS)],
    "/api/uploads/{upload}": [
        ("path", "query", True, {"type": "string", "description": "Below its folder, as cats/1.png."})
    ],
    "/runs/{run}/gallery.zip": [
        ("starred", "query", False, {"type": "string", "description": "1: those with a star alone."})
    ],
    "/runs/{run}/events": [("since", "query", False, OFFSET), ("Last-Event-ID", "header", False, OFFSET)],
}
"""Of an address its parameters: where they stand, whether they are needed, and what they are."""
PATTERNS = {"upload": "^[0-9a-f]{16}$", "picture": "^[0-9a-f]{20}$"}
ANSWERS = {
    ("get", "/runs/{run}/pictures/{picture}"): ("image/png", "image/webp"),
    ("get", "/runs/{run}/pictures/{picture}/nearest"): ("image/png",),
    ("get", "/runs/{run}/gallery.zip"): ("application/zip",), ("get", "/runs/{run}/report"): ("text/html",),
    ("get", "/api/runs.csv"): ("text/csv",), ("get", "/api/compare.csv"): ("text/csv",),
    ("get", "/runs/{run}/events"): ("text/event-stream",), ("get", "/api/jobs/{job}/events"): ("text/event-stream",),
}  # fmt: skip
"""Types of answers; all others are JSON."""
OPERATIONS: dict[tuple[str, str], tuple[str, Body]] = {
    ("get", "/v1/models"): ("Runs that can be sampled", None),
    ("post", "/v1/images/generations"): ("Samples, as OpenAI's clients ask for them", Generation),
    ("post", "/v1/images/edits"): ("Image-to-image and inpainting: multipart with image and mask", Edit),
    ("get", "/api/runs"): ("All runs with their main figures", None),
    ("get", "/api/runs.csv"): ("The same as CSV", None),
    ("post", "/api/runs"): ("Start a run", NewRun),
    ("get", "/api/runs/{run}"): ("A run: state, legs, plan, why it has stopped", None),
    ("post", "/api/runs/{run}/stop"): ("Ask a run to save and end", None),
    ("post", "/api/runs/{run}/cancel"): ("End a run whose plan is being made", None),
    ("post", "/api/runs/{run}/forget"): ("Take a run that never began off the list", None),
    ("post", "/api/runs/{run}/resume"): ("Go on with a run, or give a finished one more time", Resumption),
    ("post", "/api/runs/{run}/samples"): ("Make pictures for the gallery; answers with a job", PageSampling),
    ("get", "/runs/{run}/pictures/{picture}"): ("A picture of the gallery; a film is WebP", None),
    ("get", "/runs/{run}/pictures/{picture}/nearest"): ("The nearest training picture, once it was searched", None),
    ("get", "/runs/{run}/gallery.zip"): ("The pictures of the gallery, and how they were made", None),
    ("get", "/runs/{run}/report"): ("The report of a run as one page", None),
    ("post", "/api/runs/{run}/nearest"): ("Search the nearest training pictures of the newest in the gallery", None),
    ("post", "/api/runs/{run}/pictures/{picture}"): ("Give a picture of the gallery a star", Starring),
    ("delete", "/api/runs/{run}/pictures/{picture}"): ("Remove a picture of the gallery", None),
    ("get", "/api/jobs/{job}"): ("How far a job is", None),
    ("delete", "/api/jobs/{job}"): ("Cancel a job", None),
    ("get", "/api/jobs/{job}/events"): ("The progress of a job as server-sent events", None),
    ("get", "/runs/{run}/events"): ("The log of a run as server-sent events; their ids are byte offsets", None),
    ("get", "/api/compare"): ("Figures and differing settings of 2 to 8 runs", None),
    ("get", "/api/compare.csv"): ("The same as CSV", None),
    ("post", "/api/uploads/{upload}"): ("One file of a folder of pictures; the client draws the id", None),
}
ERRORS = {
    "400": "A field is wrong or unknown, and is named", "401": "The token is missing", "403": "The origin is another",
    "404": "There is no such thing", "409": "Not in the state in which it is, or the run is damaged",
    "414": "The path or query is too long", "421": "The Host header names another server",
    "500": "An error of the server or of its disk",
}  # fmt: skip
CHANGE_ERRORS = {
    "408": "The body came too slowly", "413": "The body is too large", "507": "The disk of the server is full",
}  # fmt: skip
BUSY_ERRORS = {"429": "Too many at once; see Retry-After"}
QUEUED = (
    "/v1/images/generations", "/v1/images/edits", "/api/runs/{run}/samples", "/api/runs/{run}/nearest", "/api/runs",
    "/api/runs/{run}/resume",
)  # fmt: skip
"""What is done one after the other, or at most so many at a time."""
WAITING_ERRORS = {"503": "The request was given up: its process has died, it took too long, or the server ends"}


def api_description() -> dict[str, Any]:
    """In version 3.1 of the OpenAPI specification."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), (summary, body) in OPERATIONS.items():
        paths.setdefault(path, {})[method] = operation(method, path, summary, body)
    schemas = {
        body.__name__: body.model_json_schema(ref_template="#/components/schemas/{model}")
        for _, body in OPERATIONS.values() if body is not None
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Calotype", "version": version("calotype")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def operation(method: str, path: str, summary: str, body: Body) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [parameter(name, "path", True, {"type": "string"}) for name in names]
    parameters += [parameter(*given) for given in PARAMETERS_OF.get(path, [])]
    done = {"description": "Done", "content": {kind: {} for kind in ANSWERS.get((method, path), ("application/json",))}}
    responses = {"2XX": done, **{code: {"description": words} for code, words in errors_of(method, path).items()}}
    about: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": responses}
    if content := body_of(path, body):
        about["requestBody"] = {"content": content, "required": body is not Resumption}
    return about


def errors_of(method: str, path: str) -> dict[str, str]:
    """Statuses with which a request may be refused, and what they mean, in their order."""
    errors = ERRORS | (CHANGE_ERRORS if method == "post" else {})
    errors |= BUSY_ERRORS if path.endswith("/events") or (method == "post" and path in QUEUED) else {}
    return dict(sorted((errors | (WAITING_ERRORS if path.startswith("/v1/images/") else {})).items()))


def parameter(name: str, where: str, needed: bool, schema: dict[str, Any]) -> dict[str, Any]:
    pattern = {"pattern": PATTERNS[name]} if name in PATTERNS else {}
    return {"name": name, "in": where, "required": needed, "schema": schema | pattern}


def body_of(path: str, body: Body) -> dict[str, Any]:
    """Types of a body with their schemas; empty where there is no body."""
    if path == "/api/uploads/{upload}":
        return {"application/octet-stream": {}}
    if body is None:
        return {}
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{body.__name__}"}}}
    if body not in NEEDED_FILES:
        return content
    fields = body.model_json_schema()
    required = [*fields.get("required", []), *NEEDED_FILES[body]]
    form = {
        "multipart/form-data": {"schema": fields | {"properties": fields["properties"] | FILES, "required": required}}
    }
    return form if body is Edit else content | form
