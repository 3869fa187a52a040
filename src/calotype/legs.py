"""The legs of a run: what each trains, on what, and how it is looked at. The plan shares these lines."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from calotype.build import build_enlarger, build_first_stage, build_space, build_stage
from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images, pixels_from_images
from calotype.data.latents import LatentCache
from calotype.data.sources import LatentSource, PictureSource, drawn
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.gaussian import Mixture, fit
from calotype.evaluate.levels import Search, in_parts, level_distance, search_level
from calotype.evaluate.reconstruction import psnr
from calotype.learning.objectives import Denoising
from calotype.learning.player import Player, PlayerConfig
from calotype.learning.run import Leg, deterministic
from calotype.learning.train import Clock, Source
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.nets.vae import Vae
from calotype.recipe import DiffusionConfig, Recipe, leg_above, mistakes_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import Space
from calotype.stage import Sampling, Stage, enlarged, generate, redrawn, shrunk
from calotype.vocabulary import NOT_TOLD, Batch, Images, Labels, OtherImages, Rng, Text

PREVIEW_COUNT = 12
PREVIEW_VALUES = 2**20
"""Previews show fewer pictures where they are large: so many pixels in all, and 4 pictures at least."""
CHECK_COUNT = 128
CHECK_VALUES = 2**23
"""A check looks at fewer pictures where they are large: at so many values in all, and at 4 pictures at least."""
GAUSSIAN_CHECK = 512
LEVELS_TRIED = 6
"""How many augmentation levels are tried for a stage that enlarges."""
MOST_VALUES = 2**26

Examples = Callable[[Tensor], Source]
"""From the indices of pictures to batches of them, as a denoiser wants them."""


def as_read(recipe: Recipe, pictures: Pictures) -> Pictures:
    """Without captions where nothing reads them."""
    return pictures if recipe.denoiser.text.kind != "none" else replace(pictures, captions=None)


def held_out_prompts(pictures: Pictures, count: int) -> tuple[str, ...]:
    """Captions of pictures that are not trained on, to sample with; none where there are none."""
    captions = pictures.captions
    told = [index for index in pictures.held_out_indices.tolist() if captions and captions.of[index]]
    text = drawn(captions, torch.tensor(told[:count], dtype=torch.long), Rng(("prompts",)))
    return text.wanted if text else ()


def start_linear(space: LatentSpace, pictures: Pictures, device: torch.device) -> None:
    """The closed-form start of the autoencoder, from at most 2,000 training pictures."""
    most = max(16, min(2000, MOST_VALUES // pictures.pixels[0].numel()))
    chosen = pictures.train_indices[:: max(1, len(pictures.train_indices) // most)][:most]
    space.vae.start_linear(images_from_pixels(pictures.pixels[chosen]).to(device))


def picture_source(recipe: Recipe, pictures: Pictures, device: torch.device) -> PictureSource:
    """For the autoencoder."""
    crop = recipe.autoencoder.crop or recipe.chain[0]
    return PictureSource(pictures, pictures.train_indices, Rng((recipe.seed, "pictures")), device, crop, recipe.flip)


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
        return averaged(self.objective.stage, self.players["denoiser"])


def averaged(stage: Stage, player: Player) -> Stage:
    assert isinstance(player.average, Denoiser)
    return replace(stage, denoiser=player.average)


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
    count = check_count(pictures.pixels[0].numel())
    look = Reconstructions(held_out_images(pictures, count, device), players["autoencoder"].average)
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
        some = self.images[: max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.images[0, 0].numel()))]
        pairs = torch.stack([some, self.reconstruct(some)], 1).flatten(0, 1)
        grid(pils_from_images(pairs), 6).save(path)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        fake = self.reconstruct(self.images)
        few = slice(0, 32)
        features = efficientnet_lite0().to(fake.device)
        distance = perceptual_distance(features, self.images[few], fake[few])
        return {"psnr": float(psnr(self.images, fake).mean()), "perceptual": float(distance.mean())}


def latent_examples(recipe: Recipe, pictures: Pictures, cache: LatentCache, device: torch.device) -> Examples:
    rng = Rng((recipe.seed, "latents"))
    return lambda chosen: LatentSource(cache, pictures.labels, chosen, rng, device, pictures.captions)


def picture_examples(recipe: Recipe, pictures: Pictures, device: torch.device) -> Examples:
    rng, size = Rng((recipe.seed, "base")), recipe.chain[0]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, size, recipe.flip)


def crop_examples(recipe: Recipe, size: int, pictures: Pictures, device: torch.device) -> Examples:
    """With their smaller pictures, for the stage that makes pictures of this size."""
    rng, crop = Rng((recipe.seed, leg_above(size))), recipe.enlarger(size).crop or size
    factor = size // recipe.chain[recipe.chain.index(size) - 1]
    return lambda chosen: PictureSource(pictures, chosen, rng, device, crop, recipe.flip, factor)


def denoiser_leg(
    recipe: Recipe, pictures: Pictures, space: Space, examples: Examples, device: torch.device
) -> DenoiserLeg:
    """The diffusion model of the first stage, in pixels or in the latents of a trained autoencoder."""
    deterministic(recipe.seed + 1)
    mixture = fit_mixture(recipe, pictures, space, examples) if recipe.denoiser.start == "gaussian" else None
    stage = build_stage(recipe, space, len(pictures.classes), mixture)
    return diffusion_leg("denoiser", recipe, stage, recipe.denoiser, recipe.sampling, pictures, examples, device)


def enlarger_leg(
    recipe: Recipe, size: int, pictures: Pictures, examples: Examples, device: torch.device
) -> DenoiserLeg:
    """The diffusion model of a stage that looks at the pictures of the stage before it."""
    deterministic(recipe.seed + size)
    stage, config = build_enlarger(recipe, size, len(pictures.classes)), recipe.enlarger(size)
    return diffusion_leg(leg_above(size), recipe, stage, config, config.sampling, pictures, examples, device)


def mistakes_leg(recipe: Recipe, below: Stage, stage: Stage, pictures: Pictures, device: torch.device) -> DenoiserLeg:
    """More training of `stage`, on pictures that the stage below has redrawn with its own mistakes."""
    size, config = stage.image_size, recipe.enlarger(stage.image_size)
    rng, few = Rng((recipe.seed, mistakes_above(size))), config.mistakes.pictures
    stage = replace(stage, denoiser=copy.deepcopy(stage.denoiser).requires_grad_(True))

    def examples(chosen: Tensor) -> Source:
        some = chosen[torch.linspace(0, len(chosen) - 1, min(few, len(chosen))).long()]
        small = redraw_all(recipe, below, pictures, some, device, rng)
        crop = config.crop or size
        return PictureSource(pictures, some, rng, device, crop, recipe.flip, stage.factor, small)

    shorter = config.model_copy(update={"images": config.mistakes.images, "learn": gentler(config.learn)})
    return diffusion_leg(mistakes_above(size), recipe, stage, shorter, config.sampling, pictures, examples, device)


def gentler(learn: PlayerConfig) -> PlayerConfig:
    """For a network that has learned already."""
    return learn.model_copy(update={"learning_rate": learn.learning_rate / 4})


def redraw_all(
    recipe: Recipe, below: Stage, pictures: Pictures, chosen: Tensor, device: torch.device, rng: Rng
) -> UInt8[Tensor, "count 3 size size"]:
    """The chosen pictures at the size of the stage below, redrawn by it, a few at a time."""
    index = recipe.chain.index(below.image_size)
    share, made = recipe.enlarger(recipe.chain[index + 1]).mistakes.share, []
    factor = pictures.pixels.shape[-1] // below.image_size
    for part in chosen.split(8):
        images = shrunk(images_from_pixels(pictures.pixels[part]).to(device), factor)
        rngs = [rng.at("redrawn", int(one)) for one in part]
        labels = pictures.labels[part].to(device)
        text = drawn(pictures.captions, part, rng.at("redrawn", int(part[0])))
        again = redrawn(below, images, labels, recipe.samplings[index], share, rngs, text)
        made.append(pixels_from_images(again).cpu())
    return torch.cat(made)


def diffusion_leg(
    name: str,
    recipe: Recipe,
    stage: Stage,
    config: DiffusionConfig,
    sampling: Sampling,
    pictures: Pictures,
    examples: Examples,
    device: torch.device,
) -> DenoiserLeg:
    stage.denoiser.to(device)
    objective, player = Denoising(stage, config.label_dropout), Player(stage.denoiser, config.learn)
    train = examples(pictures.train_indices)
    count = check_count(train.batch(0, 1).clean[0].numel())
    held_out = examples(pictures.held_out_indices).batch(0, min(count, len(pictures.held_out_indices)))
    same = train.batch(0, len(held_out))
    rng = Rng((recipe.seed, name))
    look = Samples(averaged(stage, player), sampling, held_out, same, len(pictures.classes), rng)
    clock = Clock(config.images, config.batch, recipe.seed)
    leg = DenoiserLeg(name, objective, {"denoiser": player}, train, clock, look.draw, look.measure)
    leg.prompts = look.prompts
    return leg


def search_levels(
    recipe: Recipe,
    below: Sequence[Stage],
    stage: Stage,
    pictures: Pictures,
    count: int,
    progress: Callable[[int, int], None],
) -> Search:
    """Which augmentation brings what `stage` makes of pictures from `below` nearest to held-out ones, on few crops."""
    device = next(stage.denoiser.parameters()).device
    rng = Rng((recipe.seed, "level", stage.image_size))
    labels = each_class(count, len(pictures.classes), device)
    rngs = [rng.at("sample", index) for index in range(count)]
    small = in_parts(below, recipe.samplings[: len(below)], labels, rngs)
    config = recipe.enlarger(stage.image_size)
    side = (config.crop or stage.image_size) // stage.factor
    corners = rng.at("crop").integers(small.shape[-1] - side + 1, count, 2).tolist()
    crops = torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(small, corners, strict=True)])
    held_out = crop_examples(recipe, stage.image_size, pictures, device)(pictures.held_out_indices)
    real = held_out.batch(0, count).clean
    distance = level_distance(stage, config.sampling, crops, labels, real)
    return search_level(distance, stage.augmentation.most, LEVELS_TRIED, progress)


def each_class(count: int, classes: int, device: torch.device) -> Labels:
    """Every class in turn; not told where there is none."""
    indices = torch.arange(count, device=device)
    return indices % classes if classes else torch.full_like(indices, NOT_TOLD)


def check_count(values: int) -> int:
    return max(4, min(CHECK_COUNT, CHECK_VALUES // values))


def fit_mixture(recipe: Recipe, pictures: Pictures, space: Space, examples: Examples) -> Mixture:
    """The closed-form start of the denoiser, from as many training latents as `MOST_VALUES` allows."""
    rng = Rng((recipe.seed, "gaussian"))
    train, held_out = examples(pictures.train_indices), examples(pictures.held_out_indices)
    few = held_out.batch(0, min(GAUSSIAN_CHECK, len(pictures.held_out_indices)))
    most = max(2, MOST_VALUES // few.clean[0].numel())
    many = train.batch(0, min(most, len(pictures.train_indices)))
    clean, known = (on_solver(space.sample(one.clean, rng)) for one in (many, few))
    sigma = recipe.denoiser.schedule.draw(len(known), rng.at("sigma")).to(known)
    noise = rng.at("noise").normal(*known.shape).to(known)
    return fit(clean, on_solver(many.labels), known, on_solver(few.labels), sigma, noise)


def on_solver(values: Tensor) -> Tensor:
    """Where linear algebra is complete: on CUDA, else on the CPU."""
    return values if values.device.type == "cuda" else values.cpu()


@dataclass
class Samples:
    """Pictures from a stage with seeds that stay the same, and its loss on held-out pictures and on trained ones."""

    stage: Stage
    sampling: Sampling
    held_out: Batch
    train: Batch
    classes: int
    rng: Rng

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        few = self.sampling.model_copy(update={"steps": min(10, self.sampling.steps), "conditioning": "whole"})
        smaller = self.held_out.smaller
        rngs = [Rng(("preview", index)) for index in range(PREVIEW_COUNT)]
        if smaller is None:
            labels, text = self.asked(self.count)
            shown = generate([self.stage], labels, [few], rngs[: len(labels)], text=text)
        else:
            shown = self._enlarged(smaller[: self.count], few, rngs)
        grid(pils_from_images(shown), 6).save(path)

    @property
    def count(self) -> int:
        """Of pictures in a preview."""
        most = max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.stage.image_size**2))
        return most if self.held_out.smaller is None else PREVIEW_COUNT // 2

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the pictures in a preview."""
        text = self.text(self.count)
        return text.wanted if text else ()

    def asked(self, count: int) -> tuple[Labels, Text | None]:
        """What previews show: held-out captions, alone, as prompts are; else every class in turn."""
        labels = each_class(count, self.classes, self.held_out.labels.device)
        if (text := self.text(count)) is None:
            return labels, None
        return torch.full_like(labels[: len(text.wanted)], NOT_TOLD), text

    def text(self, count: int) -> Text | None:
        return self.held_out.text and Text(self.held_out.text.wanted[:count])

    def _enlarged(self, smaller: Images, sampling: Sampling, rngs: list[Rng]) -> OtherImages:
        """The smaller picture, what the stage makes of it, and what it was: side by side."""
        count = len(smaller)
        made = generate([self.stage], self.held_out.labels[:count], [sampling], rngs[:count], smaller, self.text(count))
        before = enlarged(smaller, self.stage.factor).clamp(-1, 1)
        return torch.stack([before, made, self.held_out.clean[:count]], 1).flatten(0, 1)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Losses, each time with the same noise, so that they can be compared; also by thirds of the noise levels."""
        objective, rng, measures = Denoising(self.stage, label_dropout=0.0), self.rng.at("check"), {}
        for name, batch in (("held_out", self.held_out), ("train", self.train)):
            sigma, loss = objective.each(batch, rng)
            measures[f"{name}_loss"] = float(loss.mean())
            thirds = loss[sigma.argsort()].tensor_split(3)
            for level, third in zip(("low", "middle", "high"), thirds, strict=True):
                if len(third):
                    measures[f"{name}_loss_{level}_noise"] = float(third.mean())
        return measures


def held_out_images(pictures: Pictures, count: int, device: torch.device) -> Images:
    chosen = pictures.held_out_indices[:count]
    return images_from_pixels(pictures.pixels[chosen]).to(device).contiguous(memory_format=torch.channels_last)
