"""Plans of the embedded portraits for ten machines that need not be here, as the table in docs/plan.md.

python bench/plans.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from typing import NamedTuple

from calotype.demo.portraits import read_portraits
from calotype.machine import Machine, describe_machine
from calotype.planning import Plan, make_plan
from calotype.planning.plan import describe_backbone
from calotype.report.format import duration

HOUR, DAY, GB = 3600.0, 86400.0, 2**30


class Case(NamedTuple):
    """A machine, and what is to be made on it."""

    name: str
    machine: Machine
    budget: float
    size: int


CASES = [
    Case("laptop, two cores", describe_machine("cpu", 2e11, 4 * GB), 20.0, 64),
    Case("laptop, two cores", describe_machine("cpu", 2e11, 4 * GB), 600.0, 64),
    Case("laptop, two cores", describe_machine("cpu", 2e11, 4 * GB), HOUR, 256),
    Case("desktop, eight cores", describe_machine("cpu", 1e12, 24 * GB), 2 * HOUR, 256),
    Case("Apple M", describe_machine("mps", 4e12, 12 * GB), HOUR, 256),
    Case("T4", describe_machine("cuda", 1.5e13, 15 * GB), 3 * HOUR, 512),
    Case("RTX 4090", describe_machine("cuda", 1.2e14, 23 * GB), 12 * HOUR, 512),
    Case("A100", describe_machine("cuda", 2.2e14, 80 * GB), 12 * HOUR, 1024),
    Case("H100", describe_machine("cuda", 5e14, 80 * GB), DAY, 1024),
    Case("eight H100", describe_machine("cuda", 4e15, 80 * GB), 8 * DAY, 1024),
]
"""FLOP/s are those of a convolution in the better precision, as `calotype plan` measures them."""


def cells(case: Case, plan: Plan) -> Iterable[str]:
    """A row of the table."""
    recipe, predicted = plan.recipe, plan.predicted
    backbone, parameters = recipe.denoiser.backbone, predicted["parameters"]
    side = recipe.chain[0] // recipe.autoencoder.network.reduction
    yield f"{case.name}, {case.machine.flops:.2g} FLOP/s, {duration(case.budget)}"
    yield " -> ".join(map(str, recipe.chain))
    yield f"{describe_backbone(backbone)} ({parameters['denoiser'] / 1e6:,.1f} M)"
    yield f"{(side // backbone.patch) ** 2:,}"
    yield f"{parameters['autoencoder'] / 1e6:,.1f} M"
    batch, rounds = recipe.denoiser.batch, plan.rounds["denoiser"]
    yield f"{predicted['images']['denoiser']:,} in batches of {batch}" + (f" in {rounds} parts" if rounds > 1 else "")
    yield f"{recipe.denoiser.learn.learning_rate:.2g}"
    yield ", ".join(f"{predicted['seconds'][leg] / case.budget:.0%}" for leg in recipe.legs)
    yield f"{predicted['peak_memory_bytes'] / GB:,.1f} GB"


HEADINGS = (
    "machine", "px", "denoiser", "tokens", "autoencoder", "pictures", "rate", "shares of the legs", "memory"
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="portraits")
    arguments = parser.parse_args()
    print("|", " | ".join(HEADINGS), "|")
    print("|", " | ".join("---" for _ in HEADINGS), "|")
    for case in CASES:
        pictures = read_portraits(case.size, arguments.count)
        plan = make_plan(pictures, case.machine, case.budget, time.monotonic(), {"size": case.size})
        print("|", " | ".join(cells(case, plan)), "|", flush=True)


if __name__ == "__main__":
    main()
