"""How far an error in a small picture comes through a model, at every kind, strength and level: the lecture's claim."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from calotype.evaluation.candidate import Candidate
from calotype.evaluation.intervals import mean_estimate
from calotype.evaluation.measures import as_json
from calotype.evaluation.propagation import (
    CORRUPTIONS,
    MIDDLE,
    STRENGTHS,
    Case,
    Survival,
    at_level,
    cascade_case,
    latent_case,
)
from calotype.types import Images, Labels, Rng, Text

SHARES = (0.25, 0.5, 1.0)
SIGMAS = (0.1, 1.0, 3.0)
USUAL = 0.3
"""Sigma for latents where no cascade says at which level to compare."""
ALL = [(corruption, strength) for corruption in CORRUPTIONS for strength in STRENGTHS]
SOME = [(corruption, MIDDLE) for corruption in CORRUPTIONS]


@dataclass(frozen=True)
class Level:
    """Where an error is put in: `amount` is augmentation's level in a cascade, sigma in latents."""

    name: str
    amount: float
    case: Case
    whole: bool
    """Every strength, or the middle one alone."""


def pictures_for(count: int) -> int:
    """Each is sampled some seventy times."""
    return max(4, min(16, count // 6))


def relative_level(one: Candidate, spread: float) -> float:
    """A cascade's stored level at its second stage, by the spread of the pixels; half of its most where it is 0."""
    augmentation = one.model.stages[1].augmentation
    if augmentation.kind != "noise":  # a blur is no amount of noise
        return USUAL
    return (one.model.samplings[1].augmentation or augmentation.most / 2) / spread


def levels_of(
    one: Candidate, labels: Labels, text: Text | None, seed: int, small: Images, sigma: float, small_size: int
) -> Iterator[Level]:
    rngs = [Rng((seed, "sample", index)) for index in range(len(labels))]
    base, *above = one.model.stages
    own, *samplings = one.model.samplings
    if not above:
        high = base.schedule.grid(own.steps)[0]
        wanted = {"matched": sigma} | {f"{sigma:g}": sigma for sigma in SIGMAS}
        for name, amount in ((name, min(sigma, high / 2)) for name, sigma in wanted.items()):
            case = latent_case(base, own, labels, rngs, amount, small_size, text)
            yield Level(name, amount, case, name == "matched")
        return
    shares = {"stored": None, "none": 0.0, **{f"{share:g} of the most": share for share in SHARES}}
    for name, part in shares.items():
        changed = at_level(above, samplings, part)
        case = cascade_case(above, changed, labels, rngs, small, text)
        yield Level(name, changed[0].augmentation, case, part in (None, 0.0))


def propagation(one: Candidate, levels: list[Level], seed: int, told: Any) -> dict[str, Any]:
    """Every point with its interval over the pictures, and of every level all kinds together at the middle strength."""
    total = sum(len(ALL if level.whole else SOME) for level in levels)
    points: list[dict[str, Any]] = []
    together: dict[str, dict[str, Any]] = {}
    of_level: dict[str, Any] = {}
    for level in levels:
        found: list[Survival] = []
        for one_survival in level.case.survivals(ALL if level.whole else SOME, Rng((seed, "corruption"))):
            found.append(one_survival)
            points.append({"level": level.name, "amount": level.amount, **point(one_survival)})
            told(len(points), total)
        of_level[level.name] = np.mean([each.survival for each in found if each.strength == MIDDLE], axis=0)
        together[level.name] = {"amount": level.amount, **as_json(mean_estimate(of_level[level.name]))}
    first = levels[0].case.small
    result = {
        "kind": one.kind,
        "size": first.shape[-1],
        "n": len(first),
        "strength": MIDDLE,
        "levels": together,
        "points": points,
    }
    if {"stored", "none"} <= set(of_level):
        result["augmentation_effect"] = as_json(mean_estimate(of_level["stored"] - of_level["none"]))
    return result


def point(found: Survival) -> dict[str, Any]:
    return {
        "corruption": found.corruption,
        "strength": found.strength,
        "survival": as_json(mean_estimate(found.survival)),
        "psnr": float(found.psnr.mean()),
        "perceptual": float(found.perceptual.mean()),
        "n": len(found.survival),
    }
