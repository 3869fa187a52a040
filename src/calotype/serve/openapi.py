"""`/openapi.json`: our routes and their fields, made of the same schemas that check them."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pydantic import BaseModel

from calotype.serve.requests import Edit, Generation, NewRun, PageSampling, Resumption, Starring

Body = type[BaseModel] | None
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
    ("post", "/api/runs/{run}/nearest"): ("Search the nearest training pictures of the newest in the gallery", None),
    ("post", "/api/runs/{run}/pictures/{picture}"): ("Give a picture of the gallery a star", Starring),
    ("delete", "/api/runs/{run}/pictures/{picture}"): ("Remove a picture of the gallery", None),
    ("get", "/api/jobs/{job}"): ("How far a job is", None),
    ("delete", "/api/jobs/{job}"): ("Cancel a job", None),
    ("get", "/api/jobs/{job}/events"): ("The progress of a job as server-sent events", None),
    ("get", "/runs/{run}/events"): ("The log of a run as server-sent events; their ids are byte offsets", None),
    ("get", "/api/compare"): ("Figures and differing settings of 2 to 8 runs: ?runs=ID&runs=ID", None),
    ("get", "/api/compare.csv"): ("The same as CSV", None),
    ("post", "/api/uploads/{upload}"): ("One file of a folder of pictures: ?path=a/b.png, its bytes as the body", None),
}
ERRORS = {
    "400": "A field is wrong or unknown, and is named", "401": "The token is missing", "403": "The origin is another",
    "404": "There is no such thing", "413": "The body is too large", "429": "The queue is full; see Retry-After",
}  # fmt: skip


def api_description() -> dict[str, Any]:
    """In version 3.1 of the OpenAPI specification."""
    paths: dict[str, dict[str, Any]] = {}
    for (method, path), (summary, body) in OPERATIONS.items():
        paths.setdefault(path, {})[method] = operation(path, summary, body)
    schemas = {
        name: schema
        for _, body in OPERATIONS.values() if body is not None
        for name, schema in {body.__name__: body.model_json_schema(ref_template="#/components/schemas/{model}")}.items()
    }  # fmt: skip
    return {
        "openapi": "3.1.0",
        "info": {"title": "Calotype", "version": version("calotype")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def operation(path: str, summary: str, body: Body) -> dict[str, Any]:
    names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
    parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    responses = {"2XX": {"description": "Done"}, **{code: {"description": words} for code, words in ERRORS.items()}}
    about: dict[str, Any] = {"summary": summary, "parameters": parameters, "responses": responses}
    if body is not None:
        kind = "multipart/form-data" if body is Edit else "application/json"
        schema = {"$ref": f"#/components/schemas/{body.__name__}"}
        about["requestBody"] = {"content": {kind: {"schema": schema}}, "required": True}
    return about
