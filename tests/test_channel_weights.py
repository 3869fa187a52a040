"""Channels of latents count in the loss by what they do to the picture."""

import pytest
import torch
from small import second_leg
from test_denoiser import SIGMA, fixed, unconditional

from calotype.nets.vae import Vae, VaeConfig
from calotype.spaces.latent import LatentSpace, channel_effects
from calotype.training.objectives import DenoisingObjective
from calotype.types import Rng

RNG = Rng(("channels",))
SCALES = torch.tensor([0.1, 0.02, 0.3, 0.01])


def test_the_effect_of_a_channel_is_the_change_of_the_picture_for_one_standard_deviation():
    """Of a decoder whose every channel adds a patch of its own strength."""
    vae = Vae(VaeConfig(reduction=4, channels=4, widths=(8,))).requires_grad_(False)
    vae.linear_out.weight.copy_(SCALES[:, None, None].expand_as(vae.linear_out.weight)), vae.linear_out.bias.zero_()
    space = LatentSpace(vae)
    space.spread.copy_(torch.tensor([1.0, 2.0, 0.5, 1.0]).reshape(1, 4, 1, 1))
    effects = channel_effects(space, 0.1 * RNG.normal(16, 4, 16, 16), RNG)
    assert torch.allclose(effects, SCALES * space.spread.flatten(), rtol=0.03)


def test_channels_count_by_their_weights():
    clean, noise, answer = (
        RNG.normal(4, 2, 6, 6),
        RNG.at("noise").normal(4, 2, 6, 6),
        RNG.at("answer").normal(4, 2, 6, 6),
    )
    denoiser, args = fixed(answer, "flow"), (clean, SIGMA, noise, unconditional(4))
    plain = denoiser.loss(*args)
    assert torch.equal(denoiser.loss(*args, torch.ones(2)), plain)
    alone = [denoiser.loss(*args, torch.eye(2)[channel]) for channel in range(2)]
    assert torch.allclose(sum(alone), plain) and torch.allclose(
        denoiser.loss(*args, torch.tensor([0.5, 1.5])), 0.5 * alone[0] + 1.5 * alone[1]
    )


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_a_leg_weighs_channels_as_its_recipe_says_and_the_same_after_a_stop(power):
    first, again = (second_leg(denoiser={"channel_weighting": power}) for _ in range(2))
    weights = first.objective.weights
    if not power:
        assert weights is None
        return
    assert weights.shape == (first.trained.space.channels,) and float(weights.mean()) == pytest.approx(1)
    assert torch.equal(weights, again.objective.weights) and weights.std() > 0.01
    batch = first.source.batch(0, 4)
    unweighted = DenoisingObjective(first.trained, first.objective.dropout)
    loss, plain = (one.losses(batch, 0.5, RNG)["denoiser"].total for one in (first.objective, unweighted))
    assert loss != plain


def test_power_one_is_the_square_of_power_one_half_up_to_their_means():
    half, one = (second_leg(denoiser={"channel_weighting": power}).objective.weights for power in (0.5, 1.0))
    assert torch.allclose(one, half.square() / half.square().mean(), rtol=1e-5)
