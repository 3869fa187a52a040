"""How two sets of pictures overlap in feature space, and how sure a distance between them is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from calotype.evaluation.distances import Features, Others, frechet_distance, kernel_distance

Square = Float[np.ndarray, "count count"]
Distances = Float[np.ndarray, "count others"]
Places = np.ndarray[tuple[int], np.dtype[np.int64]]
NORMAL_95 = 1.96
ROUNDS = 50
"""Sets drawn for an interval: its width is then known to a tenth."""
Resample = tuple[Places, Places]
"""Rows of a set and of another, drawn with replacement."""
Values = Float[np.ndarray, " rounds"]
STUDENT_95 = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)


class Estimate(NamedTuple):
    """A number, and the interval that holds it in 95 of 100 cases."""

    value: float
    low: float
    high: float

    def apart(self, other: Estimate) -> bool:
        return self.high < other.low or other.high < self.low


def precision_recall(real: Features, fake: Others, k: int = 3) -> tuple[float, float]:
    """The share of each set that lies within reach of the other's k-th neighbours (arXiv 1904.06991, eq. 1 and 2)."""
    between = distances(real, fake)
    precision = (between <= radii(real, k)[:, None]).any(0).mean()
    recall = (between <= radii(fake, k)).any(1).mean()
    return float(precision), float(recall)


def density_coverage(real: Features, fake: Others, k: int = 5) -> tuple[float, float]:
    """How many real neighbourhoods a fake lies in, of `k` expected; the share of them with a fake in it.

    arXiv 2002.09797, section 3. Density may be above 1.
    """
    inside = distances(real, fake) <= radii(real, k)[:, None]
    return float(inside.sum() / (min(k, len(real) - 1) * len(fake))), float(inside.any(1).mean())


def radii(features: Features, k: int) -> Float[np.ndarray, " count"]:
    """The distance of every row to its k-th nearest other row, or to the last one where there are fewer."""
    between = distances(features, features)
    np.fill_diagonal(between, -1.0)
    return np.asarray(np.sort(between, 1)[:, min(k, len(features) - 1)])


def distances(a: Features, b: Others) -> Distances:
    squares = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


def nearest_distance(a: Features, b: Others) -> Float[np.ndarray, " count"]:
    """The distance of every row of `a` to the nearest row of `b`."""
    return np.asarray(distances(a, b).min(1))


def frechet_estimate(a: Features, b: Others, rng: np.random.Generator) -> Estimate:
    """FD-Lite0 with its interval; `frechet_distance` says what it is."""
    return bootstrapped(frechet_distance(a, b), frechet_of_rows(a, b), len(a), len(b), rng)


def frechet_of_rows(a: Features, b: Others) -> Callable[[Places, Places], float]:
    """The distance of the sets that have these rows of `a` and of `b`, repeats counted.

    It is measured on the inner products of the rows, so the features are not looked at again. A row that is there
    three times is there once, with a weight of 3: a third of all rows drawn with replacement are repeats, and to
    decompose so many fewer takes a third of the time.
    """
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b, between = a @ a.T, b @ b.T, a @ b.T

    def drawn(rows: Places, columns: Places) -> float:
        (ours, ours_times), (theirs, theirs_times) = (np.unique(one, return_counts=True) for one in (rows, columns))
        our_mean, our_variance = moments(of_a[np.ix_(ours, ours)], ours_times)
        their_mean, their_variance = moments(of_b[np.ix_(theirs, theirs)], theirs_times)
        cross = between[np.ix_(ours, theirs)]
        by_row, by_column = cross @ theirs_times / len(columns), ours_times @ cross / len(rows)
        whole = float(by_column @ theirs_times) / len(columns)
        centred = cross - by_row[:, None] - by_column + whole
        weighted = np.sqrt(ours_times)[:, None] * centred * np.sqrt(theirs_times)
        overlap = np.linalg.svd(weighted, compute_uv=False).sum() / math.sqrt((len(rows) - 1) * (len(columns) - 1))
        return float(our_mean + their_mean - 2 * whole + our_variance + their_variance - 2 * overlap)

    return drawn


def moments(products: Square, times: Places) -> tuple[float, float]:
    """Of rows with these inner products: the squared length of the mean, and the trace of the covariance."""
    count = times.sum()
    mean = float(times @ products @ times) / count**2
    return mean, float((times @ np.diag(products) - count * mean) / (count - 1))


def kernel_estimate(a: Features, b: Others, rng: np.random.Generator) -> Estimate:
    """The kernel distance with its interval."""
    return bootstrapped(kernel_distance(a, b), kernel_of_rows(a, b), len(a), len(b), rng)


def kernel_of_rows(a: Features, b: Others) -> Callable[[Places, Places], float]:
    """As `frechet_of_rows`; a row that was drawn twice is no pair with itself."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    of_a, of_b, between = ((x @ y.T / a.shape[1] + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))

    def drawn(rows: Places, columns: Places) -> float:
        ours, theirs = (np.bincount(one, minlength=size) for one, size in ((rows, len(a)), (columns, len(b))))
        cross = ours @ between @ theirs / (len(a) * len(b))
        return float(mean_of_pairs(of_a, ours) + mean_of_pairs(of_b, theirs) - 2 * cross)

    return drawn


def mean_of_pairs(kernel: Square, times: Float[np.ndarray, " count"] | Places) -> float:
    """Over all pairs of different rows, each row as often as `times` says."""
    pairs = times.sum() ** 2 - np.square(times).sum()
    return float((times @ kernel @ times - np.square(times) @ np.diag(kernel)) / max(pairs, 1))


def bootstrapped(
    value: float, measure: Callable[[Places, Places], float], rows: int, others: int, rng: np.random.Generator
) -> Estimate:
    """The value, and 1.96 times the spread of what sets of as many rows, drawn with replacement, give.

    The normal interval of the bootstrap (Efron and Tibshirani 1993, chapter 13), because both distances are larger
    for sets with repeats than for the sets themselves, so percentiles would miss the value.
    """
    return normal_estimate(value, on_resamples(measure, resamples(rows, others, rng)))


def resamples(rows: int, others: int, rng: np.random.Generator) -> list[Resample]:
    return [(rng.integers(rows, size=rows), rng.integers(others, size=others)) for _ in range(ROUNDS)]


def on_resamples(measure: Callable[[Places, Places], float], sets: Sequence[Resample]) -> Values:
    return np.array([measure(rows, others) for rows, others in sets])


def normal_estimate(value: float, resampled: Values) -> Estimate:
    """The value with its normal interval; `resampled` are its values on bootstrap sets.

    For a difference of two measures on the same bootstrap sets (a paired bootstrap), the noise that they share cancels.
    """
    reach = NORMAL_95 * float(np.std(resampled, ddof=1))
    return Estimate(value, value - reach, value + reach)


def standard_error(estimate: Estimate) -> float:
    """Of an estimate with a normal interval."""
    return (estimate.high - estimate.value) / NORMAL_95


def within_standard_error(behind: Estimate) -> bool:
    """Whether a measure is as good as the best, which it is `behind` (Breiman et al. 1984, section 3.4.3)."""
    return behind.value <= standard_error(behind)


def mean_estimate(values: Float[np.ndarray, " count"]) -> Estimate:
    """The mean with Student's interval; of one value nothing is known but itself."""
    count, value = len(values), float(values.mean())
    if count < 2:
        return Estimate(value, -math.inf, math.inf)
    quantile = STUDENT_95[count - 2] if count - 2 < len(STUDENT_95) else NORMAL_95 + 2.5 / (count - 1)
    reach = quantile * float(values.std(ddof=1)) / math.sqrt(count)
    return Estimate(value, value - reach, value + reach)


def share_estimate(hits: int, count: int) -> Estimate:
    """A share with Wilson's interval (Wilson, JASA 22, 1927)."""
    share, square = hits / count, NORMAL_95**2
    middle = (share + square / (2 * count)) / (1 + square / count)
    reach = NORMAL_95 * math.sqrt(share * (1 - share) / count + square / (4 * count**2)) / (1 + square / count)
    return Estimate(share, max(0.0, middle - reach), min(1.0, middle + reach))


def difference_of_shares(a: Estimate, b: Estimate) -> Estimate:
    """How much larger share `a` is, with Newcombe's interval (Newcombe, Statistics in Medicine 17, 1998, method 10)."""
    value = a.value - b.value
    below, above = math.hypot(a.value - a.low, b.high - b.value), math.hypot(a.high - a.value, b.value - b.low)
    return Estimate(value, value - below, value + above)
