"""What has changed between the stop of a run and its end: noticed, named, and allowed where harmless or asked for."""

import shutil
from collections import namedtuple
from dataclasses import replace

import pytest
from small import Keeper, be_quick, machine, write_pictures
from test_never_loses_work import stopped_run
from test_train import products

from calotype.cli import commands
from calotype.cli.commands import resuming
from calotype.cli.options import ResumeOptions
from calotype.files import is_whole, read_json, write_json
from calotype.run import Run
from calotype.tables import differences
from calotype.types import UserError


@pytest.fixture(scope="module")
def stopped_before(tmp_path_factory):
    """A run that was stopped in its first leg, in `run`, on the pictures in `pictures`."""
    place = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        stopped_run(write_pictures(place / "pictures"), patch)
    return place


@pytest.fixture
def run(stopped_before, tmp_path, monkeypatch):
    """A copy of it, with pictures of its own."""
    be_quick(monkeypatch)
    shutil.copytree(stopped_before, tmp_path, dirs_exist_ok=True)
    state = read_json(tmp_path / "run" / "run.json")
    write_json(tmp_path / "run" / "run.json", {**state, "data": str(tmp_path / "pictures")})
    return tmp_path / "run"


@pytest.fixture
def unproduced(monkeypatch):
    """Nothing is trained; what is known before that is saved."""
    monkeypatch.setattr(commands.training, "produce", lambda run, *more: run.save() or run.folder)


def resume(run, data=None):
    console = Keeper()
    commands.resume(ResumeOptions(run, data=data), console)
    return console.printed


# -- Pictures ----------------------------------------------------------------------------------------------------------


def test_pictures_that_have_moved_are_asked_for_and_then_remembered(run, finished):
    moved = (run.parent / "pictures").rename(run.parent / "elsewhere")
    with pytest.raises(UserError, match=r"which is gone; go on with: calotype resume .* --data FOLDER"):
        resume(run)
    printed = resume(run, moved)
    assert any("the pictures are in" in line and "and were in" in line for line in printed)
    assert products(run) == products(finished) and Run.open(run).state.data == str(moved)


def test_pictures_that_have_changed_are_refused_named_and_taken_when_asked_for(run, unproduced):
    next((run.parent / "pictures").rglob("*.png")).unlink()
    with pytest.raises(UserError, match=r"have changed: there are 9 instead of 10 since .* --data .*pictures"):
        resume(run)
    assert any("there are 9 instead of 10" in line for line in resume(run, run.parent / "pictures"))
    state, split = Run.open(run).state, read_json(run / "split.json")
    assert split["count"] == 9 and state.pictures == {
        name: len(split[name]) for name in ("train", "validation", "test")
    }
    noted = [event["text"] for event in Run.open(run).events if event["event"] == "note"]
    assert any("may hold out pictures that were trained on" in text for text in noted)
    assert not any("have changed" in line for line in resume(run))


def test_a_picture_in_another_class_is_a_change(run):
    path = next((run.parent / "pictures" / "a").iterdir())
    path.rename(run.parent / "pictures" / "b" / f"moved-{path.name}")
    with pytest.raises(UserError, match=r"have changed: there are others, or other labels or captions since"):
        resume(run)


def test_pictures_of_other_classes_are_refused_also_when_asked_for(run):
    others = write_pictures(run.parent / "others")
    next(path for path in others.iterdir() if path.is_dir()).rename(others / "new")
    with pytest.raises(UserError, match=r"--data .*others has the classes .*new.*, but .* was started with"):
        resume(run, others)


# -- Settings ----------------------------------------------------------------------------------------------------------


def edit(run, before, after):
    text = (run / "recipe.toml").read_text()
    assert text.count(before) >= 1
    (run / "recipe.toml").write_text(text.replace(before, after, 1))


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        ("seed = 0", "seed = 1", "seed was 0"),
        ("flip = true", "flip = false", "flip was True"),
        ("crop = 12", "crop = 8", "autoencoder.crop was 12"),
        ('optimizer = "adamw"', 'optimizer = "muon"', "autoencoder.learn.optimizer was 'adamw'"),
        ("channels = 3", "channels = 4", "autoencoder.network.channels was 3"),
    ],
)
def test_a_setting_with_which_a_leg_was_trained_must_be_put_back(run, before, after, key):
    edit(run, before, after)
    with pytest.raises(UserError, match=f"{key} when .* was started, and is .* in its recipe.toml; put it back"):
        resume(run)


def test_other_settings_are_named_and_taken(run, unproduced):
    settings = Run.open(run).state.settings
    edit(run, "steps = 3", "steps = 2")
    edit(run, "learning_rate = 0", "learning_rate = 1")  # of the autoencoder, which is in training
    edit(run, "width = 16", "width = 32")  # of the denoiser, which waits
    printed = resume(run)
    changed = differences(settings, Run.open(run).state.settings)
    assert {"sampling.steps", "denoiser.backbone.width"} < changed.keys() and len(changed) == 3
    assert all(any(f"{key} was " in line and "goes on with it" in line for line in printed) for key in changed)
    assert not any("goes on with it" in line for line in resume(run))  # once is enough


def test_a_run_of_an_earlier_version_has_no_settings_to_compare_but_its_networks_must_fit(run):
    state = read_json(run / "run.json")
    del state["settings"]
    write_json(run / "run.json", state)
    edit(run, "channels = 3", "channels = 4")
    with pytest.raises(UserError, match=r"linear_in.weight is \[3, .* its settings make it \[4, "):
        resume(run)


def test_another_machine_is_named(run, unproduced, monkeypatch):
    assert not any("may differ" in line or "keeps" in line for line in resume(run))
    monkeypatch.setattr(resuming.torch, "__version__", "0.9")
    monkeypatch.setattr(commands.training, "examine", lambda device, threads: replace(machine(), threads=64))
    printed = resume(run)
    assert any("goes on with torch 0.9 instead of" in line for line in printed)
    assert any("keeps its 64 threads" in line for line in printed)


# -- The disk ----------------------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_stops_the_run_before_a_checkpoint_is_begun(run, monkeypatch, finished):
    usage = shutil.disk_usage
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    before = sorted((run / "checkpoints").iterdir())
    with pytest.raises(UserError, match=r"takes .* MB, but only 0.0 MB are free .* MB more, then go on with"):
        resume(run)
    assert sorted((run / "checkpoints").iterdir()) == before and all(map(is_whole, before))
    assert Run.open(run).state.status == "failed"
    monkeypatch.setattr("shutil.disk_usage", usage)
    resume(run)
    assert products(run) == products(finished)
