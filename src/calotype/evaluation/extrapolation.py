"""The Fréchet distance of many samples, from few: it falls with their number, and here that fall is measured.

About as `a + b / count` (Chong and Forsyth, arXiv 1911.07023, section 3), a little less where there are fewer samples
than features; so the fall is measured twice, near the whole set and at half of it, and how much the second measurement
changes the result counts as an error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from calotype.evaluation.distances import Features, Others, between, gaussian
from calotype.evaluation.intervals import NORMAL_95, Estimate

MANY = 10_000
GROUPS = 10


def frechet_of_many(made: Features, real: Others, rng: np.random.Generator) -> Estimate:
    """What `MANY` samples would give against the same real pictures; needs 4 samples.

    The interval is the delete-a-group jackknife's (Shao and Tu 1995, section 2.3), and the error above.
    """
    count, there = len(made), gaussian(real)
    rows = made[rng.permutation(count)]

    def distance(part: Features) -> float:
        return between(gaussian(part), there)

    parts = np.array_split(np.arange(count), min(GROUPS, count // 2))
    without = np.array([distance(np.delete(rows, part, 0)) for part in parts])
    halves = np.mean([distance(rows[: count // 2]), distance(rows[count // 2 :])])
    places, values = (1.0, len(parts) / (len(parts) - 1), 2.0), (distance(rows), float(without.mean()), float(halves))
    straight, curved = (polynomial_at(places[:points], values[:points], count / MANY) for points in (2, 3))
    spread = np.sqrt((len(parts) - 1) * np.square(without - without.mean()).mean())
    reach = NORMAL_95 * float(np.hypot(spread, curved - straight))
    return Estimate(curved, curved - reach, curved + reach)


def polynomial_at(places: Sequence[float], values: Sequence[float], at: float) -> float:
    """The polynomial through the points, at another place (Lagrange)."""
    others = [[one for one in places if one != place] for place in places]
    weights = [
        np.prod([(at - one) / (place - one) for one in rest]) for place, rest in zip(places, others, strict=True)
    ]
    return float(np.dot(weights, values))
