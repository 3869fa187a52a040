"""Overfitting and stability of a run, from its log."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from calotype.evaluation.comparison_results import LogSpread
from calotype.evaluation.results import Gap, LegGaps
from calotype.recipe import Recipe
from calotype.run import Event, Run
from calotype.tables import number, numbers, within

FEWEST_LINES = 6
"""Lines of the log in half a leg: of fewer no spread is taken."""
LEVEL_SUFFIXES = {"all": "", "low_noise": "_low_noise", "middle_noise": "_middle_noise", "high_noise": "_high_noise"}


# -- Overfitting -------------------------------------------------------------------------------------------------------


def generalisation_gaps(run: Run) -> list[LegGaps]:
    """Of every leg whose loss is validated, the autoencoder's too: on held-out and training pictures, each time."""
    return [gaps for leg in run.state.legs if (gaps := leg_gaps(leg, run.history("check", leg)))]


def leg_gaps(leg: str, validations: Sequence[Event]) -> LegGaps | None:
    """The generalisation gap, held-out loss by train loss less 1. It is above 0 before anything was learned, because
    the two sets differ, so what counts is how it grows.
    """
    levels = {name: gap_curve(validations, suffix) for name, suffix in LEVEL_SUFFIXES.items()}
    if not (line := levels["all"]):
        return None
    curves = {name: curve for name, curve in levels.items() if len(curve) == len(line)}
    return LegGaps(leg=leg, growth=line[-1].gap - line[0].gap, levels=curves)


def gap_curve(validations: Sequence[Event], suffix: str) -> list[Gap]:
    curve = []
    for event in validations:
        measures = numbers(within(event, "measures"))
        held_out, train = (measures.get(f"{name}_loss{suffix}") for name in ("held_out", "train"))
        if held_out is not None and train:
            seen = float(event["images_seen"])
            curve.append(Gap(images_seen=seen, held_out=held_out, train=train, gap=held_out / train - 1))
    return curve


# -- Stability ---------------------------------------------------------------------------------------------------------


def log_spreads(run: Run, recipe: Recipe) -> list[LogSpread]:
    """Of every leg and network: how its loss and the norm of its gradient spread from line to line of the log."""
    return [
        log_spread(leg, network, steps, config.batch, recipe.learning(leg, network).clip)
        for leg, config in recipe.legs.items()
        for steps in [run.history("step", leg)]
        for network in dict.fromkeys(name for event in steps for name in numbers(within(event, "norms")))
    ]


def log_spread(leg: str, network: str, steps: Sequence[Event], batch: int, clip: float) -> LogSpread:
    seen = [0.0, *(float(event["images_seen"]) for event in steps)]
    losses = [sum(terms.values()) for event in steps if (terms := loss_terms(event, network))]
    norms = [norm for event in steps if (norm := number(within(event, "norms").get(network))) is not None]
    spread = LogSpread(
        leg=leg,
        network=network,
        steps_a_line=float(np.median(np.diff(seen))) / batch,
        loss_spread=detrended_spread(losses),
        norm_spread=detrended_spread(norms),
        clip=clip,
        clipped=float(np.mean([norm > clip for norm in norms])),
        lines=len(norms),
    )
    if spread.loss_spread is None or spread.norm_spread is None:
        spread.reason = f"the log has {len(norms)} lines of it, and a spread needs {2 * FEWEST_LINES - 1}"
    return spread


def loss_terms(event: Event, network: str) -> dict[str, float]:
    """What the network minimises; of a critic its hinge loss, not how often it is right."""
    terms = {name: value for name, value in numbers(within(event, "terms")).items() if name.startswith(f"{network}.")}
    return {name: value for name, value in terms.items() if name.rpartition(".")[2] not in ("right", "gap")}


def detrended_spread(values: Sequence[float]) -> float | None:
    """Standard deviation about a running median, by the mean, over the second half; None where there are too few."""
    half = np.array(values[len(values) // 2 :])
    if len(half) < FEWEST_LINES or not math.isfinite(half.sum()) or half.mean() == 0:
        return None
    reach = max(5, len(half) // 5) // 2
    widths = [min(reach, at, len(half) - 1 - at) for at in range(len(half))]  # symmetric, so that it follows a line
    trend = [np.median(half[at - width : at + width + 1]) for at, width in enumerate(widths)]
    return float((half - trend)[1:-1].std(ddof=1) / abs(half.mean()))
