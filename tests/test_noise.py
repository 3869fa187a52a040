import itertools
import math
from itertools import pairwise

import pytest
import torch
from analytic import distance_to_uniform, normal_share
from diffusers import DDPMScheduler, EDMEulerScheduler, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler

from calotype.diffusion.schedules import Cosine, DdpmTable, Flow, Karras
from calotype.types import Rng


def is_falling_to_zero(sigmas):
    """What every sampler may assume of its grid."""
    falls = all(now > later for now, later in itertools.pairwise(sigmas))
    return len(sigmas) > 1 and sigmas[-1] == 0 and falls


pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of diffusers
SCHEDULES = [
    DdpmTable(), DdpmTable(spacing="linear", first=1e-4, last=0.02), DdpmTable(length=100),
    Cosine(), Cosine(shift=4.0), Karras(), Karras(rho=3.0), Flow(), Flow(shift=3.0), Flow(first_step=0.5),
]  # fmt: skip


@pytest.mark.parametrize("length", [100, 1000])
@pytest.mark.parametrize(("spacing", "first", "last"), [("linear", 1e-4, 0.02), ("scaled_linear", 0.00085, 0.012)])
def test_ddpm_table_is_that_of_diffusers(spacing, first, last, length):
    theirs = DDPMScheduler(length, beta_start=first, beta_end=last, beta_schedule=spacing).alphas_cumprod
    ours = 1 / (1 + DdpmTable(spacing=spacing, first=first, last=last, length=length).table() ** 2)
    assert torch.allclose(ours.float(), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 50, 667, 1000])
def test_ddpm_grid_is_the_trailing_one_of_diffusers(steps):
    scheduler = DDPMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    table = DdpmTable().table()
    assert DdpmTable().grid(steps) == [*table[scheduler.timesteps].tolist(), 0.0]


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 67, 100])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_grid_falls_to_zero_in_the_given_number_of_steps(schedule, steps):
    grid = schedule.grid(steps)
    assert len(grid) == steps + 1 and grid[-1] == 0
    assert all(math.isfinite(now) and now > later for now, later in pairwise(grid))
    assert is_falling_to_zero(grid)


@pytest.mark.parametrize("sigmas", [[], [0.0], [1.0], [2.0, 1.0], [1.0, 2.0, 0.0], [1.0, 1.0, 0.0], [1.0, -1.0, 0.0]])
def test_what_does_not_fall_to_zero_is_distinguished(sigmas):
    assert not is_falling_to_zero(sigmas)


@pytest.mark.parametrize("steps", [5, 40])
def test_karras_grid_is_that_of_edm(steps):
    scheduler = EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, rho=7.0)
    scheduler.set_timesteps(steps)
    assert torch.allclose(torch.tensor(Karras().grid(steps)), scheduler.sigmas, rtol=1e-5)


def test_karras_grid_is_that_of_karras_sigmas_in_diffusers():
    scheduler = EulerDiscreteScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(20)
    karras = Karras(smallest=scheduler.sigmas[-2].item(), largest=scheduler.sigmas[0].item())
    assert torch.allclose(torch.tensor(karras.grid(20)), scheduler.sigmas, rtol=1e-5)


@pytest.mark.parametrize("shift", [1.0, 1.5, 3.0])
def test_flow_shift_is_that_of_diffusers(shift):
    flow = Flow(shift=shift)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=torch.linspace(flow.start, 0, 21)[:-1].tolist())
    sigmas = torch.tensor(flow.grid(20))
    assert torch.allclose(sigmas / (1 + sigmas), scheduler.sigmas, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 12])
@pytest.mark.parametrize("first_step", [0.25, 0.5, 1.0])
def test_first_step_of_a_flow_is_a_fraction_of_the_others(steps, first_step):
    sigmas = torch.tensor(Flow(first_step=first_step).grid(steps), dtype=torch.float64)
    lengths = -(sigmas / (1 + sigmas)).diff()
    assert torch.allclose(lengths.sum(), torch.tensor(Flow().start, dtype=torch.float64))
    assert torch.allclose(lengths[1:], lengths[0] / first_step)


def test_cosine_is_the_cosine_of_the_paper():
    """arXiv 2102.09672, eq. 17, whose offset `s = 0.008` is the smallest angle here."""
    offset, times = 0.008, torch.linspace(0, 1, 51, dtype=torch.float64)[1:].flip(0)
    kept = ((times + offset) / (1 + offset) * math.pi / 2).cos() ** 2
    cosine = Cosine(smallest=math.tan(offset / (1 + offset) * math.pi / 2), largest=1e9)
    sigmas = torch.tensor(cosine.grid(50)[:-1], dtype=torch.float64)
    assert torch.allclose(1 / (1 + sigmas**2), kept, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [0.5, 2.0, 16.0])
def test_shift_of_cosine_moves_log_sigma(shift):
    plain, shifted = Cosine(), Cosine(shift=shift, smallest=0.01 * shift, largest=160.0 * shift)
    expected = torch.tensor(plain.grid(30)[:-1]).log() + math.log(shift)
    assert torch.allclose(torch.tensor(shifted.grid(30)[:-1]).log(), expected, atol=1e-5)
    moved = shifted.sample(100, Rng((1,))).log() - plain.sample(100, Rng((1,))).log()
    assert torch.allclose(moved, torch.tensor(math.log(shift)), atol=1e-5)


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(shift=8.0)], ids=repr)
def test_cosine_stays_within_its_limits(schedule):
    sigmas = schedule.sample(10_000, Rng((2,)))
    assert sigmas.min() >= 0.0099 and sigmas.max() <= 160.1


def uniform_of_ddpm(sigma):
    """The share of the table that lies below, made continuous: its steps are 1 / 1000 high."""
    return torch.searchsorted(DdpmTable().table().float(), sigma) / 1000 + 0.0005


def uniform_of_cosine(sigma):
    low, high = math.atan(0.01 / 3), math.atan(160 / 3)
    return ((sigma.double() / 3).atan() - low) / (high - low)


def uniform_of_time(sigma):
    """Logit-normal time, shifted as in arXiv 2403.03206, eq. 19 and 23."""
    time = sigma.double() / (1 + sigma.double())
    time = time / (3 - 2 * time)
    return normal_share((torch.logit(time) - 0.3) / 0.8)


@pytest.mark.parametrize(
    ("schedule", "uniform_of"),
    [
        (DdpmTable(), uniform_of_ddpm),
        (Cosine(shift=3.0), uniform_of_cosine),
        (Karras(), lambda sigma: normal_share((sigma.log() + 1.2) / 1.2)),
        (Flow(shift=3.0, mean=0.3, std=0.8), uniform_of_time),
    ],
    ids=["ddpm", "cosine", "karras", "flow"],
)
def test_draws_have_the_stated_distribution(schedule, uniform_of):
    count = 20_000
    assert distance_to_uniform(uniform_of(schedule.sample(count, Rng((3,))))) < 1.63 / count**0.5  # 1 in 100 by chance


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_draw_is_a_function_of_the_path(schedule):
    first = schedule.sample(64, Rng(("noise", 1)))
    torch.manual_seed(5)
    assert torch.equal(schedule.sample(64, Rng(("noise", 1))), first)
    assert not torch.equal(schedule.sample(64, Rng(("noise", 2))), first)
    assert first.dtype == torch.float32 and first.shape == (64,) and first.min() > 0
