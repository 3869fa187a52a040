"""How sure a number is: 95 % intervals of means, shares, differences of shares, and of distances by the bootstrap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

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
