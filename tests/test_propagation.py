"""Errors through a small chain: pixels of 8 px, enlarged to 16, with networks that have not learned."""

import numpy as np
import pytest
import torch
from small import CASCADE, noise_pixels, second_leg
from test_stage import stage

from calotype.build import build_enlarger
from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import Sampling, shrunk
from calotype.evaluation.features import Lite0
from calotype.evaluation.propagation import (
    CORRUPTIONS,
    SHARES,
    STRENGTHS,
    Arm,
    Subjects,
    at_level,
    autoencoder_error,
    cascade_arms,
    contrast,
    corruption_of,
    latent_arm,
    measure_arms,
    norm,
    repeated,
    survival_of,
)
from calotype.settings import parse_recipe
from calotype.types import Rng

LITE0 = Lite0()
LABELS = torch.tensor([0, 1, 0])
RNGS = [Rng((0, index)) for index in range(3)]
kinds = pytest.mark.parametrize("kind", CORRUPTIONS)


@pytest.fixture(scope="module")
def small():
    return images_from_pixels(noise_pixels(3, 8))


@pytest.fixture(scope="module")
def cascade(small):
    torch.manual_seed(0)
    above = build_enlarger(parse_recipe(CASCADE), 16, 2)
    above.denoiser.eval().requires_grad_(False)
    return next(cascade_arms([stage(8), above], [Sampling(), Sampling(steps=3)], Subjects(LABELS, RNGS, small)))


@pytest.fixture(scope="module")
def latent(small):
    torch.manual_seed(0)
    return latent_arm(second_leg().trained, Sampling(steps=3), Subjects(LABELS, RNGS, small), 0.3, 8)


@pytest.mark.parametrize("model", ["cascade", "latent"])
def test_no_error_leaves_nothing_at_all(model, request):
    arm = request.getfixturevalue(model)
    nothing = torch.zeros_like(arm.small)
    assert torch.equal(arm.finish(None), arm.finish(nothing))
    found = survival_of("noise", 0.0, nothing, arm.finish(None), arm.finish(nothing), LITE0)
    assert (found.survival == 0).all()
    assert (found.perceptual == 0).all()


@kinds
def test_a_corruption_is_as_strong_as_it_says(kind, small):
    for strength in STRENGTHS:
        added = corruption_of(small, kind, strength, Rng((1,)))
        assert norm(added) / contrast(small) == pytest.approx(np.full(3, strength), rel=1e-4)


@kinds
@pytest.mark.parametrize("model", ["cascade", "latent"])
def test_a_stronger_error_leaves_a_larger_difference(kind, model, request):
    arm = request.getfixturevalue(model)
    found = list(arm.survivals([(kind, strength) for strength in (0.05, 0.2, 0.8)], Rng((2,)), LITE0))
    left = [one.survival.mean() * one.strength for one in found]
    assert 0 < left[0] < left[1] < left[2]
    assert found[0].psnr.mean() > found[1].psnr.mean() > found[2].psnr.mean()


def test_replicating_the_picture_keeps_all_of_an_error(small):
    def finish(delta):
        return repeated(small if delta is None else small + delta, 2)

    for found in Arm("none", 0.0, small, finish).survivals([(kind, 0.2) for kind in CORRUPTIONS], Rng((3,)), LITE0):
        assert found.survival == pytest.approx(np.ones(3), rel=1e-4)


def test_the_latent_arm_corrupts_what_the_denoiser_sees(latent):
    assert latent.small.shape == (3, 3, 8, 8)
    assert shrunk(latent.finish(None), 2).shape == latent.small.shape


def arms_of(small, **settings):
    torch.manual_seed(0)
    chain, samplings = [stage(8), stage(16, 8)], [Sampling(steps=2), Sampling(steps=40, **settings)]
    return {arm.name: arm for arm in cascade_arms(chain, samplings, Subjects(LABELS, RNGS, small))}


def test_a_cascade_has_an_arm_for_the_mechanism_that_it_uses(small):
    shares = [f"{share:g} of the most" for share in SHARES]
    assert list(arms_of(small)) == ["none", *shares]
    for conditioning, name in (("whole", "augmentation"), ("truncated", "truncation")):
        arms = arms_of(small, augmentation=0.1, conditioning=conditioning)
        assert list(arms) == ["none", name, *shares] and (arms["none"].level, arms[name].level) == (0.0, 0.1)
        assert [arm.thorough for arm in arms.values()] == [True, True, False, False, False]


def test_truncation_goes_on_from_what_the_first_stage_leaves_unfinished(small):
    """Its noise is the sampler's own; an error is as long as in the finished picture."""
    arms = arms_of(small, augmentation=0.1, conditioning="truncated")
    delta = corruption_of(small, "block", 0.2, Rng((5,)))
    assert not torch.allclose(arms["truncation"].finish(None), arms["none"].finish(None))
    assert not torch.allclose(arms["truncation"].finish(None), arms["truncation"].finish(delta))


def test_a_level_is_a_share_of_what_the_stage_was_trained_with():
    above = build_enlarger(parse_recipe(CASCADE), 16, 2)
    sampling = Sampling(augmentation=0.1, conditioning="truncated")
    none, half = (at_level([above], [sampling], share)[0] for share in (0.0, 0.5))
    assert (none.augmentation, half.augmentation) == (0, above.augmentation.most / 2)
    assert {one.conditioning for one in (none, half)} == {"whole"}


def test_effects_are_paired_by_picture(small):
    """An arm that leaves half of every error changes survival by half, surely."""

    def keeping(part):
        return lambda delta: (
            (small if delta is None else small + part * delta).repeat_interleave(2, 2).repeat_interleave(2, 3)
        )

    arms = [Arm("none", 0.0, small, keeping(1.0)), Arm("augmentation", 0.1, small, keeping(0.5), thorough=False)]
    found = measure_arms(arms, Rng((6,)), LITE0, lambda done, total: None)
    assert found.effects["augmentation"].value == pytest.approx(-0.5, abs=1e-4)
    assert found.effects["augmentation"].high < -0.49 and found.arms["none"].value == pytest.approx(1, abs=1e-4)
    assert len(found.points) == len(CORRUPTIONS) * (len(STRENGTHS) + 1) and (found.size, found.n) == (8, 3)


def test_the_error_of_an_autoencoder_is_by_the_contrast_of_the_picture():
    images, space = images_from_pixels(noise_pixels(3, 16)), second_leg().trained.space
    error = autoencoder_error(space, images, 2)
    again = space.decode(space.encode(images)).detach()
    first = norm(shrunk(again, 2) - shrunk(images, 2)) / contrast(shrunk(images, 2))
    assert error.value == pytest.approx(float(first.mean()), rel=1e-4) and error.low < error.value < error.high


def test_the_block_is_as_large_as_set_and_noise_differs_by_picture(small):
    block = CORRUPTIONS["block"](small, Rng((4,))) != small
    assert block.any(1).sum((1, 2)).tolist() == [4, 4, 4]
    noise = CORRUPTIONS["noise"](small, Rng((4,))) - small
    assert not torch.allclose(noise[0], noise[1])
