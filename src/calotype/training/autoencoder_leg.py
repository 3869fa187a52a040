"""The leg of the first stage: an autoencoder, from its closed-form start or imported."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from calotype.build import build_space
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.interop import diffusers
from calotype.nets.blocks import channels_last
from calotype.nets.critic import Critic
from calotype.nets.kl import Autoencoder, Kl
from calotype.nets.perceptual import efficientnet_lite0
from calotype.nets.vae import Vae
from calotype.recipe import ImportedSpace, Recipe
from calotype.spaces.latent import LatentSpace
from calotype.training.critic_guard import CriticGuard
from calotype.training.examples import MOST_VALUES, picture_source
from calotype.training.loop import TrainProgress
from calotype.training.objectives import AutoencoderObjective
from calotype.training.previews import Reconstructions, reconstructions
from calotype.training.run import Leg, deterministic
from calotype.training.state import TrainState

GUARDED = 16
"""Pictures by which the critic's guard judges: their mean PSNR is steady to a tenth of a dB from look to look."""


@dataclass
class AutoencoderLeg(Leg):
    @property
    def vae(self) -> Autoencoder:
        """What was learned: the averaged weights."""
        vae = self.players["autoencoder"].average
        assert isinstance(vae, Autoencoder)
        return vae


def autoencoder_leg(recipe: Recipe, pictures: Pictures, device: torch.device) -> AutoencoderLeg:
    """The first stage: pictures to latents and back."""
    deterministic(recipe.seed)
    space = start_space(recipe, pictures, device)
    config, objective = recipe.autoencoder, autoencoder_objective(recipe, space.vae)
    objective.features.to(device)
    learns = {"autoencoder": config.learn, "critic": config.critic_learn}
    players = {name: TrainState(network.to(device), learns[name]) for name, network in objective.players.items()}
    look = reconstructions(pictures, players["autoencoder"].average, device)
    clock = TrainProgress(config.images, config.batch, recipe.seed)
    source = picture_source(recipe, pictures, device)
    leg = AutoencoderLeg("autoencoder", objective, players, source, clock, look.draw, look.measure)
    watched = Reconstructions(look.images[:GUARDED], space.vae)
    guard = CriticGuard(objective, players["autoencoder"], watched.psnr)
    return replace(leg, guards={"critic-guard": guard} if "critic" in players else {})


def autoencoder_objective(recipe: Recipe, vae: Autoencoder) -> AutoencoderObjective:
    critic = channels_last(Critic(recipe.autoencoder.critic))
    return AutoencoderObjective(vae, critic, efficientnet_lite0(), recipe.autoencoder.losses)


def start_space(recipe: Recipe, pictures: Pictures, device: torch.device) -> LatentSpace:
    """An autoencoder before its training: imported, or with the closed-form start from the training pictures."""
    space = build_space(recipe).to(device)
    if isinstance(recipe.space, ImportedSpace):
        assert isinstance(space.vae, Kl)
        space.vae.load_state_dict(diffusers.read_weights(Path(recipe.space.path), space.vae.config))
    elif isinstance(space.vae, Vae):
        start_linear(space.vae, pictures, device)
    return space


def start_linear(vae: Vae, pictures: Pictures, device: torch.device) -> None:
    """From at most 2,000 training pictures."""
    most = max(16, min(2000, MOST_VALUES // pictures.pixels[0].numel()))
    chosen = pictures.train_indices[:: max(1, len(pictures.train_indices) // most)][:most]
    vae.start_linear(images_from_pixels(pictures.pixels[chosen]).to(device))
