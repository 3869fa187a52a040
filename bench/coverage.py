"""How often do the intervals of distances hold the value of 10,000 samples? Draws of 1,000 from these 10,000.

The samples are synthetic features: a mixture of six Gaussians whose variances fall as those of pictures' features do;
the real ones are 1,000 from the same mixture, a little moved and wider. The value is the one of all 10,000 samples
against these 1,000. `--features FILE.npy` takes rows from a file instead (the first 1,000 are the real ones).

    python bench/coverage.py --draws 50
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from calotype.evaluation.distances import (
    MANY,
    frechet_distance,
    frechet_estimate,
    frechet_of_many,
    kernel_distance,
    kernel_estimate,
)

COUNT, CLASSES = 1000, 6
DISTANCES = {
    "Fréchet of many": (frechet_distance, frechet_of_many),
    "kernel": (kernel_distance, kernel_estimate),
    "Fréchet of as many": (frechet_distance, frechet_estimate),
}


def mixture(count, channels, rng):
    """Rows of six Gaussians; the variance of the i-th direction falls as 1 / i."""
    centres = np.random.default_rng(1).standard_normal((CLASSES, channels))
    spread = 1 / np.sqrt(np.arange(1, channels + 1))
    return (centres[rng.integers(CLASSES, size=count)] + rng.standard_normal((count, channels))) * spread


def sets(features, channels, rng):
    if features is None:
        return 1.1 * mixture(COUNT, channels, rng) + 0.02, mixture(MANY, channels, rng)
    rows = rng.permutation(np.load(features).astype(np.float64))
    return rows[:COUNT], 0.9 * rows[COUNT:] + 0.02


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=50)
    parser.add_argument("--channels", type=int, default=320)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--only", choices=DISTANCES, action="append")
    wanted = parser.parse_args()
    real, many = sets(wanted.features, wanted.channels, np.random.default_rng(0))
    for name in wanted.only or DISTANCES:
        distance, estimate = DISTANCES[name]
        truth = distance(many, real)
        held, values, widths = [], [], []
        for draw in range(wanted.draws):
            rng = np.random.default_rng((2, draw))
            found = estimate(many[rng.permutation(len(many))[:COUNT]], real, rng)
            held.append(found.low <= truth <= found.high)
            values.append(found.value)
            widths.append(found.high - found.low)
        print(
            f"{name}: of {len(many):,} samples {truth:.4f}; estimates {np.mean(values):.4f} ± {np.std(values):.4f}, "
            f"intervals {np.mean(widths):.4f} wide; held in {sum(held)} of {wanted.draws}",
            flush=True,
        )


if __name__ == "__main__":
    main()
