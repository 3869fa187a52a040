from dataclasses import replace

import pytest
import torch
from analytic import Fixed, conditioned, perturbed, silent_parameters, unconditional

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.scalings import SCALINGS
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.unet import Unet, UnetConfig
from calotype.types import NULL_LABEL, Condition, per_image

WIDTH, CLASSES, SHAPE = 32, 3, (4, 2, 6, 4)
SIGMA = torch.tensor([0.03, 0.4, 1.7, 25.0])
LABELS = conditioned(0, 1, 2, NULL_LABEL)
spreads = pytest.mark.parametrize("spread", [1.0, 0.5, 0.06])


def variance_preserving(sigma):
    """`a` and `b` of `x_t = a x + b n`."""
    return (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5


def target_of_edm(clean, noise, sigma, spread=1.0):
    """arXiv 2206.00364, eq. 8: what the network must say, for data of this spread."""
    variance = sigma**2 + spread**2
    return (clean - spread**2 / variance * (clean + sigma * noise)) * variance**0.5 / (spread * sigma)


def target_of_velocity(clean, noise, sigma):
    a, b = variance_preserving(sigma)
    return a * noise - b * clean


TARGETS = {
    "epsilon": lambda clean, noise, sigma: noise,
    "x0": lambda clean, noise, sigma: clean,
    "velocity": target_of_velocity,
    "flow": lambda clean, noise, sigma: noise - clean,
    "edm": target_of_edm,
}


def loss_of_edm(clean, noise, sigma, answer, spread):
    """arXiv 2206.00364, eq. 2 and table 1: the weighted error of the denoised picture."""
    variance = sigma**2 + spread**2
    denoised = spread**2 / variance * (clean + sigma * noise) + sigma * spread / variance**0.5 * answer
    return variance / (spread * sigma) ** 2 * (denoised - clean) ** 2


@pytest.fixture
def clean():
    return torch.rand(SHAPE) * 2 - 1


@pytest.fixture
def noise():
    return torch.randn(SHAPE)


def network(kind, scaling="flow", precision="float32", low_res=0):
    """A denoiser of two channels, with no weight at 0."""
    backbone = (
        Dit(DitConfig(width=WIDTH, depth=2, heads=2, patch=2), 2 + low_res, 2)
        if kind == "dit"
        else Unet(UnetConfig(width=WIDTH, blocks=1), 2 + low_res, 2)
    )
    return perturbed(Denoiser(backbone, WIDTH, CLASSES, scaling, precision))


def fixed(answer, scaling, spread=1.0):
    return Denoiser(Fixed(answer), WIDTH, CLASSES, scaling, sigma_data=spread)


@pytest.mark.parametrize("name", ["epsilon", "x0", "velocity", "flow"])
def test_the_loss_is_the_one_of_the_paper(name, clean, noise):
    answer = torch.randn(SHAPE)
    expected = ((answer - TARGETS[name](clean, noise, per_image(SIGMA))) ** 2).mean((1, 2, 3))
    found = fixed(answer, name).loss(clean, SIGMA, noise, unconditional(4))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5)


@spreads
def test_the_loss_of_edm_is_the_weighted_error_of_the_picture(spread, clean, noise):
    answer = torch.randn(SHAPE)
    expected = loss_of_edm(clean, noise, per_image(SIGMA), answer, spread).mean((1, 2, 3))
    found = fixed(answer, "edm", spread).loss(clean, SIGMA, noise, unconditional(4))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SCALINGS)
def test_a_perfect_network_gives_the_clean_picture(name, clean, noise):
    sigma = per_image(SIGMA)
    denoiser = fixed(TARGETS[name](clean, noise, sigma), name)
    assert torch.allclose(denoiser(clean + sigma * noise, SIGMA, unconditional(4)), clean, atol=1e-5)
    assert denoiser.loss(clean, SIGMA, noise, unconditional(4)).max() < 1e-6


@pytest.mark.parametrize("name", SCALINGS)
def test_the_loss_is_the_error_of_the_denoised_picture_over_out(name, clean, noise):
    """What is learned and what samples is the same estimate, here of a real network."""
    denoiser, sigma = network("dit", name), per_image(SIGMA)
    denoised = denoiser(clean + sigma * noise, SIGMA, LABELS)
    expected = ((denoised - clean) / SCALINGS[name](sigma).out).square().mean((1, 2, 3))
    assert torch.allclose(denoiser.loss(clean, SIGMA, noise, LABELS), expected, rtol=1e-3)


@pytest.mark.parametrize("name", ["epsilon", "x0", "velocity"])
def test_the_network_sees_the_variance_preserving_picture(name, clean, noise):
    denoiser, (a, b) = fixed(noise, name), variance_preserving(per_image(SIGMA))
    denoiser.loss(clean, SIGMA, noise, unconditional(4))
    assert torch.allclose(denoiser.backbone.seen, a * clean + b * noise, atol=1e-6)


def test_the_network_sees_the_straight_line_from_clean_to_noise(clean, noise):
    denoiser, time = fixed(noise, "flow"), per_image(SIGMA / (1 + SIGMA))
    denoiser.loss(clean, SIGMA, noise, unconditional(4))
    assert torch.allclose(denoiser.backbone.seen, (1 - time) * clean + time * noise, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.01, 0.5, 80.0])
@spreads
def test_edm_sees_and_says_pictures_of_unit_variance(sigma, spread):
    clean, noise = spread * torch.randn(1, 1, 200, 200), torch.randn(1, 1, 200, 200)
    denoiser, sigmas = fixed(torch.zeros_like(clean), "edm", spread), torch.tensor([sigma])
    target_power = denoiser.loss(clean, sigmas, noise, unconditional(1)).item()  # of an answer of 0
    assert denoiser.backbone.seen.square().mean().item() == pytest.approx(1, abs=0.03)
    assert target_power == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_permuting_the_batch_permutes_the_output(kind, noise):
    order = torch.tensor([2, 0, 3, 1])
    denoiser, labels, low_res, level = network(kind, low_res=1), LABELS.labels, torch.randn(4, 1, 6, 4), SIGMA / 9
    output = denoiser(noise, SIGMA, Condition(labels, low_res, level))
    permuted = denoiser(noise[order], SIGMA[order], Condition(labels[order], low_res[order], level[order]))
    assert torch.allclose(permuted, output[order], atol=1e-4, rtol=1e-4)


def test_every_condition_changes_the_output(noise):
    """Each label and not being told, sigma, the smaller picture and its augmentation."""
    denoiser, low_res = network("dit", "x0", low_res=1), torch.randn(1, 1, 6, 4)
    one, sigma, level = noise[:1] / 10, torch.tensor([0.5]), torch.tensor([0.2])
    asked = [(sigma, conditioned(label, low_res=low_res, augmentation=level)) for label in (NULL_LABEL, 0, 1, 2)]
    asked += [(sigma, conditioned(0, low_res=change, augmentation=level)) for change in (low_res + 0.1, -low_res)]
    asked += [(sigma, conditioned(0, low_res=low_res, augmentation=change)) for change in (None, level + 0.1)]
    asked += [(sigma + 0.1, conditioned(0, low_res=low_res, augmentation=level))]
    answers = torch.cat([denoiser(one, *question) for question in asked]).flatten(1)
    assert torch.pdist(answers).min() > 1e-3


def test_unconditional_forgets_the_label_and_nothing_else():
    condition = conditioned(0, 2, low_res=torch.ones(2, 1, 2, 2), augmentation=torch.ones(2))
    forgotten = condition.unconditional()
    assert torch.equal(forgotten.labels, unconditional(2).labels)
    assert forgotten.low_res is condition.low_res and forgotten.augmentation is condition.augmentation


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_the_loss_reaches_every_parameter(kind, scaling, clean, noise):
    denoiser, condition = network(kind, scaling, low_res=1), replace(LABELS, low_res=noise[:, :1], augmentation=SIGMA)
    assert silent_parameters(denoiser, denoiser.loss(clean, SIGMA, noise, condition).mean()) == []


@pytest.mark.parametrize("kind", ["dit", "unet"])
def test_bfloat16_is_cheaper_arithmetic_and_nothing_else(kind, clean, noise):
    exact, coarse = network(kind, "x0"), network(kind, "x0", "bfloat16")
    coarse.load_state_dict(exact.state_dict())
    outputs = [denoiser(clean + noise, SIGMA, unconditional(4)) for denoiser in (exact, coarse)]
    difference = (outputs[0] - outputs[1]).norm() / outputs[0].norm()
    assert 1e-4 < difference < 0.03
    coarse.loss(clean, SIGMA, noise, replace(LABELS, augmentation=SIGMA)).mean().backward()
    tensors = [outputs[1], *coarse.parameters(), *(weight.grad for weight in coarse.parameters())]
    assert {tensor.dtype for tensor in tensors} == {torch.float32}


# -- Data of another spread, about a smaller picture -------------------------------------------------------------------


@spreads
def test_the_scaling_of_edm_is_table_1_of_karras(spread):
    """arXiv 2206.00364, with `sigma_data` the spread."""
    scaling, sigma = fixed(None, "edm", spread).scalings(SIGMA, unconditional(4)), per_image(SIGMA)
    assert torch.allclose(scaling.skip, spread**2 / (sigma**2 + spread**2))
    assert torch.allclose(scaling.out, sigma * spread / (sigma**2 + spread**2).sqrt())
    assert torch.allclose(scaling.input, (sigma**2 + spread**2) ** -0.5)


@pytest.mark.parametrize("name", SCALINGS)
def test_spread_1_is_the_scaling_itself(name):
    found = fixed(None, name).scalings(SIGMA, unconditional(4))
    assert all(torch.allclose(one, other) for one, other in zip(found, SCALINGS[name](per_image(SIGMA)), strict=True))


@pytest.mark.parametrize("name", SCALINGS)
def test_data_and_noise_of_another_unit_are_the_same_data_and_noise(name, clean, noise):
    """Whatever is measured in units of the spread: the loss stays, and the estimate is measured in them too."""
    answer = torch.randn(SHAPE)
    one, other = fixed(answer, name), fixed(answer, name, 0.1)
    sigma, low_res = SIGMA.clamp(max=5), torch.randn(SHAPE)
    noisy = clean + per_image(sigma) * noise
    for condition, scaled in ((unconditional(4), unconditional(4)), (about(low_res), about(0.1 * low_res))):
        found = other(0.1 * noisy, 0.1 * sigma, scaled)
        assert torch.allclose(found, 0.1 * one(noisy, sigma, condition), atol=1e-5)
        found = other.loss(0.1 * clean, 0.1 * sigma, noise, scaled)
        assert torch.allclose(found, one.loss(clean, sigma, noise, condition), rtol=1e-3)


def about(low_res, **more):
    return conditioned(*[NULL_LABEL] * len(low_res), low_res=low_res, **more)


@pytest.mark.parametrize("name", ["edm", "velocity"])
@spreads
def test_a_silent_network_is_the_exact_denoiser_of_gaussians_about_the_smaller_picture(name, spread, noise):
    """With a deviation in the condition, the data lie about `low_res` by both spreads: their squares add up."""
    low_res, noisy = torch.randn(SHAPE), 3 * noise
    each, everywhere = per_image(torch.tensor([0.0, 0.05, 0.3, 2.0])), torch.rand(SHAPE)[:, :1]
    silent, sigma = fixed(torch.zeros(SHAPE), name, spread), per_image(SIGMA)
    for condition, variance in (
        (about(low_res), torch.tensor(spread**2)),
        (about(low_res, deviation=each), spread**2 + each**2),
        (about(low_res, deviation=everywhere), spread**2 + everywhere**2),
    ):
        expected = (variance * noisy + sigma**2 * low_res) / (variance + sigma**2)
        assert torch.allclose(silent(noisy, SIGMA, condition), expected, rtol=1e-4, atol=1e-5)


@spreads
def test_what_an_enlarging_network_sees_and_says_has_unit_variance(spread):
    """Of data about a smaller picture whose error is the deviation in the condition."""
    shape = (1, 1, 200, 200)
    deviation = 4 * spread * torch.rand(shape)
    clean, noise = torch.randn(shape), torch.randn(shape)
    low_res = clean - torch.hypot(torch.tensor(spread), deviation) * torch.randn(shape)
    denoiser = fixed(torch.zeros(shape), "edm", spread)
    for sigma in (0.01, 0.5, 80.0):
        condition = about(low_res, deviation=deviation)
        assert denoiser.loss(clean, torch.tensor([sigma]), noise, condition).item() == pytest.approx(1, abs=0.03)
        seen = denoiser.backbone.seen
        assert torch.equal(seen[:, 1:], low_res) and seen[:, :1].square().mean().item() == pytest.approx(1, abs=0.03)
