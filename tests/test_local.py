import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from calotype.diffusion.stage import shrunk
from calotype.priors.patches import (
    NOISE_FRACTION,
    PatchPrior,
    deviations,
    enlarged,
    images_of,
    patches_of,
    windows_of,
)
from calotype.types import Rng

NONE = torch.zeros(1)


def edges(count=24, side=32, seed=0):
    """Straight edges of any direction between two grey levels, as no interpolation draws them."""
    rng = Rng((seed, "edges"))
    angle, place, low, high = (rng.at(name).uniform(count, 1, 1) for name in ("angle", "place", "low", "high"))
    rows, columns = torch.meshgrid(torch.arange(side) / side - 0.5, torch.arange(side) / side - 0.5, indexing="ij")
    across = rows * torch.cos(6.3 * angle) + columns * torch.sin(6.3 * angle)
    images = torch.where(across > 0.6 * (place - 0.5), 0.2 + 0.8 * high, -0.2 - 0.8 * low)
    return images[:, None].expand(-1, 3, -1, -1).contiguous()


@pytest.fixture(scope="module")
def local():
    fitted = PatchPrior(4)
    fitted.fit([(shrunk(part, 4), part) for part in edges(200).split(50)])
    return fitted


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_patches_are_images_in_another_order(factor):
    images = torch.randn(2, 3, 4 * factor, 6 * factor)
    assert torch.equal(images_of(patches_of(images, factor), images, factor), images)


def test_windows_of_are_those_of_their_own_pixel():
    """Row i is the window around pixel i, less its mean."""
    low_res = torch.randn(2, 3, 6, 7)
    places, contrast = windows_of(low_res)
    window = low_res[1, :, 1:6, 2:7]
    window = (window - window.mean((1, 2), keepdim=True)).flatten()
    assert torch.allclose(places[42 + 3 * 7 + 4], window, atol=1e-6)
    assert contrast[42 + 3 * 7 + 4] == pytest.approx(float(window.square().mean().sqrt()), rel=1e-5)


def test_what_is_known_of_new_edges_is_nearer_than_interpolation(local):
    new = edges(16, seed=1)
    low_res = shrunk(new, 4)
    wrong = (local.posterior(low_res, torch.zeros(16)).mean - new).square().mean()
    assert wrong < 0.7 * (enlarged(low_res, 4) - new).square().mean()


def test_plain_areas_are_known_and_edges_are_doubted(local):
    half = torch.cat([torch.zeros(1, 3, 16, 8), torch.ones(1, 3, 16, 8)], 3)
    deviation = local.posterior(half, NONE).deviation
    assert deviation[..., :20].max() < 0.02 and deviation[..., 44:].max() < 0.02 and deviation[..., 31:33].min() > 0.02


@pytest.mark.parametrize("level", [0.05, 0.2])
def test_the_deviation_of_a_grey_picture_with_noise_is_the_noise_that_reaches_the_mean(local, level):
    noisy = level * torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    around = local.posterior(noisy, torch.full((8,), level))
    assert around.deviation.square().mean() == pytest.approx(float(around.mean.square().mean()), rel=0.1)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 1.0])
def test_denoising_is_the_posterior_mean_written_out_place_by_place(local, sigma):
    """`mean + C (C + sigma^2)^-1 (noisy - mean)` with `C` of the place's kind, scaled by its contrast."""
    low_res = shrunk(edges(2, seed=2), 4)
    around = local.posterior(low_res, torch.zeros(2))
    noisy = around.mean + torch.randn_like(around.mean)
    found = patches_of(around.denoise(noisy, torch.full((2,), sigma)) - around.mean, 4)
    places, contrast = windows_of(low_res)
    left, values = patches_of(noisy - around.mean, 4), torch.eye(48)
    for place, kind in enumerate(local.clusters(places).tolist()):
        own = NOISE_FRACTION**2 * local.axes[kind] @ torch.diag(local.variances[kind]) @ local.axes[kind].T
        covariance = contrast[place] ** 2 * own + local.plain**2 * values
        expected = covariance @ torch.linalg.solve(covariance + sigma**2 * values, left[place])
        assert torch.allclose(found[place], expected, atol=2e-3)


def test_without_noise_the_picture_is_kept_and_in_pure_noise_the_mean(local):
    low_res = shrunk(edges(2, seed=3), 4)
    around = local.posterior(low_res, torch.zeros(2))
    noisy = around.mean + 0.1 * torch.randn_like(around.mean)
    assert torch.allclose(around.denoise(noisy, torch.full((2,), 1e-5)), noisy, atol=1e-3)
    assert torch.allclose(around.denoise(noisy, torch.full((2,), 1e4)), around.mean, atol=1e-3)


def test_each_picture_is_enlarged_as_if_it_were_alone(local):
    low_res = shrunk(edges(3, seed=4), 4)
    together, alone = (local.posterior(some, torch.zeros(len(some))) for some in (low_res, low_res[1:2]))
    noisy, sigma = torch.randn_like(together.mean), torch.tensor([0.1, 0.2, 0.3])
    assert torch.allclose(together.mean[1:2], alone.mean, atol=1e-5)
    assert torch.allclose(together.deviation[1:2], alone.deviation, atol=1e-5)
    assert torch.allclose(together.denoise(noisy, sigma)[1:2], alone.denoise(noisy[1:2], sigma[1:2]), atol=1e-5)


@pytest.mark.parametrize("count", [1, 3])
def test_few_and_flat_pictures_can_be_fitted(count):
    """And nothing in them is known better than half a step of 8 bits."""
    fitted = PatchPrior(2)
    flat = torch.zeros(count, 3, 8, 8)
    fitted.fit([(shrunk(flat, 2), flat)])
    around = fitted.posterior(shrunk(flat, 2), torch.zeros(count))
    assert torch.isfinite(around.denoise(flat + 0.1, torch.full((count,), 0.5))).all()
    assert float(around.deviation.min()) > 1e-3


class Largest(TorchDispatchMode):
    """The values of the largest tensor that is made."""

    values = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        made = operation(*args, **(kwargs or {}))
        self.values = max(self.values, made.numel() if isinstance(made, torch.Tensor) else 0)
        return made


def test_deviations_for_the_plan_are_those_of_the_prior_to_the_bit_without_its_axes():
    generator = torch.Generator().manual_seed(0)
    larger = [F.interpolate(torch.rand(1, 3, 8, 8, generator=generator), size=64, mode="bicubic") for _ in range(4)]
    pairs = [(F.avg_pool2d(images, 4), images) for images in larger]
    prior = PatchPrior(4)
    prior.fit(pairs)
    with Largest() as largest:
        plain, deviation = deviations(pairs, 4)
        found = list(deviation)
    assert torch.equal(plain, prior.plain) and largest.values < prior.axes.numel() / 4
    assert all(
        torch.equal(prior.posterior(low_res, torch.zeros(1)).deviation, own)
        for (low_res, _), own in zip(pairs, found, strict=True)
    )
