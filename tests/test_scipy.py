"""Our constants and intervals against those of scipy, which is no dependency of the package."""

import numpy as np
import pytest

from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.intervals import NORMAL_95, STUDENT_95, mean_estimate, share_estimate

stats = pytest.importorskip("scipy.stats")
linalg = pytest.importorskip("scipy.linalg")


def test_the_quantiles_are_those_of_the_normal_and_of_students_distribution():
    assert pytest.approx(stats.norm.ppf(0.975), abs=5e-4) == NORMAL_95
    assert pytest.approx(stats.t.ppf(0.975, np.arange(1, len(STUDENT_95) + 1)), abs=5e-3) == STUDENT_95


@pytest.mark.parametrize("count", [2, 3, 11, 12, 20, 100, 10_000])
def test_the_interval_of_a_mean_is_students(count):
    """To a percent of its width: above 11 values the quantile is an approximation."""
    values = np.random.default_rng(count).normal(5, 2, count)
    estimate, error = mean_estimate(values), stats.sem(values)
    low, high = stats.t.interval(0.95, count - 1, values.mean(), error)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=0.01 * (high - low) / 2)


@pytest.mark.parametrize(("hits", "count"), [(0, 1), (1, 1), (0, 20), (3, 20), (10, 20), (97, 100), (500, 5000)])
def test_the_interval_of_a_share_is_wilsons(hits, count):
    expected = stats.binomtest(hits, count).proportion_ci(0.95, method="wilson")
    estimate = share_estimate(hits, count)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high), abs=1e-5)


@pytest.mark.parametrize(("count", "others"), [(50, 40), (8, 9)])
def test_the_frechet_distance_is_that_of_the_matrix_square_root(count, others):
    """Of more rows than features, and of fewer (Heusel et al. 2017, arXiv 1706.08500, eq. 6)."""
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((count, 12)), 0.7 * rng.standard_normal((others, 12)) + 0.3
    ours, theirs = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(ours @ theirs + 1e-12 * np.eye(12))
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(ours + theirs - 2 * root.real)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-3)
