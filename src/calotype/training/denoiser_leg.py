"""The leg of a denoiser, and that of the first stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from calotype.build import build_stage
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Sampling, Stage
from calotype.recipe import DiffusionConfig, OptimizerConfig, Recipe
from calotype.spaces.pixel import Space
from calotype.training.constants import Constants, Keep, as_constants, fit_anew, from_constants
from calotype.training.examples import Bucket, MixedSource, main_form
from calotype.training.fitting import fit_mixture
from calotype.training.loop import TrainProgress
from calotype.training.objectives import DenoisingObjective
from calotype.training.previews import Samples, check_count
from calotype.training.run import Leg, deterministic
from calotype.training.state import TrainState
from calotype.types import Rng


@dataclass
class DenoiserLeg(Leg):
    preview_raw: Callable[[Path], None] = lambda path: None
    """As `preview`, with the weights as the last step left them instead of their average."""

    @property
    def stage(self) -> Stage:
        """What was learned: the stage with the averaged weights."""
        assert isinstance(self.objective, DenoisingObjective)
        return averaged(self.objective.stage, self.players["denoiser"])


def averaged(stage: Stage, player: TrainState) -> Stage:
    assert isinstance(player.average, Denoiser)
    return replace(stage, denoiser=player.average)


def denoiser_leg(
    recipe: Recipe, forms: Sequence[Bucket], space: Space, device: torch.device, keep: Keep = fit_anew
) -> DenoiserLeg:
    """The diffusion model of the first stage, in pixels or in the latents of a trained autoencoder."""

    def fit() -> Constants:
        deterministic(recipe.seed + 1)
        return as_constants(*fit_mixture(recipe, forms, space))

    mixture, unseen = from_constants(keep(fit), device) if recipe.denoiser.prior == "gaussian" else (None, None)
    deterministic(recipe.seed + 1)  # the same weights, whether the closed form was fitted or read
    stage = build_stage(recipe, space, len(forms[0].pictures.classes), mixture)
    objective = DenoisingObjective(stage, recipe.denoiser, unseen)
    return diffusion_leg("denoiser", recipe, objective, recipe.denoiser, recipe.sampling, forms, device)


def diffusion_leg(
    name: str,
    recipe: Recipe,
    objective: DenoisingObjective,
    config: DiffusionConfig,
    sampling: Sampling,
    forms: Sequence[Bucket],
    device: torch.device,
    stream: str = "",
) -> DenoiserLeg:
    """Trained on all forms, and looked at on one."""
    stage, rng, main = objective.stage, Rng((recipe.seed, stream or name)), main_form(forms)
    player = TrainState(stage.denoiser.to(device), config.learn)
    trained = [one.pictures.train_indices for one in forms]
    sources = [one.examples(chosen) for one, chosen in zip(forms, trained, strict=True)]
    (pictures, examples), train = forms[main], sources[main]
    count = check_count(train.batch(0, 1).clean[0].numel())
    held_out = examples(pictures.validation_indices).batch(0, min(count, len(pictures.validation_indices)))
    same = train.batch(0, len(held_out))
    look = Samples(averaged(stage, player), stage, sampling, held_out, same, len(pictures.classes), rng)
    clock = TrainProgress(config.images, config.batch, recipe.seed)
    return DenoiserLeg(
        name,
        objective,
        {"denoiser": player},
        MixedSource(sources, [*map(len, trained)], rng),
        clock,
        look.draw,
        look.measure,
        held_out=len(held_out),
        prompts=look.prompts,
        preview_raw=look.draw_raw,
    )


def gentler(learn: OptimizerConfig) -> OptimizerConfig:
    """For a network that has learned already."""
    return learn.model_copy(update={"learning_rate": learn.learning_rate / 4})
