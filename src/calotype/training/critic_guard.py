"""Watches a critic: when it ruins the reconstructions, the weights of before come back and it counts for less."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from calotype.training.objectives import AutoencoderObjective
from calotype.training.state import TrainState

JUMP = 1.0
"""dB. What a critic costs that only sharpens is less; those that went wild cost 3 to 10."""
LOWERED = 0.25
"""Of its weight is left to a critic that has done harm."""
LOOKS = 6
"""Evenly from where the critic begins to be listened to, to the end: so at most a twentieth of a run is lost."""


class Look(NamedTuple):
    """What the guard saw and did."""

    psnr: float  # held out, in dB
    best: float  # so far
    trust: float  # what is left of the critic's weight
    taken_back: bool

    def __str__(self) -> str:
        return (
            f"reconstructions fell from {self.best:.1f} to {self.psnr:.1f} dB while the critic was listened to: the "
            f"weights of before are back, and the critic counts for {self.trust:.2g} of what it did"
        )


class CriticGuard:
    """Keeps the autoencoder as it was at its best since its critic is listened to.

    Saved with a checkpoint as a player is (`steps`, `tensors`, `restore`), so a resumed run goes on in the same way.
    """

    def __init__(self, objective: AutoencoderObjective, player: TrainState, psnr: Callable[[], float]) -> None:
        self.objective, self.player, self.psnr = objective, player, psnr
        self.best, self.steps = -math.inf, 0
        self.before: dict[str, Tensor] = {}

    @property
    def looks(self) -> list[float]:
        """Fractions of the leg after which to look."""
        start = self.objective.listens_from
        return [start + (1 - start) * index / (LOOKS - 1) for index in range(LOOKS)]

    def look(self) -> Look:
        """Keeps the weights where they are the best so far, takes them back where they have become clearly worse."""
        found, best = self.psnr(), self.best
        ruined = bool(self.before) and not found >= best - JUMP  # also where it is not a number
        if ruined:
            self.player.restore(copied(self.before), self.steps)
            self.objective.trust *= LOWERED
        elif found >= best:
            self.best, self.steps = found, self.player.steps
            self.before = copied(self.player.tensors())
        return Look(found, self.best, self.objective.trust, ruined)

    def tensors(self) -> dict[str, Tensor]:
        about = torch.tensor([self.best, self.objective.trust], dtype=torch.float64)
        return {"about": about, **{f"before.{name}": value for name, value in self.before.items()}}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        self.best, self.objective.trust = tensors["about"].tolist()
        device = next(self.player.network.parameters()).device
        kept = {name.removeprefix("before."): value.to(device) for name, value in tensors.items() if name != "about"}
        self.before, self.steps = kept, steps


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """So that what learns on does not change what is kept."""
    return {name: value.detach().clone() for name, value in tensors.items()}
