"""The legs of a stage that enlarges, and the augmentation that suits what the stages below it make."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from calotype.build import build_enlarger
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, pixels_from_images
from calotype.data.sources import PictureSource, drawn
from calotype.diffusion.init import sdedit
from calotype.diffusion.stage import Stage, shrunk
from calotype.evaluation.levels import Search, in_parts, level_distance, search_level
from calotype.recipe import Recipe, exposure_above, leg_above
from calotype.training.constants import Keep, fit_anew
from calotype.training.denoiser_leg import DenoiserLeg, diffusion_leg, gentler
from calotype.training.examples import Bucket, Examples, crop_examples
from calotype.training.fitting import fit_local
from calotype.training.loop import Source
from calotype.training.objectives import DenoisingObjective
from calotype.training.previews import asked
from calotype.training.run import deterministic
from calotype.types import Rng

LEVELS_TRIED = 6
"""How many augmentation levels are tried for a stage that enlarges."""


def enlarger_leg(
    recipe: Recipe, size: int, pictures: Pictures, examples: Examples, device: torch.device, keep: Keep = fit_anew
) -> DenoiserLeg:
    """The diffusion model of a stage that looks at the pictures of the stage before it."""
    deterministic(recipe.seed + size)
    stage, config = build_enlarger(recipe, size, len(pictures.classes)), recipe.enlarger(size)
    if (local := stage.denoiser.local) is not None:
        train, crop = examples(pictures.train_indices), config.crop or size
        local.load_state_dict(keep(lambda: {"local": fit_local(local, train, crop)})["local"].state_dict())
    objective, forms = DenoisingObjective(stage, config), [Bucket(pictures, examples)]
    return diffusion_leg(leg_above(size), recipe, objective, config, config.sampling, forms, device)


def exposure_leg(recipe: Recipe, below: Stage, stage: Stage, pictures: Pictures, device: torch.device) -> DenoiserLeg:
    """Exposure fine-tuning: more training on pictures that the stage below has redrawn, with its artefacts."""
    size, config = stage.image_size, recipe.enlarger(stage.image_size)
    stream = f"mistakes-{size}"  # as in version 0.1: another name would draw other numbers
    rng, few = Rng((recipe.seed, stream)), config.exposure.pictures
    stage = replace(stage, denoiser=copy.deepcopy(stage.denoiser).requires_grad_(True))

    def examples(chosen: Tensor) -> Source:
        some = chosen[torch.linspace(0, len(chosen) - 1, min(few, len(chosen))).long()]
        small = redraw_all(recipe, below, pictures, some, device, rng)
        crop = config.crop or size
        return PictureSource(pictures, some, rng, device, crop, recipe.flip, stage.factor, small)

    shorter = config.model_copy(update={"images": config.exposure.images, "learn": gentler(config.learn)})
    objective, forms = DenoisingObjective(stage, config), [Bucket(pictures, examples)]
    return diffusion_leg(exposure_above(size), recipe, objective, shorter, config.sampling, forms, device, stream)


def redraw_all(
    recipe: Recipe, below: Stage, pictures: Pictures, chosen: Tensor, device: torch.device, rng: Rng
) -> UInt8[Tensor, "count 3 size size"]:
    """The chosen pictures at the size of the stage below, redrawn by it, a few at a time."""
    index = recipe.chain.index(below.image_size)
    share, made = recipe.enlarger(recipe.chain[index + 1]).exposure.share, []
    factor = pictures.pixels.shape[-1] // below.image_size
    for part in chosen.split(8):
        images = shrunk(images_from_pixels(pictures.pixels[part]).to(device), factor)
        rngs = [rng.at("redrawn", int(one)) for one in part]
        labels = pictures.labels[part].to(device)
        text = drawn(pictures.captions, part, rng.at("redrawn", int(part[0])))
        again = sdedit(below, images, labels, recipe.samplings[index], share, rngs, text)
        made.append(pixels_from_images(again).cpu())
    return torch.cat(made)


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
    labels, text = asked(pictures, count, device)
    rngs = [rng.at("sample", index) for index in range(count)]
    small = in_parts(below, recipe.samplings[: len(below)], labels, rngs, text=text)
    config = recipe.enlarger(stage.image_size)
    side = (config.crop or stage.image_size) // stage.factor
    corners = rng.at("crop").integers(small.shape[-1] - side + 1, count, 2).tolist()
    crops = torch.stack([one[:, y : y + side, x : x + side] for one, (y, x) in zip(small, corners, strict=True)])
    held_out = crop_examples(recipe, stage.image_size, pictures, device)(pictures.validation_indices)
    real = held_out.batch(0, count).clean
    distance = level_distance(stage, config.sampling, crops, labels, real, text)
    return search_level(distance, stage.augmentation.most, LEVELS_TRIED, progress)
