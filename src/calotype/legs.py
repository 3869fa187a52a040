"""The legs of a latent run: what each trains, on what, and how it is looked at. The plan shares these lines."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from calotype.build import build_denoising, build_first_stage, build_space, build_stage
from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.data.latents import LatentCache
from calotype.data.sources import LatentSource, PictureSource
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.gaussian import Mixture, fit
from calotype.evaluate.reconstruction import psnr
from calotype.learning.objectives import Denoising
from calotype.learning.player import Player
from calotype.learning.run import Leg, deterministic
from calotype.learning.train import Clock
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.nets.vae import Vae
from calotype.recipe import Recipe
from calotype.spaces.latent import LatentSpace
from calotype.stage import Sampling, Stage, generate
from calotype.vocabulary import NOT_TOLD, Batch, Images, Labels, Latents, Rng

PREVIEW_COUNT = 12
CHECK_COUNT = 128
GAUSSIAN_CHECK = 512
MOST_VALUES = 2**26


def start_linear(space: LatentSpace, pictures: Pictures, device: torch.device) -> None:
    """The closed-form start of the autoencoder, from at most 2,000 training pictures."""
    chosen = pictures.train_indices[:: max(1, len(pictures.train_indices) // 2000)][:2000]
    space.vae.start_linear(images_from_pixels(pictures.pixels[chosen]).to(device))


def picture_source(recipe: Recipe, pictures: Pictures, device: torch.device) -> PictureSource:
    crop = recipe.autoencoder.crop or recipe.size
    return PictureSource(pictures, Rng((recipe.seed, "pictures")), device, crop, recipe.flip)


@dataclass
class AutoencoderLeg(Leg):
    @property
    def vae(self) -> Vae:
        """What was learned: the averaged weights."""
        vae = self.players["autoencoder"].average
        assert isinstance(vae, Vae)
        return vae


@dataclass
class DenoiserLeg(Leg):
    @property
    def stage(self) -> Stage:
        """What was learned: the stage with the averaged weights."""
        assert isinstance(self.objective, Denoising)
        denoiser = self.players["denoiser"].average
        assert isinstance(denoiser, Denoiser)
        return replace(self.objective.stage, denoiser=denoiser)


def autoencoder_leg(recipe: Recipe, pictures: Pictures, device: torch.device) -> AutoencoderLeg:
    """The first stage: pictures to latents and back."""
    deterministic(recipe.seed)
    space = build_space(recipe).to(device)
    start_linear(space, pictures, device)
    config, objective = recipe.autoencoder, build_first_stage(recipe, space.vae)
    objective.critic.to(device)
    objective.features.to(device)
    players = {
        "autoencoder": Player(space.vae, config.learn),
        "critic": Player(objective.critic, config.critic_learn),
    }
    look = Reconstructions(held_out_images(pictures, CHECK_COUNT, device), players["autoencoder"].average)
    clock = Clock(config.images, config.batch, recipe.seed)
    return AutoencoderLeg(
        "autoencoder", objective, players, picture_source(recipe, pictures, device), clock, look.draw, look.measure
    )


@dataclass
class Reconstructions:
    """Held-out pictures through an autoencoder."""

    images: Images
    vae: nn.Module

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Images:
        assert isinstance(self.vae, Vae)
        parts = [self.vae.decode(self.vae.encode(some).mean) for some in images.split(16)]
        return torch.cat(parts).clamp(-1, 1)

    def draw(self, path: Path) -> None:
        """Originals, each with its reconstruction to the right."""
        some = self.images[:PREVIEW_COUNT]
        pairs = torch.stack([some, self.reconstruct(some)], 1).flatten(0, 1)
        grid(pils_from_images(pairs), 6).save(path)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        fake = self.reconstruct(self.images)
        few = slice(0, 32)
        features = efficientnet_lite0().to(fake.device)
        distance = perceptual_distance(features, self.images[few], fake[few])
        return {"psnr": float(psnr(self.images, fake).mean()), "perceptual": float(distance.mean())}


def denoiser_leg(
    recipe: Recipe, pictures: Pictures, space: LatentSpace, cache: LatentCache, device: torch.device
) -> DenoiserLeg:
    """The diffusion model in the latents of a trained autoencoder."""
    deterministic(recipe.seed + 1)
    rng = Rng((recipe.seed, "latents"))
    mixture = fit_mixture(recipe, pictures, space, cache, rng) if recipe.denoiser.start == "gaussian" else None
    stage = build_stage(recipe, space, len(pictures.classes), mixture)
    stage.denoiser.to(device)
    objective, config = build_denoising(recipe, stage), recipe.denoiser
    player = Player(stage.denoiser, config.learn)
    source = LatentSource(cache, pictures.labels, pictures.train_indices, rng, device)
    held_out = pictures.held_out_indices[:CHECK_COUNT]
    moments = cache.moments[0, held_out].float().to(device)
    batch = Batch(moments, pictures.labels[held_out].to(device))
    assert isinstance(player.average, Denoiser)
    look = Samples(replace(stage, denoiser=player.average), recipe.sampling, batch, len(pictures.classes), rng)
    clock = Clock(config.images, config.batch, recipe.seed)
    return DenoiserLeg("denoiser", objective, {"denoiser": player}, source, clock, look.draw, look.measure)


def fit_mixture(recipe: Recipe, pictures: Pictures, space: LatentSpace, cache: LatentCache, rng: Rng) -> Mixture:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows."""
    device = space.mean.device if space.mean.device.type == "cuda" else torch.device("cpu")
    most = max(2, MOST_VALUES // cache.moments[0, 0].numel())

    def latents(chosen: torch.Tensor) -> tuple[Latents, Labels]:
        chosen = chosen[:: -(-len(chosen) // most)]
        moments = cache.moments[0, chosen].float().to(device)
        return space.sample(moments, rng.at("gaussian")), pictures.labels[chosen].to(device)

    held_out, held_out_labels = latents(pictures.held_out_indices[:GAUSSIAN_CHECK])
    sigma = recipe.denoiser.schedule.draw(len(held_out), rng.at("gaussian", "sigma")).to(device)
    noise = rng.at("gaussian", "noise").normal(*held_out.shape).to(device)
    return fit(*latents(pictures.train_indices), held_out, held_out_labels, sigma, noise)


@dataclass
class Samples:
    """Pictures from a stage with seeds that stay the same, and its loss on held-out latents."""

    stage: Stage
    sampling: Sampling
    held_out: Batch
    classes: int
    rng: Rng

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        few = self.sampling.model_copy(update={"steps": min(10, self.sampling.steps)})
        indices = torch.arange(PREVIEW_COUNT, device=self.held_out.labels.device)
        labels = indices % self.classes if self.classes else torch.full_like(indices, NOT_TOLD)
        rngs = [Rng(("preview", index)) for index in range(PREVIEW_COUNT)]
        grid(pils_from_images(generate([self.stage], labels, [few], rngs)), 6).save(path)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Each time with the same noise, so that the numbers can be compared."""
        loss = Denoising(self.stage, label_dropout=0.0).losses(self.held_out, 1.0, self.rng.at("held out"))
        return {"held_out_loss": float(loss["denoiser"].total)}


def held_out_images(pictures: Pictures, count: int, device: torch.device) -> Images:
    chosen = pictures.held_out_indices[:count]
    return images_from_pixels(pictures.pixels[chosen]).to(device).contiguous(memory_format=torch.channels_last)
