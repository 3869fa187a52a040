"""What requests may say, what they are answered, and what is made of them, by models of version 0.1."""

import errno
import io
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from openai import ConflictError, OpenAI
from PIL import Image
from serving import ADDRESS, RUN, bearer, client_of
from small import CASCADE, HYBRID, SETTINGS, noise_pictures
from starlette.routing import Route
from test_report import fake_run, flat

from calotype.cli.commands.reading import levels_in
from calotype.data.captions import Captions
from calotype.data.formats import AVIF_SUFFIXES, HEIC_SUFFIXES, INSTALL_AVIF, INSTALL_HEIC, UNAVAILABLE
from calotype.data.images import read_image, read_mask
from calotype.evaluation.measures import MEASURES
from calotype.files import read_json, write_json
from calotype.model import Model, load
from calotype.places import HINTS
from calotype.planning.plan import explain
from calotype.report.curves import LOSSES
from calotype.serve import actions, api, uploading, worker
from calotype.serve.answers import RefusedRequest, without_folders
from calotype.serve.gallery import Gallery
from calotype.serve.gallery_page import caption_of, gallery_figure
from calotype.serve.library import id_of
from calotype.serve.requests import NewRun
from calotype.serve.safety import MAX_EDIT, MAX_JSON, limit_of
from calotype.serve.server import routes
from calotype.serve.wire import unpack
from calotype.serve.words import NAMES, TERMS
from calotype.serve.worker import Worker, decoded, repainted
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.types import UserError

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of runs with a model of labels, and with one of captions."""
    folder = tmp_path_factory.mktemp("some runs")
    for name, model in (("run", "labels"), ("captions", "captions")):
        shutil.copytree(GOLDEN / model, fake_run(folder / name, flat) / "model")
        shutil.copy(GOLDEN / "stopped-run" / "recipe.toml", folder / name)
        state = read_json(folder / name / "run.json")
        classes = read_json(folder / name / "model" / "model.json")["classes"]
        write_json(folder / name / "run.json", {**state, "classes": classes, "status": "finished"})
        shutil.rmtree(folder / name / "checkpoints", ignore_errors=True)
    return folder


@pytest.fixture
def client(folder):
    client, gate = client_of(folder)
    client.headers.update(bearer(gate))
    client.token = gate.token
    return client


@pytest.fixture
def ending(monkeypatch):
    """Ends jobs at once, and keeps them."""
    jobs = []

    def as_asked(state="finished", reason=""):
        async def at_once(request, queue, job):
            jobs.append(job)
            job.end(state, reason)

        monkeypatch.setattr(api, "wait_or_cancel", at_once)
        return jobs

    return as_asked


def work_of(folder, kind, files=(), **asked):
    """Pictures of the sampling process, and its last message."""
    about = {"job": "x", "kind": kind, "folder": str(folder), "count": 1, "seed": 5, "steps": 2, **asked}
    with tempfile.TemporaryFile() as sink:
        Worker(sink, sink, "cpu").answer(about, list(files))
        sink.seek(0)
        messages = list(iter(lambda: unpack(sink), None))
    pictures = [Image.open(io.BytesIO(part)) for _, parts in messages for part in parts]
    return pictures, messages[-1][0]


def png(picture, **more):
    picture.save(file := io.BytesIO(), "PNG", **more)
    return file.getvalue()


# -- What is made ------------------------------------------------------------------------------------------------------


def test_a_finished_run_that_goes_on_is_sampled_by_its_model_until_it_has_a_checkpoint(folder, tmp_path):
    (before,), _ = work_of(folder / "run", "sample")
    run = shutil.copytree(folder / "run", tmp_path / "a run")
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": "training"})
    (after,), end = work_of(run, "sample")
    assert end["end"] == "finished" and np.array_equal(before, after)
    shutil.rmtree(run / "model")
    pictures, end = work_of(run, "sample")
    assert not pictures and end["end"] == "refused"
    assert "the denoiser of a run has no checkpoint yet" in end["reason"] and str(tmp_path) not in end["reason"]


def test_a_stopped_run_of_an_earlier_version_says_what_it_lacks(tmp_path):
    run = shutil.copytree(GOLDEN / "stopped-run", tmp_path / "stopped")
    pictures, end = work_of(run, "sample", label="micah")
    assert not pictures and end["end"] == "refused" and "has no space among its constants" in end["reason"]


def test_pictures_of_16_bits_are_read_with_black_and_white_of_the_run(folder, tmp_path):
    """As the command line reads them: without the run's, each would be spread by its own values."""
    run = shutil.copytree(folder / "run", tmp_path / "deep")
    write_json(run / "run.json", {**read_json(run / "run.json"), "black_and_white": {"I;16": [0, 1000]}})
    deep = Image.fromarray(np.full((16, 16), 500, np.uint16) + np.arange(16, dtype=np.uint16))
    file = tmp_path / "deep.png"
    file.write_bytes(png(deep))
    expected = load(run, "cpu").redraw(read_image(file, levels=levels_in(run)), 0.5, seed=5, steps=4)[0]
    (varied,), _ = work_of(run, "edit", [png(deep)], strength=0.5, steps=4)
    (enlarged,), _ = work_of(run, "enlarge", [png(deep)])
    assert np.array_equal(varied, expected) and abs(np.asarray(enlarged, int) - 129).max() < 4


def test_each_row_of_a_cascade_from_noise_to_clean_has_the_size_of_the_picture(tmp_path):
    shutil.copytree(GOLDEN / "cascade", fake_run(tmp_path / "cascade", flat) / "model")
    (sheet,), _ = work_of(tmp_path / "cascade", "develop")
    (picture,), _ = work_of(tmp_path / "cascade", "sample")
    model = load(tmp_path / "cascade", "cpu")
    calls = len(model.estimates(seed=5, steps=2))
    assert len(model.stages) > 1 and sheet.size == (2 * picture.width, calls * picture.height)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/my runs/a/model is damaged", "a/model is damaged"),
        ("no such file: '/tmp/x y/z a.png'", "no such file: 'z a.png'"),
        ("\"/home/o'neil/a b/x.png\" and '/c/d'", "\"x.png\" and 'd'"),
        ("'C:\\\\Users\\\\me me\\\\a.png'", "'a.png'"),
        ("look into ~/a/b", "look into b"),
        ("\\\\server\\my-share\\a.png is damaged", "a.png is damaged"),
        ("read:/home/a/b", "read:b"),
        ("/home/anna maria/x.png is damaged", "x.png is damaged"),
        ("/mnt/home/me/my runs/a.png", "my runs/a.png"),
        ("look into /var/lib/cache, or /a", "look into cache, or a"),
        ("C:\\Users\\me\\a.png is no picture", "a.png is no picture"),
        ("16x16 and/or 1/2, http://127.0.0.1/x", "16x16 and/or 1/2, http://127.0.0.1/x"),
    ],
)
def test_reasons_have_no_folders_in_them(text, shown, monkeypatch):
    monkeypatch.setenv("HOME", "/home/anna maria")
    assert without_folders(text, Path("/home/me/my runs")) == shown


def test_a_reason_names_pictures_of_the_run_without_their_folder(tmp_path, monkeypatch):
    def refuse(*given):
        raise UserError("/mnt/big disk/my pets/a.png is damaged")

    run = shutil.copytree(GOLDEN / "labels", fake_run(tmp_path / "run", flat) / "model").parent
    write_json(run / "run.json", {**read_json(run / "run.json"), "data": "/mnt/big disk/my pets"})
    monkeypatch.setitem(worker.WORK, "sample", refuse)
    assert work_of(run, "sample")[1]["reason"] == "my pets/a.png is damaged"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
def test_a_mask_without_transparency_is_repainted_where_it_is_white(mode):
    """Also where its file has an alpha channel; where some of it is transparent, that is repainted."""
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 8))
    white = repainted(decoded(png(mask.convert("RGB").convert(mode)), read_mask))
    assert np.array_equal(white.convert("L"), mask)
    layer = Image.new("RGBA", (16, 16), (255, 255, 255, 255))
    layer.paste((0, 0, 0, 0), (0, 0, 8, 8))
    assert np.array_equal(repainted(decoded(png(layer), read_mask)).convert("L"), mask)


def test_step_by_step_takes_size_and_negative_prompt(folder):
    (square,), _ = work_of(folder / "captions", "develop", prompt="a micah portrait")
    (wide,), _ = work_of(folder / "captions", "develop", prompt="a micah portrait", width=64, height=32)
    assert wide.size == (128, 64) and square.size != wide.size
    (without,), _ = work_of(folder / "captions", "develop", prompt="a micah portrait", negative="hat")
    assert without.size == square.size and not np.array_equal(without, square)
    sampled, _ = work_of(folder / "captions", "sample", prompt="a micah portrait", negative="hat")
    last = without.crop((without.width // 2, without.height - sampled[0].height, without.width, without.height))
    assert np.abs(np.asarray(last, int) - np.asarray(sampled[0], int)).max() <= 1


def test_a_cascade_enlarges_by_the_prompt_of_the_picture(folder, monkeypatch, tmp_path):
    shutil.copytree(GOLDEN / "cascade", fake_run(tmp_path / "cascade", flat) / "model")
    seen = []
    monkeypatch.setattr(Model, "enlarge", lambda self, picture, **asked: seen.append(asked) or picture)
    picture = png(Image.new("RGB", (8, 8)))
    _, end = work_of(tmp_path / "cascade", "enlarge", [picture], label="micah", prompt="a micah portrait")
    assert end["end"] == "finished" and seen == [{"label": "micah", "seed": 5, "prompt": "a micah portrait"}]
    _, end = work_of(tmp_path / "cascade", "enlarge", [picture], strength=0.5)
    assert end["end"] == "refused" and "takes no strength" in end["reason"]


# -- What is taken -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "asked"),
    [("label_after", {"kind": "interpolate", "label_after": "b"}), ("seed_after", {"seed_after": 3}),
     ("strength", {"kind": "develop", "strength": 0.5}), ("negative", {"kind": "enlarge", "negative": "x"}),
     ("size", {"kind": "enlarge", "size": "64x32"}), ("of", {"of": "0" * 20}),
     ("count", {"kind": "develop", "count": 4}), ("count", {"kind": "enlarge", "count": 2}),
     ("steps", {"kind": "enlarge", "steps": 9}), ("guidance", {"kind": "enlarge", "guidance": 2})],
)  # fmt: skip
def test_a_field_that_would_have_no_effect_is_refused(client, field, asked):
    answer = client.post(f"/api/runs/{RUN}/samples", json=asked)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


@pytest.mark.parametrize(
    ("field", "asked", "files"),
    [("of", {"kind": "edit"}, ["mask"]), ("image", {"kind": "edit", "of": "0" * 20}, ["image"]),
     ("mask", {"kind": "enlarge"}, ["image", "mask"]), ("mask", {}, ["mask"]), ("image", {}, ["image"])],
)  # fmt: skip
def test_a_picture_or_mask_that_would_have_no_effect_is_refused(client, field, asked, files):
    """A mask alone is not taken for the picture."""
    sent = {name: png(Image.new("RGB", (8, 8))) for name in files}
    answer = client.post(f"/api/runs/{RUN}/samples", data={"seed": "1", **asked}, files=sent)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, field)


MOST_FIELDS = {f"field{index}": "x" for index in range(32)}


@pytest.mark.parametrize(
    ("fields", "files", "why"),
    [(MOST_FIELDS, 2, "unknown field"), (MOST_FIELDS | {"one more": "x"}, 2, "Too many fields"),
     ({}, 3, "Too many files"), ({"prompt": "x" * (2**16 + 1)}, 1, "maximum size of 64KB"),
     ({"prompt": "x" * 2**16}, 1, "at most 2000 characters")],
)  # fmt: skip
def test_a_form_has_32_fields_2_files_and_64_kb_a_field_at_most(client, fields, files, why):
    sent = [(name, ("a.png", b"x")) for name in ("image", "mask", "image")[:files]]
    answer = client.post(f"/api/runs/{RUN}/samples", data=fields, files=sent)
    assert answer.status_code == 400 and why in answer.json()["error"]["message"], answer.text


def test_null_is_as_good_as_no_value(client, ending):
    jobs = ending()
    theirs = OpenAI(base_url=f"{ADDRESS}/v1", api_key=client.token, http_client=client, max_retries=0)
    theirs.images.generate(model="run", prompt="", n=None, size=None, extra_body={"seed": None, "label": None})
    assert jobs[0].asked["count"] == 1 and "label" not in jobs[0].asked
    for wrong in ({"model": None}, {"model": "run", "quality": None}):
        assert client.post("/v1/images/generations", json=wrong).status_code == 400


@pytest.mark.parametrize(("state", "status"), [("cancelled", 409), ("failed", 503)])
def test_their_client_does_not_ask_again_for_what_was_given_up(client, ending, state, status):
    jobs = ending(state, "why")
    theirs = OpenAI(base_url=f"{ADDRESS}/v1", api_key=client.token, http_client=client, max_retries=2)
    with pytest.raises(Exception, match="why") as caught:
        theirs.images.generate(model="run", prompt="")
    assert caught.value.status_code == status and len(jobs) == 1


def test_their_client_does_not_ask_again_for_a_damaged_run(folder, client):
    (fake_run(folder / "broken", flat) / "run.json").write_text("{")
    asked, post = [], client.send
    client.send = lambda *given, **more: asked.append(1) or post(*given, **more)
    theirs = OpenAI(base_url=f"{ADDRESS}/v1", api_key=client.token, http_client=client, max_retries=2)
    with pytest.raises(ConflictError):
        theirs.images.generate(model="broken", prompt="")
    shutil.rmtree(folder / "broken")
    assert len(asked) == 1


def test_a_form_with_a_picture_may_be_larger_than_other_bodies():
    form = "multipart/form-data; boundary=x"
    for path in ("/v1/images/edits", f"/api/runs/{RUN}/samples"):
        assert limit_of(path, form) == MAX_EDIT and limit_of(path, "application/json") == MAX_JSON
    assert limit_of("/v1/images/generations", form) == MAX_JSON


def test_pictures_that_change_are_asked_for_again(client, folder):
    """After a run has gone on its samples are others; with the time of the file in the address they are kept."""
    for place in (f"/runs/{RUN}/grid", f"/runs/{RUN}/previews/denoiser/0"):
        assert "no-cache" in client.get(place).headers["cache-control"]
        assert "immutable" in client.get(f"{place}?at=1").headers["cache-control"]
    page = client.get(f"/compare?runs={RUN}&runs={id_of('captions')}").text
    time = (folder / "run" / "samples" / "grid.png").stat().st_mtime_ns
    assert f'src="/runs/{RUN}/grid?at={time}"' in page


def test_more_pixels_than_a_request_may_have_are_refused_at_any_size(folder, monkeypatch):
    """Also of the size of training, and where each step is shown."""
    side = work_of(folder / "run", "sample")[0][0].width
    monkeypatch.setattr(worker, "MOST_WORK", 4 * side**2)
    films, wide = {"count": 5, "seed_after": 1}, {"width": 2 * side, "height": 2 * side, "count": 2}
    for kind, given in (("sample", {"count": 5}), ("sample", wide), ("interpolate", films), ("develop", {"steps": 3})):
        pictures, end = work_of(folder / "run", kind, **given)
        assert not pictures and end["end"] == "refused" and "at most" in end["reason"], kind
    assert "ask for fewer steps" in end["reason"]  # its number of pictures cannot be set
    assert not work_of(folder / "run", "develop", steps=2, sampler="heun")[0]  # two calls a step
    assert work_of(folder / "run", "develop", steps=2, sampler="euler")[0]
    assert len(work_of(folder / "run", "sample", count=4)[0]) == 4


def test_what_no_message_can_hold_is_refused_with_the_reason(folder, monkeypatch):
    monkeypatch.setattr(worker, "MAX_PART", 100)
    pictures, end = work_of(folder / "run", "sample")
    assert not pictures and end["end"] == "refused" and "are sent; ask for fewer" in end["reason"]


def test_a_large_film_is_compressed_with_losses(folder, monkeypatch):
    def size():
        (film,), _ = work_of(folder / "run", "interpolate", count=4, seed_after=9)
        assert film.n_frames == 6
        return film.fp.seek(0, io.SEEK_END)

    lossless = size()
    monkeypatch.setattr(worker, "LOSSLESS_PIXELS", 1)
    assert size() < lossless / 2


# -- Uploads -----------------------------------------------------------------------------------------------------------


def test_uploads_that_no_training_has_taken_go_after_a_day(tmp_path, monkeypatch):
    folder = tmp_path / "runs"
    old, used, new = ("a" * 16, "b" * 16, "c" * 16)
    for batch in (old, used):
        uploading.stored(folder, batch, ["a.png"], b"x")
        os.utime(uploading.uploads(folder) / f"{batch}.count", (0, 0))
    named = uploading.uploads(folder) / "pets"
    named.mkdir()
    write_json(folder / "run" / "run.json", {"data": str(uploading.uploads(folder) / used)})
    write_json(folder / "odd" / "run.json", {"data": ["no text"]})
    uploading.stored(folder, new, ["a.png"], b"x")
    left = {place.name for place in uploading.uploads(folder).iterdir()}
    assert left == {used, f"{used}.count", new, f"{new}.count", "pets"}
    monkeypatch.setattr(uploading, "MOST_WAITING", 3)
    uploading.stored(folder, new, ["b.png"], b"x")
    with pytest.raises(RefusedRequest, match="removed after a day"):
        uploading.stored(folder, "d" * 16, ["a.png"], b"x")


UNDECODED = [(suffix, "HEIC", INSTALL_HEIC) for suffix in HEIC_SUFFIXES] + [
    (suffix, "AVIF", INSTALL_AVIF) for suffix in AVIF_SUFFIXES
]


@pytest.mark.parametrize(("suffix", "kind", "advice"), UNDECODED)
def test_a_picture_without_its_decoder_is_named_with_what_to_install(client, monkeypatch, suffix, kind, advice):
    monkeypatch.setitem(UNAVAILABLE, suffix, (kind, advice))
    refused = client.post(f"/api/uploads/{'0' * 16}?path=pets/IMG{suffix.upper()}", content=b"x")
    why = f"'IMG{suffix.upper()}' is a picture of the format {kind}, which is not read here; {advice}"
    assert (refused.status_code, refused.json()["error"]["message"]) == (400, why)


STATUSES = {"ENOSPC": 507, "EDQUOT": 507, "EACCES": 409, "EROFS": 409, "EFBIG": 409, "EIO": 500, "EMFILE": 500}


@pytest.mark.parametrize(("name", "status"), STATUSES.items())
def test_what_the_disk_refuses_has_its_reason_and_what_to_do(tmp_path, monkeypatch, name, status):
    """The application answers, and raises nothing: the server would print a traceback."""
    number = getattr(errno, name)

    def fail(path, content):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(uploading, "write_whole", fail)
    client, gate = client_of(tmp_path / "runs", raise_server_exceptions=True)
    refused = client.post(f"/api/uploads/{'0' * 16}?path=a.png", content=b"x", headers=bearer(gate))
    place = f".calotype/uploads/{'0' * 16}/a.png"
    assert refused.json()["error"]["message"] == f"{os.strerror(number)} at {place}; {HINTS[number]}"
    assert refused.status_code == status and refused.headers["x-should-retry"] == "false"


def test_uploads_leave_space_on_the_disk(client, folder, monkeypatch):
    monkeypatch.setattr(uploading.shutil, "disk_usage", lambda place: SimpleNamespace(free=uploading.LEAST_FREE))
    refused = client.post(f"/api/uploads/{'f' * 16}?path=a.png", content=b"x")
    assert refused.status_code == 507 and "256 MB of the disk are free" in refused.text
    assert not (uploading.uploads(folder) / ("f" * 16)).exists()


def test_of_two_requests_at_once_one_takes_an_upload(tmp_path, monkeypatch):
    """The other one is told that there is nothing."""
    uploading.stored(tmp_path, "a" * 16, ["a.png"], b"x")
    monkeypatch.setattr(actions, "is_run_name", lambda name: time.sleep(0.2) or True)

    def take(name):
        try:
            return actions.pictures_argument(tmp_path, NewRun(name=name, upload="a" * 16))
        except RefusedRequest as error:
            return error.status

    with ThreadPoolExecutor(2) as threads:
        taken = sorted(threads.map(take, ("cats", "dogs")), key=str)
    assert taken[0] == 404 and len(taken[1]) == 1


# -- The description ---------------------------------------------------------------------------------------------------


def example(schema):
    """A value that the schema allows."""
    first = schema.get("anyOf", [schema])[0]
    if "const" in first or "enum" in first:
        return first.get("const") or first["enum"][0]
    if schema.get("default") is not None:
        return schema["default"]
    return {"integer": first.get("minimum", 1), "number": first.get("maximum", 1), "string": "a"}[first["type"]]


def test_a_request_that_is_made_from_the_description_is_taken(client, folder, ending):
    described, jobs = client.get("/openapi.json").json(), ending()
    content = described["paths"]["/v1/images/edits"]["post"]["requestBody"]["content"]
    schema = content["multipart/form-data"]["schema"]
    assert schema["required"] == ["model", "image"] and not schema["additionalProperties"]
    picture = png(Image.new("RGB", (16, 16)))
    files = {name: picture for name, about in schema["properties"].items() if about.get("format") == "binary"}
    fields = {name: str(example(about)) for name, about in schema["properties"].items() if name not in files}
    answer = client.post("/v1/images/edits", data={**fields, "model": "run"}, files=files)
    assert answer.status_code == 200 and len(jobs[0].asked) > 5 and set(files) == {"image", "mask"}

    upload = described["paths"]["/api/uploads/{upload}"]["post"]
    (batch, path), (kind,) = upload["parameters"], upload["requestBody"]["content"]
    assert re.fullmatch(batch["schema"]["pattern"], "0" * 16) and (path["name"], path["in"]) == ("path", "query")
    sent = {"params": {"path": "cats/1.png"}, "headers": {"Content-Type": kind}, "content": picture}
    assert client.post(f"/api/uploads/{'0' * 16}", **sent).status_code == 201
    (runs,) = described["paths"]["/api/compare"]["get"]["parameters"]
    assert client.get("/api/compare", params={runs["name"]: [RUN, id_of("captions")]}).status_code == 200


def test_only_pages_and_their_parts_are_not_described(client):
    described = client.get("/openapi.json").json()["paths"]
    left = {route.path for route in routes() if isinstance(route, Route)} - set(described)
    assert left == {
        "/", "/parts", "/new", "/words", "/words.json", "/compare", "/openapi.json", "/static/{name}", "/runs/{run}",
        "/runs/{run}/parts", "/runs/{run}/gallery", "/runs/{run}/cover", "/runs/{run}/grid", "/runs/{run}/nearest",
        "/runs/{run}/previews/{leg}/{index:int}",
    }  # fmt: skip


def test_statuses_types_and_parameters_are_described(client):
    paths = client.get("/openapi.json").json()["paths"]
    responses = {status for methods in paths.values() for each in methods.values() for status in each["responses"]}
    sources = "".join(file.read_text() for file in Path(worker.__file__).parent.glob("*.py"))
    assert {*re.findall(r"(?:RefusedRequest\(\s*|return )(4\d\d|5\d\d),", sources)} <= responses
    assert {str(status) for status in (*api.STATUS_OF_END.values(), 500)} <= responses
    for methods in paths.values():
        assert all("408" not in about["responses"] for method, about in methods.items() if method != "post")
    film = paths["/runs/{run}/pictures/{picture}"]["get"]["responses"]["2XX"]["content"]
    assert set(film) == {"image/png", "image/webp"}
    events = paths["/runs/{run}/events"]["get"]["parameters"]
    assert {(each["name"], each["in"]) for each in events if not each["required"]} == {
        ("since", "query"), ("Last-Event-ID", "header"),
    }  # fmt: skip


# -- The gallery -------------------------------------------------------------------------------------------------------


def test_a_caption_has_all_that_makes_a_picture_again_and_only_such_pictures_offer_it():
    sample = {"kind": "sample", "seed": 7, "index": 2, "label": "a", "negative": "hat", "steps": 20, "guidance": 1.5,
              "width": 96, "height": 64}  # fmt: skip
    words = "seed 7, no. 3 · a · negative prompt hat · steps 20 · guidance 1.5 · 96x64 px"
    assert caption_of(sample) == words
    for kind, again in (
        ("sample", True),
        ("develop", True),
        ("edit", False),
        ("enlarge", False),
        ("interpolate", False),
    ):
        assert ("data-again" in gallery_figure("x", {**sample, "kind": kind, "id": "0" * 20}).code) == again
    assert "strength 0.3" in caption_of({"kind": "edit", "strength": 0.3})


def test_the_archive_of_a_gallery_is_never_whole_in_memory(tmp_path):
    write_json(tmp_path / "run.json", {})
    gallery, contents = Gallery(tmp_path), [bytes([index]) * 10_000 for index in range(30)]
    gallery.add(contents, {"kind": "sample", "seed": 1})
    parts = list(gallery.zipped(False))
    assert len(parts) == 31 and max(map(len, parts[:-1])) < 11_000
    archive = zipfile.ZipFile(io.BytesIO(b"".join(parts)))
    assert archive.testzip() is None
    assert {archive.read(name)[0] for name in archive.namelist() if name.endswith(".png")} == set(range(30))
    assert len(json.loads(archive.read("pictures.json"))) == 30


def test_every_measure_is_explained_by_the_word_of_the_readme():
    shown = {name.replace("_", " ") for name in MEASURES if "frechet" not in name}
    assert {*shown, "FD-Lite0", "PSNR", "SSIM", "prompt alignment"} <= set(TERMS)
    readme = (Path(__file__).parents[1] / "README.vi.md").read_text()
    assert "bộ mã hoá tự động" in readme and "bộ mã hoá tự động" in TERMS["latents"][1]
    assert not any("tự mã hoá" in vietnamese for _, vietnamese in TERMS.values())


def test_every_setting_of_a_plan_and_every_curve_has_a_term(client):
    """By its name without a size, in the singular or the plural; the script of the page finds it so."""
    curves = set(re.findall('data-name="([^"]*)"', client.get(f"/runs/{RUN}").text))
    assert {"l1", "kl", "hinge", "adversarial", "loss", "critic", "held out", "PSNR"} <= curves
    names, pictures = curves | {*LOSSES.values()}, noise_pictures()
    pictures = replace(pictures, captions=Captions((("a red one",),) * len(pictures)))
    exposure = {"enlarge": {"16": {"exposure": {"images": 32}}}}
    for settings in (SETTINGS, merge(CASCADE, exposure), merge(HYBRID, exposure)):
        made = parse_recipe(settings)
        choices = explain(made, made, pictures, defaultdict(str, sharding="why"))
        names |= {*made.legs, *(choice.what for choice in choices)}
    assert {"exposure-16", "enlarge to 16", "sharding", "text", "patches"} <= names
    known = {form for term in TERMS for form in (term.lower(), f"{term.lower()}s", f"{term.lower()}es")} | {*NAMES}
    assert {re.sub(r"(-| to )\d+$", "", name.lower()) for name in names} <= known
    assert {*NAMES.values(), "DiT", "UNet", "negative prompt", "validation"} <= {*TERMS}
    assert client.get("/words.json").json()["names"] == NAMES
