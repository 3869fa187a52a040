"""Guards an autoencoder against its critic: reconstructions that it ruins come back, and its loss is weighted down."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.training.objectives import AutoencoderObjective
from calotype.training.state import TrainState

MAX_DROP = 1.0
"""dB. What a critic costs that only sharpens is less; those that diverged cost 3 to 10."""
LOWERED = 0.25
"""Of its weight is left to a critic that has done harm."""
CHECKS = 6
"""Evenly from where the adversarial loss sets in to the end: so at most a twentieth of a run is lost."""


class GuardCheck(NamedTuple):
    """What the guard measured and did."""

    psnr: float  # held out, in dB
    best: float  # so far
    trust: float  # what is left of the critic's weight
    taken_back: bool

    def __str__(self) -> str:
        return (
            f"reconstructions fell from {self.best:.1f} to {self.psnr:.1f} dB under the adversarial loss: the "
            f"weights of before are back, and the critic counts for {self.trust:.2g} of what it did"
        )


class CriticGuard:
    """Keeps the autoencoder as it was at its best since the adversarial loss set in.

    Saved with a checkpoint as a train state is (`steps`, `tensors`, `restore`), so a resumed run goes on in the same
    way.
    """

    def __init__(self, objective: AutoencoderObjective, state: TrainState, psnr: Callable[[], float]) -> None:
        self.objective, self.state, self.psnr = objective, state, psnr
        self.best, self.steps = -math.inf, 0
        self.before: dict[str, Tensor] = {}

    @property
    def fractions(self) -> list[float]:
        """Of the leg, after which to check."""
        start = self.objective.adversarial_start
        return [start + (1 - start) * index / (CHECKS - 1) for index in range(CHECKS)]

    def check(self) -> GuardCheck:
        """Keeps the weights where they are the best so far, takes them back where they have become clearly worse."""
        psnr, best = self.psnr(), self.best
        ruined = bool(self.before) and not psnr >= best - MAX_DROP  # also where it is not a number
        if ruined:
            self.state.restore(copied(self.before), self.steps)
            self.objective.trust *= LOWERED
        elif psnr >= best:
            self.best, self.steps = psnr, self.state.steps
            self.before = copied(self.state.tensors())
        return GuardCheck(psnr, self.best, self.objective.trust, ruined)

    def tensors(self) -> dict[str, Tensor]:
        about = torch.tensor([self.best, self.objective.trust], dtype=torch.float64)
        return {"about": about, **{f"before.{name}": value for name, value in self.before.items()}}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        self.best, self.objective.trust = tensors["about"].tolist()
        device = next(self.state.network.parameters()).device
        kept = {name.removeprefix("before."): value.to(device) for name, value in tensors.items() if name != "about"}
        self.before, self.steps = kept, steps


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """So that further training does not change what is kept."""
    return {name: value.detach().clone() for name, value in tensors.items()}
