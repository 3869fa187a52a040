"""The formulas against torchmetrics and torch-fidelity on shared features; left out where they are not installed.

torch-fidelity imports torchvision; both install with `pip install --no-deps torchmetrics lightning-utilities
torch-fidelity`.
"""

import numpy as np
import pytest
import torch

from calotype.evaluation.autoencoder import psnr, ssim
from calotype.evaluation.distances import frechet_distance, kernel_distance, precision_recall


@pytest.fixture
def rows():
    """Two sets of two kinds; equal counts, as both libraries want them."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((300, 40)), 1.2 * rng.standard_normal((300, 40)) + 0.1


@pytest.fixture
def pictures():
    rng = np.random.default_rng(1)
    real = torch.from_numpy(rng.uniform(-1, 1, (3, 3, 32, 32)))
    return real, (real + 0.1 * torch.from_numpy(rng.standard_normal(real.shape))).clamp(-1, 1)


def test_distances_are_those_of_torchmetrics(rows):
    fid = pytest.importorskip("torchmetrics.image.fid", exc_type=ImportError)
    kid = pytest.importorskip("torchmetrics.image.kid", exc_type=ImportError)
    a, b = map(torch.from_numpy, rows)
    theirs = fid._compute_fid(a.mean(0), torch.cov(a.T), b.mean(0), torch.cov(b.T))
    assert frechet_distance(*rows) == pytest.approx(float(theirs), rel=1e-4)
    assert kernel_distance(*rows) == pytest.approx(float(kid.poly_mmd(a, b)), rel=1e-4)


def test_pairs_of_pictures_are_as_close_as_torchmetrics_has_them(pictures):
    image = pytest.importorskip("torchmetrics.functional.image", exc_type=ImportError)
    real, fake = pictures
    for row in range(len(real)):
        pair = fake[row : row + 1], real[row : row + 1]
        theirs = image.peak_signal_noise_ratio(*pair, data_range=2.0)
        assert float(psnr(real, fake)[row]) == pytest.approx(float(theirs), rel=1e-4)
        _, places = image.structural_similarity_index_measure(*pair, data_range=2.0, return_full_image=True)
        inside = places[..., 5:-5, 5:-5]  # it pads the picture, we do not
        assert float(ssim(real, fake)[row]) == pytest.approx(float(inside.mean()), abs=1e-4)


def test_distances_and_overlaps_are_those_of_torch_fidelity(rows):
    fid = pytest.importorskip("torch_fidelity.metric_fid", exc_type=ImportError)
    kid = pytest.importorskip("torch_fidelity.metric_kid", exc_type=ImportError)
    prc = pytest.importorskip("torch_fidelity.metric_prc", exc_type=ImportError)
    a, b = map(torch.from_numpy, rows)
    theirs = fid.fid_statistics_to_metric(*map(fid.fid_features_to_statistics, (a, b)), verbose=False)
    assert frechet_distance(*rows) == pytest.approx(theirs[fid.KEY_METRIC_FID], rel=1e-4)
    assert kernel_distance(*rows) == pytest.approx(kid.kernel_mmd(*rows), rel=1e-4)
    theirs = prc.prc_features_to_metric(a, b, verbose=False)
    ours = precision_recall(rows[0], rows[1])
    assert ours == pytest.approx((theirs[prc.KEY_METRIC_PRECISION], theirs[prc.KEY_METRIC_RECALL]), abs=1e-4)
