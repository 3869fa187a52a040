"""Comparison of several samplings by a paired bootstrap, and the rule of one standard error.

All are measured on the same bootstrap sets of rows and of real pictures, so the noise that they share cancels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from calotype.evaluation.intervals import NORMAL_95, ROUNDS, Estimate, Places

Draw = tuple[Places, Places]
"""Rows of the samples, and of the real pictures."""
Values = Float[np.ndarray, " rounds"]


def draws(rows: int, others: int, rng: np.random.Generator) -> list[Draw]:
    return [(rng.integers(rows, size=rows), rng.integers(others, size=others)) for _ in range(ROUNDS)]


def redrawn(measure: Callable[[Places, Places], float], drawn: Sequence[Draw]) -> Values:
    """The measure on each bootstrap set."""
    return np.array([measure(*one) for one in drawn])


def paired_difference(one: float, other: float, drawn: Values) -> Estimate:
    """How much larger `one` is, with a normal interval; `drawn` are the differences on bootstrap sets."""
    value, reach = one - other, NORMAL_95 * float(np.std(drawn, ddof=1))
    return Estimate(value, value - reach, value + reach)


def is_level(behind: Estimate) -> bool:
    """Whether it is within a standard error of the smallest (the rule of Breiman et al. 1984, section 3.4.3)."""
    return behind.value <= standard_error(behind)


def standard_error(estimate: Estimate) -> float:
    return (estimate.high - estimate.value) / NORMAL_95
