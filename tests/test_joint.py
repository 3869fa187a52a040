import json

import numpy as np
import pytest
import torch
from analytic import slope_error
from small import CPU, Keeper, be_quick, noise_pictures, recipe, second_leg, wish, write_pictures
from test_gradients import Weighted, captioned

from calotype import commands
from calotype.comparison.competitor import open_one
from calotype.comparison.expenses import training_flops
from calotype.evaluate.preference import prefer
from calotype.files import read_json
from calotype.learning.train import learn
from calotype.legs import joint_leg
from calotype.model import load
from calotype.nets.vae import Moments
from calotype.vocabulary import Condition, Rng, Text, UserError
from calotype.voice import cost

JOINT = {"images": 12, "batch": 4, "pictures": 4}
SET = ("joint.images=12", "joint.batch=4", "joint.pictures=8")


def train_joint(folder, *overrides, count=160):
    """On enough pictures to hold some out."""
    write_pictures(folder / "pictures", count)
    return commands.train(wish(folder / "pictures", folder / "run", *overrides), Keeper())


def leg(**losses):
    """After a denoiser that says something: a silent one passes no gradient on."""
    stage = second_leg().stage
    torch.manual_seed(0)
    for parameter in stage.denoiser.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return joint_leg(recipe(joint={**JOINT, "losses": losses}), stage, noise_pictures(), CPU)


def gradients(loss, network):
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)


def test_the_denoisers_own_loss_does_not_reach_the_encoder():
    joint = leg().objective
    loss = joint.losses(leg().source.batch(0, 4), 0.0, Rng((0,)))["denoiser"].total
    assert all(gradient is None for gradient in gradients(loss, joint.space.vae))
    assert any(gradient is not None for gradient in gradients(loss, joint.stage.denoiser))


def test_foresight_reaches_the_encoder_through_denoiser_and_decoder():
    """With the first stage's losses taken away, what is left still moves every part of the autoencoder."""
    joint = leg(foresight=1.0).objective
    batch = leg().source.batch(0, 4)
    with_it, without = (
        leg(foresight=weight).objective.losses(batch, 0.0, Rng((0,)))["autoencoder"] for weight in (1.0, 0.0)
    )
    assert float((with_it.total - without.total).detach()) == pytest.approx(float(with_it.terms["foreseen"]), rel=1e-3)
    moments = joint.space.vae.encode(batch.clean)
    foreseen = joint._foreseen(batch.clean, moments, Condition(batch.labels), Rng((0,)))
    for part in (joint.space.vae.encoder, joint.space.vae.decoder):
        assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients(foreseen, part))


@pytest.mark.parametrize("place", [0, 1, 2, 3])
@pytest.mark.parametrize("labels", [[0, 1, 1, 0], [-1, -1, -1, -1]])
@pytest.mark.parametrize("text", [None, Text(("red", "red ball", "", "ball"))])
def test_the_gradient_of_foresight_is_its_slope(text, labels, place):
    """Through the closed form too, at all noise levels, and through the network beside it."""
    stage = second_leg().stage
    stage.denoiser.mixture, stage.denoiser.backbone = captioned(channels=3), Weighted(3)
    joint = joint_leg(recipe(joint=JOINT), stage, noise_pictures(), CPU).objective
    images, condition = leg().source.batch(0, 4).clean.double(), Condition(torch.tensor(labels), text=text)
    mean, log_variance = (one.detach() for one in joint.space.double().vae.encode(images))

    def ahead(mean):
        return joint._foreseen(images, Moments(mean, log_variance), condition, Rng((place,)))

    assert slope_error(ahead, mean, step=1e-4) < 0.01


def test_a_step_moves_each_player_and_leaves_the_linear_path_and_what_was_before():
    joint = leg()
    before = {name: [p.clone() for p in player.network.parameters()] for name, player in joint.players.items()}
    linear = joint.objective.space.vae.linear_in.weight.clone()
    clock = joint.clock
    clock.advance(clock.total * 3 // 4)  # the critic plays from here on
    learn(joint.players, joint.objective.losses(joint.source.batch(0, 4), clock.progress, Rng((0,))), clock)
    for name, player in joint.players.items():
        pairs = zip(before[name], player.network.parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs), name
    assert torch.equal(linear, joint.objective.space.vae.linear_in.weight)


def test_the_statistics_follow_the_latents():
    """After many batches of latents of another mean and spread they are those."""
    space = leg().objective.space
    shape = (64, space.channels, 4, 4)
    for index in range(200):
        mean = 3 + 2 * Rng((index,)).normal(*shape)
        space.follow(torch.cat([mean, torch.full_like(mean, -20.0)], 1), 0.05)
    assert torch.allclose(space.mean, torch.tensor(3.0), atol=0.1)
    assert torch.allclose(space.spread, torch.tensor(2.0), atol=0.1)


def rows(shift, count=40, seed=0):
    return np.random.default_rng(seed).normal(shift, 1, (count, 8))


@pytest.mark.parametrize(
    ("before", "after", "blur", "better"),
    [(1.0, 0.0, 0.1, True), (0.0, 1.0, 0.1, False), (1.0, 0.0, 0.2, False), (0.5, 0.5, 0.1, False)],
)
def test_what_is_new_is_kept_only_where_it_is_better(before, after, blur, better):
    found = prefer(rows(0, seed=1), rows(before, seed=2), rows(after, seed=2), 0.1, blur)
    assert found.after_is_better == better


def test_a_run_with_a_joint_leg_says_whether_it_was_kept(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    run = train_joint(tmp_path, *SET)
    state = read_json(run / "run.json")
    assert list(state["legs"]) == ["autoencoder", "denoiser", "joint"] and set(state["legs"].values()) == {"finished"}
    notes = [json.loads(line).get("text", "") for line in (run / "log.jsonl").read_text().splitlines()]
    assert any("joint leg" in note and ("is kept" in note or "not kept" in note) for note in notes)
    predicted = read_json(run / "plan.json")["predicted"]
    assert "judge" in predicted["seconds"] and "joint" in predicted["seconds"]
    assert len(load(run).sample(2)) == 2
    counted = training_flops(open_one("a", run, "cpu"))
    assert counted["joint"] > counted["autoencoder"] + counted["denoiser"] / 2  # for `calotype compare`


def test_the_plan_of_a_joint_leg_is_told(tmp_path, monkeypatch):
    """Its parameters are those of both networks."""
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures", 160)
    made = commands.plan(wish(tmp_path / "pictures", None, *SET), Keeper())
    both = made.parameters("autoencoder") + made.parameters("denoiser")
    assert made.parameters("joint") == both and any(line.startswith("joint") for line in cost(made))


@pytest.mark.parametrize("kept", [True, False])
def test_the_model_is_the_one_that_was_preferred(tmp_path, monkeypatch, kept):
    be_quick(monkeypatch)
    monkeypatch.setattr("calotype.evaluate.preference.Preference.after_is_better", kept)
    plain = load(train_joint(tmp_path / "plain")).stages[0].space.state_dict()
    joint = load(train_joint(tmp_path / "joint", *SET)).stages[0].space.state_dict()
    assert all(torch.equal(plain[name], joint[name]) for name in plain) == (not kept)


def test_too_few_held_out_pictures_cannot_judge(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    with pytest.raises(UserError, match=r"1 pictures are held out.*8 or more"):
        train_joint(tmp_path, *SET, count=10)


def test_a_cascade_has_nothing_to_train_jointly(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures")
    with pytest.raises(UserError, match=r"joint\.images.*cascade"):
        commands.train(wish(tmp_path / "pictures", tmp_path / "run", "kind=cascade", *SET, settings={}), Keeper())
