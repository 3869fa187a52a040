"""Milestones: checkpoints that are kept at doublings of the images seen, and sampled from."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small import SETTINGS, Keeper, be_quick, recipe, request, second_leg, write_pictures

from calotype.cli import commands
from calotype.cli.options import PreviewOptions, ResumeOptions
from calotype.files import read_tensors
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


def test_the_plan_counts_the_disk_of_milestones():
    class Measured(Costs):
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
