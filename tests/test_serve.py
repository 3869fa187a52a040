"""The API and the pages with a real model: pictures, jobs, the gallery, runs that are started and why they stop."""

import asyncio
import base64
import io
import json
import os
import shutil
import signal
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Thread
from types import SimpleNamespace

import httpx2 as httpx
import numpy as np
import psutil
import pytest
import torch
from openai import BadRequestError, OpenAI
from PIL import Image
from serving import ADDRESS, CHROMIUM, RUN, bearer, browser_page, client_of, ready, served, until
from small import write_pictures
from test_report import fake_run, flat

from calotype.data.images import images_from_pixels, pils_from_images
from calotype.data.seen import SEEN_FILE
from calotype.files import read_json, write_json
from calotype.model import load
from calotype.run import Run
from calotype.serve import events, launching, sampling
from calotype.serve import gallery as gallery_module
from calotype.serve.gallery import Gallery
from calotype.serve.launching import Launcher, why_stopped
from calotype.serve.library import id_of
from calotype.serve.trained import is_at_hand, read_trained
from calotype.serve.worker import Models
from calotype.training.snapshot import snapshot
from calotype.types import UserError, no_progress


@pytest.fixture(scope="module")
def folder(finished, tmp_path_factory):
    """Of runs: the finished one, one that was made up, and one without a model."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, folder / "run")
    fake_run(folder / "fake", flat)
    return folder


@pytest.fixture(scope="module")
def opened(folder):
    client, gate = client_of(folder)
    client.headers.update(bearer(gate))
    with client:
        yield SimpleNamespace(client=client, queue=client.app.app.state.queue, gate=gate)


@pytest.fixture(scope="module")
def client(opened):
    return opened.client


@pytest.fixture(scope="module")
def model(folder):
    return load(folder / "run", "cpu")


@pytest.fixture(scope="module")
def theirs(client, opened):
    """A real client of OpenAI, whose requests go to the application without a socket."""
    return OpenAI(base_url=f"{ADDRESS}/v1", api_key=opened.gate.token, http_client=client, max_retries=0)


def picture_in(entry):
    return Image.open(io.BytesIO(base64.b64decode(entry.b64_json)))


def png(picture):
    picture.save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def done(client, answer):
    """The job of an answer, once it has ended and its pictures are kept."""
    assert answer.status_code == 202, answer.text
    place = answer.headers["location"]
    return until(lambda: (job := client.get(place).json())["state"] not in ("queued", "running") and (
        job["gallery"] or job["state"] != "finished") and job)  # fmt: skip


# -- The API of OpenAI -------------------------------------------------------------------------------------------------


def test_their_client_gets_our_pictures(theirs, model):
    (known,) = theirs.models.list().data
    assert known.id == "run" and known.owned_by == "calotype"
    answer = theirs.images.generate(model="run", prompt="", n=3, size="16x16", extra_body={"seed": 5, "steps": 2})
    for entry, expected in zip(answer.data, model.sample(3, seed=5, steps=2), strict=True):
        assert np.array_equal(picture_in(entry), expected)
    answer = theirs.images.generate(model="run", prompt="b", response_format="b64_json", extra_body={"seed": 5})
    assert np.array_equal(picture_in(answer.data[0]), model.sample(1, "b", 5)[0])  # a prompt that is a label
    assert picture_in(answer.data[0]).info["calotype:label"] == "b"


def test_a_run_is_sampled_while_it_trains(client, folder):
    """From its newest checkpoint, by the process that samples; the model is opened again once there is another."""
    run, models = shutil.copytree(folder / "run", folder / "going"), Models(torch.device("cpu"))
    write_json(run / "run.json", {**read_json(run / "run.json"), "status": "training"})
    shutil.rmtree(run / "model")
    newest, words = snapshot(run, torch.device("cpu"))
    answer = client.post("/v1/images/generations", json={"model": "going", "seed": 5, "steps": 2})
    first = models.of(run)
    again = models.of(run) is first
    (run / "checkpoints" / "another").mkdir()
    other = models.of(run)
    shutil.rmtree(run)
    assert answer.status_code == 200 and "images" in words, answer.text
    made = Image.open(io.BytesIO(base64.b64decode(answer.json()["data"][0]["b64_json"])))
    assert np.array_equal(made, newest.sample(1, seed=5, steps=2)[0])
    assert again and other is not first


def test_their_client_edits(theirs, model):
    whole = model.sample(1, seed=5)[0]
    mask = Image.new("RGBA", whole.size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), (0, 0, 8, 16))  # they mark by what is transparent
    files = {"image": ("a.png", png(whole)), "mask": ("m.png", png(mask))}
    answer = theirs.images.edit(model="run", prompt="", n=1, **files, extra_body={"seed": 3})
    white = Image.new("RGB", whole.size)
    white.paste("white", (0, 0, 8, 16))
    assert np.array_equal(picture_in(answer.data[0]), model.redraw(whole, mask=white, seed=3)[0])
    answer = theirs.images.edit(
        model="run", prompt="", image=("a.png", png(whole)), extra_body={"strength": 0.3, "seed": 1}
    )
    assert np.array_equal(picture_in(answer.data[0]), model.redraw(whole, 0.3, seed=1)[0])


def test_their_client_reads_what_is_wrong(theirs):
    with pytest.raises(BadRequestError) as caught:
        theirs.images.generate(model="run", prompt="", quality="hd")
    assert caught.value.param == "quality"
    for wrong in (
        {"prompt": "a red cat"},
        {"prompt": "", "extra_body": {"label": "c"}},
        {"prompt": "", "size": "17x16"},
    ):
        with pytest.raises(BadRequestError) as caught:
            theirs.images.generate(model="run", **wrong)
        assert str(caught.value)
    bomb = b"\x89PNG\r\n\x1a\n" + b"\0" * 100
    with pytest.raises(BadRequestError, match="cannot be read"):
        theirs.images.edit(model="run", prompt="", image=("a.png", bomb))
    with pytest.raises(BadRequestError, match="at most"):
        theirs.images.edit(model="run", prompt="", image=("a.png", png(Image.new("1", (5000, 5000)))))


def test_routes_are_described_and_described_routes_are_there(client):
    described = client.get("/openapi.json").json()
    assert (
        described["openapi"] == "3.1.0"
        and described["components"]["schemas"]["Generation"]["additionalProperties"] is False
    )
    for path, methods in described["paths"].items():
        for method in methods:
            answer = client.request(method, path.replace("{run}", id_of("none")))
            assert answer.status_code in (200, 400, 404) and "at this address" not in answer.text, (method, path)


# -- Jobs and the gallery ----------------------------------------------------------------------------------------------


def test_pictures_of_the_page_are_kept_with_their_seed_and_label(client, model, folder):
    job = done(client, client.post(f"/api/runs/{RUN}/samples", json={"count": 3, "seed": 11}))
    assert job["state"] == "finished" and len(job["gallery"]) == 3
    page = client.get(f"/runs/{RUN}/gallery").text
    assert page.index("seed 11 · a") < page.index("seed 11, no. 2 · b") < page.index("seed 11, no. 3 · a")
    for index, picture in enumerate(job["gallery"]):
        answer = client.get(f"/runs/{RUN}/pictures/{picture}")
        assert np.array_equal(Image.open(io.BytesIO(answer.content)), model.sample(3, seed=11)[index])
        assert "immutable" in answer.headers["cache-control"]
    first = job["gallery"][0]
    assert client.post(f"/api/runs/{RUN}/pictures/{first}", json={"star": True}).json()["star"] is True
    archive = zipfile.ZipFile(io.BytesIO(client.get(f"/runs/{RUN}/gallery.zip?starred=1").content))
    assert archive.namelist() == [f"11-000-a-{first[:6]}.png", "pictures.json"]
    assert json.loads(archive.read("pictures.json"))[archive.namelist()[0]]["seed"] == 11
    assert client.delete(f"/api/runs/{RUN}/pictures/{first}").status_code == 200
    assert client.get(f"/runs/{RUN}/pictures/{first}").status_code == 404


def test_variations_films_and_steps(client, model):
    place = f"/api/runs/{RUN}/samples"
    (first,) = done(client, client.post(place, json={"count": 1, "seed": 1, "label": "a"}))["gallery"]
    (steps,) = done(client, client.post(place, json={"kind": "develop", "seed": 1, "label": "a"}))["gallery"]
    rows = Image.open(io.BytesIO(client.get(f"/runs/{RUN}/pictures/{steps}").content))
    calls = model.samplings[0].steps
    assert rows.size == (32, 16 * calls)
    last = np.asarray(rows.crop((16, 16 * calls - 16, 32, 16 * calls)), int)
    assert np.abs(last - np.asarray(model.sample(1, "a", 1)[0], int)).max() <= 1  # the last estimate is the picture
    film = {"kind": "interpolate", "seed": 1, "seed_after": 2, "count": 4}
    (film,) = done(client, client.post(place, json=film))["gallery"]
    assert Image.open(io.BytesIO(client.get(f"/runs/{RUN}/pictures/{film}").content)).n_frames == 6  # there and back
    sent = client.post(
        place, data={"kind": "edit", "of": first, "seed": "4", "strength": "0.5", "count": "2"}, files={}
    )
    assert sent.status_code == 400  # no form of several parts
    form = {name: (None, value) for name, value in {"kind": "edit", "of": first, "seed": "4", "count": "2"}.items()}
    varied = done(client, client.post(place, files=form))["gallery"]
    expected = model.redraw(model.sample(1, "a", 1)[0], seed=4, count=2)
    for picture, one in zip(varied, expected, strict=True):
        assert np.array_equal(Image.open(io.BytesIO(client.get(f"/runs/{RUN}/pictures/{picture}").content)), one)


def test_a_picture_is_enlarged_also_without_a_stage_for_it(client, model):
    place = f"/api/runs/{RUN}/samples"
    (first,) = done(client, client.post(place, json={"count": 1, "seed": 1, "label": "a"}))["gallery"]
    interpolated = model.sample(1, "a", 1)[0].resize((32, 32), Image.Resampling.LANCZOS)
    (redrawn,) = model.redraw(interpolated, 0.3, label="a", seed=1, size=(32, 32))
    for more, expected in (({}, interpolated), ({"strength": 0.3}, redrawn)):
        asked = {"kind": "enlarge", "of": first, "seed": 1, "label": "a", **more}
        (large,) = done(client, client.post(place, json=asked))["gallery"]
        assert np.array_equal(Image.open(io.BytesIO(client.get(f"/runs/{RUN}/pictures/{large}").content)), expected)
    assert "seed 1 · enlarged · a" in client.get(f"/runs/{RUN}/gallery").text


def test_the_nearest_training_picture_stands_beside_a_picture(client, folder):
    """Of a training picture, mirrored, that is the picture itself, by its name alone."""
    run = Run.open(folder / "run")
    trained = read_trained(run, no_progress)
    row = int(trained.train_indices[1])
    (original,) = pils_from_images(images_from_pixels(trained.pixels[row : row + 1]).flip(-1))
    gallery = Gallery(folder / "run")
    (picture,) = gallery.add([png(original)], {"kind": "sample", "seed": 0, "order": time.time()})
    while (answer := client.post(f"/api/runs/{RUN}/nearest")).status_code == 202:
        assert done(client, answer)["state"] == "finished"
    note = gallery.about(picture)["nearest"]
    assert note["file"] == trained.originals[row].path.name and note["apart"] < 1e-3 and "earlier" not in note
    shown = Image.open(io.BytesIO(client.get(f"/runs/{RUN}/pictures/{picture}/nearest").content))
    assert np.array_equal(shown, original)
    page = client.get(f"/runs/{RUN}/gallery").text
    assert f"nearest training picture: {note['file']}" in page and str(trained.originals[row].path) not in page
    assert "earlier trainings" not in page
    assert not gallery.unsearched(1)
    client.delete(f"/api/runs/{RUN}/pictures/{picture}")
    assert client.get(f"/runs/{RUN}/pictures/{picture}/nearest").status_code == 404
    assert not list((folder / "run" / "gallery").glob(f"{picture}*"))


def test_the_search_says_that_pictures_of_earlier_trainings_are_not_in_it(client, folder):
    gallery, seen = Gallery(folder / "run"), folder / "run" / SEEN_FILE
    (picture,) = gallery.add(
        [png(Image.new("RGB", (16, 16), "red"))], {"kind": "sample", "seed": 0, "order": time.time()}
    )
    seen.touch()
    assert done(client, client.post(f"/api/runs/{RUN}/nearest"))["state"] == "finished"
    seen.unlink()
    assert "; pictures of earlier trainings are not searched" in client.get(f"/runs/{RUN}/gallery").text
    gallery.remove(picture)


def test_a_picture_that_cannot_be_decoded_hides_no_older_one_from_the_search(client, folder):
    gallery = Gallery(folder / "run")
    add = partial(gallery.add, about={"kind": "sample", "seed": 0, "order": time.time()})
    (whole,) = add([png(Image.new("RGB", (16, 16), "red"))])
    (damaged,) = gallery.add([b"no picture"], {"kind": "sample", "seed": 1, "order": time.time() + 1})
    assert gallery.unsearched(9)[:2] == [damaged, whole]
    for _ in range(3):
        if (answer := client.post(f"/api/runs/{RUN}/nearest")).status_code == 202:
            assert done(client, answer)["state"] == "finished"
    assert "nearest" in gallery.about(whole) and "cannot be read" in gallery.about(damaged)["unreadable"]
    assert not gallery.unsearched(9) and client.get(f"/runs/{RUN}/gallery").status_code == 200
    for picture in (whole, damaged):
        gallery.remove(picture)


def test_a_star_that_is_given_while_the_nearest_picture_is_kept_stays(folder, monkeypatch):
    gallery = Gallery(folder / "run")
    (picture,) = gallery.add([png(Image.new("RGB", (16, 16)))], {"kind": "sample", "seed": 0, "order": time.time()})
    starring, real = Thread(target=gallery.star, args=(picture, True)), gallery_module.write_json

    def slow(path, about):
        if "nearest" in about and starring.ident is None:
            starring.start()
            starring.join(0.3)
        real(path, about)

    monkeypatch.setattr(gallery_module, "write_json", slow)
    gallery.keep_nearest(picture, b"", {"file": "a.png", "apart": 0.0})
    starring.join()
    assert gallery.about(picture)["star"] and gallery.about(picture)["nearest"]["file"] == "a.png"
    gallery.remove(picture)


def test_training_pictures_that_have_gone_or_changed_are_not_searched(folder, tmp_path):
    run = Run(tmp_path, Run.open(folder / "run").state.model_copy())
    for name in ("recipe.toml", "split.json"):
        shutil.copy(folder / "run" / name, tmp_path)
    run.state.data = str(tmp_path / "gone")
    with pytest.raises(UserError, match="not where they were"):
        read_trained(run, no_progress)
    assert not is_at_hand(run)
    write_pictures(tmp_path / "gone", seed=3)
    with pytest.raises(UserError, match="have changed since"):
        read_trained(run, no_progress)


def test_a_process_that_dies_is_replaced_and_its_request_is_answered(client, opened, model):
    """Also the next ones: in the queue they wait."""
    (worker,) = opened.queue.workers
    until(lambda: worker.alive and worker.spare is not None and worker.spare.done())
    before = worker.process.pid
    long = client.post(f"/api/runs/{RUN}/samples", json={"count": 64, "seed": 1, "steps": 250})
    waiting = client.post(f"/api/runs/{RUN}/samples", json={"count": 1, "seed": 9})
    until(lambda: client.get(long.headers["location"]).json()["done"])
    os.kill(before, signal.SIGKILL)
    killed = time.monotonic()
    assert "signal 9" in until(lambda: client.get(long.headers["location"]).json()["reason"])
    assert done(client, waiting)["state"] == "finished" and time.monotonic() - killed < 5
    assert worker.process.pid != before


def test_a_process_that_ends_by_itself_keeps_its_exit_code():
    """After its pipe has ended it is waited for, and only one that goes on is killed."""

    async def code_of(then, patience):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", f"import os, time; os.close(1); {then}", stdout=asyncio.subprocess.PIPE
        )
        await process.stdout.read()
        await sampling.ended(process, patience)
        return process.returncode

    assert asyncio.run(code_of("time.sleep(0.2); os._exit(7)", 30.0)) == 7
    assert asyncio.run(code_of("time.sleep(600)", 0.2)) == -signal.SIGKILL


def test_a_job_is_cancelled_while_it_runs_and_while_it_waits(client):
    long = client.post(f"/api/runs/{RUN}/samples", json={"count": 64, "seed": 1, "steps": 250})
    waiting = client.post(f"/api/runs/{RUN}/samples", json={"count": 64, "seed": 1, "steps": 250})
    until(lambda: client.get(long.headers["location"]).json()["done"])
    for answer in (waiting, long):
        assert client.delete(answer.headers["location"]).status_code == 202
    assert done(client, long)["state"] == done(client, waiting)["state"] == "cancelled"


def test_a_full_queue_says_when_to_come_again(client, opened, monkeypatch):
    monkeypatch.setattr(sampling, "QUEUE_LENGTH", 1)
    sent = {"count": 64, "seed": 1, "steps": 250}
    running = client.post(f"/api/runs/{RUN}/samples", json=sent)
    until(lambda: client.get(running.headers["location"]).json()["state"] == "running")
    waiting = client.post(f"/api/runs/{RUN}/samples", json=sent)
    refused = client.post(f"/api/runs/{RUN}/samples", json=sent)
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
    for answer in (waiting, running):
        client.delete(answer.headers["location"])
        done(client, answer)


def test_the_progress_of_a_job_is_sent_to_its_end(client):
    answer = client.post(f"/api/runs/{RUN}/samples", json={"count": 2, "seed": 1})
    text = client.get(f"{answer.headers['location']}/events").text
    news = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert news[-1]["state"] == "finished" and len(news[-1]["gallery"]["figures"]) == 2
    assert "<figure" in news[-1]["gallery"]["figures"][0]


# -- Pages of runs -----------------------------------------------------------------------------------------------------


def test_the_log_is_sent_from_a_byte_on(tmp_path):
    log = tmp_path / "log.jsonl"
    log.write_bytes(b'{"a": 1}\n{"b": \n{"c": "\xc3\xa9"}\n{"d"')
    (first, last), end = events.lines_from(log, 0)
    assert first == ({"a": 1}, 9) and last[0] == {"c": "é"} and end == last[1]
    assert events.lines_from(log, 9)[0] == [last] and events.lines_from(log, end) == ([], end)
    with log.open("ab") as file:
        file.write(b": 2}\n")
    assert events.lines_from(log, end) == ([({"d": 2}, log.stat().st_size)], log.stat().st_size)


def test_pages_show_plan_curves_and_pictures_over_time(client):
    page = client.get(f"/runs/{id_of('fake')}").text
    for words in ("f8, 32 channels", "the fewest that keep lines sharp", "Over time", "Denoising loss", "data-axes",
                  "Copy as command", "calotype demo --recipe"):  # fmt: skip
        assert words in page, words
    frames = json.loads(page.split('data-frames="')[1].split('"')[0].replace("&quot;", '"'))
    assert len(frames) == 6 and client.get(frames[0]["src"]).headers["content-type"] == "image/png"
    assert client.get(f"/runs/{id_of('fake')}/cover").content.startswith(b"\x89PNG")
    assert set(client.get(f"/runs/{RUN}/parts").json()) > {"status", "curves", "plan", "time"}
    both = f"runs={RUN}&runs={id_of('fake')}"
    assert "denoiser.<wbr>batch" in client.get(f"/compare?{both}").text
    assert client.get(f"/api/compare?{both}").json()["rows"]["name"] == ["run", "portraits-64"]
    assert client.get("/api/compare.csv?" + both).text.startswith(f"setting,{RUN},")
    assert client.get("/compare").status_code == 400


def test_why_a_run_has_stopped(tmp_path):
    folder = fake_run(tmp_path / "a", flat)

    def why(status, about=None, lines=()):
        write_json(folder / "run.json", {**read_json(folder / "run.json"), "status": status})
        return why_stopped(Run.open(folder), about or {}, list(lines))

    assert why("finished") == ""
    assert "asked to stop after 9 min 41 s" in why("interrupted")
    assert "137" in why("training", {"code": -9}) and "memory" in why("failed", {"code": 137})
    assert why("failed", {"code": 2}, ["x", "calotype: the disk is full; free some"]) == "The disk is full; free some."
    assert "without a word" in why("training")


def test_a_run_is_started_in_a_process_of_its_own(client, folder, monkeypatch):
    """Its command is replaced by one that says what it was."""
    script = folder / "calotype.py"
    script.write_text("import sys; print(sys.argv[1:]); print('calotype: no pictures in there'); sys.exit(2)")
    monkeypatch.setattr(launching.sys, "executable", str(fake_python(folder, script)))
    sent = {"name": "new one", "path": str(folder), "budget": "20s"}
    answer = client.post("/api/runs", json=sent)
    run = answer.json()["id"]
    launcher = Launcher(folder)
    until(lambda: "code" in launcher.about(run))
    assert (
        launcher.about(run)["command"].startswith("calotype train ")
        and "--budget 20s" in launcher.about(run)["command"]
    )
    page = client.get(answer.json()["page"]).text
    assert "No pictures in there." in page and "did not start" in page and "new one" in client.get("/").text
    for wrong in (
        {"name": "../x"},
        {"name": "run"},
        {"name": "x", "path": "relative"},
        {"name": "x", "upload": "0" * 16},
    ):
        assert client.post("/api/runs", json=wrong).status_code in (400, 404, 409)
    assert client.post(f"/api/runs/{RUN}/stop").status_code == 409
    assert client.post(f"/api/runs/{RUN}/resume", json={"budget": "x"}).status_code == 400


def fake_python(folder, script):
    """An interpreter that runs a script in the place of calotype."""
    fake = folder / "python"
    fake.write_text(f'#!/bin/sh\nshift 2\nexec {sys.executable} {script} "$@"\n')
    fake.chmod(0o755)
    return fake


def test_whoever_waits_is_answered_when_the_server_ends(folder, capfd):
    """A request for pictures and a stream, and no process is left."""
    with served(folder, "--device", "cpu") as (address, token, process):
        client = httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60)
        asked = {"model": "run", "n": 64, "steps": 250}
        with ThreadPoolExecutor() as pool, client.stream("GET", f"/runs/{RUN}/events") as listening:
            waiting = pool.submit(client.post, "/v1/images/generations", json=asked)
            next(listening.iter_text())
            children = until(lambda: psutil.Process(process.pid).children(recursive=True))
            process.send_signal(signal.SIGINT)
            answer = waiting.result()
        assert answer.status_code == 503 and "has been stopped" in answer.text
        process.wait(30)
        assert not psutil.wait_procs(children, 10)[1]
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
def test_the_page_in_a_browser(folder):
    """Nothing goes wrong in the script, and a term is explained, in two languages, by the keyboard alone."""
    with served(folder, "--device", "cpu") as (address, token, process), browser_page(address, token) as page:
        assert page.url == f"{address}/"
        page.fill("#filter", "fake")
        ready(page)
        page.fill("#filter", "")
        page.fill("#filter", "fake")
        assert page.locator("#list tbody tr:visible").count() == 1
        ready(page.goto(f"{address}/runs/{id_of('fake')}") and page)
        page.locator(".term:visible").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#explained [lang=vi]").inner_text()
        assert psutil.Process(process.pid).is_running()
