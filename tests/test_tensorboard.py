"""TensorBoard events beside the log: all that has curves or pictures, and no step twice."""

import struct
import sys
from collections import Counter

import pytest
from small import Keeper, be_quick, request, write_pictures
from test_train import interrupted_at

from calotype.cli import commands
from calotype.cli.options import ResumeOptions
from calotype.run import Run
from calotype.training import leg as legs
from calotype.training import tensorboard
from calotype.training.process import Interrupted
from calotype.types import UserError


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)
    monkeypatch.setattr(legs, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(legs, "LOG_SHARE", 0.0)


def written(folder):
    """Tag and images seen of all values in the event files, as TensorBoard reads them."""
    event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
    values = []
    for file in folder.iterdir():
        content = file.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            event = event_pb2.Event.FromString(content[12 : 12 + size])
            values += [(value.tag, event.step) for value in event.summary.value]
            content = content[16 + size :]
    return values


def test_a_run_that_was_stopped_has_each_step_once(tmp_path, monkeypatch):
    pytest.importorskip("tensorboardX")
    pictures, run = write_pictures(tmp_path / "pictures"), tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(legs.checkpoint, "save", lambda *given: None)  # as where a process is killed
        interrupted_at(patch, [("autoencoder", 8)])
        with pytest.raises(Interrupted):
            commands.train(request(pictures, run, tensorboard=True), Keeper())
    assert [step for tag, step in written(run / "tensorboard") if tag == "autoencoder/norms/autoencoder"] == [4, 8, 12]
    commands.resume(ResumeOptions(run), Keeper())
    logged, values = Run.open(run), written(run / "tensorboard")
    assert max(Counter(values).values()) == 1
    steps = {tag: [step for name, step in values if name == tag] for tag, _ in values}
    seen = [event["images_seen"] for event in logged.history("step", "denoiser")]
    assert seen == list(range(4, 33, 4)) == steps["denoiser/learning_rates/denoiser"]
    assert steps["denoiser/images_a_second"] == seen and steps["denoiser/preview"] == [16, 32]
    assert steps["denoiser/measures/held_out_loss"] == [16, 32]
    assert steps["autoencoder/norms/autoencoder"] == seen and "autoencoder/measures/psnr" in steps


def test_learning_rates_are_logged_as_they_rise_and_fall(tmp_path):
    run = commands.train(request(write_pictures(tmp_path / "pictures"), tmp_path / "run"), Keeper())
    rates = [event["learning_rates"]["denoiser"] for event in Run.open(run).history("step", "denoiser")]
    assert rates[-1] < max(rates) and min(rates) >= 0
    assert not (run / "tensorboard").exists()


def test_a_finished_run_gets_events_of_its_log_whatever_its_previews_are(tmp_path):
    pytest.importorskip("tensorboardX")
    run = commands.train(request(write_pictures(tmp_path / "pictures"), tmp_path / "run"), Keeper())
    damaged, missing, *_ = sorted((run / "previews").glob("denoiser-0*.png"))
    damaged.write_bytes(damaged.read_bytes()[:60])
    missing.unlink()
    commands.resume(ResumeOptions(run, tensorboard=True), Keeper())
    tags = Counter(tag for tag, _ in written(run / "tensorboard"))
    assert tags["denoiser/measures/held_out_loss"] == 2 and tags["denoiser/preview"] == 0 < tags["autoencoder/preview"]


def test_without_its_package_it_is_one_line_before_anything_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorboard, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "calotype\[tensorboard\]"'):
        commands.train(request(tmp_path / "missing", tmp_path / "run", tensorboard=True), Keeper())
    (tmp_path / "run" / "tensorboard").mkdir(parents=True)
    notes = []
    with tensorboard.events_beside(Run(tmp_path / "run"), notes.append):
        assert "tensorboardX" not in sys.modules or notes
    assert len(notes) == 1 and "no TensorBoard events are written" in notes[0]
