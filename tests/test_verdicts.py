"""Verdicts on the lecture's claims, both ways, on measures made for it: three seeds of each kind unless printed."""

import copy
from functools import reduce
from operator import getitem

import numpy as np
import pytest

from calotype.evaluation.comparison_results import RunMeasures
from calotype.evaluation.intervals import Estimate
from calotype.evaluation.verdicts import (
    CLAIMS,
    CONFIRMED,
    PARTLY,
    REFUTED,
    UNDECIDED,
    claim_verdicts,
    equal,
    frechet,
    over_seeds,
    spread_over_seeds,
)

PROPAGATION, CORRECTION = "In a cascade, errors propagate", "No mechanism corrects them"
MODELS, BETTER = "A cascade needs more models, set up and run together", "Latent diffusion is better at equal budget"
END_TO_END = "Latent diffusion is one end-to-end model"
SAMPLING, TRAINING = (f"Latent diffusion takes less computation to {what}" for what in ("sample", "train"))
PARAMETERS, OVERFITTING = "Latent diffusion needs fewer parameters", "Latent diffusion overfits less"
STABILITY = "Latent diffusion trains more stably"


def around(value, reach=0.0):
    return {"value": value, "low": value - reach, "high": value + reach}


def estimate(value, reach=0.0):
    return Estimate(value, value - reach, value + reach)


def networks(**sums):
    return {name: {"trained": number, "fitted": 0, "text_encoder": 0, "sum": number} for name, number in sums.items()}


def run(kind, seed=0, *, prior=False, fd=100.0, reach=5.0):
    """A run whose measures are those of the other kind wherever they can be."""
    latent = kind == "latent"
    parts = networks(autoencoder=10**6, denoiser=10**6) if latent else networks(denoiser=10**6, **{"enlarge-64": 10**6})
    arms = {"matched": {"level": 0.3, **around(0.6)}} if latent else {"none": {"level": 0.0, **around(0.9, 0.02)}}
    return {
        "key": f"{kind} {seed}", "name": kind, "folder": kind, "kind": kind, "prior": prior, "chain": [64],
        "seed": seed, "grid": "", "deployment": {
            "networks": parts, "count": 2, "widths_by_user": True,
            "parameters": {"trained": 2 * 10**6, "fitted": 0, "text_encoder": 0, "sum": 2 * 10**6},
            "resident_bytes": 8e6, "sequential_bytes": 4e6, "bytes": 8e6, "files": [],
        },
        "cost": {
            "flops_a_picture": 1e9, "training": {"flops": 1e12, "seconds": 100.0, "parts": []},
            "sampling": {"loaded_bytes": 0, "counts": []}, "clock": {"parts": {}, "seconds": 100.0, "other": 0.0},
        },
        "quality": {"whole": {"fd_lite0": around(fd, reach), "n": [200, 200]}, "stages": []},
        "overfitting": {
            "legs": [gaps(0.1)],
            "nearest": {
                "nearer": around(0.05, 0.04), "samples_median": 1.0, "held_out_median": 1.0, "n": [200, 200, 2000],
            },
        },
        "stability": [{
            "leg": "denoiser", "network": "denoiser", "loss_spread": 0.2, "norm_spread": 0.3, "steps_a_line": 8.0,
            "clip": 1.0, "clipped": 0.0, "lines": 100,
        }],
        "propagation": {
            "arms": arms, "own": "matched" if latent else "none", "size": 16, "n": 8, "strength": 0.2, "effects": {},
            "points": [], **({"autoencoder_error": around(0.05, 0.01)} if latent else {"exposure": False}),
        },
    }  # fmt: skip


def gaps(growth):
    return {"leg": "denoiser", "growth": growth, "levels": {}}


def verdicts(runs):
    return claim_verdicts([RunMeasures.model_validate(one) for one in runs])


def both(count=3, **changes):
    """Equal seeds of both kinds, FD a little apart between them."""
    return [run(kind, seed, fd=100.0 + seed, **changes) for kind in ("latent", "cascade") for seed in range(count)]


def change(runs, kind, path, *values):
    """Sets a measure of all runs of a kind, one value each or the same."""
    chosen = [one for one in runs if one["kind"] == kind]
    for place, one in enumerate(chosen):
        *tables, key = path.split(".")
        reduce(getitem, tables, one)[key] = copy.deepcopy(values[place % len(values)])


def verdict(runs, claim):
    """The verdict, and its sentence, where there is one setting."""
    rows = [row for row in verdicts(runs) if row.claim == claim]
    assert len(rows) == 1 and rows[0].sentence.endswith(".")
    return rows[0].verdict, rows[0].sentence


def with_quality(runs, latent, cascade):
    """FD of both kinds over three seeds, each 1 apart."""
    for kind, value in (("latent", latent), ("cascade", cascade)):
        change(runs, kind, "quality.whole.fd_lite0", *(around(value + step, 5.0) for step in (-1, 0, 1)))
    return runs


# -- All claims --------------------------------------------------------------------------------------------------------


def test_every_claim_has_a_verdict_and_its_time_in_the_order_of_the_lecture():
    rows = verdicts(both())
    assert [row.claim for row in rows] == [claim.text for claim in CLAIMS]
    assert [row.time for row in rows] == sorted(row.time for row in rows)
    assert {row.time for row in rows} == {"2:36", "2:56", "3:24", "3:32", "6:07", "6:47", "6:57", "7:03", "7:09"}
    assert [row.claim for row in rows if row.ours] == [BETTER]


@pytest.mark.parametrize("kind", ["latent", "cascade"])
def test_without_the_other_kind_there_is_not_enough_evidence_for_what_compares_them(kind):
    rows = {row.claim: row.verdict for row in verdicts([run(kind), run(kind, 1)])}
    alone = {PROPAGATION} if kind == "cascade" else set()
    assert {claim for claim, word in rows.items() if word != UNDECIDED} == alone


def test_kinds_with_equal_priors_are_compared_and_each_setting_has_its_own_verdicts():
    runs = [*both(), *both(prior=True)]
    change([one for one in runs if one["prior"]], "latent", "quality.whole.fd_lite0", around(50))
    rows = {row.setting: row.verdict for row in verdicts(runs) if row.claim == BETTER}
    assert rows == {"without a prior": UNDECIDED, "with a prior": CONFIRMED}
    assert len(verdicts(runs)) == 2 * len(CLAIMS)
    unlike = [run("latent", prior=True), run("cascade", prior=False)]
    assert {row.setting for row in verdicts(unlike)} == {"priors as they are"}


def test_a_cascade_in_pixels_stands_before_one_whose_first_stage_is_latent():
    runs = [run("latent"), run("hybrid"), run("cascade")]
    runs[1]["propagation"]["arms"]["none"] |= around(0.1)
    assert verdict(runs, PROPAGATION)[0] == CONFIRMED
    assert verdict(runs[:2], PROPAGATION)[0] == PARTLY


# -- Each claim, both ways ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("survived", "expected"), [
    (around(0.8, 0.1), CONFIRMED), (around(0.5, 0.1), UNDECIDED), (around(0.2, 0.1), PARTLY),
    (around(0.02, 0.01), REFUTED), ({"value": None}, UNDECIDED),
])  # fmt: skip
def test_errors_propagate_where_more_than_half_survives(survived, expected):
    word, sentence = verdict([run("latent"), changed_survival("none", survived)], PROPAGATION)
    assert word == expected
    if survived["value"]:
        assert "autoencoder adds an error of 5 [4, 6] %" in sentence


def changed_survival(arm, survived, effect=None):
    one = run("cascade")
    one["propagation"]["arms"][arm] = {"level": 0.1, **survived}
    if effect is not None:
        one["propagation"] |= {"own": arm, "effects": {arm: effect}}
    return one


@pytest.mark.parametrize("arm", ["augmentation", "truncation"])
@pytest.mark.parametrize(("effect", "expected"), [
    (around(-0.08, 0.01), PARTLY),  # 90 -> 82 % is a part, not all
    (around(-0.6, 0.1), REFUTED), (around(-0.01, 0.02), CONFIRMED), (around(-0.05, 0.1), UNDECIDED),
])  # fmt: skip
def test_a_mechanism_that_corrects_a_part_refutes_a_part(arm, effect, expected):
    word, sentence = verdict([changed_survival(arm, around(0.8), effect)], CORRECTION)
    assert word == expected and f"points with {arm}" in sentence
    assert ("corrects a part" in sentence) == (expected in (PARTLY, REFUTED))


@pytest.mark.parametrize(("survived", "expected"), [(0.7, PARTLY), (0.2, REFUTED), (0.9, CONFIRMED)])
def test_exposure_fine_tuning_is_judged_beside_a_cascade_without_it(survived, expected):
    tuned = changed_survival("none", around(survived, 0.01))
    tuned["propagation"]["exposure"] = True
    assert verdict([run("cascade"), tuned], CORRECTION)[0] == expected
    assert verdict([tuned, run("latent")], CORRECTION)[0] == UNDECIDED


def test_a_cascade_that_uses_no_mechanism_is_no_evidence_that_none_corrects():
    word, sentence = verdict([run("cascade")], CORRECTION)
    assert word == UNDECIDED and "No mechanism is used here" in sentence


@pytest.mark.parametrize(("count", "expected"), [(3, CONFIRMED), (2, REFUTED), (1, REFUTED)])
def test_models_are_counted_and_their_bytes_reported(count, expected):
    runs = both(1)
    change(runs, "cascade", "deployment.count", count)
    word, sentence = verdict(runs, MODELS)
    assert word == expected and "8 MB with all of them in memory and 4 MB with one at a time" in sentence


def test_no_runs_decide_whether_training_is_end_to_end():
    for runs in (both(), [run("latent")], [run("cascade")]):
        word, sentence = verdict(runs, END_TO_END)
        assert word == UNDECIDED and "dev/LOG.md, 2026-11-28" in sentence


@pytest.mark.parametrize(("claim", "path"), [(SAMPLING, "cost.flops_a_picture"), (TRAINING, "cost.training.flops")])
@pytest.mark.parametrize(("operations", "distances", "expected"), [
    ((1.0, 2.0), (100, 100), CONFIRMED), ((2.0, 1.0), (100, 100), REFUTED),
    ((1.0, 2.0), (50, 100), CONFIRMED), ((2.0, 1.0), (100, 50), REFUTED),
    ((1.0, 2.0), (100, 50), UNDECIDED), ((2.0, 1.0), (50, 100), UNDECIDED),
])  # fmt: skip
def test_cheaper_is_judged_at_equal_quality_or_a_better_one(claim, path, operations, distances, expected):
    runs = with_quality(both(), *distances)
    for kind, value in zip(("latent", "cascade"), operations, strict=True):
        change(runs, kind, path, value * 1e12)
    word, sentence = verdict(runs, claim)
    assert word == expected and ("not at equal quality" in sentence) == (expected == UNDECIDED)


@pytest.mark.parametrize(("times", "expected"), [(0.5, CONFIRMED), (0.9, UNDECIDED), (1.2, UNDECIDED), (1.5, REFUTED)])
def test_operations_in_equal_time_are_no_further_apart_by_chance_than_equal_budgets(times, expected):
    """What a machine does in a time depends on its other work; what a picture takes does not."""
    runs = both()
    change(runs, "latent", "cost.training.flops", times * 1e12)
    change(runs, "latent", "cost.flops_a_picture", times * 1e9)
    assert verdict(runs, TRAINING)[0] == expected
    assert verdict(runs, SAMPLING)[0] == (CONFIRMED if times < 1 else REFUTED)


def test_intervals_that_overlap_because_they_are_wide_are_no_equal_quality():
    runs = both(1, reach=60.0)
    change(runs, "latent", "cost.flops_a_picture", 1e8)
    assert verdict(runs, SAMPLING)[0] == UNDECIDED
    assert equal(estimate(100, 10), estimate(105, 10)) and not equal(estimate(100, 30), estimate(105, 10))
    assert not equal(estimate(100, 1), estimate(105, 1))


def test_a_run_that_was_not_counted_wins_nothing_by_it():
    runs = both()
    runs[1]["cost"]["training"] |= {"flops": None, "reason": "latents: a run of an earlier version"}
    word, sentence = verdict(runs, TRAINING)
    assert word == UNDECIDED and "was not counted" in sentence and "earlier version" in sentence


@pytest.mark.parametrize(("latent", "cascade", "expected"), [(1, 3, CONFIRMED), (3, 1, REFUTED)])
def test_parameters_are_compared_at_equal_quality(latent, cascade, expected):
    runs = both()
    for kind, number in (("latent", latent), ("cascade", cascade)):
        change(runs, kind, "deployment.parameters.sum", number * 10**7)
    assert verdict(runs, PARAMETERS)[0] == expected
    assert verdict(with_quality(runs, 50, 100), PARAMETERS)[0] == UNDECIDED


def test_widths_that_the_plan_has_chosen_are_no_evidence():
    runs = both()
    change(runs, "latent", "deployment.parameters.sum", 10**7)
    change(runs, "cascade", "deployment.widths_by_user", False)
    word, sentence = verdict(runs, PARAMETERS)
    assert word == UNDECIDED and "no evidence" in sentence and "1 in the autoencoder" in sentence


def test_parameters_whose_order_hangs_on_the_autoencoder_decide_nothing():
    runs = both()
    change(runs, "cascade", "deployment.parameters.sum", 1.5e6)  # less than 2, more than the denoiser's 1
    word, sentence = verdict(runs, PARAMETERS)
    assert word == UNDECIDED and "whether the autoencoder is counted" in sentence


@pytest.mark.parametrize(("growth", "expected"), [((0.1, 0.5), CONFIRMED), ((0.5, 0.1), REFUTED)])
def test_overfitting_is_judged_by_the_gap_over_seeds(growth, expected):
    def grown(count):
        runs = both(count)
        for kind, value in zip(("latent", "cascade"), growth, strict=True):
            change(runs, kind, "overfitting.legs", *([gaps(value + x)] for x in (0, 0.01, 0.02)))
        return runs

    assert verdict(grown(3), OVERFITTING)[0] == expected
    assert verdict(grown(2), OVERFITTING)[0] == UNDECIDED


def test_no_copies_against_no_copies_say_nothing_and_measures_must_agree():
    runs = both()
    assert verdict(runs, OVERFITTING)[0] == UNDECIDED
    change(runs, "cascade", "overfitting.nearest.nearer", around(0.4, 0.04))
    assert verdict(runs, OVERFITTING)[0] == CONFIRMED
    legs = [[gaps(value)] for value in (0.5, 0.51, 0.52)]
    change(runs, "latent", "overfitting.legs", *legs)
    assert verdict(runs, OVERFITTING)[0] == UNDECIDED


@pytest.mark.parametrize(
    ("spreads", "expected"), [((0.1, 30.0), CONFIRMED), ((30.0, 0.1), REFUTED), ((1, 2), UNDECIDED)]
)
def test_stability_is_how_far_fd_lies_apart_between_seeds(spreads, expected):
    runs = both()
    for kind, spread in zip(("latent", "cascade"), spreads, strict=True):
        change(runs, kind, "quality.whole.fd_lite0", *(around(100 + step * spread) for step in (-1, 0, 1)))
    word, sentence = verdict(runs, STABILITY)
    assert word == expected and "20 % and 20 %" in sentence


def test_two_seeds_are_not_enough_for_stability_and_the_losses_are_only_reported():
    word, sentence = verdict(both(2), STABILITY)
    assert word == UNDECIDED and "not compared" in sentence


@pytest.mark.parametrize(("latent", "cascade", "expected"), [
    (around(100, 5), around(200, 5), CONFIRMED), (around(200, 5), around(100, 5), REFUTED),
    (around(100, 60), around(200, 60), UNDECIDED),
])  # fmt: skip
def test_quality_is_judged_by_intervals_whoever_wins(latent, cascade, expected):
    runs = both(1)
    change(runs, "latent", "quality.whole.fd_lite0", latent)
    change(runs, "cascade", "quality.whole.fd_lite0", cascade)
    assert verdict(runs, BETTER)[0] == expected


def test_quality_at_unequal_budgets_shows_nothing():
    runs = with_quality(both(), 50, 100)
    assert verdict(runs, BETTER)[0] == CONFIRMED
    change(runs, "latent", "cost.training.seconds", 300.0)
    word, sentence = verdict(runs, BETTER)
    assert word == UNDECIDED and "budgets are not equal" in sentence


# -- Over seeds --------------------------------------------------------------------------------------------------------


def measured(fd, reach=0.0):
    return RunMeasures.model_validate(run("latent", fd=float(fd), reach=reach))


def test_fewer_than_three_runs_span_their_intervals_and_more_have_students():
    runs = [measured(value, 0.5) for value in (1.0, 2.0, 3.0)]
    assert over_seeds(runs[:1], frechet) == estimate(1.0, 0.5)
    assert over_seeds(runs[:2], frechet) == Estimate(1.5, 0.5, 2.5)
    assert over_seeds(runs, frechet) == pytest.approx((2, 2 - 4.30 / 3**0.5, 2 + 4.30 / 3**0.5))


@pytest.mark.parametrize("count", [3, 5])
def test_the_interval_of_a_spread_holds_it_in_about_95_of_100_cases(count):
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        runs = [measured(value) for value in 100 + rng.standard_normal(count)]
        found = spread_over_seeds(runs, frechet)
        hits += found.low <= 0.01 <= found.high
    assert 0.88 < hits / 2000 < 0.98
