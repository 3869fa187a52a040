import math

import numpy as np
import pytest

from calotype.evaluation.distances import (
    density_coverage,
    frechet_distance,
    frechet_estimate,
    frechet_of_many,
    kernel_distance,
    kernel_estimate,
    pairwise_distances,
    precision_recall,
    radii,
)
from calotype.evaluation.intervals import Estimate, difference_of_shares, mean_estimate, share_estimate


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def rows(rng):
    return rng.standard_normal((30, 6))


def test_identical_sets_have_precision_recall_and_coverage_1(rows):
    assert precision_recall(rows, rows) == (1, 1)
    assert density_coverage(rows, rows)[1] == 1


def test_far_sets_have_nothing_in_common(rows):
    assert precision_recall(rows + 100, rows) == (0, 0)
    assert density_coverage(rows + 100, rows) == (0, 0)


def test_a_set_within_one_spot_of_the_other_is_precise_and_recalls_little(rows):
    centre = rows.mean(0)
    precision, recall = precision_recall(centre + 1e-3 * rows[:10], rows)
    assert precision == 1
    assert recall == 0


@pytest.mark.parametrize("k", [1, 3, 5])
def test_all_four_against_brute_force(k, rng, rows):
    fake = 0.8 * rng.standard_normal((20, 6)) + 0.3
    reach = [sorted(np.linalg.norm(one - other) for other in rows)[k] for one in rows]
    reach_fake = [sorted(np.linalg.norm(one - other) for other in fake)[k] for one in fake]
    inside = [[np.linalg.norm(real - one) <= r for one in fake] for real, r in zip(rows, reach, strict=True)]
    recalled = [any(np.linalg.norm(real - one) <= r for one, r in zip(fake, reach_fake, strict=True)) for real in rows]
    assert precision_recall(fake, rows, k) == pytest.approx((np.any(inside, 0).mean(), np.mean(recalled)))
    assert density_coverage(fake, rows, k) == pytest.approx((np.sum(inside) / (k * 20), np.any(inside, 1).mean()))


def test_with_fewer_rows_than_neighbours_the_farthest_counts(rows):
    few = rows[:3]
    assert radii(few, 9) == pytest.approx(pairwise_distances(few, few).max(1))


def test_distances_are_those_of_pairs(rows):
    assert np.diag(pairwise_distances(rows[:4], rows)) == pytest.approx(np.zeros(4), abs=1e-6)
    assert pairwise_distances(rows[:1], rows[:1] + 2.0) == pytest.approx(2 * math.sqrt(6))


@pytest.mark.parametrize(("estimate", "distance"), [
    (frechet_estimate, frechet_distance), (kernel_estimate, kernel_distance),
])  # fmt: skip
def test_an_interval_lies_around_its_distance_and_shrinks_with_the_number_of_rows(estimate, distance, rng):
    few, many = (
        estimate(rng.standard_normal((count, 5)), rng.standard_normal((count, 5)) + 0.5, rng) for count in (25, 400)
    )
    a, b = rng.standard_normal((2, 25, 5))
    assert estimate(a, b, rng).value == distance(a, b)
    assert few.low < few.value < few.high
    assert many.high - many.low < 0.5 * (few.high - few.low)


@pytest.mark.parametrize("estimate", [frechet_estimate, kernel_estimate])
def test_the_interval_holds_the_truth_about_95_times_in_100(estimate, rng):
    """Where the distance is that of two means far apart, both estimates have little bias."""
    truth = np.mean([estimate(*sets(rng), rng).value for _ in range(60)])
    held = [found.low <= truth <= found.high for found in (estimate(*sets(rng), rng) for _ in range(60))]
    assert np.mean(held) > 0.8


def sets(rng):
    return rng.standard_normal((60, 3)), rng.standard_normal((60, 3)) + 2


def test_the_frechet_distance_of_many_from_few(rng):
    """Nearer to the distance of 10,000 rows than the distance of these few is, and its interval holds that."""
    real, many = rng.standard_normal((200, 30)), 1.2 * rng.standard_normal((10_000, 30))
    truth = frechet_distance(many, real)
    draws = [many[rng.permutation(10_000)[:200]] for _ in range(10)]
    found = [frechet_of_many(rows, real, rng) for rows in draws]
    plain = np.mean([frechet_distance(rows, real) for rows in draws])
    assert abs(np.mean([one.value for one in found]) - truth) < 0.2 * (plain - truth)
    assert sum(one.low <= truth <= one.high for one in found) >= 9


def test_mean_and_share_intervals():
    assert mean_estimate(np.array([1.0, 3.0])) == pytest.approx((2, 2 - 12.71, 2 + 12.71))
    assert mean_estimate(np.array([4.0])) == (4, -math.inf, math.inf)
    assert share_estimate(0, 20)[:2] == (0, 0)
    assert share_estimate(5, 10) == pytest.approx((0.5, 0.2366, 0.7634), abs=1e-4)


def test_the_difference_of_shares_is_newcombes():
    """His table II: 56 of 70 against 48 of 80, and 10 of 10 against 0 of 20."""
    first = difference_of_shares(share_estimate(56, 70), share_estimate(48, 80))
    assert first == pytest.approx((0.2, 0.0524, 0.3339), abs=1e-4)
    assert difference_of_shares(share_estimate(10, 10), share_estimate(0, 20)) == pytest.approx(
        (1, 0.6791, 1), abs=1e-4
    )


def test_intervals_that_touch_are_not_apart():
    assert Estimate(1, 0, 2).apart(Estimate(4, 3, 5))
    assert not Estimate(1, 0, 2).apart(Estimate(3, 2, 4))
