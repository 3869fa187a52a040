"""The leg that trains autoencoder and denoiser together, and whether it has made samples better."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from calotype.build import build_joint
from calotype.data.folder import Pictures
from calotype.evaluate.features import features
from calotype.evaluate.levels import in_parts
from calotype.evaluate.preference import Preference, prefer
from calotype.learning.joint import Joint
from calotype.learning.player import Player
from calotype.learning.run import Leg, deterministic
from calotype.learning.train import Clock
from calotype.legs.diffusion import averaged, gentler
from calotype.legs.examples import picture_examples
from calotype.legs.looks import (
    PREVIEW_COUNT,
    Reconstructions,
    Samples,
    asked,
    check_count,
    held_out_images,
)
from calotype.nets.kl import Autoencoder
from calotype.recipe import Recipe
from calotype.spaces.latent import LatentSpace
from calotype.stage import Stage
from calotype.vocabulary import Rng


@dataclass
class JointLeg(Leg):
    @property
    def stage(self) -> Stage:
        """What was learned: the stage with the averaged weights, in the averaged space."""
        assert isinstance(self.objective, Joint)
        space = self.players["autoencoder"].average
        assert isinstance(space, LatentSpace)
        return replace(averaged(self.objective.stage, self.players["denoiser"]), space=space)


def joint_leg(recipe: Recipe, stage: Stage, pictures: Pictures, device: torch.device) -> JointLeg:
    """More training of a stage in latents, together with the autoencoder that makes them."""
    deterministic(recipe.seed + 2)
    objective = build_joint(recipe, trainable(stage))
    objective.first.features.to(device)
    first, second = gentler(recipe.autoencoder.learn), gentler(recipe.denoiser.learn)
    learns = {"autoencoder": first, "critic": recipe.autoencoder.critic_learn, "denoiser": second}
    players = {name: Player(network.to(device), learns[name]) for name, network in objective.players.items()}
    source = picture_examples(recipe, pictures, device)(pictures.train_indices)
    clock = Clock(recipe.joint.images, recipe.joint.batch, recipe.seed)
    leg = JointLeg("joint", objective, players, source, clock, lambda path: None, dict)
    count = check_count(pictures.pixels[0].numel())
    reconstructions = Reconstructions(held_out_images(pictures, count, device), objective_vae(leg.stage))
    shown = picture_examples(recipe, pictures, device)(pictures.validation_indices)
    batch = shown.batch(0, min(PREVIEW_COUNT, len(pictures.validation_indices)))
    samples = Samples(
        leg.stage, objective.stage, recipe.sampling, batch, batch, len(pictures.classes), Rng((recipe.seed, "joint"))
    )
    leg.preview, leg.check, leg.prompts = samples.draw, reconstructions.measure, samples.prompts
    return leg


def trainable(stage: Stage) -> Stage:
    """A copy whose networks learn on; the linear path of the autoencoder stays as it is."""
    space, denoiser = copy.deepcopy(stage.space), copy.deepcopy(stage.denoiser).requires_grad_(True)
    assert isinstance(space, LatentSpace)
    space.vae.encoder.requires_grad_(True)
    space.vae.decoder.requires_grad_(True)
    return replace(stage, space=space, denoiser=denoiser)


def objective_vae(stage: Stage) -> Autoencoder:
    assert isinstance(stage.space, LatentSpace)
    return stage.space.vae


def judge(
    recipe: Recipe, before: Stage, after: Stage, pictures: Pictures, progress: Callable[[int, int], None]
) -> Preference:
    """Whether the joint leg has made samples better: as many from before and after as held-out pictures."""
    device = next(before.denoiser.parameters()).device
    real = held_out_images(pictures, recipe.joint.pictures, device)
    labels, text = asked(pictures, len(real), device)
    rngs = [Rng((recipe.seed, "judge", index)) for index in range(len(labels))]
    rows, blurs = [], []
    for number, stage in enumerate((before, after)):
        made = in_parts([stage], [recipe.sampling], labels, rngs, text=text)
        rows.append(features(made.split(32)))
        blurs.append(Reconstructions(real, objective_vae(stage)).measure()["perceptual"])
        progress(number + 1, 2)
    return prefer(features(real.split(32)), rows[0], rows[1], blurs[0], blurs[1])
