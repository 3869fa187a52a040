"""How far two sets of pictures are apart, measured on their features.

With the features of `features.py` the Fréchet distance is called FD-Lite0 and never FID: another network sees other
things, so the numbers cannot be compared. Both distances need the number of pictures beside them to mean anything.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

Features = Float[np.ndarray, "count channel"]
Others = Float[np.ndarray, "others channel"]
AT_ONCE = 1024
"""Rows of a kernel matrix that are in memory together."""


class Gaussian(NamedTuple):
    """With the mean and the covariance of a set; `root` is that of `covariance_root`."""

    mean: Float[np.ndarray, " channel"]
    root: Float[np.ndarray, "rank channel"]


def gaussian(features: Features) -> Gaussian:
    rows = features.astype(np.float64)
    return Gaussian(rows.mean(0), covariance_root(rows))


def frechet_distance(a: Features, b: Others) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of the sets (arXiv 1706.08500, eq. 6).

    It falls with the number of pictures: compare only sets of the same size. Needs two rows in each.
    """
    return between(gaussian(a), gaussian(b))


def between(a: Gaussian, b: Gaussian) -> float:
    overlap = np.linalg.svd(a.root @ b.root.T, compute_uv=False).sum()
    apart = np.square(a.mean - b.mean).sum()
    return float(apart + np.square(a.root).sum() + np.square(b.root).sum() - 2 * overlap)


def covariance_root(features: Features) -> Float[np.ndarray, "rank channel"]:
    """`R` with `R^T R` the covariance, taken from the features themselves; `rank` is the smaller of count and channel.

    The trace of `(A^T A B^T B)^(1/2)` is the sum of the singular values of `A B^T`. Found so, a direction that a set
    does not have (there are many where count < channel) adds 1e-16; the root of an eigenvalue near 0, 1e-8.
    """
    centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
    return np.asarray(np.linalg.qr(centred, mode="r"))


def kernel_distance(a: Features, b: Others) -> float:
    """Squared maximum mean discrepancy with the kernel `(x . y / channel + 1)^3` (arXiv 1801.01401, section 4).

    The unbiased estimate (Gretton et al., JMLR 13, 2012, eq. 3): for sets of one kind about 0 whatever their size, so
    at times below 0. Needs two rows in each.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    return _mean_of_pairs(a) + _mean_of_pairs(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def _mean_of_pairs(features: Features) -> float:
    """Of the kernel, over all pairs of two different rows."""
    count, channels = features.shape
    with_itself = ((np.square(features).sum(1) / channels + 1) ** 3).sum()
    return float((_kernel_sum(features, features) - with_itself) / (count * (count - 1)))


def _kernel_sum(a: Features, b: Others) -> float:
    blocks = (a[start : start + AT_ONCE] @ b.T for start in range(0, len(a), AT_ONCE))
    return float(sum(((block / a.shape[1] + 1) ** 3).sum() for block in blocks))
