"""What the measures say about each claim of the lecture: pure functions of `compare.json`.

A claim holds, or does not, only where intervals are apart; else it is not shown by this run, and so it is where a
measure is missing. Latent diffusion is the first run of that kind, and the cascade the first with several stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from calotype.evaluation.intervals import NORMAL_95, Estimate

HOLDS, FAILS, NOT_SHOWN = "holds", "does not hold", "not shown by this run"
Found = dict[str, Any]
Judged = tuple[str, str]
ALIKE = 1.25
"""Budgets are equal where none is more than this many times the other."""


LITTLE = 0.05
"""A change of what survives that is smaller than this is no correction."""


class MissingError(ValueError):
    """A measure that a verdict needs is not there; the message says why."""


def verdicts(found: Found) -> list[dict[str, str]]:
    """One of each claim, in the order of the lecture."""
    said = {claim: judged(judge, found) for claim, judge in CLAIMS.items()}
    return [{"claim": claim, "verdict": verdict, "sentence": text} for claim, (verdict, text) in said.items()]


def judged(judge: Callable[[Found, Found, Found], Judged], found: Found) -> Judged:
    latent = next((one for one in found["runs"] if one["kind"] == "latent"), None)
    cascade = next((one for one in found["runs"] if one["kind"] in ("cascade", "hybrid")), None)
    try:
        if cascade is None:
            raise MissingError("None of the runs is a cascade.")
        if latent is None and judge not in (propagate, uncorrected):
            raise MissingError("None of the runs is latent diffusion.")
        return judge(latent or {}, cascade, found)
    except MissingError as missing:
        return NOT_SHOWN, str(missing)


# -- The cascade's errors ----------------------------------------------------------------------------------------------


def propagate(latent: Found, cascade: Found, found: Found) -> Judged:
    level = middle(cascade, "stored")
    verdict = by_limit(level, 0.5)
    errors = cascade["propagation"]
    said = (
        f"Of an error of {percent(float(errors['strength']))} in the cascade's {errors['size']} px picture, "
        f"{interval(level)} is left in the final one"
    )
    if latent and latent["propagation"].get("levels"):
        said += f"; of the same error in the latent model at equal noise, {interval(middle(latent, 'matched'))}"
    return verdict, f"{said} (n = {errors['n']} pictures, five kinds of error). The mark is half of it."


def uncorrected(latent: Found, cascade: Found, found: Found) -> Judged:
    """Augmentation is the mechanism there is: does what survives fall with it, by more than next to nothing?"""
    stored, none = middle(cascade, "stored"), middle(cascade, "none")
    effect, levels = estimate(cascade["propagation"], "augmentation_effect"), cascade["propagation"]["levels"]
    most = max(levels.values(), key=lambda level: float(level["amount"]))
    amount = levels["stored"]["amount"]
    said = (
        f"Without augmentation {interval(none)} of an error survives, with the stored level ({amount:.2g}) "
        f"{interval(stored)}, a difference of {signed(effect.value)} [{signed(effect.low)}, {signed(effect.high)}]; "
        f"with the most, {most['amount']:.2g}, it would be {percent(float(most['value']))}."
    )
    if amount == 0:
        return NOT_SHOWN, f"{said} The level that this cascade uses is 0: it has such a mechanism, and does not use it."
    if effect.high < -LITTLE:
        return FAILS, f"{said} Augmentation corrects a part."
    return (HOLDS if effect.low > -LITTLE else NOT_SHOWN), f"{said} Less than {percent(LITTLE)} is next to nothing."


# -- What it takes -----------------------------------------------------------------------------------------------------


def models(latent: Found, cascade: Found, found: Found) -> Judged:
    ours, theirs = (one["deployment"]["networks"] for one in (latent, cascade))
    said = f"The cascade has {len(theirs)} networks ({listed(theirs)}), the latent model {len(ours)} ({listed(ours)})"
    verdict = HOLDS if len(theirs) > len(ours) else FAILS
    return verdict, f"{said}; either is one folder of files and one command."


def parameters(latent: Found, cascade: Found, found: Found) -> Judged:
    """All numbers that were trained or fitted, and those of a text encoder that was trained elsewhere."""
    ours, theirs = (one["deployment"]["parameters"] for one in (latent, cascade))
    said = f"The latent model has {numbers(ours)}, its autoencoder among them; the cascade {numbers(theirs)}"
    sums = float(ours["sum"]), float(theirs["sum"])
    return fewer(*sums), f"{said}: {times(*sums)}."


def sampling(latent: Found, cascade: Found, found: Found) -> Judged:
    ours, theirs = (float(one["cost"]["flops_a_picture"]) for one in (latent, cascade))
    said = (
        f"A picture takes {flops(ours)} in the latent model, its decoder included, and {flops(theirs)} in the cascade"
    )
    seconds = [one_picture(one) for one in (latent, cascade)]
    clock = f"; by the clock {seconds[0]:.2g} s and {seconds[1]:.2g} s" if all(seconds) else ""
    return fewer(ours, theirs), f"{said}: {times(ours, theirs)}{clock}."


def training(latent: Found, cascade: Found, found: Found) -> Judged:
    """By the picture seen: what is spent in all is what the budget was. What is not known speaks for nobody."""
    ours, theirs = (one["cost"]["training"] for one in (latent, cascade))
    if missing := [one["reason"] for one in (ours, theirs) if one["flops_a_picture"] is None]:
        raise MissingError(f"It was not counted: {missing[0]}.")
    a_picture = [float(one["flops_a_picture"]) for one in (ours, theirs)]
    return fewer(*a_picture), (
        f"Learning from one picture in every leg, with its share of closed forms, captions and searches, takes "
        f"{flops(a_picture[0])} in latents and {flops(a_picture[1])} in the cascade: {times(*a_picture)}. In all, "
        f"{flops(ours['flops'])} and {flops(theirs['flops'])} were spent."
    )


# -- What it gives -----------------------------------------------------------------------------------------------------


def overfitting(latent: Found, cascade: Found, found: Found) -> Judged:
    nearer = [estimate(one["overfitting"]["nearest"], "nearer") for one in (latent, cascade)]
    growth = [worst(one) for one in (latent, cascade)]
    said = (
        f"Nearer to a trained picture than 95 % of held-out ones are: {interval(nearer[0])} of the latent model's "
        f"samples, {interval(nearer[1])} of the cascade's"
    )
    grown = f"; the gap from train to held-out loss grew by {signed(growth[0])} and {signed(growth[1])} of the loss."
    return lower(*nearer), said + grown


def stability(latent: Found, cascade: Found, found: Found) -> Judged:
    """Loss and gradient of the most restless player of those that denoise; both must say the same."""
    losses, norms = ([restless(one, kind) for one in (latent, cascade)] for kind in ("loss_spread", "norm_spread"))
    said = (
        f"From step to step the loss spreads by {interval(losses[0])} of its mean in latents and {interval(losses[1])} "
        f"in the cascade, the gradient's norm by {interval(norms[0])} and {interval(norms[1])}."
    )
    by_loss, by_norm = lower(*losses), lower(*norms)
    return (by_loss if by_loss == by_norm else NOT_SHOWN), said


def better(latent: Found, cascade: Found, found: Found) -> Judged:
    ours, theirs = (estimate(one["quality"]["whole"], "fd_lite0") for one in (latent, cascade))
    spent = [float(one["cost"]["training"]["seconds"]) for one in (latent, cascade)]
    n = latent["quality"]["whole"]["n"][0]
    said = (
        f"FD-Lite0 is {distance(ours)} for the latent model after {spent[0]:,.0f} s of training, and "
        f"{distance(theirs)} for the cascade after {spent[1]:,.0f} s (n = {n})"
    )
    if min(spent) <= 0 or max(spent) / min(spent) > ALIKE:
        return NOT_SHOWN, f"{said}; the budgets are not equal."
    return lower(ours, theirs), f"{said}."


CLAIMS: dict[str, Callable[[Found, Found, Found], Judged]] = {
    "In a cascade, errors propagate": propagate,
    "No mechanism corrects them": uncorrected,
    "A cascade must deploy more models": models,
    "Latent diffusion needs fewer parameters": parameters,
    "Latent diffusion samples cheaper": sampling,
    "Latent diffusion trains cheaper": training,
    "Latent diffusion overfits less": overfitting,
    "Latent diffusion trains more stably": stability,
    "Latent diffusion is better at equal budget": better,
}


# -- Reading -----------------------------------------------------------------------------------------------------------


def estimate(found: Found, name: str) -> Estimate:
    """Raises `MissingError` where there is none; without an interval it is as wide as can be."""
    one = found.get(name)
    if not isinstance(one, dict) or one.get("value") is None:
        raise MissingError(f"It was not measured: {found.get('reason', f'there is no {name}')}.")
    low, high = one.get("low"), one.get("high")
    return Estimate(
        float(one["value"]), -math.inf if low is None else float(low), math.inf if high is None else float(high)
    )


def middle(one: Found, level: str) -> Estimate:
    """What survives at the middle strength, all kinds together."""
    errors = one["propagation"]
    return estimate({**(errors.get("levels") or {}), "reason": errors.get("reason")}, level)


def restless(one: Found, kind: str) -> Estimate:
    """As a share of the mean. A line of the log is a mean over many steps; an interval is that of normal values."""
    rows = [row for row in one["stability"] if row["player"] == "denoiser" and row[kind] is not None]
    if not rows:
        raise MissingError(f"It was not measured: the log of run {one['key']} is too short.")
    row = max(rows, key=lambda row: float(row[kind]) * math.sqrt(row["steps_a_line"]))
    spread = float(row[kind]) * math.sqrt(max(1.0, row["steps_a_line"]))
    reach = NORMAL_95 * spread / math.sqrt(2 * max(1, row["lines"] // 2 - 1))
    return Estimate(spread, spread - reach, spread + reach)


def worst(one: Found) -> float:
    """The growth of the gap in the leg where it grew most."""
    return max((float(leg["growth"]) for leg in one["overfitting"]["legs"]), default=0.0)


def one_picture(one: Found) -> float:
    return float(one["cost"]["sampling"]["counts"][0]["seconds_a_picture"] or 0.0)


# -- Judging -----------------------------------------------------------------------------------------------------------


def lower(ours: Estimate, theirs: Estimate) -> str:
    if not ours.apart(theirs):
        return NOT_SHOWN
    return HOLDS if ours.value < theirs.value else FAILS


def by_limit(found: Estimate, limit: float) -> str:
    if found.low > limit:
        return HOLDS
    return FAILS if found.high < limit else NOT_SHOWN


def fewer(ours: float, theirs: float) -> str:
    """Of what is counted exactly."""
    return HOLDS if ours < theirs else FAILS


# -- Saying ------------------------------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{digits(100 * value)} %"


def signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{digits(abs(100 * value))} %"


def digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def interval(found: Estimate) -> str:
    low = max(0.0, found.low)
    return f"{percent(found.value)} [{digits(100 * low)}, {digits(100 * found.high)}]"


def distance(found: Estimate) -> str:
    return f"{digits(found.value)} [{digits(found.low)}, {digits(found.high)}]"


def count(value: float) -> str:
    return f"{value / 1e6:.3g} million"


def numbers(parameters: Found) -> str:
    frozen = float(parameters["text_encoder"])
    encoder = f", {count(frozen)} of a frozen text encoder" if frozen else ""
    trained, fitted = (count(float(parameters[kind])) for kind in ("trained", "fitted"))
    return f"{count(float(parameters['sum']))} parameters ({trained} trained, {fitted} fitted in closed form{encoder})"


def flops(value: float) -> str:
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {letter}FLOP"
    return f"{value:.3g} FLOP"


def times(ours: float, theirs: float) -> str:
    """How much more or less the cascade has."""
    ratio = theirs / ours
    return f"{ratio:.2g} times as much in the cascade" if ratio >= 1 else f"{1 / ratio:.2g} times as much in latents"


def listed(names: Found) -> str:
    return ", ".join(names)
