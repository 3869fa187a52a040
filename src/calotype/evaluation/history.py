"""What the log of a run says of overfitting and of stability."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from calotype.evaluation.candidate import Candidate
from calotype.recipe import OptimizerConfig
from calotype.report.folder import Run
from calotype.run import Event
from calotype.tables import number, numbers, within

Line = Float[np.ndarray, " count"]
FEWEST = 6
"""Lines of the log: below that nothing is said of how they spread."""
LEVELS = ("", "_low_noise", "_middle_noise", "_high_noise")


def overfitting(run: Run) -> list[dict[str, Any]]:
    """Of every leg that learns to denoise: its loss on held-out and on trained pictures, at every look."""
    return [found for leg in run.legs if (found := gaps(leg, run.history("check", leg)))]


def gaps(leg: str, checks: Sequence[Event]) -> dict[str, Any] | None:
    """A gap is how much larger the held-out loss is, by the train loss; it is above 0 before anything was learned too,

    because the two sets differ, so what counts is how it grows.
    """
    looks = [(float(one["images_seen"]), numbers(within(one, "measures"))) for one in checks]
    looks = [(seen, found) for seen, found in looks if found.get("train_loss") and "held_out_loss" in found]
    if not looks:
        return None
    names = [level for level in LEVELS if all(found.get(f"train_loss{level}") for _, found in looks)]
    lines = {
        name: [{"images_seen": seen, **gap(found, name)} for seen, found in looks if f"held_out_loss{name}" in found]
        for name in names
    }
    first, last = lines[""][0]["gap"], lines[""][-1]["gap"]
    named = {name.strip("_") or "all": line for name, line in lines.items()}
    return {"leg": leg, "gap_first": first, "gap_last": last, "growth": last - first, "levels": named}


def gap(found: dict[str, float], level: str) -> dict[str, float]:
    held_out, train = found[f"held_out_loss{level}"], found[f"train_loss{level}"]
    return {"held_out": held_out, "train": train, "gap": held_out / train - 1}


def stability(one: Candidate) -> list[dict[str, Any]]:
    """Of every leg and player: how its loss and its gradient spread from line to line of the log."""
    rows = []
    for leg, config in one.recipe.legs.items():
        steps = one.run.history("step", leg)
        seen = np.array([0.0, *(float(event["images_seen"]) for event in steps)])
        a_line = float(np.median(np.diff(seen))) / config.batch if steps else 1.0
        for player in dict.fromkeys(name for event in steps for name in numbers(within(event, "norms"))):
            rows.append({"leg": leg, "player": player, "steps_a_line": a_line, **unrest(steps, player, clip(one, leg))})
    return rows


def unrest(steps: Sequence[Event], player: str, limits: dict[str, float]) -> dict[str, Any]:
    losses = [sum(terms.values()) for event in steps if (terms := terms_of(event, player))]
    norms = [norm for event in steps if (norm := number(within(event, "norms").get(player))) is not None]
    limit = limits.get(player, OptimizerConfig().clip)
    found: dict[str, Any] = {
        "loss_spread": detrended_spread(losses),
        "norm_spread": detrended_spread(norms),
        "clip": limit,
        "clipped": float(np.mean([norm > limit for norm in norms])),
        "lines": len(norms),
    }
    if found["loss_spread"] is None or found["norm_spread"] is None:
        found["reason"] = f"the log has {len(norms)} lines of it, and a spread needs {2 * FEWEST - 1}"
    return found


def terms_of(event: Event, player: str) -> dict[str, float]:
    """What the player makes smaller; of a critic its hinge loss, not its verdicts."""
    terms = {name: value for name, value in numbers(within(event, "terms")).items() if name.startswith(f"{player}.")}
    return {name: value for name, value in terms.items() if name.rpartition(".")[2] not in ("right", "gap")}


def clip(one: Candidate, leg: str) -> dict[str, float]:
    """The recipe's, by player."""
    recipe = one.recipe
    if leg == "autoencoder":
        return {"autoencoder": recipe.autoencoder.learn.clip, "critic": recipe.autoencoder.critic_learn.clip}
    if leg == "denoiser":
        return {"denoiser": recipe.denoiser.learn.clip}
    return {"denoiser": recipe.enlarger(int(leg.rpartition("-")[2])).learn.clip}


def detrended_spread(values: Sequence[float]) -> float | None:
    """Standard deviation about a running median, by the mean, over the second half; None where there are too few."""
    half = np.array(values[len(values) // 2 :])
    if len(half) < FEWEST or not math.isfinite(half.sum()) or half.mean() == 0:
        return None
    rest = half - running_median(half, max(5, len(half) // 5))
    return float(rest[1:-1].std(ddof=1) / abs(half.mean()))


def running_median(values: Line, width: int) -> Line:
    """Over `width` neighbours, over fewer at both ends, as many on either side: so it follows a line."""
    reaches = [min(width // 2, at, len(values) - 1 - at) for at in range(len(values))]
    return np.array([np.median(values[at - reach : at + reach + 1]) for at, reach in enumerate(reaches)])
