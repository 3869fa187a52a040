import numpy as np
import pytest
import torch
import torch.nn.functional as F

from calotype.evaluation.autoencoder import psnr, ssim, window_means
from calotype.evaluation.distances import frechet_distance, kernel_distance
from calotype.evaluation.features import Lite0, features


@pytest.fixture
def draw():
    return np.random.default_rng(0).standard_normal


@pytest.fixture(scope="module")
def lite0():
    return Lite0()


@pytest.fixture(scope="module")
def blobs():
    """Smooth pictures with some grain, in [-1, 1]."""
    rng = torch.Generator().manual_seed(1)
    coarse = F.interpolate(torch.randn(6, 3, 8, 8, generator=rng), size=48, mode="bicubic")
    return (coarse + 0.2 * torch.randn(6, 3, 48, 48, generator=rng)).tanh()


def exactly(draw, count, mean, covariance):
    """`count` rows with just this mean and covariance."""
    rows = draw((count, len(mean)))
    rows -= rows.mean(0)
    white = rows @ np.linalg.inv(np.linalg.cholesky(np.cov(rows.T))).T
    return white @ np.linalg.cholesky(covariance).T + mean


def symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(values) @ vectors.T


def test_frechet_distance_of_gaussians_whose_axes_agree(draw):
    """Then it is the squared distance of the means plus that of the spreads."""
    a = exactly(draw, 50, np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = exactly(draw, 80, np.array([1.0, -2.0, 0.0]), np.diag([4.0, 1.0, 0.25]))
    assert frechet_distance(a, b) == pytest.approx(1 + 4 + 1 + 1 + 2.5**2)


def test_frechet_distance_of_any_gaussians(draw):
    covariances = [turn @ turn.T + np.eye(4) for turn in draw((2, 4, 4))]
    a, b = (exactly(draw, 60, np.zeros(4), covariance) for covariance in covariances)
    root = symmetric_root(covariances[0])
    overlap = np.trace(symmetric_root(root @ covariances[1] @ root))
    assert frechet_distance(a, b) == pytest.approx(np.trace(sum(covariances)) - 2 * overlap)


@pytest.mark.parametrize("count", [20, 300])
def test_frechet_distance_to_itself_is_0_with_fewer_rows_than_columns_too(count, draw):
    rows = 10 * draw((count, 100)) + 3
    assert abs(frechet_distance(rows, rows)) < 1e-6


def test_moving_a_set_adds_the_squared_distance_with_fewer_rows_than_columns(draw):
    rows = draw((20, 100))
    assert frechet_distance(rows, rows + 0.5) == pytest.approx(100 * 0.25)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_ignore_order_and_direction(distance, draw):
    a, b = draw((30, 40)), 2 * draw((50, 40)) + 1
    assert distance(a[::-1], np.random.default_rng(1).permutation(b)) == pytest.approx(distance(a, b))
    assert distance(b, a) == pytest.approx(distance(a, b))


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_distances_grow_with_the_difference(distance, draw):
    a, b = draw((200, 8)), draw((200, 8))
    distances = [distance(a, b + shift) for shift in (0.0, 0.5, 1.0, 2.0)]
    assert distances == sorted(distances)


def test_kernel_distance_is_that_of_the_definition(draw):
    a, b = draw((5, 3)), draw((4, 3))

    def mean(rows, others):
        same = rows is others
        pairs = [
            (x @ y / 3 + 1) ** 3 for i, x in enumerate(rows) for j, y in enumerate(others) if not (same and i == j)
        ]
        return np.mean(pairs)

    assert kernel_distance(a, b) == pytest.approx(mean(a, a) + mean(b, b) - 2 * mean(a, b))


def test_kernel_distance_has_no_bias_and_the_frechet_distance_has(draw):
    """Many splits of one set in two halves."""
    sets = draw((300, 24, 6))
    kernel, frechet = (
        [distance(rows[:12], rows[12:]) for rows in sets] for distance in (kernel_distance, frechet_distance)
    )
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / np.sqrt(len(kernel))
    assert min(frechet) > 0


def test_features_do_not_depend_on_the_batches(blobs, lite0):
    together, apart = features([blobs], lite0), features(blobs.split([1, 3, 2]), lite0)
    assert together.shape == (6, 1280) and together.dtype == np.float64
    assert np.abs(together - apart).max() < 1e-4


def test_features_hardly_see_the_size_of_a_picture_and_do_see_the_picture(blobs, lite0):
    coarse = F.avg_pool2d(blobs, 6)
    small, large = (features([F.interpolate(coarse, size=size, mode="bicubic")], lite0) for size in (128, 256))
    assert np.abs(small - large).mean() < np.abs(small - small[::-1]).mean() / 4


@pytest.mark.parametrize(("error", "decibel"), [(2.0, 0.0), (0.2, 20.0), (0.02, 40.0)])
def test_psnr_of_a_known_error(error, decibel):
    real = torch.full((2, 3, 8, 8), -1.0)
    assert torch.allclose(psnr(real, real + error), torch.full((2,), decibel), atol=1e-3)


def test_psnr_is_taken_picture_by_picture_and_has_no_end(blobs):
    fake = blobs.clone()
    fake[1] += 0.2
    assert psnr(blobs, fake)[1] == pytest.approx(20, abs=1e-3) and psnr(blobs, fake)[0] == torch.inf


def test_ssim_is_1_for_equal_pictures_and_symmetric(blobs):
    assert torch.allclose(ssim(blobs, blobs), torch.ones(6), atol=1e-5)
    assert torch.allclose(ssim(blobs, blobs.flip(0)), ssim(blobs.flip(0), blobs), atol=1e-5)


def test_ssim_falls_with_blur(blobs):
    once = F.pad(window_means(blobs), (5, 5, 5, 5), mode="replicate")
    twice = F.pad(window_means(once), (5, 5, 5, 5), mode="replicate")
    assert (ssim(blobs, once) < 0.99).all() and (ssim(blobs, twice) < ssim(blobs, once)).all()


def test_ssim_of_flat_pictures_is_its_luminance_term():
    """Wang et al. 2004, eq. 6, with values in [-1, 1] and `C1 = (0.01 * 2)^2`."""
    real, fake = torch.full((1, 3, 12, 12), 0.5), torch.full((1, 3, 12, 12), 0.25)
    assert ssim(real, fake).item() == pytest.approx((2 * 0.125 + 4e-4) / (0.25 + 0.0625 + 4e-4), abs=1e-3)


def test_ssim_is_that_of_one_window_by_hand():
    real, fake = torch.rand(2, 1, 3, 11, 11, dtype=torch.float64) * 2 - 1
    places = torch.arange(11, dtype=torch.float64) - 5
    window = torch.exp(-(places[:, None] ** 2 + places**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(values):
        return (window * values).sum((-1, -2))

    means = mean(real), mean(fake)
    variances = mean((real - means[0][..., None, None]) ** 2) + mean((fake - means[1][..., None, None]) ** 2)
    covariance = mean((real - means[0][..., None, None]) * (fake - means[1][..., None, None]))
    one, two = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    by_hand = (2 * means[0] * means[1] + one) * (2 * covariance + two)
    by_hand = by_hand / ((means[0] ** 2 + means[1] ** 2 + one) * (variances + two))
    assert torch.allclose(ssim(real, fake), by_hand.mean(1))
