"""The search for the augmentation level of a stage that enlarges, on what the stages below it make."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from calotype.data.folder import Pictures
from calotype.diffusion.stage import Stage
from calotype.evaluation.features import Lite0
from calotype.evaluation.search import Search, in_parts, level_distance, search_level
from calotype.recipe import Recipe
from calotype.training.examples import crop_examples
from calotype.training.previews import validation_conditions
from calotype.types import Rng

LEVELS_TRIED = 6


def search_levels(
    recipe: Recipe, below: Sequence[Stage], stage: Stage, pictures: Pictures, count: int,
    progress: Callable[[int, int], None],
) -> Search:  # fmt: skip
    """By which level `stage` makes of pictures from `below` what is nearest to validation pictures, on few crops."""
    device = next(stage.denoiser.parameters()).device
    rng = Rng((recipe.seed, "level", stage.image_size))
    labels, text = validation_conditions(pictures, count, device)
    rngs = [rng.at("sample", index) for index in range(count)]
    low_res = in_parts(below, recipe.samplings[: len(below)], labels, rngs, text=text)
    config = recipe.enlarger(stage.image_size)
    side = (config.crop or stage.image_size) // stage.factor
    corners = rng.at("crop").integers(low_res.shape[-1] - side + 1, count, 2).tolist()
    crops = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(low_res, corners, strict=True)]
    held_out = crop_examples(recipe, stage.image_size, pictures, device)(pictures.validation_indices)
    real = held_out.batch(0, count).clean
    distance = level_distance(stage, config.sampling, torch.stack(crops), labels, real, Lite0(device), text)
    return search_level(distance, stage.augmentation.most, LEVELS_TRIED, progress)
