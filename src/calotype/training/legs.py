"""The legs of a run: the autoencoder, the denoiser of the first stage, and those of stages that enlarge."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from calotype.build import build_enlarger, build_stage
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, pixels_from_images
from calotype.data.sources import PictureSource, draw_captions
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.init import sdedit
from calotype.diffusion.stage import Sampling, Stage, shrunk
from calotype.machine import deterministic
from calotype.nets.blocks import channels_last
from calotype.nets.critic import Critic
from calotype.nets.frozen import FrozenEncoder
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import pretrained_lite0
from calotype.priors.patches import PatchPrior
from calotype.recipe import DiffusionConfig, EnlargeRecipe, Recipe, exposure_above, leg_above
from calotype.run import Run
from calotype.spaces.pixel import Space
from calotype.training.control import MIN_RECONSTRUCTED, CriticGuard
from calotype.training.examples import (
    Bucket,
    Examples,
    MixedSource,
    bucket_with_training,
    main_bucket,
    of_view,
    picture_source,
)
from calotype.training.fitting import Constants, channel_weights, cross_fitted, fit_mixture, fit_patches, keep
from calotype.training.leg import Leg
from calotype.training.loop import TrainProgress
from calotype.training.objectives import AutoencoderObjective, DenoisingObjective, OneStepObjective
from calotype.training.previews import VALIDATED, DenoiserValidator, OneStepValidator, autoencoder_validator
from calotype.training.sharding import ShardedState, sharding_mesh
from calotype.training.state import TrainState
from calotype.training.warm_start import WarmStart, first_space
from calotype.types import Rng

GUARDED = 16
"""Pictures by which the critic's guard judges: their mean PSNR is steady to a tenth of a dB from check to check."""
REDRAWN_AT_ONCE = 8

# -- The autoencoder ---------------------------------------------------------------------------------------------------


def autoencoder_leg(
    recipe: Recipe, pictures: Pictures, device: torch.device, start: WarmStart | None = None
) -> Leg[Autoencoder]:
    """From its closed-form start, as it was imported, or as the run that this one starts from has left it."""
    deterministic(recipe.seed)
    space = first_space(recipe, pictures, device, start)
    config, objective = recipe.autoencoder, autoencoder_objective(recipe, space.vae, device)
    states = {
        name: TrainState(network.to(device), recipe.learning("autoencoder", name), recipe.precision)
        for name, network in objective.networks.items()
    }
    average = states["autoencoder"].average
    assert isinstance(average, Autoencoder)
    validator = autoencoder_validator(pictures, average, objective.features, config.losses, device)
    guarded = replace(validator, images=validator.images[:GUARDED], vae=space.vae)
    guard = CriticGuard(objective, states["autoencoder"], guarded.psnr)
    return Leg(
        "autoencoder",
        objective,
        states,
        picture_source(recipe, pictures, device),
        TrainProgress(config.images, config.batch, recipe.seed),
        validator,
        average,
        guard if "critic" in states else None,
        fewest_validated=MIN_RECONSTRUCTED,
    )


def autoencoder_objective(recipe: Recipe, vae: Autoencoder, device: torch.device) -> AutoencoderObjective:
    critic = channels_last(Critic(recipe.autoencoder.critic))
    return AutoencoderObjective(vae, critic, pretrained_lite0(device), recipe.autoencoder.losses)


# -- Denoisers ---------------------------------------------------------------------------------------------------------


def denoiser_leg(
    recipe: Recipe, buckets: Sequence[Bucket], space: Space, device: torch.device, run: Run | None = None,
    frozen: FrozenEncoder | None = None, start: WarmStart | None = None,
) -> Leg[Stage]:  # fmt: skip
    """The first stage, in pixels or in the latents of a trained autoencoder."""
    deterministic(recipe.seed + 1)
    fitted: Constants = {}
    if recipe.denoiser.prior == "gaussian":
        fitted = keep(run, "denoiser", lambda: fit_mixture(recipe, buckets, space))
    deterministic(recipe.seed + 1)  # the same weights, whether the closed form was fitted or read
    classes = buckets[0].pictures.classes
    stage = build_stage(recipe, space, len(classes), fitted.get("mixture"), frozen)
    if start is not None:
        start.begin(stage, recipe, classes)
    weights = channel_weights(recipe, buckets, space)
    crossed = None if run is not None and "denoiser" in run.state.outdated else cross_fitted(fitted, device)
    objective = DenoisingObjective(stage, recipe.denoiser, crossed, weights)
    return diffusion_leg("denoiser", recipe, objective, recipe.denoiser, recipe.sampling, buckets, device)


def enlarger_leg(
    recipe: Recipe, size: int, pictures: Pictures, examples: Examples, device: torch.device, run: Run | None = None,
    frozen: FrozenEncoder | None = None, start: WarmStart | None = None,
) -> Leg[Stage]:  # fmt: skip
    """A stage that enlarges the pictures of the stage before it."""
    deterministic(recipe.seed + size)
    stage, config = build_enlarger(recipe, size, len(pictures.classes), frozen), recipe.enlarging(size)
    if isinstance(prior := stage.denoiser.prior, PatchPrior):
        train, factor = examples(pictures.train_indices), prior.factor
        fitted = keep(run, leg_above(size), lambda: fit_patches(factor, train, config.crop or size))
        prior.load_state_dict(fitted["local"].state_dict())
    if start is not None:
        start.begin(stage, recipe, pictures.classes)
    objective, buckets = enlarging_objective(stage, config, device), [Bucket(pictures, examples)]
    return diffusion_leg(leg_above(size), recipe, objective, config, config.sampling, buckets, device)


def enlarging_objective(
    stage: Stage, config: EnlargeRecipe, device: torch.device
) -> DenoisingObjective | OneStepObjective:
    if config.objective == "denoising":
        return DenoisingObjective(stage, config)
    critic = channels_last(Critic(config.critic)).to(device)
    return OneStepObjective(stage, config, critic, pretrained_lite0(device), config.losses)


def exposure_leg(recipe: Recipe, below: Stage, stage: Stage, pictures: Pictures, device: torch.device) -> Leg[Stage]:
    """Exposure fine-tuning: more training on pictures that the stage below has redrawn, with its artefacts."""
    size, config = stage.image_size, recipe.enlarging(stage.image_size)
    deterministic(recipe.seed + size)  # a new critic starts the same, whatever the legs before have drawn
    stream = f"mistakes-{size}"  # as in version 0.1: another name would draw other numbers
    rng, count = Rng((recipe.seed, stream)), config.exposure.pictures
    stage = replace(stage, denoiser=copy.deepcopy(stage.denoiser).train().requires_grad_(True))

    def examples(chosen: Tensor) -> PictureSource:
        redrawn = chosen[torch.linspace(0, len(chosen) - 1, min(count, len(chosen))).long()]
        low_res = redraw_all(recipe, below, pictures, redrawn, device, rng)
        crop = config.crop or size
        return PictureSource(pictures, redrawn, rng, device, crop, recipe.flip, stage.factor, low_res)

    learn = config.learn.model_copy(update={"learning_rate": config.learn.learning_rate / 4})  # it is trained already
    shorter = config.model_copy(update={"images": config.exposure.images, "learn": learn})
    objective, buckets = enlarging_objective(stage, config, device), [Bucket(pictures, examples)]
    return diffusion_leg(exposure_above(size), recipe, objective, shorter, config.sampling, buckets, device, stream)


def diffusion_leg(
    name: str, recipe: Recipe, objective: DenoisingObjective | OneStepObjective, config: DiffusionConfig,
    sampling: Sampling, buckets: Sequence[Bucket], device: torch.device, stream: str = "",
) -> Leg[Stage]:  # fmt: skip
    """Trained on all buckets, and validated on the one with the most validation pictures."""
    stage, rng, main = objective.stage, Rng((recipe.seed, stream or name)), main_bucket(buckets)
    mesh = sharding_mesh(recipe.sharding, device) if isinstance(objective, DenoisingObjective) else None
    states: dict[str, TrainState] = {}
    if mesh is None:
        states["denoiser"] = TrainState(stage.denoiser.to(device), config.learn, recipe.precision)
    else:
        states["denoiser"] = ShardedState(stage.denoiser, config.learn, recipe.precision, mesh)
    average = states["denoiser"].average
    assert isinstance(average, Denoiser)
    averaged = replace(stage, denoiser=average)
    trained = [bucket.pictures.train_indices for bucket in buckets]
    sources = [bucket.examples(chosen) for bucket, chosen in zip(buckets, trained, strict=True)]
    (pictures, examples), train = buckets[main], sources[bucket_with_training(buckets, main)]
    count = VALIDATED.count(train.batch(0, 1).clean[0].numel())
    chosen = of_view(examples(pictures.validation_indices), 0)
    held_out = chosen.batch(0, min(count, len(pictures.validation_indices)))
    same = of_view(train, 0).batch(0, len(held_out))
    raw = stage if mesh is None else None  # one rank alone cannot compute with sharded weights
    validator = DenoiserValidator(averaged, raw, sampling, held_out, same, len(pictures.classes), rng)
    guard = None
    if isinstance(objective, OneStepObjective):
        validator = OneStepValidator(**vars(validator), features=objective.features)
        if objective.config.adversarial:
            assert isinstance(config, EnlargeRecipe)
            states["critic"] = TrainState(objective.critic, config.critic_learn)
            guard = CriticGuard(objective, states["denoiser"], replace(validator, stage=stage).psnr)
    return Leg(
        name,
        objective,
        states,
        MixedSource(sources, [*map(len, trained)], rng),
        TrainProgress(config.images, config.batch, recipe.seed),
        validator,
        averaged,
        guard,
        validator.write_raw if raw else None,
    )


def redraw_all(
    recipe: Recipe, below: Stage, pictures: Pictures, chosen: Tensor, device: torch.device, rng: Rng
) -> UInt8[Tensor, "count 3 size size"]:
    """The chosen pictures at the size of the stage below, redrawn by it (SDEdit, arXiv 2108.01073)."""
    index = recipe.chain.index(below.image_size)
    share, redrawn = recipe.enlarging(recipe.chain[index + 1]).exposure.share, []
    factor = pictures.pixels.shape[-1] // below.image_size
    for part in chosen.split(REDRAWN_AT_ONCE):
        images = shrunk(images_from_pixels(pictures.pixels[part]).to(device), factor)
        rngs = [rng.at("redrawn", int(row)) for row in part]
        labels = pictures.labels[part].to(device)
        text = draw_captions(pictures.captions, part, rng.at("redrawn", int(part[0])))
        again = sdedit(below, images, labels, recipe.samplings[index], share, rngs, text)
        redrawn.append(pixels_from_images(again).cpu())
    return torch.cat(redrawn)
