"""The best weights of a leg are kept, and are what an overfitted leg ends with; a resumed one too."""

import copy
import json
import math
import threading

import pytest
import torch
from small import fingerprint, second_leg
from torch import nn

from calotype.files import read_json
from calotype.recipe import OptimizerConfig
from calotype.run import Run, RunState
from calotype.training import checkpoint
from calotype.training.early_stopping import CLEARLY, ENOUGH, HOPELESS, watch
from calotype.training.loop import Hook, train
from calotype.training.run import Interrupted, go
from calotype.training.state import TrainState

GOOD, BETTER, WORSE = (
    {"held_out_loss": held_out, "train_loss": train} for held_out, train in ((1.0, 1.0), (0.9, 0.8), (1.2, 0.3))
)


@pytest.fixture
def players():
    return {"denoiser": TrainState(nn.Linear(2, 2), OptimizerConfig())}


def weights_of(players):
    return players["denoiser"].average.weight.clone()


def change(players, value):
    nn.init.constant_(players["denoiser"].average.weight, value)


def looked(folder, players, looks, held_out=ENOUGH, state=None):
    """A watch that has seen these looks, each with weights of its own: 0, 1, 2 ..."""
    guard = watch(folder, "denoiser", players, held_out, RunState() if state is None else state)
    for place, look in enumerate(looks):
        change(players, place)
        guard.note(100 * place, look)
    return guard


def test_an_overfitted_leg_ends_with_its_best_weights(tmp_path, players):
    guard = looked(tmp_path, players, [GOOD, BETTER, WORSE])
    assert guard.rise == pytest.approx(1.2 / 0.9)
    assert "100 images" in guard.choose()
    assert (weights_of(players) == 1).all()


@pytest.mark.parametrize("looks", [
    [GOOD, BETTER],
    [BETTER, {"held_out_loss": 0.9 * CLEARLY, "train_loss": 0.3}],
    [BETTER, {"held_out_loss": 1.5, "train_loss": 0.9}],  # both rise: the loss is in trouble, but does not overfit
    [GOOD, {"held_out_loss": float("nan"), "train_loss": 0.3}],
    [GOOD, {"psnr": 30.0}],
    [],
])  # fmt: skip
def test_one_that_is_not_keeps_its_last(tmp_path, players, looks):
    change(players, 7)
    guard = looked(tmp_path, players, looks)
    kept = weights_of(players)
    assert guard.choose() == ""
    assert (weights_of(players) == kept).all()


def test_few_held_out_pictures_say_nothing(tmp_path, players):
    assert looked(tmp_path, players, [GOOD, WORSE], held_out=ENOUGH - 1).choose() == ""
    assert not any(tmp_path.iterdir())


def test_a_watch_that_was_interrupted_knows_what_it_saw(tmp_path, players):
    state = RunState()
    looked(tmp_path, players, [GOOD, BETTER], state=state)
    guard = looked(tmp_path, players, [], state=copy.deepcopy(state))
    change(players, 5)
    guard.note(900, WORSE)
    assert guard.choose()
    assert (weights_of(players) == 1).all()


def test_a_lost_snapshot_is_no_harm(tmp_path, players):
    guard = looked(tmp_path, players, [GOOD, WORSE])
    (tmp_path / "best-denoiser" / "denoiser.safetensors").write_bytes(b"")
    assert guard.choose() == ""
    assert (weights_of(players) == 1).all()


# -- In a leg ----------------------------------------------------------------------------------------------------------


class Stop(threading.Event):
    """Is set after so many questions."""

    def __init__(self, after):
        super().__init__()
        self.left = after

    def is_set(self):
        self.left -= 1
        return self.left < 0


def train_leg(folder, monkeypatch, after=10**9, most_rise=1e9, look_share=math.inf):
    """8 steps with 4 looks, of which the second is best; stops after some steps, and then goes on."""
    monkeypatch.setattr("calotype.training.run.PREVIEWS", (0.25, 0.5, 0.75, 1.0))
    folder.mkdir(exist_ok=True)
    run = Run.open(folder) if (folder / "run.json").exists() else Run(folder, RunState(legs={"denoiser": "waiting"}))
    leg = second_leg()
    leg.held_out, leg.most_rise, leg.preview, leg.look_share = ENOUGH, most_rise, lambda path: None, look_share
    table = {8: GOOD, 16: BETTER, 24: {"held_out_loss": 1.0, "train_loss": 0.5}, 32: WORSE}
    leg.check = lambda: table[leg.clock.images_seen]
    go(run, leg, Stop(after), lambda done, total, note: None)
    return leg


def test_a_leg_that_overfits_ends_with_the_weights_of_its_best_look(tmp_path, monkeypatch):
    leg = train_leg(tmp_path / "run", monkeypatch)
    shorter = second_leg()
    shorter.clock.total = 32  # the schedules are those of the whole leg
    seen = {}

    def keep(clock, result):
        if clock.images_seen == 16:
            seen.update({name: value.clone() for name, value in shorter.stage.denoiser.state_dict().items()})

    train(shorter.objective, shorter.players, shorter.source, shorter.clock, [Hook(lambda clock: True, keep)])
    for name, value in leg.stage.denoiser.state_dict().items():
        assert torch.equal(value, seen[name]), name
    run = read_json(tmp_path / "run" / "run.json")
    assert "16 images" in run["overfitted"]["denoiser"]
    assert not (tmp_path / "run" / "checkpoints" / "best-denoiser").exists()


@pytest.mark.parametrize("after", [1, 3, 5, 7])
def test_stopped_and_resumed_it_is_the_same_to_the_bit(tmp_path, monkeypatch, after):
    whole = train_leg(tmp_path / "whole", monkeypatch)
    with pytest.raises(Interrupted):
        train_leg(tmp_path / "parts", monkeypatch, after)
    parts = train_leg(tmp_path / "parts", monkeypatch)
    again = train_leg(tmp_path / "parts", monkeypatch)  # of a finished leg nothing changes
    assert fingerprint(parts.players) == fingerprint(whole.players) == fingerprint(again.players)


def test_a_leg_that_may_be_cut_short_is(tmp_path, monkeypatch):
    leg = train_leg(tmp_path / "run", monkeypatch, most_rise=HOPELESS)
    assert leg.clock.images_seen == leg.clock.total == 24
    assert checkpoint.restore(tmp_path / "run" / "checkpoints", "denoiser", second_leg().players, leg.clock)


def test_dear_looks_are_left_out_but_for_the_last(tmp_path, monkeypatch):
    train_leg(tmp_path / "run", monkeypatch, look_share=0.0)
    lines = (json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines())
    assert [line["images_seen"] for line in lines if line["event"] == "check"] == [8, 32]
