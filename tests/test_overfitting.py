"""The best weights of a leg are kept, and are what an overfitted leg ends with; a resumed one too."""

import copy
import json
import math
import threading
from dataclasses import replace

import pytest
import torch
from small import fingerprint, first_leg, second_leg
from torch import nn

from calotype.files import read_json
from calotype.recipe import OptimizerConfig
from calotype.run import Run, RunState, Validation
from calotype.training import checkpoint
from calotype.training.control import CLEARLY, HOPELESS, MIN_RECONSTRUCTED, MIN_VALIDATION, EarlyStopping
from calotype.training.leg import LegLimits, train_leg
from calotype.training.objectives import AutoencoderObjective, BatchShare
from calotype.training.process import Interrupted
from calotype.training.state import TrainState

GOOD, BETTER, WORSE = (
    {"held_out_loss": held_out, "train_loss": train} for held_out, train in ((1.0, 1.0), (0.9, 0.8), (1.2, 0.3))
)


@pytest.fixture
def states():
    return {"denoiser": TrainState(nn.Linear(2, 2), OptimizerConfig())}


def weights_of(states):
    return states["denoiser"].average.weight.clone()


def change(states, value):
    nn.init.constant_(states["denoiser"].average.weight, value)


def validated(folder, states, checks, held_out=MIN_VALIDATION, validation=None):
    """Early stopping after these validations, each with weights of its own: 0, 1, 2 ..."""
    stopping = EarlyStopping(folder / "best-denoiser", states, Validation() if validation is None else validation)
    for index, measures in enumerate(checks):
        change(states, index)
        stopping.note(100 * index, {"n": float(held_out), **measures})
    return stopping


def test_an_overfitted_leg_ends_with_its_best_weights(tmp_path, states):
    stopping = validated(tmp_path, states, [GOOD, BETTER, WORSE])
    assert stopping.rise == pytest.approx(1.2 / 0.9)
    assert "100 images" in stopping.restore_best()
    assert (weights_of(states) == 1).all()


@pytest.mark.parametrize("checks", [
    [GOOD, BETTER],
    [BETTER, {"held_out_loss": 0.9 * CLEARLY, "train_loss": 0.3}],
    [BETTER, {"held_out_loss": 1.5, "train_loss": 0.9}],  # both rise: the loss is in trouble, but does not overfit
    [GOOD, {"held_out_loss": float("nan"), "train_loss": 0.3}],
    [GOOD, {"psnr": 30.0}],
    [],
])  # fmt: skip
def test_a_leg_that_does_not_overfit_keeps_its_last_weights(tmp_path, states, checks):
    change(states, 7)
    stopping = validated(tmp_path, states, checks)
    kept = weights_of(states)
    assert stopping.restore_best() == ""
    assert (weights_of(states) == kept).all()


def test_a_validation_that_is_not_finite_is_passed_over(tmp_path, states):
    """The loss of finite weights may overflow; as the best it would never be beaten."""
    lost = {"held_out_loss": math.nan, "train_loss": 0.3}
    stopping = validated(tmp_path, states, [lost, GOOD, BETTER, WORSE, lost])
    assert "200 images" in stopping.restore_best() and (weights_of(states) == 2).all()


def test_too_few_validation_pictures_do_not_stop_a_leg(tmp_path, states):
    assert validated(tmp_path, states, [GOOD, WORSE], held_out=MIN_VALIDATION - 1).restore_best() == ""
    assert not any(tmp_path.iterdir())


def test_early_stopping_resumes_with_its_best_validation(tmp_path, states):
    state = Validation()
    validated(tmp_path, states, [GOOD, BETTER], validation=state)
    stopping = validated(tmp_path, states, [], validation=copy.deepcopy(state))
    change(states, 5)
    stopping.note(900, {"n": float(MIN_VALIDATION), **WORSE})
    assert stopping.restore_best()
    assert (weights_of(states) == 1).all()


def test_damaged_best_weights_are_not_restored(tmp_path, states):
    stopping = validated(tmp_path, states, [GOOD, WORSE])
    (tmp_path / "best-denoiser" / "denoiser.safetensors").write_bytes(b"")
    assert stopping.restore_best() == ""
    assert (weights_of(states) == 1).all()


# -- In a leg ----------------------------------------------------------------------------------------------------------


class Stop(threading.Event):
    """Is set after so many questions."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


class Validations:
    """Measures by the images seen."""

    prompts = ()

    def __init__(self, progress, table, pictures=MIN_VALIDATION):
        self.progress, self.table, self.pictures = progress, table, pictures

    def write(self, path):
        pass

    def measure(self):
        return {"n": float(self.pictures), **self.table[self.progress.images_seen]}


def overfit(folder, after=10**9, max_rise=1e9, validation_share=math.inf):
    """8 steps with 4 validations, of which the second is best; stops after some steps, and then goes on."""
    folder.mkdir(exist_ok=True)
    run = Run.open(folder) if (folder / "run.json").exists() else Run(folder, RunState(legs={"denoiser": "waiting"}))
    leg = second_leg()
    table = {8: GOOD, 16: BETTER, 24: {"held_out_loss": 1.0, "train_loss": 0.5}, 32: WORSE}
    leg = replace(leg, validator=Validations(leg.progress, table), write_raw=None)
    limits = LegLimits(previews_at=(0.25, 0.5, 0.75, 1.0), validation_share=validation_share, max_rise=max_rise)
    train_leg(run, leg, Stop(after), lambda done, total, note="": None, limits=limits)
    return leg


def test_an_overfitting_leg_ends_with_the_weights_of_its_best_validation(tmp_path):
    leg = overfit(tmp_path / "run")
    shorter = second_leg()
    shorter.progress.total = 32  # the schedules are those of the whole leg
    seen = {}
    for _ in shorter.steps():
        if shorter.progress.images_seen == 16:
            seen.update({name: value.clone() for name, value in shorter.trained.denoiser.state_dict().items()})
    for name, value in leg.trained.denoiser.state_dict().items():
        assert torch.equal(value, seen[name]), name
    run = read_json(tmp_path / "run" / "run.json")
    assert "16 images" in run["overfitted"]["denoiser"]
    assert not (tmp_path / "run" / "checkpoints" / "best-denoiser").exists()


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_early_stopping_is_bit_exact_after_a_resume(tmp_path, after):
    whole = overfit(tmp_path / "whole")
    with pytest.raises(Interrupted):
        overfit(tmp_path / "parts", after)
    parts = overfit(tmp_path / "parts")
    again = overfit(tmp_path / "parts")  # of a finished leg nothing changes
    assert fingerprint(parts.states) == fingerprint(whole.states) == fingerprint(again.states)


def test_a_paced_leg_ends_early_where_it_overfits(tmp_path):
    leg = overfit(tmp_path / "run", max_rise=HOPELESS)
    assert leg.progress.images_seen == leg.progress.total == 24
    assert checkpoint.restore(tmp_path / "run" / "checkpoints", "denoiser", second_leg().states, leg.progress)


def test_expensive_validation_is_skipped_except_at_the_end(tmp_path):
    overfit(tmp_path / "run", validation_share=0.0)
    lines = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert [line["images_seen"] for line in lines if line["event"] == "check"] == [8, 32]


# -- An autoencoder ----------------------------------------------------------------------------------------------------


def test_an_autoencoder_is_judged_by_four_pictures(tmp_path):
    run, leg = Run(tmp_path, RunState(legs={"autoencoder": "waiting"})), first_leg(autoencoder={"images": 32})
    table = {8: GOOD, 16: BETTER, 24: {"held_out_loss": 0.92, "train_loss": 0.5}}
    leg = replace(leg, validator=Validations(leg.progress, table, MIN_RECONSTRUCTED))
    limits = LegLimits(previews_at=(0.25, 0.5, 0.75, 1.0), max_rise=CLEARLY)
    train_leg(run, leg, threading.Event(), lambda done, total, note="": None, limits=limits)
    assert leg.progress.images_seen == leg.progress.total == 24
    assert "16 images" in run.state.overfitted["autoencoder"]


def test_an_autoencoder_is_validated_by_its_reconstruction_loss():
    leg = first_leg(autoencoder={"losses": {"adversarial": 0.0, "perceptual_share": 1.0, "perceptual_start": 0.0}})
    validator, objective = (
        leg.validator,
        AutoencoderObjective(leg.validator.vae, leg.objective.critic, leg.objective.features, leg.objective.config),
    )
    measures = validator.measure()
    for name, images in (("held_out_loss", validator.images), ("train_loss", validator.train)):
        fake = validator.reconstruct(images)
        terms = objective._reconstruction(images, fake, 1.0, BatchShare(0, 1, len(images)))
        assert measures[name] == pytest.approx(float(sum(terms.values())), rel=1e-5)
    assert len(validator.train) == len(validator.images)
    assert not torch.equal(validator.train, validator.images)
