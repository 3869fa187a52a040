"""Milestones: checkpoints that are kept at doublings of the images seen, and sampled from."""

import errno
import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small import SETTINGS, Keeper, be_quick, recipe, request, second_leg, write_pictures
from test_files import contents

from calotype.cli import commands
from calotype.cli.options import PreviewOptions, ResumeOptions
from calotype.files import is_whole, read_tensors
from calotype.planning.costs import Costs
from calotype.planning.make import checkpoint_values, disk_bytes
from calotype.run import Run
from calotype.tables import merge
from calotype.training import checkpoint, pipeline
from calotype.training import leg as legs
from calotype.training.checkpoint import checkpoints, save
from calotype.training.loop import TrainProgress, at_doublings, doublings
from calotype.training.snapshot import snapshot
from calotype.types import UserError

CPU = torch.device("cpu")


def test_each_doubling_is_due_once():
    progress = TrainProgress(10**4, 4, 0)
    due, reached = at_doublings(10, 0), []
    for progress.images_seen in range(4, 200, 4):
        if due(progress):
            reached.append(progress.images_seen)
    assert reached == [12, 20, 40, 80, 160] and doublings(10, 199) == len(reached)
    assert not at_doublings(0)(progress) and doublings(0, 10**9) == 0
    assert not at_doublings(10, 160)(progress)  # a resumed run has it already


def test_checkpoints_at_doublings_stay_and_others_go(tmp_path):
    leg = second_leg(denoiser={"images": 400})
    for leg.progress.images_seen in range(4, 100, 4):
        save(tmp_path, "denoiser", {}, leg.progress, milestones=10)
    names = [int(path.name[-4:]) for path in checkpoints(tmp_path, "denoiser")]
    assert names == [12, 20, 40, 80, 92, 96]
    save(tmp_path, "denoiser", {}, leg.progress)
    assert [int(path.name[-4:]) for path in checkpoints(tmp_path, "denoiser")] == [92, 96]


def test_milestones_are_not_read_at_each_save(tmp_path, monkeypatch):
    """Their hashes would take longer and longer: of a large network each is gigabytes."""
    leg, looked_at = second_leg(denoiser={"images": 400}), []
    for leg.progress.images_seen in range(4, 100, 4):
        save(tmp_path, "denoiser", {}, leg.progress, milestones=10)
    monkeypatch.setattr(checkpoint, "is_whole", lambda path: not looked_at.append(path.name))
    save(tmp_path, "denoiser", {}, replace(leg.progress, images_seen=100), milestones=10)
    assert looked_at == ["denoiser-0000000096"]


def images_kept(folder):
    return [int(path.name[-4:]) for path in checkpoints(folder, "denoiser")]


def saved_until(folder, images, notes=None):
    """With milestones at or after 10, 20, 40 and so on. Returns how far it is."""
    progress = second_leg(denoiser={"images": 400}).progress
    for progress.images_seen in images:
        save(folder, "denoiser", {}, progress, milestones=10, note=(notes or []).append)
    return progress


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: text.replace("0", "1")])
def test_a_whole_checkpoint_takes_the_place_of_a_damaged_milestone(tmp_path, change):
    """Whether it is shorter, or has other content of the same size."""
    saved_until(tmp_path, [4, 12, 16])
    state, notes = tmp_path / "denoiser-0000000012" / "state.json", ["kept"]
    state.write_text(change(state.read_text()))
    saved_until(tmp_path, [20], notes)
    assert images_kept(tmp_path) == [16, 20] and len(notes) == 2
    assert notes[1].startswith("milestone denoiser-0000000012 is damaged (state.json has ")
    assert notes[1].endswith("); denoiser-0000000016 is kept in its place")
    saved_until(tmp_path, [24, 28], notes)
    assert images_kept(tmp_path) == [16, 20, 24, 28] and len(notes) == 2


def test_a_damaged_milestone_that_has_no_other_in_its_place_stays_and_is_named_when_the_leg_goes_on(tmp_path):
    progress, lines = saved_until(tmp_path, range(4, 32, 4)), []
    (tmp_path / "denoiser-0000000012" / "state.json").unlink()
    saved_until(tmp_path, [32, 36])
    assert images_kept(tmp_path) == [12, 20, 32, 36]
    assert checkpoint.restore(tmp_path, "denoiser", {}, progress, lines.append).name == "denoiser-0000000036"
    assert lines == [
        "checkpoint denoiser-0000000012 is damaged (state.json is missing); to keep what it was, put a copy back"
    ]


def test_a_milestone_may_be_removed_while_the_run_trains(tmp_path, monkeypatch):
    """As the message about a full disk says; also after the checkpoints were listed."""
    saved_until(tmp_path, range(4, 20, 4))
    real = checkpoint.checkpoints

    def listed(folder, leg):
        paths = real(folder, leg)
        shutil.rmtree(tmp_path / "denoiser-0000000012", ignore_errors=True)
        return paths

    monkeypatch.setattr(checkpoint, "checkpoints", listed)
    saved_until(tmp_path, [20])
    assert images_kept(tmp_path) == [16, 20]


@pytest.mark.parametrize("meanwhile", [False, True], ids=["before", "meanwhile"])
@pytest.mark.parametrize("milestones", [0, 10])
def test_a_full_disk_names_what_is_missing_and_the_oldest_milestone(tmp_path, monkeypatch, milestones, meanwhile):
    leg = second_leg(denoiser={"images": 400})
    for leg.progress.images_seen in range(4, 32, 4):
        save(tmp_path, "denoiser", leg.states, leg.progress, milestones=milestones)
    before, usage = contents(tmp_path), shutil._ntuple_diskusage(10**9, 10**9, 10**4)

    def full(path, tensors):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    if meanwhile:
        monkeypatch.setattr(checkpoint, "write_tensors", full)
    else:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    needed = sum(value.nbytes for state in leg.states.values() for value in state.tensors().values())
    leg.progress.images_seen = 32
    missing = f"free at least {(1.2 * needed - 10**4) / 1e6:.1f} MB more"
    with pytest.raises(UserError, match=f"{missing}.*, then go on with") as error:
        save(tmp_path, "denoiser", leg.states, leg.progress, milestones=milestones)
    assert contents(tmp_path) == before and "\n" not in str(error.value)
    named = f"by removing the oldest milestone, {tmp_path / 'denoiser-0000000012'}" in str(error.value)
    assert named == bool(milestones) and is_whole(tmp_path / "denoiser-0000000028")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """With more time at the end of this file."""
    folder, settings = tmp_path_factory.mktemp("milestones"), merge(SETTINGS, {"milestones": 8})
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        patch.setattr(pipeline, "require_fit", lambda *given: None)
        patch.setattr(legs, "SAVE_SECONDS", 1e9)
        yield commands.train(request(write_pictures(folder / "pictures"), folder / "run", settings=settings), Keeper())


@pytest.mark.parametrize("name", ["autoencoder-0000000032", "denoiser-0000000009", "../run"])
def test_a_checkpoint_that_is_not_there_is_one_line_with_those_that_are(name, run):
    with pytest.raises(UserError, match=r"no checkpoint .* expected one of denoiser-0000000008, ") as error:
        commands.preview(PreviewOptions(run, checkpoint=name), Keeper())
    assert "\n" not in str(error.value)


def test_a_damaged_milestone_is_not_sampled_from(run, tmp_path):
    copy, name = shutil.copytree(run, tmp_path / "run"), "denoiser-0000000008"
    file = copy / "checkpoints" / name / "denoiser.safetensors"
    file.write_bytes(file.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=rf"{name} of .* is damaged \(denoiser.safetensors has other content") as error:
        commands.preview(PreviewOptions(copy, checkpoint=name), Keeper())
    assert "the others there are: denoiser-0000000016, " in str(error.value)


def test_the_plan_counts_the_disk_of_milestones():
    class Measured(Costs):
        def __init__(self):
            """Asks for nothing."""

        def parameters(self):
            return {"autoencoder": 10, "denoiser": 1000}

        def critic_parameters(self):
            return 5

        def prior_values(self):
            return 0

        def constant_values(self):
            return 0

    Measured.__abstractmethods__ = frozenset()  # the others are not asked for

    def needed(first):
        settings = recipe(denoiser={"images": 320}, milestones=first)
        assert checkpoint_values(settings, Measured(), "denoiser") == 4000
        return disk_bytes(settings, Measured(), [8, 1, 1])

    assert needed(10) - needed(0) == 6 * 16_000  # 10, 20, 40, 80, 160, 320
    assert all(small > large for small, large in pairwise(map(needed, (1, 10, 100))))


def test_a_finished_run_is_sampled_as_it_was_at_a_milestone(run):
    """Also once it has gone on: its milestones are then in the folder of the part before."""
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "autoencoder-0000000032", "denoiser-0000000008", "denoiser-0000000016", "denoiser-0000000032",
    ]  # fmt: skip
    console, name = Keeper(), "denoiser-0000000008"
    file = commands.preview(PreviewOptions(run, count=2, checkpoint=name), console)
    assert console.printed == [f"{file}: 2 samples of the denoiser after 8 of about 32 images"]
    stored = read_tensors(run / "checkpoints" / name / "denoiser.safetensors")
    weights = snapshot(run, CPU, name)[0].stages[0].denoiser.state_dict()
    averages = {key.removeprefix("average."): value for key, value in stored.items() if key.startswith("average.")}
    assert averages and all(torch.equal(weights[key], value) for key, value in averages.items())
    commands.resume(ResumeOptions(run, budget=1e-6), Keeper())
    later = snapshot(run / "before" / "1", CPU, name)[0].stages[0].denoiser.state_dict()
    assert all(torch.equal(later[key], value) for key, value in weights.items())
    assert Run.open(run).state.part == 2 and (run / "checkpoints" / name).is_dir()
