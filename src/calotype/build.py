"""From a recipe to objects: the match statements, and nothing else."""

from __future__ import annotations

from torch import nn

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.gaussian import Mixture
from calotype.learning.objectives import FirstStage
from calotype.nets.blocks import channels_last
from calotype.nets.critic import Critic
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.perceptual import efficientnet_lite0
from calotype.nets.text import BytesConfig, BytesEncoder, NoText, Reading
from calotype.nets.unet import Unet, UnetConfig
from calotype.nets.vae import Vae
from calotype.recipe import Backbone, Recipe, TextConfig
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.stage import Stage


def build_backbone(config: Backbone, in_channels: int, out_channels: int, context_width: int = 0) -> nn.Module:
    match config:
        case UnetConfig():
            return channels_last(Unet(config, in_channels, out_channels, context_width))
        case DitConfig():
            return Dit(config, in_channels, out_channels, context_width)


def build_reading(config: Backbone, in_channels: int, out_channels: int, text: TextConfig) -> nn.Module:
    """A backbone, with ears for words if there is a text encoder."""
    match text:
        case NoText():
            return build_backbone(config, in_channels, out_channels)
        case BytesConfig():
            backbone = build_backbone(config, in_channels, out_channels, text.width)
            return Reading(backbone, BytesEncoder(text), config.width)


def build_space(recipe: Recipe) -> LatentSpace:
    return LatentSpace(channels_last(Vae(recipe.autoencoder.network, recipe.precision)))


def build_stage(recipe: Recipe, space: Space, classes: int, mixture: Mixture | None) -> Stage:
    """The first stage. With a mixture, the backbone also sees what that makes of the noisy picture."""
    config = recipe.denoiser
    seen = 1 if mixture is None else 2
    backbone = build_reading(config.backbone, seen * space.channels, space.channels, config.text)
    width = config.backbone.width
    denoiser = Denoiser(backbone, width, classes, config.scaling, recipe.precision, config.spread, mixture)
    return Stage(denoiser, space, config.schedule, recipe.chain[0])


def build_enlarger(recipe: Recipe, size: int, classes: int) -> Stage:
    """The stage that makes pictures of this size from those of the stage before."""
    config, space = recipe.enlarger(size), PixelSpace()
    backbone = build_reading(config.backbone, 2 * space.channels, space.channels, recipe.denoiser.text)
    denoiser = Denoiser(backbone, config.backbone.width, classes, config.scaling, recipe.precision, config.spread)
    smaller = recipe.chain[recipe.chain.index(size) - 1]
    return Stage(denoiser, space, config.schedule, size, smaller, config.augmentation, config.contrast)


def build_first_stage(recipe: Recipe, vae: Vae) -> FirstStage:
    critic = channels_last(Critic(recipe.autoencoder.critic))
    return FirstStage(vae, critic, efficientnet_lite0(), recipe.autoencoder.losses)
