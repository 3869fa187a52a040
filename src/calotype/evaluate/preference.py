"""Which of two models is to be kept: the new one only where held-out pictures say that it is better."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from calotype.evaluate.distances import Features, Others, kernel_distance

ROUNDS, SURE = 200, 0.9
"""Sets drawn, and the share of them in which the new model must be the nearer one."""
BLUR_ALLOWED = 1.05
"""How far reconstructions may become worse."""


@dataclass(frozen=True)
class Preference:
    """Kernel distances of samples from held-out pictures, and perceptual distances of reconstructions, each twice."""

    before: float
    after: float
    certainty: float
    """In what share of the drawn sets the new model is nearer."""
    blur_before: float
    blur_after: float

    @property
    def after_is_better(self) -> bool:
        return self.certainty >= SURE and self.blur_after <= BLUR_ALLOWED * self.blur_before

    def __str__(self) -> str:
        return (
            f"kernel distance of samples {self.before:.3g} before and {self.after:.3g} after (nearer in "
            f"{self.certainty:.0%} of {ROUNDS} drawn sets), perceptual distance of reconstructions "
            f"{self.blur_before:.3g} and {self.blur_after:.3g}"
        )


def prefer(real: Features, before: Others, after: Others, blur_before: float, blur_after: float) -> Preference:
    """Row i of `before` and of `after` come from the same seed, so they are drawn together."""
    certainty = float(np.mean([_nearer(real, before, after, round_) for round_ in range(ROUNDS)]))
    distances = kernel_distance(before, real), kernel_distance(after, real)
    return Preference(*distances, certainty, blur_before, blur_after)


def _nearer(real: Features, before: Others, after: Others, seed: int) -> bool:
    """In sets of half the rows each, drawn without repetition: a repeated row would bias the unbiased estimate."""
    rng = np.random.default_rng(seed)
    truth = _half(real, rng.permutation(len(real)))
    rows = rng.permutation(len(before))
    return kernel_distance(_half(after, rows), truth) < kernel_distance(_half(before, rows), truth)


def _half(features: Others, order: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Float[np.ndarray, "half channel"]:
    return features[order[: max(2, len(order) // 2)]]
