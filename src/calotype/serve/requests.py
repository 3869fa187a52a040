"""The fields of every request with their bounds, checked by pydantic; unknown ones are refused by name."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException
from starlette.requests import Request

from calotype.bounds import seconds_in
from calotype.files import first_problem
from calotype.serve.answers import RefusedRequest

MOST_PICTURES, MOST_SAMPLER_STEPS, MOST_LETTERS, LARGEST_PIXELS = 64, 250, 2000, 2**22
MOST_WORK = 16 * LARGEST_PIXELS
"""Pixels of all pictures of a request together."""
SEED_BITS = 2**53
"""Seeds of the page are whole numbers that JavaScript has, too."""
MAX_FIELDS, MAX_FILES = 32, 2

SeedField = Annotated[int, Field(ge=-SEED_BITS, le=SEED_BITS, description="Equal seeds give equal pictures.")]
Words = Annotated[str, Field(max_length=MOST_LETTERS)]


def require_time(text: str) -> str:
    """A time as the command line takes it. Raises `ValueError`."""
    seconds_in(text)
    return text


BudgetField = Annotated[str, Field(max_length=40, description="20s, 10m, 1h30m, 1d."), AfterValidator(require_time)]
Count = Annotated[int, Field(ge=1, le=MOST_PICTURES)]
SizeField = Annotated[str, Field(max_length=16, description="WIDTHxHEIGHT in pixels, or auto: that of training.")]


class Asked(BaseModel):
    """Base of all requests. Unknown fields are refused; null is as good as no value where there is a default."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        optional = {name for name, field in cls.model_fields.items() if not field.is_required()}
        return {name: value for name, value in given.items() if value is not None or name not in optional}


class SamplingFields(Asked):
    """What all requests for pictures have."""

    label: Annotated[str | None, Field(max_length=MOST_LETTERS, description="A class of the model.")] = None
    negative: Annotated[str | None, Field(max_length=MOST_LETTERS, description="Negative prompt.")] = None
    seed: Annotated[SeedField | None, Field(description="Without one, it is drawn.")] = None
    steps: Annotated[int | None, Field(ge=1, le=MOST_SAMPLER_STEPS, description="Sampling steps.")] = None
    guidance: Annotated[float | None, Field(ge=0, le=1000, description="Guidance scale; 1 disables it.")] = None


class Generation(SamplingFields):
    """As OpenAI's clients ask for pictures, with fields of our own."""

    model: Annotated[str, Field(max_length=255, description="Of GET /v1/models.")]
    prompt: Annotated[
        Words, Field(description="What the pictures show; for a model of labels, one of them, or empty.")
    ] = ""
    n: Count = 1
    size: SizeField = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png"] = "png"
    user: Annotated[str | None, Field(max_length=255, description="Ignored.")] = None


class Edit(Generation):
    """The same with a picture, as multipart/form-data: image, and mask where only a part is to be repainted."""

    strength: Annotated[
        float | None, Field(gt=0, le=1, description="Share of the steps, from 0 to 1. Default: 0.6; with a mask 1.")
    ] = None


class PageSampling(SamplingFields):
    """What the page asks for; its pictures go into the gallery of the run."""

    kind: Literal["sample", "edit", "interpolate", "develop", "enlarge"] = "sample"
    prompt: Words = ""
    count: Count = 4
    size: SizeField = "auto"
    strength: Annotated[float | None, Field(gt=0, le=1)] = None
    seed_after: SeedField | None = None
    label_after: Annotated[str | None, Field(max_length=MOST_LETTERS)] = None
    of: Annotated[str | None, Field(pattern=r"^[0-9a-f]{20}$", description="A picture of the gallery.")] = None


EDITS, FILMS = ("edit", "enlarge"), ("interpolate",)
STEPPED = ("sample", "edit", "interpolate", "develop")
USED_BY = {
    "seed_after": FILMS, "label_after": FILMS, "strength": EDITS, "of": EDITS, "size": STEPPED, "negative": STEPPED,
    "count": ("sample", "edit", "interpolate"),
}  # fmt: skip
"""Fields of `PageSampling` that not every kind of request has."""


def require_used(asked: PageSampling) -> None:
    """Raises `RefusedRequest` for a field that would have no effect."""
    given = {name for name in asked.model_fields_set if getattr(asked, name) != "auto"}
    for name, kinds in USED_BY.items():
        if asked.kind not in kinds and name in given:
            raise RefusedRequest(400, f"a request of kind {asked.kind} takes no {name}; leave it out", name)
    if asked.kind == "enlarge" and asked.strength is None and (unused := given & {"steps", "guidance"}):
        name = min(unused)
        raise RefusedRequest(400, f"without a strength, nothing is sampled in steps; leave {name} out", name)
    if asked.label_after and not asked.label:
        raise RefusedRequest(400, "label_after is where a film from label leads; give label, too", "label_after")


class NewRun(Asked):
    """A run to start: on a folder of this machine, on pictures that were uploaded, or on the embedded portraits."""

    name: Annotated[str, Field(min_length=1, max_length=80)]
    path: Annotated[str, Field(max_length=4096, description="Folder of pictures on this machine.")] = ""
    upload: Annotated[str, Field(pattern=r"^([0-9a-f]{16})?$", description="Id of what was uploaded.")] = ""
    size: Annotated[int, Field(ge=8, le=2048, description="Side of the pictures in pixels.")] = 64
    budget: BudgetField = "30m"
    kind: Literal["latent", "cascade"] = "latent"


class Resumption(Asked):
    """How to go on with a run; `budget` is more time for a finished one, `path` where its pictures are now."""

    budget: BudgetField | None = None
    path: Annotated[str, Field(max_length=4096, description="Folder of its pictures, if they have moved.")] = ""


class Starring(Asked):
    star: bool


AnyRequest = TypeVar("AnyRequest", bound=Asked)


def validated(schema: type[AnyRequest], fields: Any) -> AnyRequest:
    """Raises `RefusedRequest`, with the name of the field."""
    try:
        return schema.model_validate(fields)
    except ValidationError as error:
        wrong = error.errors()[0]
        field = ".".join(map(str, wrong["loc"])) or None
        if wrong["type"] == "extra_forbidden":
            known = ", ".join(schema.model_fields)
            raise RefusedRequest(400, f"unknown field {field!r:.80}; known are {known}", field) from None
        own = wrong["type"] == "value_error"  # of `require_time`
        raise RefusedRequest(400, str(wrong["ctx"]["error"]) if own else first_problem(error), field) from None


async def read_body(request: Request, schema: type[AnyRequest]) -> AnyRequest:
    """A body of JSON. Raises `RefusedRequest`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedRequest(400, f"the body is {kind!r:.60}, but must be application/json")
    try:
        fields = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise RefusedRequest(400, "the body is no JSON") from None
    return validated(schema, fields)


async def read_form(request: Request, schema: type[AnyRequest]) -> tuple[AnyRequest, dict[str, bytes]]:
    """The fields of a form, and the files in it: image and mask. Raises `RefusedRequest`."""
    try:
        form = await request.form(max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=2**16)
    except MultiPartException as error:
        raise RefusedRequest(400, f"the form cannot be read: {error.message}") from None
    except Exception as error:
        if getattr(error, "status_code", 0) == 400:  # starlette has made an answer of it
            raise RefusedRequest(400, f"the form cannot be read: {getattr(error, 'detail', '')}") from None
        raise
    try:
        return validated(schema, numbered(form, schema)), await files_in(form)
    finally:
        await form.close()


async def files_in(form: FormData) -> dict[str, bytes]:
    files = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if (key := name.removesuffix("[]")) not in ("image", "mask") or key in files:
                raise RefusedRequest(400, f"unknown file {name!r:.80}; known are one image and one mask", name[:80])
            files[key] = await value.read()
    return files


def numbered(form: FormData, schema: type[BaseModel]) -> dict[str, Any]:
    """The text fields of a form; pydantic reads numbers in them."""
    items = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    twice = next((name for name, _ in items if len(form.getlist(name)) > 1), None)
    if twice is not None:
        raise RefusedRequest(400, f"the field {twice!r:.80} is there twice", twice[:80])
    return {name: value for name, value in items if value or name not in schema.model_fields}


def sides(size: str) -> dict[str, int]:
    """Width and height; empty for `auto`. Raises `RefusedRequest`."""
    if size == "auto":
        return {}
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", size)
    if match is None:
        raise RefusedRequest(
            400, f"size is {size!r}, but must be auto, or width x height in pixels, as 256x384", "size"
        )
    width, height = int(match[1]), int(match[2])
    if not 0 < width * height <= LARGEST_PIXELS:
        raise RefusedRequest(400, f"size is {size}, but at most {LARGEST_PIXELS:,} pixels are made", "size")
    return {"width": width, "height": height}
