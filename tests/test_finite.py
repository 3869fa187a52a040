"""NaN and infinity, wherever they come from, stop a run within one step, are named, and never reach the disk."""

import math
import threading

import pytest
import torch
from safetensors.torch import load_file
from small import Keeper, be_quick, fingerprint, first_leg, request, second_leg, write_pictures
from test_checkpoint import go_on, save
from test_train import run_in, silent

from calotype.cli import commands
from calotype.data import latents
from calotype.files import write_tensors
from calotype.training import leg as legs
from calotype.training import loop, pipeline, state
from calotype.training.control import CriticGuard
from calotype.training.leg import LegLimits, train_leg
from calotype.training.state import TrainState
from calotype.types import UserError

MAKE = {"autoencoder": first_leg, "critic": first_leg, "denoiser": second_leg}


def spoil_picture(leg, name, value):
    real = leg.source.batch

    def batch(start, count):
        drawn = real(start, count)
        if start == 16:
            drawn.clean[2, 0, 0, 0] = value
        return drawn

    object.__setattr__(leg.source, "batch", batch)


def spoil_loss(leg, name, value):
    real = leg.objective.slices

    def slices(batch, fraction, rng, at_once, rounds):
        def other(part):
            losses = part()
            if leg.progress.images_seen == 16:
                loss = losses[name]
                first = next(iter(loss.terms))
                losses[name] = type(loss)(loss.total, {**loss.terms, first: loss.terms[first] + value})
            return losses

        return [lambda part=part: other(part) for part in real(batch, fraction, rng, at_once, rounds)]

    leg.objective.slices = slices


def spoil_gradient(leg, name, value):
    real, state = leg.states[name].gradients, leg.states[name]
    state.gradients = lambda loss: [
        part if part is None or leg.progress.images_seen < 16 else part * value for part in real(loss)
    ]


def spoil_update(part):
    """A weight by the optimizer, or an average when it is updated."""

    def spoil(leg, name, value):
        state = leg.states[name]
        group = state.groups[0]
        real = group.optimizer.step

        def updated():
            real()
            if leg.progress.images_seen == 16:
                weight = (group.weights if part == "network" else group.averages)[0].data
                weight[(0,) * weight.dim()] = value

        group.optimizer.step = updated

    return spoil


SPOIL = {
    "a picture": (spoil_picture, r"a picture of the batch is not finite: portrait \d+;"),
    "the loss": (spoil_loss, "the loss is not finite"),
    "the gradient": (spoil_gradient, "the norm of the gradient is"),
    "a weight": (spoil_update("network"), "the weight .* is not finite"),
    "an average": (spoil_update("average"), "the average .* is not finite"),
}


CASES = [(name, what, math.nan) for name in MAKE for what in SPOIL if (name, what) != ("critic", "a picture")]
CASES += [("denoiser", what, math.inf) for what in SPOIL]


@pytest.mark.parametrize(("name", "what", "value"), CASES)
def test_what_is_not_finite_stops_the_step_is_named_and_not_saved(tmp_path, monkeypatch, name, what, value):
    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0)
    leg, (spoil, message) = MAKE[name](), SPOIL[what]
    run = run_in(tmp_path / "run")
    spoil(leg, name, value)
    with pytest.raises(UserError, match=f"{name}.* after 16 images: in step 5 .*{message}") as error:
        train_leg(run, leg, threading.Event(), silent)
    assert "\n" not in str(error.value) and "files of this step: portrait " in str(error.value)
    assert what == "a picture" or {"autoencoder": "l1", "critic": "hinge", "denoiser": "loss"}[name] in str(error.value)
    kept = sorted((run.folder / "checkpoints").iterdir())
    assert [path.name[-2:] for path in kept] == ["12", "16"]
    tensors = [value for path in kept for file in path.glob("*.safetensors") for value in load_file(file).values()]
    assert all(value.isfinite().all() for value in tensors)


@pytest.mark.parametrize(
    ("name", "what", "saved"),
    [("denoiser", what, saved) for what in SPOIL for saved in (False, True)]
    + [("autoencoder", "a weight", True), ("critic", "the gradient", True)],
)
def test_on_a_gpu_it_is_found_when_the_next_step_has_begun_or_before_anything_is_saved(
    tmp_path, monkeypatch, name, what, saved
):
    for module in (loop, state):
        monkeypatch.setattr(module, "is_host", lambda device: False)
    monkeypatch.setattr(legs, "SAVE_SECONDS", 0.0 if saved else 1e9)
    leg, (spoil, message), begun = MAKE[name](), SPOIL[what], []
    run = run_in(tmp_path / "run")
    spoil(leg, name, math.nan)
    spoiled = leg.source.batch
    object.__setattr__(leg.source, "batch", lambda start, count: begun.append(start) or spoiled(start, count))
    with pytest.raises(UserError, match=f"{name}.* after 16 images: in step 5 .*{message}"):
        train_leg(run, leg, threading.Event(), silent)
    assert begun[-1] == (16 if saved else 20)
    kept = sorted(path.name[-2:] for path in (run.folder / "checkpoints").glob("*"))
    assert kept == (["12", "16"] if saved else [])


@pytest.mark.parametrize("name", ["autoencoder", "denoiser"])
def test_on_a_gpu_nothing_is_validated_or_kept_by_the_guard_before_it_is_read(tmp_path, monkeypatch, name):
    for module in (loop, state):
        monkeypatch.setattr(module, "is_host", lambda device: False)
    monkeypatch.setattr(CriticGuard, "fractions", [0.6])  # after the step that is spoiled
    leg, run = MAKE[name](), run_in(tmp_path / "run")
    spoil_update("network")(leg, name, math.nan)
    limits = LegLimits(previews_at=(1.0,) if leg.guard else (0.6,))
    with pytest.raises(UserError, match=r"in step 5 .* is not finite"):
        train_leg(run, leg, threading.Event(), silent, limits=limits)
    assert not {"check", "preview", "guard"} & {event["event"] for event in run.events}
    assert not leg.guard or not leg.guard.before


def test_on_a_gpu_the_log_has_none_either(tmp_path, monkeypatch):
    """A step is logged before the next one has begun; browsers take no NaN for JSON."""
    for module in (loop, state):
        monkeypatch.setattr(module, "is_host", lambda device: False)
    monkeypatch.setattr(legs, "LOG_SECONDS", 0.0)
    monkeypatch.setattr(legs, "LOG_SHARE", 0.0)
    leg, run, shown = second_leg(), run_in(tmp_path / "run"), []
    spoil_loss(leg, "denoiser", math.nan)
    with pytest.raises(UserError, match="in step 5 the loss is not finite"):
        train_leg(run, leg, threading.Event(), lambda done, total, note="": shown.append(done))
    steps = [event for event in run.events if event["event"] == "step"]
    assert [step["images_seen"] for step in steps] == [4, 8, 12, 16] == shown
    assert "NaN" not in (run.folder / "log.jsonl").read_text()


def test_no_file_of_tensors_ever_holds_one(tmp_path):
    leg = go_on(second_leg(), 8)
    save(tmp_path, leg)
    before = fingerprint(leg.states)
    leg.progress.images_seen = 12
    state = leg.states["denoiser"]
    moments = next(one for group in state.groups if (one := group.optimizer.state.get(state.parameters[0])))
    moments["exp_avg"].flatten()[0] = math.nan
    with pytest.raises(UserError, match=r"optimizer\.0\.exp_avg in denoiser.safetensors is not finite"):
        save(tmp_path, leg)
    assert [path.name for path in tmp_path.iterdir()] == ["denoiser-0000000008"] and before
    with pytest.raises(UserError, match=r"b in x\.safetensors is not finite"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2), "b": torch.tensor([1.0, -math.inf])})


def test_latents_that_overflow_name_their_picture(tmp_path, monkeypatch):
    def encode(*arguments):
        moments = real(*arguments)
        moments[3] = math.inf
        return moments

    be_quick(monkeypatch)
    real = latents.encode
    monkeypatch.setattr(latents, "encode", encode)
    monkeypatch.setattr(pipeline, "train_leg", lambda *arguments: None)
    write_pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"the latents of .*\.png are not finite: the autoencoder has diverged"):
        commands.train(request(tmp_path / "pictures", tmp_path / "run"), Keeper())
    assert not [*(tmp_path / "run" / "cache").glob("*")]


def test_a_check_costs_no_draw_and_changes_no_number():
    one, other = second_leg(), second_leg()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "require_finite", lambda state, norms: None)
        go_on(other, 16)
    assert fingerprint(go_on(one, 16).states) == fingerprint(other.states)
