"""Grid search over sampler steps, guide and guidance scale, on the same real pictures and seeds in every cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from calotype.diffusion.stage import Guide, Sampling
from calotype.evaluation.distances import Features, frechet_estimate, frechet_of_rows, kernel_estimate
from calotype.evaluation.intervals import Estimate
from calotype.evaluation.pairing import draws, is_level, paired_difference, redrawn

CALLS_A_STEP = {"heun": 2}


@dataclass(frozen=True)
class Cell:
    """One sampling, and the distances of its pictures from real ones."""

    sampling: Sampling
    fd_lite0: Estimate
    kernel_distance: Estimate
    behind: Estimate
    """FD-Lite0 less that of the smallest cell: paired by seed, so its interval is narrower than either's."""

    @property
    def calls(self) -> int:
        """Of the network, for a picture."""
        twice = 2 if self.sampling.guide == "unconditional" and self.sampling.guidance != 1 else 1
        return self.sampling.steps * twice * CALLS_A_STEP.get(self.sampling.sampler, 1)

    @property
    def level(self) -> bool:
        """Whether it is within a standard error of the smallest."""
        return is_level(self.behind)


SCALES = {"prior": (1.0, 2.0, 3.0, 4.0), "unconditional": (1.0, 1.5, 2.0, 3.0)}
"""Guidance scales to try with each guide."""


@dataclass(frozen=True)
class Grid:
    """What a sweep tries; an empty list stands for the usual values."""

    steps: Sequence[int] = (8, 12, 24)
    guidance: Sequence[float] = ()
    guides: Sequence[Guide] = ()
    slopes: Sequence[float] = ()

    def samplings(self, sampling: Sampling, conditional: bool, has_prior: bool) -> list[Sampling]:
        """`sampling` in every cell.

        Without a label or caption (`conditional`) the unconditional model is no guide, and without a closed form
        (`has_prior`) that is none; where there is none at all, only the steps differ.
        """
        possible: list[Guide] = ["prior"] * has_prior + ["unconditional"] * conditional  # type: ignore[assignment]
        guides = [guide for guide in possible if guide in (self.guides or possible)]
        changes = list(dict.fromkeys(change for guide in guides for change in self.guidances(guide, sampling)))
        guidances = [dict(change) for change in changes] or [{}]
        return [sampling.model_copy(update={"steps": one, **some}) for some, one in product(guidances, self.steps)]

    def guidances(self, guide: Guide, sampling: Sampling) -> Iterator[tuple[tuple[str, Any], ...]]:
        """Settings of one guide; a scale of 1 is the same with every guide and slope."""
        slopes = (self.slopes or (sampling.guidance_slope,)) if guide == "prior" else (sampling.guidance_slope,)
        for scale, slope in product(self.guidance or SCALES[guide], slopes):
            if scale == 1:
                yield (("guidance", scale),)
            else:
                yield ("guide", guide), ("guidance", scale), ("guidance_slope", slope)


def sweep(
    samplings: Sequence[Sampling],
    made: Callable[[Sampling], Features],
    real: Features,
    progress: Callable[[int, int], None],
    seed: int = 0,
) -> list[Cell]:
    """Every cell of a grid. `made` gives the features of as many samples as there are in `real`, with equal seeds."""
    found = []
    for done, sampling in enumerate(samplings, 1):
        found.append(made(sampling))
        progress(done, len(samplings))
    estimates = [frechet_estimate(one, real, np.random.default_rng(seed)) for one in found]
    smallest = min(range(len(found)), key=lambda place: estimates[place].value)
    same = draws(len(found[0]), len(real), np.random.default_rng(seed))
    drawn = [redrawn(frechet_of_rows(one, real), same) for one in found]
    return [
        Cell(
            sampling,
            estimates[place],
            kernel_estimate(found[place], real, np.random.default_rng(seed)),
            paired_difference(estimates[place].value, estimates[smallest].value, drawn[place] - drawn[smallest]),
        )
        for place, sampling in enumerate(samplings)
    ]


def pick(cells: Sequence[Cell]) -> Cell:
    """Of the cells within a standard error of the smallest, the one with the fewest calls; of equals, the nearest."""
    return min((cell for cell in cells if cell.level), key=lambda cell: (cell.calls, cell.fd_lite0.value))
