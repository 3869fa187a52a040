"""Training steps a second of the default networks: as Calotype takes them, against plain float32 eager PyTorch.

    python bench/steps.py [--size 64] [--pairs 5]

"Plain" is the same networks with contiguous weights, float32, and PyTorch's default AdamW. The two are timed in turn,
A B A B, and the ratio is taken pair by pair, so that a machine whose speed drifts does not decide.
"""

from __future__ import annotations

import argparse
import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, see cli/process.py

import statistics
from collections.abc import Callable

import torch

from calotype.build import build_space, build_stage
from calotype.cli.process import tune_process
from calotype.demo.portraits import read_portraits
from calotype.machine import best_time, examine
from calotype.planning.choose import propose
from calotype.priors.gaussian import GaussianMixture
from calotype.recipe import OptimizerConfig
from calotype.settings import parse_recipe
from calotype.training.legs import autoencoder_objective
from calotype.training.loop import TrainProgress, train_step
from calotype.training.objectives import DenoisingObjective, Objective
from calotype.training.state import ParameterGroup, TrainState
from calotype.types import Batch, Rng


def stepper(objective: Objective, batch: Batch, plain: bool, device: torch.device) -> Callable[[], object]:
    if plain:
        for network in objective.networks.values():
            network.to(memory_format=torch.contiguous_format)
    states = {name: TrainState(network, OptimizerConfig()) for name, network in objective.networks.items()}
    if plain:
        for train_state in states.values():
            averages = [*train_state.average.parameters()]
            train_state.groups = [ParameterGroup(torch.optim.AdamW(train_state.parameters, 1e-3), averages)]
    progress = TrainProgress(10**6, len(batch), 0)
    return lambda: train_step(objective, states, batch, progress)


def main() -> None:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    machine, pictures = examine(), read_portraits(arguments.size, 600)
    proposal, _ = propose(pictures, machine, 600.0, {"size": arguments.size})
    print(machine, "bfloat16" if machine.fast_bfloat16 else "float32")
    for name in ("autoencoder", "denoiser"):
        steps = []
        for plain in (False, True):
            recipe = parse_recipe({**proposal, "precision": "float32" if plain else proposal["precision"]})
            memory = torch.contiguous_format if plain else torch.channels_last
            space = build_space(recipe).to(machine.device)
            if name == "autoencoder":
                shape: tuple[int, ...] = (recipe.autoencoder.batch, 3, arguments.size, arguments.size)
                objective: Objective = autoencoder_objective(recipe, space.vae, machine.device)
            else:
                side = arguments.size // space.reduction
                shape = (recipe.denoiser.batch, 2 * space.channels, side, side)
                mixture = GaussianMixture(6, 256, space.channels * side**2)
                objective = DenoisingObjective(build_stage(recipe, space, 6, mixture), recipe.denoiser)
                objective.networks["denoiser"].to(machine.device)
            clean = Rng(("bench",)).normal(*shape).clamp(-1, 1).to(machine.device).contiguous(memory_format=memory)
            batch = Batch(clean, torch.zeros(shape[0], dtype=torch.long, device=machine.device))
            steps.append(stepper(objective, batch, plain, machine.device))
        pairs = [[shape[0] / best_time(step, machine.device, 2) for step in steps] for _ in range(arguments.pairs)]
        ours, plainly = (statistics.median(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"{name:<12} {ours:6.1f} pictures/s, plain {plainly:6.1f}, ratio {ratio:.2f} ({len(pairs)} pairs)")


if __name__ == "__main__":
    main()
