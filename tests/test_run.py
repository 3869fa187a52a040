"""The state of a run: what `run.json` holds, of this version and of earlier ones."""

import json
import time
from pathlib import Path

import psutil
import pytest

from calotype.cli.options import TrainOptions
from calotype.run import STATE_VERSION, Run, RunState, Validation, read_state
from calotype.types import UserError

OF_VERSION_1 = Path(__file__).parent / "golden" / "stopped-run" / "run.json"


def test_a_run_of_version_1_opens_under_the_names_of_today():
    before, state = json.loads(OF_VERSION_1.read_text()), read_state(OF_VERSION_1)
    assert state.version == STATE_VERSION and state.status == before["state"] == "interrupted"
    assert state.imported_weights is None and state.legs == before["legs"] and state.seconds == before["seconds"]
    assert state.validation["denoiser"].best.model_dump() == before["looks"]["denoiser"]["best"]
    assert state.validation["autoencoder"] == Validation() and state.inspection.model_dump() == before["inspection"]


def test_exposure_fine_tuning_had_another_name(tmp_path):
    (tmp_path / "run.json").write_text('{"legs": {"enlarge-64": "finished", "mistakes-64": "training"}}')
    (tmp_path / "plan.json").write_text('{"paced": ["mistakes-64"], "phases": {"mistakes-64": [[1.0, 0.5]]}}')
    preview = {"event": "preview", "leg": "mistakes-64", "images_seen": 8, "file": "previews/mistakes-64-8.png"}
    (tmp_path / "log.jsonl").write_text(json.dumps(preview))
    run = Run.open(tmp_path)
    assert list(run.state.legs) == ["enlarge-64", "exposure-64"]
    assert run.plan == {"paced": ["exposure-64"], "phases": {"exposure-64": [[1.0, 0.5]]}}
    assert run.latest("preview", "exposure-64")["file"] == preview["file"]  # where it lies


def test_what_is_saved_is_read_again(tmp_path):
    run = Run(tmp_path, read_state(OF_VERSION_1))
    run.save()
    assert Run.open(tmp_path).state == run.state
    stored = json.loads((tmp_path / "run.json").read_text())
    assert stored["version"] == STATE_VERSION and "format" not in stored and None not in stored.values()


@pytest.mark.parametrize(
    ("stored", "problem"),
    [
        ([], "a list, but a table of keys is expected"),
        (7, "a number, but a table of keys is expected"),
        (None, "null, but a table of keys is expected"),
        (
            {"version": STATE_VERSION + 1},
            f"of version {STATE_VERSION + 1}, but at most {STATE_VERSION} is known; update calotype",
        ),
        ({"version": "two"}, "version: .* \\(got 'two'\\)"),
        ({"version": STATE_VERSION, "status": "asleep"}, "status: .* \\(got 'asleep'\\)"),
        ({"state": "training", "legs": {"denoiser": 3}}, "legs.denoiser: .* \\(got 3\\)"),
    ],
)
def test_a_damaged_state_is_one_line_that_names_file_and_key(tmp_path, stored, problem):
    (tmp_path / "run.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=problem) as error:
        Run.open(tmp_path)
    assert "\n" not in str(error.value) and "run.json" in str(error.value)


def test_a_folder_without_a_state_is_no_run(tmp_path):
    with pytest.raises(UserError, match="is not a run: it has no"):
        Run.open(tmp_path)


def test_history_leaves_out_what_a_resumed_run_did_again(tmp_path):
    run = Run(tmp_path, RunState())
    for seen, loss in ((8, 3.0), (16, 2.0), (24, 1.0), (16, 2.5)):
        run.log("check", leg="denoiser", images_seen=seen, loss=loss)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "check", "leg": "den')
    assert [event["loss"] for event in run.history("check", "denoiser")] == [3.0, 2.5]
    assert run.latest("check", "denoiser")["loss"] == 2.5 and run.latest("check", "autoencoder") == {}


def test_seconds_add_up_over_sessions(tmp_path):
    Run(tmp_path).spend("read", 2.0)
    Run.open(tmp_path).spend("read", 3.0)
    assert Run.open(tmp_path).state.seconds == {"read": 5.0}


def test_a_clock_that_is_set_changes_no_duration(tmp_path, monkeypatch):
    run = Run(tmp_path)
    options = TrainOptions(tmp_path)
    options.counted_from_process_start()
    assert abs(time.monotonic() - options.started - (time.time() - psutil.Process().create_time())) < 10
    run.begin(options.started, lambda: True)
    monkeypatch.setattr("time.time", lambda: 0.0)
    run.save()
    assert 0 <= Run.open(tmp_path).state.wall_seconds < 3600
