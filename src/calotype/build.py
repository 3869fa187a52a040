"""From a recipe to objects."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Stage
from calotype.interop import autoencoders, minilm, transformers
from calotype.nets.blocks import Precision, channels_last
from calotype.nets.deterministic import DeterministicAutoencoder
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.frozen import FolderConfig, FrozenEncoder, MiniLmConfig, ProjectedEncoder
from calotype.nets.kl import Autoencoder, Kl, KlConfig
from calotype.nets.text import BytesConfig, BytesEncoder, NoText, TextConditioned, TextEncoder
from calotype.nets.unet import Unet, UnetConfig
from calotype.nets.vae import Vae, VaeConfig
from calotype.priors.patches import PatchPrior
from calotype.priors.prior import MOST_VALUES, Prior
from calotype.recipe import AutoencoderNetwork, Backbone, DiffusionConfig, ImportedSpace, OwnSpace, Recipe, TextConfig
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space

MOST_TO_START = 2000
"""Pictures, at most, that the closed-form start of an autoencoder is made from."""
START_VALUES = 2**20
"""Of the pictures whose patches are in memory together, in float64: 8 MB."""


def build_backbone(config: Backbone, in_channels: int, out_channels: int, context_width: int = 0) -> nn.Module:
    match config:
        case UnetConfig():
            return channels_last(Unet(config, in_channels, out_channels, context_width))
        case DitConfig():
            return Dit(config, in_channels, out_channels, context_width)


def build_frozen(text: TextConfig) -> FrozenEncoder | None:
    """The frozen text encoder, which all stages of a model share; None where none is set."""
    match text:
        case MiniLmConfig():
            return FrozenEncoder(minilm.open_minilm(text))
        case FolderConfig():
            return FrozenEncoder(transformers.open_encoder(text))
    return None


def build_conditioned(
    config: Backbone, in_channels: int, out_channels: int, text: TextConfig, frozen: FrozenEncoder | None = None
) -> nn.Module:
    """A backbone, conditioned on text if the recipe has an encoder; `frozen` is that of `build_frozen`."""
    match text:
        case NoText():
            return build_backbone(config, in_channels, out_channels)
        case BytesConfig():
            encoder: TextEncoder = BytesEncoder(text)
        case MiniLmConfig() | FolderConfig():
            assert frozen is not None, f"denoiser.text.kind is {text.kind}, but no encoder is passed"
            encoder = ProjectedEncoder(frozen, config.width)
    return TextConditioned(build_backbone(config, in_channels, out_channels, encoder.width), encoder, config.width)


def build_space(recipe: Recipe) -> LatentSpace:
    return LatentSpace(build_autoencoder(recipe.autoencoder.network, recipe.precision))


def initial_space(recipe: Recipe, pictures: Pictures, device: torch.device) -> LatentSpace:
    """An autoencoder before its training: imported, or with the closed-form start from the training pictures.

    That of a run is still to be loaded: see `WarmStart`.
    """
    space = build_space(recipe).to(device)
    if isinstance(recipe.space, ImportedSpace):
        assert not isinstance(space.vae, Vae)
        weights = autoencoders.read_autoencoder_weights(Path(recipe.space.path), space.vae.config)
        space.vae.load_state_dict(weights)
    elif isinstance(recipe.space, OwnSpace) and isinstance(space.vae, Vae):
        start_linear(space.vae, pictures, device)
    return space


def start_linear(vae: Vae, pictures: Pictures, device: torch.device) -> None:
    """The PCA of the patches of at most `MOST_TO_START` training pictures."""
    most = max(16, min(MOST_TO_START, MOST_VALUES // pictures.pixels[0].numel()))
    chosen = pictures.train_indices[:: max(1, len(pictures.train_indices) // most)][:most]
    parts = chosen.split(max(1, START_VALUES // pictures.pixels[0].numel()))
    vae.start_linear(images_from_pixels(pictures.pixels[part]).to(device) for part in parts)


def build_autoencoder(config: AutoencoderNetwork, precision: Precision) -> Autoencoder:
    match config:
        case VaeConfig():
            return channels_last(Vae(config, precision))
        case KlConfig():
            return channels_last(Kl(config, precision))
    network = autoencoders.open_network(config)
    return channels_last(DeterministicAutoencoder(config, network, precision))


def build_denoiser(
    recipe: Recipe, config: DiffusionConfig, inputs: int, channels: int, classes: int, prior: Prior | None,
    frozen: FrozenEncoder | None, views: bool = False,
) -> Denoiser:  # fmt: skip
    """`inputs`: how many images its network gets: the noisy one, the prior mean, the low-resolution one."""
    network = build_conditioned(config.backbone, inputs * channels, channels, recipe.denoiser.text, frozen)
    width = config.backbone.width
    return Denoiser(network, width, classes, config.scaling, recipe.precision, config.sigma_data, prior, views)


def build_stage(
    recipe: Recipe, space: Space, classes: int, prior: Prior | None, frozen: FrozenEncoder | None = None
) -> Stage:
    """The first stage. With a prior, the network also gets its mean."""
    config, inputs = recipe.denoiser, 1 if prior is None else 2
    denoiser = build_denoiser(recipe, config, inputs, space.channels, classes, prior, frozen, config.views > 0)
    return Stage(denoiser, space, config.schedule, recipe.chain[0])


def build_enlarger(recipe: Recipe, size: int, classes: int, frozen: FrozenEncoder | None = None) -> Stage:
    """The stage that makes pictures of this size from those of the stage before; its prior is still to be fitted."""
    config, space, low_res = recipe.enlarging(size), PixelSpace(), recipe.chain[recipe.chain.index(size) - 1]
    prior = PatchPrior(size // low_res) if config.prior == "gaussian" else None
    inputs = 2 if prior is None else 3
    denoiser = build_denoiser(recipe, config, inputs, space.channels, classes, prior, frozen)
    return Stage(denoiser, space, config.schedule, size, low_res, config.augmentation)
