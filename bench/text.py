"""What text adds to a training step of the denoiser, at the default size.

    python bench/text.py [--size 64] [--budget 1800] [--pairs 12]

The same step with captions and without, in turn; the ratio is taken pair by pair, of the processor's time on one
thread, so that a machine that others share does not decide.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from calotype.build import build_space, build_stage
from calotype.data.captions import Captions
from calotype.data.sources import draw_captions
from calotype.demo.portraits import read_portraits
from calotype.machine import examine
from calotype.planning.choose import choose_text, propose
from calotype.priors.captions import CaptionedMixture
from calotype.priors.fit import largest_prior
from calotype.priors.prior import Prior
from calotype.recipe import OptimizerConfig, Recipe
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.loop import TrainProgress, train_step
from calotype.training.objectives import DenoisingObjective
from calotype.training.state import TrainState
from calotype.types import Batch, Rng


def stepper(recipe: Recipe, captions: Captions | None) -> Callable[[], object]:
    space, count = build_space(recipe), recipe.denoiser.batch
    side = recipe.size // space.reduction
    objective = DenoisingObjective(
        build_stage(recipe, space, 6, mixture_for(captions, space.channels * side**2)), recipe.denoiser
    )
    states = {"denoiser": TrainState(objective.stage.denoiser, OptimizerConfig())}
    clean = Rng(("bench",)).normal(count, 2 * space.channels, side, side).clamp(-1, 1)
    clean = clean.contiguous(memory_format=torch.channels_last)
    text = draw_captions(captions, torch.arange(count), Rng(("captions",)))
    batch, progress = Batch(clean, torch.arange(count) % 6, text=text), TrainProgress(10**6, count, 0)
    return lambda: train_step(objective, states, batch, progress)


def mixture_for(captions: Captions | None, dimension: int) -> Prior:
    """Of as many components as a fit to the portraits has, with words that tell six styles apart."""
    prior = largest_prior(10_000, dimension, 6, captions is not None)
    if isinstance(prior, CaptionedMixture):
        prior.gate.copy_(5 * Rng(("votes",)).normal(*prior.gate.shape))
    return prior


def processor_seconds(step: Callable[[], object]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--budget", type=float, default=1800.0)
    parser.add_argument("--pairs", type=int, default=12)
    arguments = parser.parse_args()
    machine, pictures = examine("cpu", threads=1), read_portraits(arguments.size, 600)
    proposal, _ = propose(pictures, machine, arguments.budget, {"size": arguments.size})
    backbone, captions = proposal["denoiser"]["backbone"], pictures.captions
    assert captions is not None
    text = choose_text(Captions(captions.of), backbone["width"], backbone["depth"])
    reading = stepper(parse_recipe(merge(proposal, {"denoiser": {"text": text}})), captions)
    deaf = stepper(parse_recipe(proposal), None)
    pairs = []
    for _ in range(arguments.pairs + 1):  # the first one warms up
        pairs.append([min(processor_seconds(step) for _ in range(3)) for step in (reading, deaf)])
    with_text, without = (min(column) for column in zip(*pairs[1:], strict=True))
    ratio = statistics.median(one / other for one, other in pairs[1:])
    print(f"width {backbone['width']}, {backbone['depth']} layers; {machine}")
    print(f"a step {with_text:.3f} s, without text {without:.3f} s, ratio {ratio:.3f} ({arguments.pairs} pairs)")


if __name__ == "__main__":
    main()
