import math

import pytest
import torch
from analytic import gaussian, log_density, walk

from calotype.diffusion.guidance import guided, within
from calotype.diffusion.noise import Karras
from calotype.diffusion.samplers import euler

STRONG, WEAK = gaussian(1.0, 0.5), gaussian(0.2, 0.9)


@pytest.fixture
def noisy():
    return torch.randn(3, 1, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, STRONG), (0.0, WEAK)])
def test_scale_1_is_strong_and_scale_0_is_weak(scale, expected, noisy):
    assert torch.allclose(guided(STRONG, WEAK, scale)(noisy, 0.7), expected(noisy, 0.7))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_guidance_follows_the_gradient_of_strong_to_the_scale_over_weak(scale, sigma, noisy):
    """arXiv 2207.12598, eq. 6; by Tweedie's formula `denoised = noisy + sigma^2 * gradient of the log-density`."""
    noisy.requires_grad_(True)
    log = scale * log_density(noisy, sigma, 1.0, 0.5) + (1 - scale) * log_density(noisy, sigma, 0.2, 0.9)
    (gradient,) = torch.autograd.grad(log, noisy)
    assert torch.allclose(guided(STRONG, WEAK, scale)(noisy, sigma), noisy + sigma**2 * gradient)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_between_gaussians_of_one_spread_guidance_moves_the_mean(scale, noisy):
    moved = gaussian(0.2 + scale * (1.0 - 0.2), 0.5)
    assert torch.allclose(guided(STRONG, gaussian(0.2, 0.5), scale)(noisy, 0.7), moved(noisy, 0.7))


def test_samples_grow_sharper_with_the_scale():
    noisy = 80 * torch.randn(500, 1, 1, 1, dtype=torch.float64)
    denoisers = [guided(STRONG, WEAK, scale) for scale in (1.0, 2.0, 4.0, 8.0)]
    spreads = [walk(euler, denoise, noisy, Karras().grid(40))[-1].std().item() for denoise in denoisers]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < spreads[0] / 2


@pytest.mark.parametrize(("sigma", "chosen"), [(0.5, WEAK), (0.50001, STRONG), (2.0, STRONG), (2.00001, WEAK)])
def test_within_is_inside_above_low_and_up_to_high(sigma, chosen, noisy):
    assert torch.equal(within(STRONG, WEAK, 0.5, 2.0)(noisy, sigma), chosen(noisy, sigma))


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e4])
def test_within_no_limits_is_inside(sigma, noisy):
    assert torch.equal(within(STRONG, WEAK)(noisy, sigma), STRONG(noisy, sigma))


def test_within_never_asks_the_other_one(noisy):
    asked = []

    def inside(noisy, sigma):
        asked.append(sigma)
        return noisy

    sigmas = Karras().grid(18)
    walk(euler, within(inside, WEAK, 0.2, 5.0), noisy, sigmas)
    assert asked == [sigma for sigma in sigmas if 0.2 < sigma <= 5.0]


def test_wrappers_nest(noisy):
    """Guidance by a third denoiser, of guidance in an interval."""
    third, sigma = gaussian(-1.0, 2.0), 0.7
    strong, weak, other = STRONG(noisy, sigma), WEAK(noisy, sigma), third(noisy, sigma)
    inner = within(guided(STRONG, WEAK, 3.0), STRONG, 0.5, math.inf)
    expected = other + 2 * (weak + 3 * (strong - weak) - other)
    assert torch.allclose(guided(inner, third, 2.0)(noisy, sigma), expected)
    assert torch.allclose(guided(inner, third, 2.0)(noisy, 0.5), 2 * STRONG(noisy, 0.5) - third(noisy, 0.5))
