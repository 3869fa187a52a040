"""A step of training on a GPU waits for nothing. On `meta`, where there are no numbers, reading one is an error."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from small import CASCADE, CPU, first_leg, noise_pictures, second_leg
from torch import nn

from calotype.data.captions import Captions
from calotype.nets.blocks import TextContext
from calotype.nets.dit import DitBlock, DitConfig, rotations
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.examples import crop_examples
from calotype.training.legs import enlarger_leg
from calotype.training.loop import train_step
from calotype.training.state import TrainState
from calotype.types import Rng

META = torch.device("meta")


@pytest.fixture(autouse=True)
def on_meta(monkeypatch):
    """Nothing is drawn there, and torch's fused optimizers do not know it."""
    noise = Rng.noise_like
    monkeypatch.setattr(
        Rng, "noise_like", lambda rng, like: torch.empty_like(like) if like.device == META else noise(rng, like)
    )
    plain = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", lambda *args, fused, **more: plain(*args, **more, foreach=True))


def moved(leg):
    """States and batches as they would be on a GPU, where a prior's tensors have been read once."""
    objective = leg.objective
    if hasattr(objective, "features"):
        objective.features = copy.deepcopy(objective.features)  # all tests share them
    parts = [objective, getattr(objective, "stage", objective)]
    modules = [value for part in parts for value in vars(part).values() if isinstance(value, nn.Module)]
    mixtures = [*modules, *objective.cross_fitted.mixtures] if getattr(objective, "cross_fitted", None) else modules
    for module in [*mixtures, *objective.networks.values()]:
        for prior in module.modules():
            if isinstance(prior, GaussianMixture):
                assert prior.parts
            elif isinstance(prior, CaptionedMixture):
                assert prior.columns
        module.to(META)
    states = {name: TrainState(state.network, state.config) for name, state in leg.states.items()}
    source = leg.source if hasattr(leg.source, "device") else leg.source.sources[0]
    return states, replace(source, device=META)


def enlarging_leg(**changes):
    settings, pictures = parse_recipe(merge(CASCADE, changes)), noise_pictures()
    return enlarger_leg(settings, 16, pictures, crop_examples(settings, 16, pictures, CPU), CPU)


def cross_fitted_leg():
    leg = second_leg()
    prior = leg.objective.stage.denoiser.prior
    leg.objective.cross_fitted = CrossFitted((copy.copy(prior), copy.copy(prior)))
    return leg


def captioned_leg():
    """With a prior and a network that read captions."""
    leg = second_leg(denoiser={"text": {"kind": "bytes"}})
    denoiser, (source,) = leg.objective.stage.denoiser, leg.source.sources
    denoiser.prior = CaptionedMixture(denoiser.prior, len(denoiser.prior.parts), 4, 2)
    captioned = replace(source, captions=Captions((("a red house", "a house"),) * 10))
    return replace(leg, source=captioned)


LEGS = {
    "autoencoder": first_leg,
    "denoiser": second_leg,
    "denoiser without a prior": lambda: second_leg(denoiser={"prior": "none"}),
    "cross-fitted prior": cross_fitted_leg,
    "captions": captioned_leg,
    "enlarging stage": enlarging_leg,
    "blurred": lambda: enlarging_leg(enlarge={"16": {"augmentation": {"kind": "blur"}}}),
    "one step": lambda: enlarging_leg(enlarge={"16": {"objective": "one_step", "sampling": {"steps": 1}}}),
}


@pytest.mark.parametrize("name", LEGS)
def test_a_step_reads_nothing_from_the_device(name):
    leg = LEGS[name]()
    states, source = moved(leg)
    leg.progress.images_seen = 28  # where the critic takes part
    result = train_step(leg.objective, states, source.batch(28, 4), leg.progress)
    assert {value.device for value in (*result.terms.values(), *result.norms.values())} == {META}
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        result.require_finite()


def explain():
    """In a process without the checks of shapes, which torch's compiler cannot see through."""
    config = DitConfig(width=32, depth=1, heads=2, dropout=0.5)
    block = DitBlock(config, context_width=8).to(META)
    tokens, vector = torch.empty(2, 16, 32, device=META), torch.empty(2, 32, device=META)
    words = TextContext(torch.empty(2, 3, 8, device=META), torch.ones(2, 3, device=META).bool(), vector[:, :8])
    rotation = rotations(torch.zeros(16, 2, device=META), 16)
    for text in (None, words):
        found = torch._dynamo.explain(DitBlock.forward)(block, tokens, vector, rotation, text)
        assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_a_block_is_one_graph():
    code = "import test_host_reads; test_host_reads.explain()"
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=300)
