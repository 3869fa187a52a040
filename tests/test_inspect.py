"""The doctor on runs: `calotype inspect`, and its look between two legs."""

import json
import shutil
import sys

import pytest
from small import Keeper, be_quick, request, write_pictures
from test_train import interrupted_at

from calotype.cli import app as cli
from calotype.cli import commands
from calotype.cli.options import InspectOptions, ResumeOptions
from calotype.files import read_json
from calotype.spaces.latent import LatentSpace
from calotype.training.process import Interrupted
from calotype.types import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


def inspected(run, out=None, data=None):
    console = Keeper()
    folder = commands.inspect(InspectOptions(run, data, out, "cpu"), console)
    page = (folder / "inspection.html").read_text()
    return read_json(folder / "inspection.json"), page, console.printed


def events(run, kind):
    lines = (run / "log.jsonl").read_text().splitlines()
    return [one for one in map(json.loads, lines) if one["event"] == kind]


def test_a_finished_run_is_inspected(finished, tmp_path):
    found, page, printed = inspected(finished, tmp_path / "out")
    assert (
        printed[0] == f"autoencoder: {found['verdict']}" and found["verdict"] in page and found["state"] == "finished"
    )
    assert found["measures"]["held_out"] == 1 and found["measures"]["pictures"] == 9  # not the test picture
    assert found["measures"]["critic"]["best"] > 0 and len(found["measures"]["channels"]) == 3
    assert page.count("data:image/") == 2 and "http" not in page.replace("http-equiv", "") and "<script" not in page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"inspection.html", "inspection.json"}


def test_train_looks_between_the_legs_and_says_so(finished):
    (look,) = events(finished, "inspection")
    state = read_json(finished / "run.json")
    assert state["inspection"]["verdict"] == look["verdict"] and state["seconds"]["inspect"] > 0
    assert look["fit"] and look["measures"]["pictures"] == 9 and look["measures"]["receptive_field"] is None
    order = list(read_json(finished / "plan.json")["predicted"]["seconds"])
    assert order == ["autoencoder", "latents", "inspect", "fit", "denoiser", "previews", "samples"]


def test_names_are_escaped_and_other_pictures_are_all_held_out(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    state = read_json(run / "run.json")
    (run / "run.json").write_text(json.dumps({**state, "name": "<script>alert(1)</script>"}))
    data = write_pictures(tmp_path / "<b>other & more", count=6, seed=3)
    found, page, _ = inspected(run, tmp_path / "out", data)
    assert found["foreign"] and found["measures"]["held_out"] == found["measures"]["pictures"] == 6
    assert "<script" not in page and "<b>other" not in page and "&lt;b&gt;other &amp; more" in page


def test_half_a_run_is_inspected_from_its_newest_checkpoint(tmp_path, monkeypatch):
    write_pictures(tmp_path / "pictures")
    interrupted_at(monkeypatch, [("autoencoder", 20)])
    with pytest.raises(Interrupted):
        commands.train(request(tmp_path / "pictures", tmp_path / "run"), Keeper())
    found, _, _ = inspected(tmp_path / "run")
    assert found["state"] == "after 24 images" and found["measures"]["finite"]
    assert all(0.5 < one["std"] < 2 for one in found["measures"]["channels"])
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="no autoencoder yet; go on with: calotype resume"):
        inspected(tmp_path / "run")


def test_a_hybrid_is_inspected_at_the_size_of_its_first_stage(finished_hybrid, tmp_path):
    found, _, _ = inspected(finished_hybrid, tmp_path / "out")
    assert found["measures"]["size"] == 8


def test_what_cannot_be_inspected_is_reported_in_one_line(finished_cascade, tmp_path, monkeypatch, capsys):
    run = finished_cascade
    (tmp_path / "file").write_text("")
    for words, message in (
        ([run], "is a cascade: it works in pixels, and has no autoencoder"),
        ([tmp_path], "is not a run"),
        ([run, "--device", "cuda:9"], "device is 'cuda:9'"),
    ):
        monkeypatch.setattr(sys, "argv", ["calotype", "inspect", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        wrong = capsys.readouterr().err.splitlines()
        assert end.value.code == 2 and len(wrong) == 1 and message in wrong[0]
    assert events(run, "inspection") == [] and "inspect" not in read_json(run / "run.json")["seconds"]


def test_train_stops_where_going_on_would_be_a_waste_and_goes_on_by_force(tmp_path, monkeypatch):
    """With latents a hundred times as large as the denoiser is told."""
    real, run = LatentSpace.measure, tmp_path / "run"

    def wrong(space, moments):
        real(space, moments)
        space.spread /= 100

    monkeypatch.setattr(LatentSpace, "measure", wrong)
    write_pictures(tmp_path / "pictures")
    console = Keeper()
    with pytest.raises(UserError, match=r"wrong statistics.* calotype resume .*run --force") as error:
        commands.train(request(tmp_path / "pictures", run), console)
    assert "\n" not in str(error.value) and any("wrong statistics" in line for line in console.printed)
    state = read_json(run / "run.json")
    assert (state["status"], state["legs"]["denoiser"]) == ("failed", "waiting")
    with pytest.raises(UserError, match="--force"):
        commands.resume(ResumeOptions(run, "cpu"), Keeper())
    interrupted_at(monkeypatch, [("denoiser", 8)])
    with pytest.raises(Interrupted):
        commands.resume(ResumeOptions(run, "cpu", force=True), Keeper())
    commands.resume(ResumeOptions(run, "cpu"), Keeper())  # once is enough
    assert read_json(run / "run.json")["status"] == "finished" and len(events(run, "inspection")) == 1


def test_train_goes_on_by_force(tmp_path, monkeypatch):
    monkeypatch.setattr(LatentSpace, "measure", lambda space, moments: space.spread.fill_(1e-3))
    write_pictures(tmp_path / "pictures")
    run = commands.train(request(tmp_path / "pictures", tmp_path / "run", force=True), Keeper())
    assert read_json(run / "run.json")["status"] == "finished"
