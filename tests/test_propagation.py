"""Errors through a small chain: pixels of 8 px, enlarged to 16, with networks that have not learned."""

import numpy as np
import pytest
import torch
from small import CASCADE, noise_pixels, second_leg

from calotype.build import build_enlarger
from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import Sampling, shrunk
from calotype.evaluation.propagation import (
    CORRUPTIONS,
    STRENGTHS,
    Case,
    at_level,
    cascade_case,
    damage,
    latent_case,
    length,
    survival,
)
from calotype.settings import parse_recipe
from calotype.types import Rng

LABELS = torch.tensor([0, 1, 0])
RNGS = [Rng((0, index)) for index in range(3)]
kinds = pytest.mark.parametrize("kind", CORRUPTIONS)


@pytest.fixture(scope="module")
def small():
    return images_from_pixels(noise_pixels(3, 8))


@pytest.fixture(scope="module")
def cascade(small):
    torch.manual_seed(0)
    stage = build_enlarger(parse_recipe(CASCADE), 16, 2)
    stage.denoiser.eval().requires_grad_(False)
    return cascade_case([stage], at_level([stage], [Sampling(steps=3)], 0.0), LABELS, RNGS, small)


@pytest.fixture(scope="module")
def latent():
    torch.manual_seed(0)
    stage = second_leg().stage
    return latent_case(stage, Sampling(steps=3), LABELS, RNGS, 0.3, 8)


@pytest.mark.parametrize("model", ["cascade", "latent"])
def test_no_error_leaves_nothing_at_all(model, request):
    case = request.getfixturevalue(model)
    nothing = torch.zeros_like(case.small)
    assert torch.equal(case.finish(None), case.finish(nothing))
    found = survival("noise", 0.0, nothing, case.finish(None), case.finish(nothing))
    assert (found.survival == 0).all()
    assert (found.perceptual == 0).all()


@kinds
def test_damage_is_as_strong_as_it_says(kind, small):
    own = length(small - small.mean((2, 3), keepdim=True))
    for strength in STRENGTHS:
        assert length(damage(small, kind, strength, Rng((1,)))) / own == pytest.approx(np.full(3, strength), rel=1e-4)


@kinds
@pytest.mark.parametrize("model", ["cascade", "latent"])
def test_a_stronger_error_leaves_a_larger_difference(kind, model, request):
    case = request.getfixturevalue(model)
    found = list(case.survivals([(kind, strength) for strength in (0.05, 0.2, 0.8)], Rng((2,))))
    left = [one.survival.mean() * one.strength for one in found]
    assert 0 < left[0] < left[1] < left[2]
    assert found[0].psnr.mean() > found[1].psnr.mean() > found[2].psnr.mean()


def test_what_hands_the_picture_on_keeps_all_of_an_error(small):
    def finish(delta):
        return (small if delta is None else small + delta).repeat_interleave(2, 2).repeat_interleave(2, 3)

    for found in Case(small, finish).survivals([(kind, 0.2) for kind in CORRUPTIONS], Rng((3,))):
        assert found.survival == pytest.approx(np.ones(3), rel=1e-4)


def test_the_latent_case_corrupts_what_the_denoiser_sees(latent):
    assert latent.small.shape == (3, 3, 8, 8)
    assert shrunk(latent.finish(None), 2).shape == latent.small.shape


def test_a_level_is_a_share_of_what_the_stage_was_trained_with():
    stage = build_enlarger(parse_recipe(CASCADE), 16, 2)
    sampling = Sampling(steps=40, augmentation=0.1, conditioning="truncated")
    stored, none, half = (at_level([stage], [sampling], share)[0] for share in (None, 0.0, 0.5))
    assert (stored.augmentation, none.augmentation, half.augmentation) == (0.1, 0, stage.augmentation.most / 2)
    assert {one.conditioning for one in (stored, none, half)} == {"whole"}
    assert stored.steps == 8


def test_the_block_is_as_large_as_said_and_noise_differs_by_picture(small):
    block = CORRUPTIONS["block"](small, Rng((4,))) != small
    assert block.any(1).sum((1, 2)).tolist() == [4, 4, 4]
    noise = CORRUPTIONS["noise"](small, Rng((4,))) - small
    assert not torch.allclose(noise[0], noise[1])
