"""Searches for sampling settings after training, by kernel distances from validation pictures.

They choose the guidance scale of the first stage with its epsilon scaling, and the augmentation level of a stage that
enlarges what the stages below it make.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import encoded_at_once
from calotype.data.sources import draw_captions
from calotype.data.split import evenly
from calotype.diffusion.stage import Sampling, Stage, generate_in_turn
from calotype.evaluation.features import Lite0, features
from calotype.evaluation.search import (
    FEATURES_AT_ONCE,
    Search,
    level_distance,
    scale_distance,
    search_level,
    search_scale,
)
from calotype.recipe import Recipe
from calotype.run import RunState
from calotype.settings import parse_recipe
from calotype.tables import merge
from calotype.training.examples import crop_examples
from calotype.training.previews import validation_conditions
from calotype.training.scaling import SCALED_SAMPLES, amplitude, no_scaling, scaling_of
from calotype.types import Progress, Rng

LEVELS_TRIED = 6
SCALES_TRIED = (1.5, 3.0)
"""Guidance scales, besides the usual one: that of photographs with epsilon scaling, and that of portraits, for which
stronger ones come nearer, too, but faces lose features (dev/LOG.md, 2026-11-30)."""
JUDGED_WHOLE = 256
"""Side in pixels up to which an augmentation level is judged on whole pictures, as samples are in an evaluation; larger
ones on crops, which costs less. Crops of smaller pictures took noise that stays as grain for an improvement."""
MOST_REAL = 512
"""Validation pictures that samples are held against, at most."""


def with_searched(recipe: Recipe, state: RunState) -> Recipe:
    """The recipe with the guidance scale and the augmentation levels that the searches of a run have found so far."""
    found = state.guidance
    sampling = recipe.sampling.model_dump()
    if found is not None:
        sampling = recipe.sampling.scaled(found.epsilon_scaling or 0.0).model_dump() | {"guidance": found.best}
    levels = {size: {"sampling": {"augmentation": level.best}} for size, level in state.levels.items()}
    return parse_recipe(merge(recipe.model_dump(), {"sampling": sampling, "enlarge": levels}), lambda key: "run.json")


def search_guidance(recipe: Recipe, stage: Stage, pictures: Pictures, count: int, progress: Progress) -> Search:
    """The guidance scale at which samples of the first stage, with the conditions of validation pictures, are nearest
    to these, and the epsilon scaling that suits it.

    The scale of the recipe is kept unless another is nearer by more than a standard error: where the prior is crude,
    as it is of few pictures, a strong scale exaggerates.
    """
    device, rows = next(stage.denoiser.parameters()).device, pictures.validation_indices
    own, network = rows[torch.arange(count) * len(rows) // count], Lite0(device)
    labels = pictures.labels[own].to(device)
    text = draw_captions(pictures.captions, own, Rng((recipe.seed, "guidance")))
    shown = evenly(rows, MOST_REAL)
    parts = (images_from_pixels(pictures.pixels[part]).to(device) for part in shown.split(FEATURES_AT_ONCE))
    distance = scale_distance(stage, labels, text, features(parts, network), recipe.seed, network)
    latent = recipe.kind == "latent"
    of_real = validation_amplitude(stage, pictures) if latent else 0.0
    scaling = scaling_of(stage, of_real, labels, text, recipe.seed) if latent else no_scaling
    return search_scale(distance, scaling, recipe.sampling, scales_tried(recipe.sampling), progress)


def scales_tried(sampling: Sampling) -> list[float]:
    return sorted({*SCALES_TRIED, sampling.guidance})


@torch.no_grad()
def validation_amplitude(stage: Stage, pictures: Pictures) -> float:
    """The `amplitude` of the latents of validation pictures."""
    device, rows = next(stage.denoiser.parameters()).device, evenly(pictures.validation_indices, SCALED_SAMPLES)
    few = encoded_at_once(pictures.pixels[0].numel())
    parts = (images_from_pixels(pictures.pixels[part]).to(device) for part in rows.split(few))
    return amplitude(map(stage.space.encode, parts))


def search_levels(
    recipe: Recipe, below: Sequence[Stage], stage: Stage, pictures: Pictures, count: int,
    progress: Progress,
) -> Search:  # fmt: skip
    """The augmentation level at which `stage` enlarges samples of the stages `below` to what is nearest to validation
    pictures; on `count` of them, or crops of them.
    """
    device = next(stage.denoiser.parameters()).device
    rng = Rng((recipe.seed, "level", stage.image_size))
    labels, text = validation_conditions(pictures, count, device)
    rngs = [rng.at("sample", index) for index in range(count)]
    low_res = torch.cat([*generate_in_turn(below, labels, recipe.samplings[: len(below)], rngs, text=text)])
    config, crop = recipe.enlarging(stage.image_size), judged_side(recipe, stage.image_size)
    side = crop // stage.factor
    corners = rng.at("crop").integers(low_res.shape[-1] - side + 1, count, 2).tolist()
    crops = [image[:, y : y + side, x : x + side] for image, (y, x) in zip(low_res, corners, strict=True)]
    held_out = crop_examples(recipe, stage.image_size, pictures, device, crop)(pictures.validation_indices)
    starts, network = range(0, count, FEATURES_AT_ONCE), Lite0(device)
    parts = (held_out.batch(start, min(FEATURES_AT_ONCE, count - start)).clean for start in starts)
    real = features(parts, network)
    distance = level_distance(stage, config.sampling, torch.stack(crops), labels, real, network, text)
    return search_level(distance, stage.augmentation.most, LEVELS_TRIED, progress)


def judged_side(recipe: Recipe, size: int) -> int:
    """Side of the pictures or crops by which the augmentation level of the stage of this size is judged."""
    return size if size <= JUDGED_WHOLE else recipe.enlarging(size).crop or size
