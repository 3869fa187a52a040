"""What the log of a run says of overfitting and of stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from calotype.recipe import OptimizerConfig, Recipe
from calotype.run import Event, Run
from calotype.tables import number, numbers, within

FEWEST_LINES = 6
"""Lines of the log in half a leg: of fewer no spread is taken."""
LEVEL_SUFFIXES = {"all": "", "low_noise": "_low_noise", "middle_noise": "_middle_noise", "high_noise": "_high_noise"}


# -- Overfitting -------------------------------------------------------------------------------------------------------


def generalisation_gaps(run: Run) -> list[dict[str, Any]]:
    """Of every leg that learns to denoise: its loss on held-out and on training pictures, at every validation."""
    return [found for leg in run.state.legs if (found := gaps(leg, run.history("check", leg)))]


def gaps(leg: str, validations: Sequence[Event]) -> dict[str, Any] | None:
    """The generalisation gap, held-out loss by train loss less 1. It is above 0 before anything was learned, because
    the two sets differ, so what counts is how it grows.
    """
    measures = [(float(one["images_seen"]), numbers(within(one, "measures"))) for one in validations]
    levels = {name: gap_curve(measures, suffix) for name, suffix in LEVEL_SUFFIXES.items()}
    if not (line := levels["all"]):
        return None
    curves = {name: curve for name, curve in levels.items() if len(curve) == len(line)}
    return {"leg": leg, "growth": line[-1]["gap"] - line[0]["gap"], "levels": curves}


def gap_curve(validations: Sequence[tuple[float, dict[str, float]]], suffix: str) -> list[dict[str, float]]:
    curve = []
    for seen, measures in validations:
        held_out, train = (measures.get(f"{name}_loss{suffix}") for name in ("held_out", "train"))
        if held_out is not None and train:
            curve.append({"images_seen": seen, "held_out": held_out, "train": train, "gap": held_out / train - 1})
    return curve


# -- Stability ---------------------------------------------------------------------------------------------------------


def log_spreads(run: Run, recipe: Recipe) -> list[dict[str, Any]]:
    """Of every leg and network: how its loss and the norm of its gradient spread from line to line of the log."""
    rows = []
    for leg, config in recipe.legs.items():
        steps = run.history("step", leg)
        seen = np.array([0.0, *(float(event["images_seen"]) for event in steps)])
        steps_a_line = float(np.median(np.diff(seen))) / config.batch if steps else 1.0
        for network in dict.fromkeys(name for event in steps for name in numbers(within(event, "norms"))):
            spreads = spreads_of(steps, network, optimizer(recipe, leg, network).clip)
            rows.append({"leg": leg, "network": network, "steps_a_line": steps_a_line, **spreads})
    return rows


def spreads_of(steps: Sequence[Event], network: str, clip: float) -> dict[str, Any]:
    losses = [sum(terms.values()) for event in steps if (terms := terms_of(event, network))]
    norms = [norm for event in steps if (norm := number(within(event, "norms").get(network))) is not None]
    loss_spread, norm_spread = detrended_spread(losses), detrended_spread(norms)
    unknown = {"reason": f"the log has {len(norms)} lines of it, and a spread needs {2 * FEWEST_LINES - 1}"}
    return {
        "loss_spread": loss_spread,
        "norm_spread": norm_spread,
        "clip": clip,
        "clipped": float(np.mean([norm > clip for norm in norms])),
        "lines": len(norms),
        **(unknown if None in (loss_spread, norm_spread) else {}),
    }


def terms_of(event: Event, network: str) -> dict[str, float]:
    """What the network minimises; of a critic its hinge loss, not how often it is right."""
    terms = {name: value for name, value in numbers(within(event, "terms")).items() if name.startswith(f"{network}.")}
    return {name: value for name, value in terms.items() if name.rpartition(".")[2] not in ("right", "gap")}


def optimizer(recipe: Recipe, leg: str, network: str) -> OptimizerConfig:
    if leg == "autoencoder":
        return recipe.autoencoder.critic_learn if network == "critic" else recipe.autoencoder.learn
    return recipe.denoiser.learn if leg == "denoiser" else recipe.enlarger(int(leg.rpartition("-")[2])).learn


def detrended_spread(values: Sequence[float]) -> float | None:
    """Standard deviation about a running median, by the mean, over the second half; None where there are too few."""
    half = np.array(values[len(values) // 2 :])
    if len(half) < FEWEST_LINES or not math.isfinite(half.sum()) or half.mean() == 0:
        return None
    reach = max(5, len(half) // 5) // 2
    widths = [min(reach, at, len(half) - 1 - at) for at in range(len(half))]  # symmetric, so that it follows a line
    trend = [np.median(half[at - width : at + width + 1]) for at, width in enumerate(widths)]
    return float((half - trend)[1:-1].std(ddof=1) / abs(half.mean()))
