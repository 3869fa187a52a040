import re
from itertools import pairwise
from pathlib import Path
from typing import get_type_hints

import pytest
import torch
from analytic import (
    DDPM_BETAS,
    denoise_with,
    diffusers_walk,
    even_noise,
    gaussian,
    mixture,
    slope,
    smooth_network,
    walk,
)
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
)

from calotype.cli.options import SamplingOptions
from calotype.diffusion.samplers import SAMPLERS, ancestral, dpm_solver, euler, heun
from calotype.diffusion.scalings import edm, epsilon, flow, for_sigma_data, velocity, x0
from calotype.diffusion.schedules import Cosine, DdpmTable, Flow, Karras
from calotype.export import standalone

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers
MODES = torch.tensor([[1.0, 0.0], [-0.5, 0.8], [-0.4, -0.9]], dtype=torch.float64)
PREDICTIONS = [("epsilon", epsilon), ("v_prediction", velocity), ("sample", x0)]


@pytest.fixture
def noise():
    return torch.randn(2, 4, 3, 2, dtype=torch.float64)


def per_state(sigmas):
    return torch.tensor(sigmas, dtype=torch.float64).reshape(-1, 1, 1, 1, 1)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1.0), (heun, 2.0), (dpm_solver, 2.0)])
def test_order_of_convergence(sampler, order):
    """Before the step to sigma 0, whose error does not depend on the number of the other steps.

    An error of `c / steps^order` shrinks as the change when the steps are doubled does.
    """
    noisy, denoise, counts = 3 * torch.randn(64, 2, 1, 1, dtype=torch.float64), mixture(MODES, 0.3), [64, 128, 256, 512]
    grids = [torch.logspace(0.5, -1, steps + 1, dtype=torch.float64).tolist() for steps in counts]
    ends = [walk(sampler, denoise, noisy, grid)[-1] for grid in grids]
    changes = [(end - finer).abs().mean().item() for end, finer in pairwise(ends)]
    assert slope(counts[:-1], changes) == pytest.approx(-order, abs=0.15)


@pytest.mark.parametrize(("sampler", "tolerance"), [(euler, 2e-2), (heun, 1e-3), (dpm_solver, 1e-3)])
@pytest.mark.parametrize("schedule", [Karras(), Cosine(), Flow(), DdpmTable()], ids=lambda schedule: schedule.kind)
def test_gaussian_data_keep_their_mean_and_spread(sampler, tolerance, schedule):
    """At every sigma the noisy pictures are `N(mean, spread^2 + sigma^2)`; the last step takes their posterior mean."""
    mean, spread, grid = 0.3, 0.7, schedule.grid(250)
    sigmas = torch.tensor(grid, dtype=torch.float64)
    spreads = (spread**2 + sigmas**2).sqrt()
    spreads[-1] = spread**2 / spreads[-2]
    states = walk(sampler, gaussian(mean, spread), mean + spreads[0] * even_noise(1000), grid)
    assert torch.allclose(states.mean((1, 2, 3, 4)), torch.tensor(mean).double(), atol=1e-6)
    assert torch.allclose(states.std((1, 2, 3, 4), correction=0), spreads, rtol=tolerance)


@pytest.mark.parametrize("schedule", [DdpmTable(), Karras()], ids=lambda schedule: schedule.kind)
def test_ancestral_draws_from_the_data(schedule):
    mean, spread, sigmas, noise = 0.3, 0.7, schedule.grid(1000), torch.Generator().manual_seed(1)

    def fresh():
        return torch.randn(10_000, 1, 1, 1, generator=noise)

    *_, images = ancestral(gaussian(mean, spread), mean + (spread**2 + sigmas[0] ** 2) ** 0.5 * fresh(), sigmas, fresh)
    assert images.mean().item() == pytest.approx(mean, abs=0.02)
    assert images.std().item() == pytest.approx(spread, rel=0.02)


def test_ancestral_keeps_the_noise_of_each_step_right():
    """Of data that is one point, the state at sigma is that point with noise of exactly sigma."""
    sigmas, noise = Karras().grid(10), torch.Generator().manual_seed(1)

    def fresh():
        return torch.randn(20_000, 1, 1, 1, generator=noise, dtype=torch.float64)

    states = walk(ancestral, lambda noisy, sigma: torch.full_like(noisy, 0.5), 0.5 + sigmas[0] * fresh(), sigmas, fresh)
    assert torch.allclose(states.std((1, 2, 3, 4)), torch.tensor(sigmas, dtype=torch.float64), rtol=0.02)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_arrives_at_what_a_sure_denoiser_says(sampler, noise):
    sigmas, picture = Karras().grid(6), torch.rand_like(noise)
    states = walk(sampler, lambda noisy, sigma: picture, picture + sigmas[0] * noise, sigmas, lambda: noise)
    assert len(states) == 7 and torch.allclose(states[-1], picture)


@pytest.mark.parametrize(
    ("prediction", "scaling", "steps"),
    [*((*prediction, 20) for prediction in PREDICTIONS), *(("epsilon", epsilon, steps) for steps in (1, 2, 1000))],
)
@pytest.mark.parametrize(
    ("sampler", "scheduler", "settings", "tolerance"),
    [
        (euler, DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": True}, 1e-5),
        (ancestral, DDPMScheduler, {"clip_sample": False, "variance_type": "fixed_small"}, 1e-5),
        (dpm_solver, DPMSolverMultistepScheduler, {"solver_order": 2, "final_sigmas_type": "zero"}, 1e-4),
    ],
    ids=["euler-ddim", "ancestral-ddpm", "dpm_solver"],
)
def test_the_variance_preserving_samplers_of_diffusers(
    sampler, scheduler, settings, tolerance, prediction, scaling, steps, noise
):
    """`x_t = a * noisy` with `a = (1 + sigma^2)^-1/2`; both draw the same fresh noise."""
    theirs = scheduler(1000, **DDPM_BETAS, timestep_spacing="trailing", prediction_type=prediction, **settings)
    theirs.alphas_cumprod = (1 - theirs.betas.double()).cumprod(0)  # in float32 their 1,000 steps lose four digits
    theirs.set_timesteps(steps)
    sigmas = DdpmTable().grid(steps)
    size = (1 + per_state(sigmas) ** 2) ** 0.5
    generators = [torch.Generator().manual_seed(2) for _ in range(2)]

    def fresh():
        return torch.randn(noise.shape, generator=generators[0], dtype=noise.dtype)

    states = walk(sampler, denoise_with(smooth_network, scaling), size[0] * noise, sigmas, fresh)
    expected = diffusers_walk(theirs, smooth_network, noise, sigmas[:-1], generator=generators[1])
    assert torch.allclose(states / size, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("prediction", "scaling"), PREDICTIONS[:2])
def test_heun_is_that_of_diffusers(prediction, scaling, noise):
    theirs = HeunDiscreteScheduler(1000, **DDPM_BETAS, timestep_spacing="trailing", prediction_type=prediction)
    theirs.set_timesteps(15)
    sigmas = DdpmTable().grid(15)
    asked = [sigmas[0], *(sigma for sigma in sigmas[1:-1] for _ in range(2))]
    states = walk(heun, denoise_with(smooth_network, scaling), sigmas[0] * noise, sigmas)
    expected = diffusers_walk(theirs, smooth_network, sigmas[0] * noise, asked)
    steps = [*range(0, len(asked), 2), len(asked)]  # between them lie the tries
    assert torch.allclose(states, expected[steps], rtol=1e-4, atol=1e-4)


def edm_of_half(sigma):
    return for_sigma_data(edm, sigma, torch.tensor(0.5))


def test_euler_is_that_of_edm_in_diffusers(noise):
    theirs = EDMEulerScheduler()
    theirs.set_timesteps(20)
    sigmas = Karras().grid(20)
    states = walk(euler, denoise_with(smooth_network, edm_of_half), sigmas[0] * noise, sigmas)
    expected = diffusers_walk(theirs, smooth_network, sigmas[0] * noise, sigmas[:-1])
    assert torch.allclose(states, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler_is_that_of_the_flow_in_diffusers(shift, noise):
    """`(1 - t) x + t n` is the noisy picture over `1 + sigma`; diffusers calls `t` sigma."""
    schedule = Flow(shift=shift)
    theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
    theirs.set_timesteps(sigmas=torch.linspace(schedule.start, 0, 21)[:-1].tolist())
    sigmas = schedule.grid(20)
    states = walk(euler, denoise_with(smooth_network, flow), (1 + sigmas[0]) * noise, sigmas)
    expected = diffusers_walk(theirs, smooth_network, noise, sigmas[:-1])
    assert torch.allclose(states / (1 + per_state(sigmas)), expected, rtol=1e-5, atol=1e-5)


def test_help_texts_and_exports_know_all_samplers():
    """The command line starts without torch, and exports run without Calotype, so each has names of its own."""
    (asked,) = get_type_hints(SamplingOptions, include_extras=True)["sampler"].__metadata__
    assert all(name in asked.help for name in SAMPLERS)
    folder = Path(standalone.__file__).parent
    for script in ("sample.py", "model.js"):
        (table,) = re.findall(r"^(?:const )?SAMPLERS = \{(.+)\}", (folder / script).read_text("utf-8"), re.MULTILINE)
        assert {entry.partition(":")[0].strip(' "') for entry in table.split(",")} == set(SAMPLERS)


@pytest.mark.parametrize(("sampler", "questions"), [(euler, 12), (heun, 23), (dpm_solver, 12), (ancestral, 12)])
def test_questions_asked(sampler, questions, noise):
    """The cost of a sample; and no question is asked at sigma 0."""
    asked = []

    def denoise(noisy, sigma):
        asked.append(sigma)
        return gaussian(0.0, 1.0)(noisy, sigma)

    walk(sampler, denoise, noise, Karras().grid(12))
    assert len(asked) == questions and min(asked) > 0
