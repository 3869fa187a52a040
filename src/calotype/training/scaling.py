"""The fit of epsilon scaling after training, for latents: samples keep their amplitude where it would collapse.

Where estimates are a little too smooth, the states of sampling are smoother than noisy training images, and estimates
of those smoother still: a case of exposure bias (arXiv 2308.15321). Of photographs trained for minutes most samples end
as plain areas.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.diffusion.stage import Sampling, Stage, in_turn, sampled_latents
from calotype.types import Labels, Latents, Rng, Text

SCALED_SAMPLES = 64
"""Samples of which the amplitude is measured."""
LEAST_AMPLITUDE = 0.74
"""Mean over samples of the root mean square of their latents, in units of that of validation pictures, up to which
epsilon scaling raises it. Of photographs of minutes it is 0.4 to 0.6 without, and most samples are plain; of portraits
it is 0.9 (dev/LOG.md, 2026-11-30). The mean square instead is that of a few samples."""
FIRST_SCALING, MOST_SCALING, SCALINGS_TRIED = 0.15, 0.4, 4
"""The first amount of epsilon scaling that is tried, the largest, and how many."""
NEAR_ENOUGH, LEAST_SLOPE = 0.03, 0.5
"""Difference of the logarithm of the amplitude with which the fit ends, and how fast that is taken to grow at least."""


def scaling_of(
    stage: Stage, of_real: float, labels: Labels, text: Text | None, seed: int
) -> Callable[[Sampling], float]:
    """From sampling settings of the first stage to the epsilon scaling that suits them; each time with equal seeds.

    `of_real` is the `amplitude` of validation pictures; samples have these labels and texts, or `SCALED_SAMPLES` of
    them.
    """
    count = min(len(labels), SCALED_SAMPLES)
    rows = torch.arange(count) * len(labels) // count
    labels, text = labels[rows.to(labels.device)], text and text.at(rows.tolist())
    rngs = [Rng((seed, "scaling", index)) for index in range(count)]

    def fitted(sampling: Sampling) -> float:
        def relative(amount: float) -> float:
            scaled = sampling.scaled(amount)
            parts = (
                sampled_latents(stage, labels[part], scaled, rngs[part], text and text.at(part))
                for part in in_turn(count, stage.image_size, stage.image_size)
            )
            return amplitude(parts) / max(of_real, 1e-6)

        return fitted_scaling(relative)

    return fitted


def no_scaling(sampling: Sampling) -> float:
    """For pixels: how large their values are says how bright they are, and not whether they are plain."""
    return 0.0


def amplitude(parts: Iterable[Latents]) -> float:
    """Mean over pictures of the root mean square of their latents."""
    return float(torch.cat([_root_mean_squares(part) for part in parts]).mean())


def _root_mean_squares(latents: Latents) -> Float[Tensor, " batch"]:
    return latents.square().flatten(1).mean(1).sqrt()


def fitted_scaling(relative: Callable[[float], float]) -> float:
    """The epsilon scaling at which samples have `LEAST_AMPLITUDE`; 0 where they have it, or nearly, without.

    `relative` gives that of samples with a scaling, relative to real pictures. It grows about exponentially, so its
    logarithm is interpolated (regula falsi), and before it is large enough extrapolated.
    """
    excess, amount = {0.0: _excess(relative(0.0))}, FIRST_SCALING
    if excess[0.0] >= 0:
        return 0.0
    while len(excess) <= SCALINGS_TRIED and amount not in excess and min(map(abs, excess.values())) > NEAR_ENOUGH:
        excess[amount] = _excess(relative(amount))
        below = max(one for one, value in excess.items() if value < 0)
        other = min((one for one in excess if one != below), key=lambda one: (excess[one] < 0, abs(one - below)))
        slope = (excess[other] - excess[below]) / (other - below)
        amount = min(MOST_SCALING, below - excess[below] / max(slope, LEAST_SLOPE))
    return min(excess, key=lambda one: abs(excess[one]))


def _excess(relative: float) -> float:
    """The logarithm of the amplitude over the least, within bounds: samples may be plain, or not finite."""
    return math.log((min(max(relative, 1e-3), 1e3) if math.isfinite(relative) else 1e3) / LEAST_AMPLITUDE)
