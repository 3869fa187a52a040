"""The list of runs while it is open, runs that are being planned and cancelled, and pictures that have moved."""

import re
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psutil
import pytest
from serving import RUN, bearer, client_of, until
from test_report import facts, fake_run, flat

from calotype.cli.options import DemoOptions, TrainOptions, app
from calotype.files import read_json, write_json
from calotype.run import Run
from calotype.serve import events, launching, uploading
from calotype.serve.launching import HIDDEN, why_stopped
from calotype.serve.library import id_of

PLANS = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
print("reading", flush=True)
time.sleep(600)
"""
SAYS = "import sys; print(sys.argv[1:]); print('calotype: it cannot go on; go on with: --data FOLDER'); sys.exit(2)"


@pytest.fixture
def opened(tmp_path):
    """A folder with two runs, and a client with the token."""
    folder = tmp_path / "runs"
    for name in ("run", "other"):
        write_json(fake_run(folder / name, flat) / "run.json", facts(name=name))
    client, gate = client_of(folder)
    client.headers.update(bearer(gate))
    return SimpleNamespace(folder=folder, client=client, launcher=client.app.app.state.launcher)


def change(folder, **values):
    write_json(folder / "run.json", {**read_json(folder / "run.json"), **values})


def command_is(folder, monkeypatch, script):
    """Trainings run this script in the place of calotype."""
    (folder / "script.py").write_text(script)
    fake = folder / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} {folder / "script.py"} "$@"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(launching.sys, "executable", str(fake))


# -- The list ----------------------------------------------------------------------------------------------------------


def stamps(answer):
    return {row["run"]: row["stamp"] for row in answer.json()["rows"]}


def test_an_open_list_gets_the_rows_that_have_changed_and_no_body_where_none_has(opened):
    page = opened.client.get("/").text
    version = {"If-None-Match": '"' + re.search(r'data-version="(\w+)"', page)[1] + '"'}
    answer = opened.client.get("/parts", headers=version)
    assert (answer.status_code, answer.content) == (304, b"") and answer.headers["etag"] == version["If-None-Match"]
    before = opened.client.get("/parts")
    assert all(row["markup"] in page for row in before.json()["rows"]) and before.json()["lede"] in page
    change(opened.folder / "run", status="interrupted")
    after = opened.client.get("/parts", headers=version)
    changed = {run for run, stamp in stamps(after).items() if stamps(before)[run] != stamp}
    assert after.status_code == 200 and changed == {RUN}
    assert "interrupted" in next(row["markup"] for row in after.json()["rows"] if row["run"] == RUN)


def test_a_run_that_begins_and_one_that_goes_are_in_the_next_answer(opened):
    write_json(fake_run(opened.folder / "new", flat) / "run.json", facts(name="new", created="2027-01-01T10:00:00"))
    rows = opened.client.get("/parts").json()["rows"]
    assert rows[0]["run"] == id_of("new") and len(rows) == 3
    (opened.folder / "new" / "run.json").unlink()
    assert len(opened.client.get("/parts").json()["rows"]) == 2


def test_an_empty_list_has_no_table_and_says_what_to_do(tmp_path):
    client, gate = client_of(tmp_path)
    page = client.get("/", headers=bearer(gate)).text
    assert "There are none yet." in page and "<table" not in page and "Train on a folder of pictures" in page
    assert client.get("/parts", headers=bearer(gate)).json() == {"lede": "There are none yet.", "rows": []}


# -- Planning ----------------------------------------------------------------------------------------------------------


def start(opened):
    """A run whose plan is being made."""
    run = opened.client.post("/api/runs", json={"name": "soon"}).json()["id"]
    until(lambda: "reading" in opened.launcher.last_lines(run))
    return run


def test_a_run_that_is_being_planned_is_cancelled_and_taken_off_the_list(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, PLANS)
    run = start(opened)
    page = opened.client.get(f"/runs/{run}").text
    assert "its plan is being made" in page and f"/api/runs/{run}/cancel" in page
    assert "1 in training" in opened.client.get("/").text and ">planning<" in opened.client.get("/").text
    assert opened.client.post(f"/api/runs/{run}/forget").status_code == 409
    assert opened.client.post(f"/api/runs/{run}/cancel").status_code == 202
    until(lambda: "code" in opened.launcher.about(run))
    page = opened.client.get(f"/runs/{run}").text
    assert "It was cancelled before training began; the pictures are kept" in page and "/cancel" not in page
    assert ">cancelled<" in opened.client.get("/").text
    refused = opened.client.post(f"/api/runs/{run}/cancel")
    assert refused.status_code == 409 and "this one is cancelled" in refused.text
    assert opened.client.post(f"/api/runs/{run}/forget").status_code == 200
    assert "soon" not in opened.client.get("/").text and not list((opened.folder / HIDDEN).iterdir())
    assert opened.client.get(f"/runs/{run}").status_code == 404


def test_a_run_that_has_begun_is_not_cancelled(opened):
    for action in ("cancel", "forget"):
        refused = opened.client.post(f"/api/runs/{RUN}/{action}")
        assert refused.status_code == 409 and "stop it instead" in refused.text
        assert opened.client.post(f"/api/runs/{id_of('none')}/{action}").status_code == 404


def test_the_number_in_a_note_is_not_trusted(opened):
    """Whoever can write the note can write any number into it."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "calotype"]) as foreign:
        try:
            write_json(opened.folder / HIDDEN / f"{id_of('soon')}.json", {"name": "soon", "process": foreign.pid})
            until(lambda: opened.launcher.started_run(id_of("soon")).state == "planning")
            assert opened.client.post(f"/api/runs/{id_of('soon')}/cancel").status_code == 409
            assert psutil.Process(foreign.pid).is_running() and foreign.poll() is None
        finally:
            foreign.kill()


def test_a_run_that_did_not_start_is_listed_as_failed(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, SAYS)
    run = opened.client.post("/api/runs", json={"name": "soon"}).json()["id"]
    until(lambda: "code" in opened.launcher.about(run))
    assert ">failed<" in opened.client.get("/").text
    assert "It cannot go on" in opened.client.get(f"/runs/{run}").text


def test_a_run_that_is_about_to_go_on_offers_neither_resume_nor_why_it_had_stopped(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, PLANS)
    change(opened.folder / "run", status="interrupted")
    assert "It was asked to stop" in opened.client.get(f"/runs/{RUN}").text
    assert opened.client.post(f"/api/runs/{RUN}/resume").status_code == 202
    until(lambda: "reading" in opened.launcher.last_lines(RUN))
    page = opened.client.get(f"/runs/{RUN}").text
    assert "its pictures are being read" in page and ">Resume<" not in page and "Why it has stopped" not in page
    opened.launcher.processes[RUN].terminate()
    until(lambda: "code" in opened.launcher.about(RUN))
    assert ">Resume<" in opened.client.get(f"/runs/{RUN}").text


def test_of_two_requests_at_once_one_starts_a_process(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, PLANS)
    change(opened.folder / "run", status="interrupted")
    real = launching.write_whole

    def slow(path, content):
        time.sleep(0.3)
        real(path, content)

    monkeypatch.setattr(launching, "write_whole", slow)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(opened.client.post, f"/api/runs/{RUN}/resume") for _ in range(2)]
        assert sorted(each.result().status_code for each in asked) == [202, 409]
    opened.launcher.processes[RUN].terminate()
    until(lambda: "code" in opened.launcher.about(RUN))


STOPS = """
import signal, sys, time
asked = []
signal.signal(signal.SIGINT, lambda *_: asked.append(print("asked", flush=True)))
lock = open(sys.argv[1], "a")
lock.write(str(__import__("os").getpid()))
lock.flush()
__import__("fcntl").flock(lock, 2)
print("begun", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no flock")
def test_a_run_that_saves_before_it_ends_is_not_asked_to_stop_twice(opened):
    """A second signal would end it at once."""
    change(opened.folder / "run", status="training")
    command = [sys.executable, "-c", STOPS, str(opened.folder / "run" / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        assert ">Stop</button>" in opened.client.get(f"/runs/{RUN}").text
        assert opened.client.post(f"/api/runs/{RUN}/stop").status_code == 202
        assert process.stdout.readline() == "asked\n"
        assert opened.client.post(f"/api/runs/{RUN}/stop").status_code == 202
        page = opened.client.get(f"/runs/{RUN}").text
        assert "is saving what it has learned" in page and ">Stopping …</button>" in page
        time.sleep(0.3)
        process.kill()
        assert process.stdout.read() == ""
    assert "Stopping" not in opened.client.get(f"/runs/{RUN}").text


@pytest.mark.parametrize("script", [SAYS, PLANS])
def test_a_run_that_was_moved_away_is_not_taken_for_one_that_did_not_start(opened, monkeypatch, script):
    command_is(opened.folder, monkeypatch, script)
    change(opened.folder / "run", status="interrupted")
    assert opened.client.post(f"/api/runs/{RUN}/resume").status_code == 202
    if process := opened.launcher.processes.get(RUN):
        process.terminate()
    until(lambda: "code" in opened.launcher.about(RUN))
    (opened.folder / "run").rename(opened.folder / "my best")
    page = opened.client.get("/").text
    assert "2 runs." in page and ">failed<" not in page and opened.client.get(f"/runs/{RUN}").status_code == 404


def test_pictures_that_were_copied_are_there_for_another_try(opened, monkeypatch):
    """The first name is that of another run."""
    command_is(opened.folder, monkeypatch, SAYS)
    batch = "0123456789abcdef"
    assert opened.client.post(f"/api/uploads/{batch}?path=a.png", content=b"x").status_code == 201
    taken = opened.client.post("/api/runs", json={"name": "run", "upload": batch})
    assert (taken.status_code, taken.json()["error"]["param"]) == (409, "name")
    run = opened.client.post("/api/runs", json={"name": "cats", "upload": batch}).json()["id"]
    until(lambda: "code" in opened.launcher.about(run))
    assert "uploads/cats" in opened.launcher.about(run)["command"]
    assert (opened.folder / HIDDEN / "uploads" / "cats" / "a.png").read_bytes() == b"x"
    assert not list((opened.folder / HIDDEN / "uploads").glob("*.count"))  # it no longer waits


def test_pictures_stay_where_they_are_when_no_process_can_be_started(opened, monkeypatch):
    def fail(*given):
        raise OSError(12, "Cannot allocate memory")

    batch = "0123456789abcdef"
    assert opened.client.post(f"/api/uploads/{batch}?path=a.png", content=b"x").status_code == 201
    monkeypatch.setattr(launching.Launcher, "train", fail)
    assert opened.client.post("/api/runs", json={"name": "cats", "upload": batch}).status_code == 500
    assert (opened.folder / HIDDEN / "uploads" / batch / "a.png").read_bytes() == b"x"


@pytest.mark.parametrize("given", ["path", "upload", "neither"])
def test_the_command_line_takes_what_is_started_and_what_is_copied(opened, monkeypatch, tmp_path, given):
    """Where no pictures are named, that is the embedded portraits."""
    command_is(opened.folder, monkeypatch, SAYS)
    batch, copied = "0123456789abcdef", opened.folder / HIDDEN / "uploads" / "my pets"
    assert opened.client.post(f"/api/uploads/{batch}?path=a.png", content=b"x").status_code == 201
    sent = {"path": {"path": str(tmp_path)}, "upload": {"upload": batch}, "neither": {}}[given]
    asked = {"name": "my pets", "size": 32, "budget": "90s", "kind": "cascade", **sent}
    run = opened.client.post("/api/runs", json=asked).json()["id"]
    until(lambda: "code" in opened.launcher.about(run))
    words = arguments_in(opened.launcher.last_lines(run)[0])
    words = words[words.index("calotype") + 1 :]
    assert shlex.split(opened.launcher.about(run)["command"]) == ["calotype", *words]
    started = app(words, standalone_mode=False)
    assert isinstance(started, DemoOptions if given == "neither" else TrainOptions)
    assert started.folder == {"path": tmp_path, "upload": copied, "neither": None}[given]
    assert (started.size, started.budget, started.kind) == (32, 90.0, "cascade")
    assert (started.out, started.device) == (opened.folder / "my pets", "cpu")


# -- More time ---------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_given_more_time_by_a_form(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, SAYS)
    page, address = opened.client.get(f"/runs/{RUN}").text, f"/api/runs/{RUN}/resume"
    assert f'data-send="{address}"' in page and "Folder of its pictures" not in page
    for wrong in ("soon", "0m", "-5m", "1h 30m", "9" * 9 + "d", ""):
        refused = opened.client.post(address, json={"budget": wrong})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "budget")
        assert "is not a time such as 20s, 10m or 1h30m" in refused.json()["error"]["message"]
    refused = opened.client.post(address, json={})
    assert refused.json()["error"]["param"] == "budget" and "say for how long" in refused.text
    assert opened.client.post(address, json={"budget": "1h30m"}).status_code == 202
    until(lambda: "code" in opened.launcher.about(RUN))
    assert "'--budget', '1h30m'" in opened.launcher.last_lines(RUN)[0]


# -- Pictures that have moved ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "button"), [("interrupted", "Resume"), ("finished", "Train further")])
def test_a_run_whose_pictures_have_moved_asks_where_they_are(opened, tmp_path, monkeypatch, status, button):
    command_is(opened.folder, monkeypatch, SAYS)
    address = f"/api/runs/{RUN}/resume"
    change(opened.folder / "run", status=status, data=str(tmp_path / "gone"))
    page = opened.client.get(f"/runs/{RUN}").text
    assert f"Its pictures were in {tmp_path / 'gone'}, and are no longer there." in page
    assert page.count(f">{button}</button>") == 1 and f'data-send="{address}"' in page
    more = {"budget": "30m"} if status == "finished" else {}
    for wrong in ("", "gone", str(tmp_path / "gone"), "~nobody-of-this-name/x", "/nul\0"):
        refused = opened.client.post(address, json={"path": wrong, **more})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "path")
    moved = tmp_path / "moved here"
    moved.mkdir()
    assert opened.client.post(address, json={"path": f" {moved} ", **more}).status_code == 202
    until(lambda: "code" in opened.launcher.about(RUN))
    assert shlex.join(["--data", str(moved)]) in shlex.join(arguments_in(opened.launcher.last_lines(RUN)[0]))
    page = opened.client.get(f"/runs/{RUN}").text
    assert "It cannot go on; go on with: --data FOLDER." in page and "Its pictures were in" in page


def arguments_in(text):
    return re.findall(r"'([^']*)'", text)


def test_pictures_that_have_changed_are_taken_as_they_are_when_their_folder_is_confirmed(opened, tmp_path):
    change(opened.folder / "run", status="interrupted", data=str(tmp_path))
    assert "data-send" not in opened.client.get(f"/runs/{RUN}").text
    about = opened.folder / HIDDEN / f"{RUN}.json"
    write_json(about, {"name": "run", "code": 2})
    about.with_suffix(".txt").write_text("calotype: the pictures have changed; go on: calotype resume x --data y\n")
    page = opened.client.get(f"/runs/{RUN}").text
    assert "Its pictures have changed." in page and f'value="{tmp_path}"' in page


def test_a_finished_run_that_could_not_go_on_says_why(opened):
    run = Run.open(opened.folder / "run")
    assert why_stopped(run, {}, []) == why_stopped(run, {"code": 0}, ["calotype: x"]) == ""
    assert why_stopped(run, {"code": 2}, ["calotype: the disk is full"]) == "The disk is full."
    assert why_stopped(run, {"code": 128 + signal.SIGTERM}, ["calotype: stopped"]) == ""


def test_how_a_process_of_the_page_ended_does_not_count_once_another_has_trained_the_run(opened):
    change(opened.folder / "run", status="training")
    about = opened.folder / HIDDEN / f"{RUN}.json"
    write_json(about, {"name": "run", "code": 2})
    about.with_suffix(".txt").write_text("calotype: the disk is full\n")
    assert "The disk is full." in opened.client.get(f"/runs/{RUN}").text
    change(opened.folder / "run", status="interrupted")
    page = opened.client.get(f"/runs/{RUN}").text
    assert "The disk is full." not in page and "It was asked to stop after" in page


# -- Limits ------------------------------------------------------------------------------------------------------------


def test_no_more_trainings_are_started_than_the_limit(opened, monkeypatch):
    command_is(opened.folder, monkeypatch, PLANS)
    monkeypatch.setattr(launching, "MAX_RUNNING", 1)
    run = start(opened)
    refused = opened.client.post("/api/runs", json={"name": "another"})
    assert refused.status_code == 429 and refused.headers["retry-after"] == "60"
    opened.launcher.processes[run].terminate()
    until(lambda: "code" in opened.launcher.about(run))


def test_no_more_pages_follow_runs_and_no_more_is_copied_than_the_limit(opened, monkeypatch):
    monkeypatch.setattr(events, "MOST_LISTENERS", 0)
    refused = opened.client.get(f"/runs/{RUN}/events")
    assert refused.status_code == 429 and "close some" in refused.text
    monkeypatch.setattr(uploading, "MOST_FILES", 1)
    monkeypatch.setattr(uploading, "MOST_BYTES", 10)
    for path, content, status in (("a.png", b"1" * 11, 413), ("a.png", b"1" * 10, 201), ("b.png", b"", 413)):
        address = f"/api/uploads/{'0' * 16}?path={path}"
        assert opened.client.post(address, content=content).status_code == status
