"""Measures of `compare.json` read over the seeds of a kind of run, and what follows from two of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import numpy as np

from calotype.evaluation.intervals import NORMAL_95, Estimate, mean_estimate

CONFIRMED, PARTLY, REFUTED, UNDECIDED = "confirmed", "partly refuted", "refuted", "not enough evidence"
SEEDS = 3
"""Runs of a kind from which an interval over seeds is taken."""
PRECISE = 0.25
"""Two distances are equal where their intervals overlap and reach no further than this part of their values."""

MeasuredRun = dict[str, Any]
Runs = Sequence[MeasuredRun]


class MissingError(ValueError):
    """A measure that a verdict needs is not there; the message says why."""


# -- Reading -----------------------------------------------------------------------------------------------------------


def estimate(measures: MeasuredRun, name: str) -> Estimate:
    """Raises `MissingError` where it was not measured; without an interval it is as wide as can be."""
    one = measures.get(name)
    if not isinstance(one, dict) or one.get("value") is None:
        raise MissingError(f"It was not measured: {measures.get('reason') or f'there is no {name}'}.")
    low, high = one.get("low"), one.get("high")
    return Estimate(
        float(one["value"]), -math.inf if low is None else float(low), math.inf if high is None else float(high)
    )


def frechet(run: MeasuredRun) -> Estimate:
    return estimate(run["quality"]["whole"], "fd_lite0")


def survived(run: MeasuredRun, arm: str) -> Estimate:
    """What is left of an error of middle strength, over all corruptions."""
    measured = run["propagation"]
    return estimate({**(measured.get("arms") or {}), "reason": measured.get("reason")}, arm)


def gap(run: MeasuredRun) -> Estimate:
    """How far the held-out loss has risen above the train loss, in the leg where it rose most; without an interval."""
    if not (legs := run["overfitting"]["legs"]):
        raise MissingError(f"It was not measured: the log of run {run['key']} has no held-out losses.")
    growth = max(float(leg["growth"]) for leg in legs)
    return Estimate(growth, growth, growth)


def over_seeds(runs: Runs, measure: Callable[[MeasuredRun], Estimate]) -> Estimate:
    """Of three runs and more, the mean with Student's interval; of fewer, all that their own intervals span."""
    each = [measure(run) for run in runs]
    if len(each) >= SEEDS:
        return mean_estimate(np.array([one.value for one in each]))
    return Estimate(fmean(one.value for one in each), min(one.low for one in each), max(one.high for one in each))


def spread_over_seeds(runs: Runs, measure: Callable[[MeasuredRun], Estimate]) -> Estimate:
    """Standard deviation by the mean, its logarithm taken as normal: half that of a chi-squared value.

    The variance of the latter, a trigamma function of the degrees of freedom, is right to a tenth from two on.
    """
    values = [measure(run).value for run in runs]
    half = (len(values) - 1) / 2
    spread, reach = stdev(values) / abs(fmean(values)), NORMAL_95 * math.sqrt((1 / half + 1 / (2 * half**2)) / 4)
    return Estimate(spread, spread * math.exp(-reach), spread * math.exp(reach))


# -- Judging -----------------------------------------------------------------------------------------------------------


def lower(ours: Estimate, theirs: Estimate) -> str:
    """Whether the claim that ours is lower is borne out."""
    if not ours.apart(theirs):
        return UNDECIDED
    return CONFIRMED if ours.value < theirs.value else REFUTED


def fewer(ours: float, theirs: float) -> str:
    """The same of what is counted exactly."""
    return CONFIRMED if ours < theirs else REFUTED


def equal(ours: Estimate, theirs: Estimate) -> bool:
    """Intervals that overlap because they are wide show nothing."""
    precise = all(one.high - one.low <= 2 * PRECISE * abs(one.value) for one in (ours, theirs))
    return precise and not ours.apart(theirs)


def agreed(*verdicts: str) -> str:
    """What all say that say anything."""
    decided = {verdict for verdict in verdicts if verdict != UNDECIDED}
    return decided.pop() if len(decided) == 1 else UNDECIDED


# -- Wording -----------------------------------------------------------------------------------------------------------


def with_interval(found: Estimate, times: float = 1.0, sign: str = "") -> str:
    """With its interval, where it has one."""
    known = found.low < found.high and math.isfinite(found.high - found.low)
    ends = f" [{figures(times * found.low)}, {figures(times * found.high)}]" if known else ""
    return figures(times * found.value, sign) + ends


def percents(found: Estimate) -> str:
    return f"{with_interval(found, 100.0)} %"


def figures(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.2g}"


def seeds(runs: Runs) -> str:
    return f"{len(runs)} {'seed' if len(runs) == 1 else 'seeds'}"
