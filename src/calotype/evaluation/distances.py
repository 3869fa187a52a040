"""How far two sets of pictures are apart, and how they overlap, measured on their features.

With the features of `features.py` the Fréchet distance is called FD-Lite0 and never FID: another network sees other
things, so the numbers cannot be compared. Distances need the number of pictures beside them to mean anything.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from calotype.evaluation.intervals import NORMAL_95, Estimate, Places, bootstrapped

Features = Float[np.ndarray, "count channel"]
Others = Float[np.ndarray, "others channel"]
Products = Float[np.ndarray, "count count"]
OfRows = Callable[[Places, Places], float]
"""A distance of the sets that have these rows of one set and of another, repeats counted."""
MANY, GROUPS = 10_000, 10
"""Samples that the Fréchet distance is extrapolated to, from the jackknife over so many groups."""


# -- The Fréchet distance ----------------------------------------------------------------------------------------------


class Gaussian(NamedTuple):
    """With the mean and the covariance of a set of features; `root` is `R` with `R^T R` the covariance.

    The trace of `(A^T A B^T B)^(1/2)` is the sum of the singular values of `A B^T`. With `R` from the features
    themselves, a direction that a set does not have (there are many where count < channel) adds 1e-16; the root of an
    eigenvalue near 0 adds 1e-8.
    """

    mean: Float[np.ndarray, " channel"]
    root: Float[np.ndarray, "rank channel"]

    @classmethod
    def of(cls, features: Features) -> Gaussian:
        rows = features.astype(np.float64)
        mean = rows.mean(0)
        return cls(mean, np.asarray(np.linalg.qr((rows - mean) / np.sqrt(len(rows) - 1), mode="r")))

    def distance(self, other: Gaussian) -> float:
        """The squared Fréchet distance (arXiv 1706.08500, eq. 6)."""
        overlap = np.linalg.svd(self.root @ other.root.T, compute_uv=False).sum()
        variances = np.square(self.root).sum() + np.square(other.root).sum()
        return float(np.square(self.mean - other.mean).sum() + variances - 2 * overlap)


def frechet_distance(a: Features, b: Others) -> float:
    """Squared Fréchet distance of the Gaussians with the means and covariances of the sets (arXiv 1706.08500, eq. 6).

    It falls with the number of pictures: compare only sets of the same size. Needs two rows in each.
    """
    return Gaussian.of(a).distance(Gaussian.of(b))


def frechet_of_rows(a: Features, b: Others) -> OfRows:
    """The Fréchet distance of subsets.

    It is measured on the inner products of the rows, so the features are not read again. A row that is there three
    times is there once, with a weight of 3: a third of all rows drawn with replacement are repeats, and to decompose
    so many fewer takes a third of the time.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b, between = a @ a.T, b @ b.T, a @ b.T

    def distance(rows: Places, columns: Places) -> float:
        (ours, ours_times), (theirs, theirs_times) = (np.unique(each, return_counts=True) for each in (rows, columns))
        our_mean, our_variance = _moments(of_a[np.ix_(ours, ours)], ours_times)
        their_mean, their_variance = _moments(of_b[np.ix_(theirs, theirs)], theirs_times)
        cross = between[np.ix_(ours, theirs)]
        by_row, by_column = cross @ theirs_times / len(columns), ours_times @ cross / len(rows)
        of_means = float(by_column @ theirs_times) / len(columns)
        centred = cross - by_row[:, None] - by_column + of_means
        weighted = np.sqrt(ours_times)[:, None] * centred * np.sqrt(theirs_times)
        overlap = np.linalg.svd(weighted, compute_uv=False).sum() / math.sqrt((len(rows) - 1) * (len(columns) - 1))
        return float(our_mean + their_mean - 2 * of_means + our_variance + their_variance - 2 * overlap)

    return distance


def _moments(products: Products, times: Places) -> tuple[float, float]:
    """Of rows with these inner products: the squared length of the mean, and the trace of the covariance."""
    count = times.sum()
    mean = float(times @ products @ times) / count**2
    return mean, float((times @ np.diag(products) - count * mean) / (count - 1))


def frechet_estimate(a: Features, b: Others, rng: np.random.Generator) -> Estimate:
    """`frechet_distance` with its interval."""
    return bootstrapped(frechet_distance(a, b), frechet_of_rows(a, b), len(a), len(b), rng)


def frechet_of_many(samples: Features, real: Others, rng: np.random.Generator) -> Estimate:
    """What `MANY` samples would give against the same real pictures; needs 4 samples.

    The distance falls with the number of samples about as `a + b / count` (Chong and Forsyth, arXiv 1911.07023,
    section 3), a little less where there are fewer samples than features; so the fall is measured twice, near the
    whole set and at half of it, and how much the second measurement changes the result counts as an error. The
    interval is the delete-a-group jackknife's (Shao and Tu 1995, section 2.3), and this error.
    """
    count, of_real = len(samples), Gaussian.of(real)
    rows = samples[rng.permutation(count)]
    groups = np.array_split(np.arange(count), min(GROUPS, count // 2))
    without = np.array([Gaussian.of(np.delete(rows, group, 0)).distance(of_real) for group in groups])
    halves = np.mean([Gaussian.of(half).distance(of_real) for half in (rows[: count // 2], rows[count // 2 :])])
    inverse_counts = (1.0, len(groups) / (len(groups) - 1), 2.0)
    distances = np.array([Gaussian.of(rows).distance(of_real), without.mean(), halves])
    straight, curved = (
        float(np.polyval(np.polyfit(inverse_counts[:points], distances[:points], points - 1), count / MANY))
        for points in (2, 3)
    )
    spread = np.sqrt((len(groups) - 1) * np.square(without - without.mean()).mean())
    reach = NORMAL_95 * float(np.hypot(spread, curved - straight))
    return Estimate(curved, curved - reach, curved + reach)


# -- The kernel distance -----------------------------------------------------------------------------------------------


def kernel_distance(a: Features, b: Others) -> float:
    """Squared maximum mean discrepancy with the kernel `(x . y / channel + 1)^3` (arXiv 1801.01401, section 4).

    The unbiased estimate (Gretton et al., JMLR 13, 2012, eq. 3): for sets of one kind about 0 whatever their size, so
    at times below 0. Needs two rows in each.
    """
    return kernel_of_rows(a, b)(np.arange(len(a)), np.arange(len(b)))


def kernel_of_rows(a: Features, b: Others) -> OfRows:
    """The kernel distance of subsets; a row that was drawn twice is no pair with itself."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b, between = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))

    def distance(rows: Places, columns: Places) -> float:
        ours, theirs = (np.bincount(each, minlength=size) for each, size in ((rows, len(a)), (columns, len(b))))
        cross = ours @ between @ theirs / (len(rows) * len(columns))
        return float(_mean_of_pairs(of_a, ours) + _mean_of_pairs(of_b, theirs) - 2 * cross)

    return distance


def _mean_of_pairs(kernel: Products, times: Places) -> float:
    """Over all pairs of different rows, each row as often as `times` says."""
    pairs = times.sum() ** 2 - np.square(times).sum()
    return float((times @ kernel @ times - np.square(times) @ np.diag(kernel)) / max(pairs, 1))


def kernel_estimate(a: Features, b: Others, rng: np.random.Generator) -> Estimate:
    """`kernel_distance` with its interval."""
    return bootstrapped(kernel_distance(a, b), kernel_of_rows(a, b), len(a), len(b), rng)


# -- Overlap -----------------------------------------------------------------------------------------------------------


def precision_recall(samples: Features, real: Others, k: int = 3) -> tuple[float, float]:
    """The share of each set that lies within reach of the other's k-th neighbours (arXiv 1904.06991, eq. 1 and 2)."""
    between = pairwise_distances(samples, real)
    precision = (between <= radii(real, k)).any(1).mean()
    recall = (between <= radii(samples, k)[:, None]).any(0).mean()
    return float(precision), float(recall)


def density_coverage(samples: Features, real: Others, k: int = 5) -> tuple[float, float]:
    """How many real neighbourhoods a sample lies in, of `k` expected; the share of them with a sample in it.

    arXiv 2002.09797, section 3. Density may be above 1.
    """
    inside = pairwise_distances(samples, real) <= radii(real, k)
    return float(inside.sum() / (min(k, len(real) - 1) * len(samples))), float(inside.any(0).mean())


def radii(features: Features, k: int) -> Float[np.ndarray, " count"]:
    """The distance of every row to its k-th nearest other row, or to the last one where there are fewer."""
    between = pairwise_distances(features, features)
    np.fill_diagonal(between, -1.0)
    return np.asarray(np.sort(between, 1)[:, min(k, len(features) - 1)])


def pairwise_distances(a: Features, b: Others) -> Float[np.ndarray, "count others"]:
    """Euclidean."""
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))
