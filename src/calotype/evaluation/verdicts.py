"""What the measures of `compare.json` say about each claim of the lecture.

A claim is confirmed or refuted only where 95 % intervals are apart. There is not enough evidence where a measure is
missing or has no power, where qualities differ that must be equal, and where our own plan has fixed what is compared.
Every verdict is of the setting that was measured: these pictures, sizes, budgets and recipes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from calotype.evaluation.comparison_results import ClaimVerdict, Deployment, RunMeasures
from calotype.evaluation.intervals import NORMAL_95, Estimate, difference_of_shares, mean_estimate
from calotype.evaluation.results import Measure, MissingError

CONFIRMED, PARTLY, REFUTED, UNDECIDED = "confirmed", "partly refuted", "refuted", "not enough evidence"
SEEDS = 3
"""Runs of a kind from which an interval over seeds is taken."""
PRECISE = 0.25
"""Two distances are equal where their intervals overlap and reach no further than this part of their values."""
MOSTLY, LITTLE = 0.5, 0.05
"""An error propagates where more than the first survives; a change by less than the second is next to nothing."""
EQUAL_BUDGETS = 1.25
"""The larger of two equal budgets is at most so many times the smaller. Operations that were counted in equal time are
no further apart than that by chance: other work on the machine changes them by more than a tenth."""

Runs = Sequence[RunMeasures]


class Judgement(NamedTuple):
    verdict: str
    sentence: str


class Claim(NamedTuple):
    time: str
    """Where the lecture makes it, in minutes and seconds."""
    text: str
    judge: Callable[[Runs, Runs], Judgement]
    """From the runs of latent diffusion and those of cascades."""
    needs: str = "latent cascade"
    ours: bool = False
    """Not in the lecture: a reading of ours."""


def claim_verdicts(runs: Runs) -> list[ClaimVerdict]:
    """Of every claim in each setting, in the order of the lecture."""
    return [
        ClaimVerdict(time=claim.time, claim=claim.text, ours=claim.ours, setting=setting, **judgement._asdict())
        for claim in CLAIMS
        for setting, latent, cascade in settings(runs)
        for judgement in [judged(claim, latent, cascade)]
    ]


def settings(runs: Runs) -> list[tuple[str, Runs, Runs]]:
    """Latent diffusion and cascades with equal priors; all of them where no two kinds have equal ones."""
    pairs = []
    for prior, name in ((False, "without a prior"), (True, "with a prior")):
        latent, cascade = kinds([run for run in runs if run.prior is prior])
        if latent and cascade:
            pairs.append((name, latent, cascade))
    return pairs or [("priors as they are", *kinds(runs))]


def kinds(runs: Runs) -> tuple[Runs, Runs]:
    """Latent diffusion, and cascades; those whose first stage is latent only where there are no others."""
    latent, cascade, hybrid = ([run for run in runs if run.kind == kind] for kind in ("latent", "cascade", "hybrid"))
    return latent, cascade or hybrid


def judged(claim: Claim, latent: Runs, cascade: Runs) -> Judgement:
    if "cascade" in claim.needs and not cascade:
        return Judgement(UNDECIDED, "None of the runs is a cascade.")
    if "latent" in claim.needs and not latent:
        return Judgement(UNDECIDED, "None of the runs is latent diffusion.")
    try:
        return claim.judge(latent, cascade)
    except MissingError as missing:
        return Judgement(UNDECIDED, str(missing))


# -- Measures over the seeds of a kind ---------------------------------------------------------------------------------


def estimate_of(measure: Measure | None, reason: str) -> Estimate:
    """Raises `MissingError` with the reason where it was not measured."""
    return (measure or Measure(value=None, reason=reason)).estimate


def frechet(run: RunMeasures) -> Estimate:
    return run.quality.whole.get("fd_lite0").estimate


def survived(run: RunMeasures, arm: str) -> Estimate:
    """What is left of an error of middle strength, over all corruptions."""
    return estimate_of(run.propagation.arms.get(arm), run.propagation.reason or f"there is no {arm}")


def over_seeds(runs: Runs, measure: Callable[[RunMeasures], Estimate]) -> Estimate:
    """Of three runs and more, the mean with Student's interval; of fewer, all that their own intervals span."""
    each = [measure(run) for run in runs]
    if len(each) >= SEEDS:
        return mean_estimate(np.array([estimate.value for estimate in each]))
    low, high = min(estimate.low for estimate in each), max(estimate.high for estimate in each)
    return Estimate(fmean(estimate.value for estimate in each), low, high)


def spread_over_seeds(runs: Runs, measure: Callable[[RunMeasures], Estimate]) -> Estimate:
    """Standard deviation by the mean, its logarithm taken as normal: half that of a chi-squared value.

    The variance of the latter, a trigamma function of the degrees of freedom, is right to a tenth from two on.
    """
    values = [measure(run).value for run in runs]
    half = (len(values) - 1) / 2
    spread, reach = stdev(values) / abs(fmean(values)), NORMAL_95 * math.sqrt((1 / half + 1 / (2 * half**2)) / 4)
    return Estimate(spread, spread * math.exp(-reach), spread * math.exp(reach))


def lower(ours: Estimate, theirs: Estimate) -> str:
    """Whether the claim that ours is lower is borne out."""
    return fewer(ours.value, theirs.value) if ours.apart(theirs) else UNDECIDED


def fewer(ours: int | float, theirs: int | float) -> str:
    """Whether the claim that ours is lower is borne out, for exact counts."""
    return CONFIRMED if ours < theirs else REFUTED


def equal(ours: Estimate, theirs: Estimate) -> bool:
    """Whether the intervals overlap and are narrow: wide ones overlap without showing anything."""
    precise = all(each.high - each.low <= 2 * PRECISE * abs(each.value) for each in (ours, theirs))
    return precise and not ours.apart(theirs)


# -- Wording -----------------------------------------------------------------------------------------------------------


def with_interval(estimate: Estimate, times: float = 1.0, sign: str = "") -> str:
    bounded = estimate.low < estimate.high and math.isfinite(estimate.high - estimate.low)
    ends = f" [{figures(times * estimate.low)}, {figures(times * estimate.high)}]" if bounded else ""
    return figures(times * estimate.value, sign) + ends


def percents(estimate: Estimate) -> str:
    return f"{with_interval(estimate, 100.0)} %"


def figures(value: float, sign: str = "") -> str:
    return f"{value:{sign},.0f}" if abs(value) >= 100 else f"{value:{sign}.2g}"


def seeds(runs: Runs) -> str:
    return f"{len(runs)} {'seed' if len(runs) == 1 else 'seeds'}"


# -- The cascade's errors ----------------------------------------------------------------------------------------------


def judge_propagation(latent: Runs, cascade: Runs) -> Judgement:
    """As each cascade is sampled; beside it, the same error in latents, and the autoencoder's own."""
    left = over_seeds(cascade, lambda run: survived(run, run.propagation.own))
    first = cascade[0].propagation
    parts = [
        f"Of an error of {figures(100 * first.strength)} % in the cascade's {first.size} px picture, "
        f"{percents(left)} is left in the final one (five corruptions, n = {first.n}, {seeds(cascade)})"
    ]
    if latent and all(run.propagation.arms for run in latent):
        inside = over_seeds(latent, lambda run: survived(run, "matched"))
        own = over_seeds(
            latent, lambda run: estimate_of(run.propagation.autoencoder_error, "there is no autoencoder error")
        )
        parts.append(f"of the same error inside latent diffusion, at equal noise, {percents(inside)}")
        parts.append(f"the autoencoder adds an error of {percents(own)} of its own, and nothing after it corrects that")
    if left.low > MOSTLY:
        verdict = CONFIRMED
    elif left.high < MOSTLY:
        verdict = REFUTED if left.high < LITTLE else PARTLY
    else:
        verdict = UNDECIDED
    return Judgement(verdict, "; ".join(parts) + ". The threshold is half of the error.")


def judge_correction(latent: Runs, cascade: Runs) -> Judgement:
    """Of every mechanism that a cascade here uses: does it lower what survives, by more than next to nothing?"""
    untuned = [run for run in cascade if not run.propagation.exposure]
    if not (effects := mechanisms(cascade, untuned)):
        raise MissingError(
            "No mechanism is used here: no augmentation (its level is 0), no truncation, and no exposure fine-tuning "
            "beside a cascade without it."
        )
    changes = ", ".join(f"{with_interval(effect, 100.0, '+')} points with {name}" for name, effect in effects.items())
    before = over_seeds(untuned or cascade, lambda run: survived(run, "none"))
    sentence = f"Survival of an error changes by {changes}; without any, {percents(before)} survives."
    best = min(effects, key=lambda name: effects[name].value)
    if effects[best].high < -LITTLE:
        left = before.value + effects[best].value
        verdict = PARTLY if left > MOSTLY * before.value else REFUTED
        return Judgement(verdict, f"{sentence} So {best} corrects a part.")
    verdict = CONFIRMED if all(effect.low > -LITTLE for effect in effects.values()) else UNDECIDED
    return Judgement(verdict, f"{sentence} Less than {100 * LITTLE:g} points count as next to nothing.")


def mechanisms(cascade: Runs, untuned: Runs) -> dict[str, Estimate]:
    """How much more of an error survives with each of those that are used."""
    effects = {}
    for arm in ("augmentation", "truncation"):
        if measured := [run for run in cascade if arm in run.propagation.effects]:
            effects[arm] = over_seeds(measured, partial(effect_of, arm))
    tuned = [run for run in cascade if run.propagation.exposure]
    if tuned and untuned:
        with_it, without = (over_seeds(runs, lambda run: survived(run, "none")) for runs in (tuned, untuned))
        effects["exposure fine-tuning"] = difference_of_shares(with_it, without)
    return effects


def effect_of(arm: str, run: RunMeasures) -> Estimate:
    return run.propagation.effects[arm].estimate


# -- What it takes -----------------------------------------------------------------------------------------------------


def judge_models(latent: Runs, cascade: Runs) -> Judgement:
    ours, theirs = latent[0].deployment, cascade[0].deployment
    parts = [
        f"{name} has {each.count} networks ({', '.join(each.networks)}), {figures(each.resident_bytes / 1e6)} MB "
        f"with all of them in memory and {figures(each.sequential_bytes / 1e6)} MB with one at a time"
        for name, each in (("The cascade", theirs), ("the latent model", ours))
    ]
    sentence = "; ".join(parts) + ". Either is one folder and one command, and its networks can run one at a time."
    return Judgement(fewer(ours.count, theirs.count), sentence)


def judge_end_to_end(latent: Runs, cascade: Runs) -> Judgement:
    """No run can measure this: a joint leg lost, and is no part of the program any more."""
    return Judgement(
        UNDECIDED,
        "These runs do not measure it. Latent diffusion is one folder to deploy, but is trained in two stages: the "
        "autoencoder, then the denoiser on its frozen latents. In an earlier measurement training both jointly lost at "
        "equal compute: FD-Lite0 was higher by 11.1 ± 2.9 (mean and standard error of three paired seeds, portraits at "
        "32 px; dev/LOG.md, 2026-11-28).",
    )


def judge_cost(
    latent: Runs, cascade: Runs, what: str, operations: Callable[[RunMeasures], int | float], exact: bool
) -> Judgement:
    """By operations at equal quality, or where the cheaper is also the better: else they buy different things.

    `exact`: they are a function of the networks; else of what a machine did in the time, so small differences are none.
    """
    ours, theirs = (fmean(map(operations, runs)) for runs in (latent, cascade))
    quality = [over_seeds(runs, frechet) for runs in (latent, cascade)]
    verdict, times = fewer(ours, theirs), theirs / ours
    same = equal(*quality)
    bought = same or lower(*quality) == verdict
    note = "at equal quality" if same else "the cheaper is also better" if bought else "not at equal quality"
    if not exact and max(times, 1 / times) <= EQUAL_BUDGETS:
        bought, note = False, f"{note}, and about as many in equal time"
    distances = " and ".join(map(with_interval, quality))
    return Judgement(
        verdict if bought else UNDECIDED,
        f"{what} takes {figures(ours / 1e9)} GFLOP in latents, the autoencoder included, and {figures(theirs / 1e9)} "
        f"({figures(times)} times as many) in the cascade; FD-Lite0 is {distances}: {note}.",
    )


def training_operations(run: RunMeasures) -> float:
    """What is unknown of one run counts for neither kind."""
    training = run.cost.training
    if training.flops is None:
        raise MissingError(f"Run {run.key} was not counted: {training.reason}.")
    return training.flops


def judge_parameters(latent: Runs, cascade: Runs) -> Judgement:
    """At equal quality, and only where the plan did not choose the widths: it goes by the time there is to train."""
    ours, theirs = ([run.deployment for run in runs] for runs in (latent, cascade))
    counts = f"The latent model has {kinds_of_parameters(ours[0])}; the cascade {kinds_of_parameters(theirs[0])}"
    totals = [fmean(each.parameters.sum for each in kind) for kind in (ours, theirs)]
    autoencoders = [fmean(map(autoencoder_parameters, kind)) for kind in (ours, theirs)]
    if not all(each.widths_by_user for each in (*ours, *theirs)):
        return Judgement(UNDECIDED, f"{counts}. The plan chose these widths by time, so they are no evidence.")
    if not equal(*(over_seeds(runs, frechet) for runs in (latent, cascade))):
        return Judgement(UNDECIDED, f"{counts}, but not at equal quality.")
    if fewer(*totals) != fewer(totals[0] - autoencoders[0], totals[1] - autoencoders[1]):
        return Judgement(UNDECIDED, f"{counts}: it depends on whether the autoencoder is counted.")
    return Judgement(fewer(*totals), f"{counts}, at equal quality.")


def autoencoder_parameters(deployment: Deployment) -> int:
    return deployment.networks["autoencoder"].sum if "autoencoder" in deployment.networks else 0


def kinds_of_parameters(deployment: Deployment) -> str:
    numbers = deployment.parameters
    parts = {
        "trained": numbers.trained,
        "fitted": numbers.fitted,
        "text encoder": numbers.text_encoder,
        "in the autoencoder": autoencoder_parameters(deployment),
    }
    listed = ", ".join(f"{number / 1e6:.3g} {name}" for name, number in parts.items() if number)
    return f"{numbers.sum / 1e6:.3g} million parameters ({listed})"


# -- What it gives -----------------------------------------------------------------------------------------------------


def judge_better(latent: Runs, cascade: Runs) -> Judgement:
    ours, theirs = (over_seeds(runs, frechet) for runs in (latent, cascade))
    spent = [run.cost.training.seconds for run in (*latent, *cascade)]
    sentence = (
        f"FD-Lite0 is {with_interval(ours)} in latents and {with_interval(theirs)} in the cascade (n = "
        f"{latent[0].quality.whole.n[0]}; {seeds(latent)} and {seeds(cascade)}), after {min(spent):,.0f} to "
        f"{max(spent):,.0f} s of training"
    )
    if min(spent) <= 0 or max(spent) / min(spent) > EQUAL_BUDGETS:
        return Judgement(UNDECIDED, f"{sentence}: the budgets are not equal.")
    return Judgement(lower(ours, theirs), f"{sentence}.")


def judge_overfitting(latent: Runs, cascade: Runs) -> Judgement:
    """By samples that are near to trained pictures, and over seeds by the gap between losses; where both decide, they
    must agree."""
    both = (latent, cascade)
    near = [over_seeds(runs, nearer_samples) for runs in both]
    gaps = [over_seeds(runs, largest_gap) for runs in both]
    words = {lower(*near), lower(*gaps) if min(map(len, both)) >= SEEDS else UNDECIDED} - {UNDECIDED}
    return Judgement(
        words.pop() if len(words) == 1 else UNDECIDED,
        f"{percents(near[0])} of the samples in latents and {percents(near[1])} in the cascade are nearer to a trained "
        f"picture than 95 % of held-out ones are; the held-out loss rose above the training loss by "
        f"{percents(gaps[0])} and {percents(gaps[1])} of the latter ({seeds(latent)} and {seeds(cascade)}; judged from "
        f"{SEEDS} of each).",
    )


def nearer_samples(run: RunMeasures) -> Estimate:
    return estimate_of(run.overfitting.nearest.nearer, run.overfitting.nearest.reason)


def largest_gap(run: RunMeasures) -> Estimate:
    """How far the held-out loss has risen above the train loss, in the leg where it rose most; without an interval."""
    if not run.overfitting.legs:
        raise MissingError(f"It was not measured: the log of run {run.key} has no held-out losses.")
    growth = max(leg.growth for leg in run.overfitting.legs)
    return Estimate(growth, growth, growth)


def judge_stability(latent: Runs, cascade: Runs) -> Judgement:
    """By how far FD lies apart between seeds. How far a loss moves is reported: unlike losses cannot be compared."""
    both = (latent, cascade)
    moves = [max((row.loss_spread or 0.0 for run in runs for row in run.stability), default=0.0) for runs in both]
    losses = f"losses move by {figures(100 * moves[0])} % and {figures(100 * moves[1])} % along a leg (not compared)"
    if min(map(len, both)) < SEEDS:
        raise MissingError(f"The spread over seeds is judged from {SEEDS} of each kind; {losses}.")
    spreads = [spread_over_seeds(runs, frechet) for runs in both]
    return Judgement(
        lower(*spreads),
        f"Between {seeds(latent)} FD-Lite0 spreads by {percents(spreads[0])} of its mean in latents, and between "
        f"{seeds(cascade)} by {percents(spreads[1])} in the cascade; {losses}.",
    )


CLAIMS = (
    Claim("2:36", "In a cascade, errors propagate", judge_propagation, needs="cascade"),
    Claim("2:56", "No mechanism corrects them", judge_correction, needs="cascade"),
    Claim("3:24", "A cascade needs more models, set up and run together", judge_models),
    Claim("3:32", "Latent diffusion is better at equal budget", judge_better, ours=True),
    Claim("6:07", "Latent diffusion is one end-to-end model", judge_end_to_end, needs=""),
    Claim("6:47", "Latent diffusion takes less computation to sample",
          partial(judge_cost, what="A picture", operations=lambda run: run.cost.flops_a_picture, exact=True)),
    Claim("6:47", "Latent diffusion takes less computation to train",
          partial(judge_cost, what="Training", operations=training_operations, exact=False)),
    Claim("6:57", "Latent diffusion needs fewer parameters", judge_parameters),
    Claim("7:03", "Latent diffusion overfits less", judge_overfitting),
    Claim("7:09", "Latent diffusion trains more stably", judge_stability),
)  # fmt: skip
