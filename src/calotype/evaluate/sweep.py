"""Which steps and which guidance suit a trained model best: a small grid, judged by the same real pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from calotype.evaluate.distances import Features
from calotype.evaluate.pairing import difference, draws, is_level, redrawn
from calotype.evaluate.sets import Estimate, frechet_estimate, frechet_of_rows, kernel_estimate
from calotype.stage import Sampling

CALLS_A_STEP = {"heun": 2}


@dataclass(frozen=True)
class Cell:
    """One way to sample, and how far what it makes lies from real pictures."""

    sampling: Sampling
    fd_lite0: Estimate
    kernel_distance: Estimate
    behind: Estimate
    """FD-Lite0 less that of the smallest cell; on equal seeds, so it is surer than either."""

    @property
    def calls(self) -> int:
        """Of the network, for a picture."""
        twice = 1 if self.sampling.guidance == 1 else 2
        return self.sampling.steps * twice * CALLS_A_STEP.get(self.sampling.sampler, 1)

    @property
    def level(self) -> bool:
        """Whether it is within a standard error of the smallest."""
        return is_level(self.behind)


@dataclass(frozen=True)
class Grid:
    steps: Sequence[int] = (8, 16, 32)
    guidance: Sequence[float] = (1.0, 1.5, 2.0, 3.0)

    def samplings(self, sampling: Sampling, told: bool) -> list[Sampling]:
        """`sampling` in every cell; its guidance stays where nothing is `told` that it could lead to."""
        strengths = self.guidance if told else (sampling.guidance,)
        changes = [{"steps": one, "guidance": strength} for strength, one in product(strengths, self.steps)]
        return [sampling.model_copy(update=change) for change in changes]


def sweep(
    samplings: Sequence[Sampling],
    made: Callable[[Sampling], Features],
    real: Features,
    progress: Callable[[int, int], None],
    seed: int = 0,
) -> list[Cell]:
    """Every cell of a grid. `made` gives the features of as many pictures as are `real`, from seeds that stay."""
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
            difference(estimates[place].value, estimates[smallest].value, drawn[place] - drawn[smallest]),
        )
        for place, sampling in enumerate(samplings)
    ]


def pick(cells: Sequence[Cell]) -> Cell:
    """Of those that are level with the smallest the one with the fewest calls; of equal ones, the nearest."""
    return min((cell for cell in cells if cell.level), key=lambda cell: (cell.calls, cell.fd_lite0.value))
