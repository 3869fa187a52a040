"""What training costs here. It is not looked up: one real step of every kind is taken with the real networks."""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from calotype.build import build_enlarger, build_frozen, build_stage, initial_space
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import LatentCache
from calotype.data.sources import FOLDS, LatentSource
from calotype.data.words import distinct, read_on
from calotype.diffusion.stage import Stage, generate
from calotype.evaluation.autoencoder import measure
from calotype.evaluation.counting import counted
from calotype.machine import best_time
from calotype.nets.critic import Critic
from calotype.nets.frozen import FrozenConfig
from calotype.priors.captioned import DIRECTIONS, CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.gaussian_fit import CLUSTERS, FEWEST, largest_rank
from calotype.priors.ngrams import MOST_WORDS
from calotype.priors.prior import MOST_VALUES, Prior, constant_count
from calotype.recipe import AutoencoderLossConfig, OptimizerConfig, Recipe, exposure_above, leg_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.training.budget import Phases, mean_cost
from calotype.training.examples import (
    crop_examples,
    picture_examples,
    picture_source,
    without_unread_captions,
)
from calotype.training.legs import autoencoder_objective
from calotype.training.loop import BatchSource, TrainProgress, train_step
from calotype.training.objectives import DenoisingObjective, Objective
from calotype.training.previews import inspection_count
from calotype.training.state import TrainState
from calotype.types import NULL_LABEL, Images, Rng

SAMPLE_VALUES = 2**20
"""Sampling is timed on 8 pictures, fewer where they are large."""
FITTED = 50_000
"""Operations that the closed form takes for each number that it is fitted to,"""
TOLD = 175_000
"""and more where it hears words; both measured, on 8,100 portraits."""
SQUARE = 1024
"""Side of the matrices by which it is measured how fast they are multiplied."""


class StepCost(NamedTuple):
    """Of a training step, by the image."""

    seconds: float
    flops: float


Steps = list[tuple[float, StepCost]]
"""What a step costs in the leg up to this fraction."""


class Measurement:
    """Takes one real step of each kind here; every method returns seconds, an image or a step."""

    def __init__(self, recipe: Recipe, pictures: Pictures, device: torch.device) -> None:
        self.recipe, self.device, self.rng = recipe, device, Rng((recipe.seed, "plan"))
        frozen = isinstance(recipe.denoiser.text, FrozenConfig)
        self.texts = distinct(pictures.captions) if pictures.captions and frozen else []
        classes, some = len(pictures.classes), few(without_unread_captions(recipe, pictures))
        self.pictures = {size: some.shrunk(size) for size in recipe.chain}
        self.space: Space = PixelSpace()
        if recipe.kind == "latent":
            self.space = initial_space(recipe, self.pictures[recipe.chain[0]], device)
        base = build_stage(recipe, self.space, classes, self._mixture(len(pictures), classes))
        self.stages = [base, *(build_enlarger(recipe, size, classes) for size in recipe.chain[1:])]
        for stage in self.stages:
            stage.denoiser.to(device)

    def _mixture(self, count: int, classes: int) -> Prior | None:
        """As large as it may get."""
        if self.recipe.denoiser.prior == "none":
            return None
        dimension, groups = self.space.channels * (self.recipe.chain[0] // self.space.reduction) ** 2, max(1, classes)
        components = groups * (max(CLUSTERS) if count >= FEWEST * groups * max(CLUSTERS) else 1)
        if self.recipe.denoiser.text.kind == "none":
            return by_class(
                GaussianMixture(components, largest_rank(count, dimension, components), dimension), classes, 1
            )
        mixture = GaussianMixture(2 * components, largest_rank(count, dimension, components), dimension)
        return CaptionedMixture(by_class(mixture, classes, 2), 2 * groups, MOST_WORDS, DIRECTIONS)

    @cached_property
    def steps(self) -> dict[str, Steps]:
        """Of every leg."""
        first = {"autoencoder": self._autoencoder()} if self.recipe.trains_space else {}
        steps = {**first, "denoiser": self._denoiser()}
        for stage in self.stages[1:]:
            steps[leg_above(stage.image_size)] = steps[exposure_above(stage.image_size)] = self._enlarger(stage)
        return {leg: steps[leg] for leg in self.recipe.legs}

    def phases(self) -> dict[str, Phases]:
        """Seconds of every leg."""
        return {leg: [(end, cost.seconds) for end, cost in steps] for leg, steps in self.steps.items()}

    def flops(self) -> dict[str, float]:
        """Floating-point operations an image, averaged over each leg."""
        return {leg: mean_cost([(end, cost.flops) for end, cost in steps]) for leg, steps in self.steps.items()}

    def _autoencoder(self) -> Steps:
        """The critic makes steps dearer once it learns, and again once it is listened to."""
        assert isinstance(self.space, LatentSpace)
        config, objective = self.recipe.autoencoder, autoencoder_objective(self.recipe, self.space.vae)
        objective.critic.to(self.device)
        objective.features.to(self.device)
        source = picture_source(self.recipe, self.pictures[self.recipe.chain[0]], self.device)
        ends = phase_ends(config.losses)
        return [(end, self._step(objective, source, config.batch, end - 1e-6)) for end in ends]

    def _denoiser(self) -> Steps:
        pictures = self.pictures[self.recipe.chain[0]]
        source: BatchSource = picture_examples(self.recipe, pictures, self.device)(pictures.train_indices)
        if isinstance(self.space, LatentSpace):
            moments = self.space.moments(self._images(2)).half().cpu()
            cache = LatentCache(moments[:1][None].expand(1, 2, *moments.shape[1:]))
            ends = [0, len(pictures) - 1]
            labels, captions = pictures.labels[ends], pictures.captions and pictures.captions.at(ends)
            source = LatentSource(cache, labels, torch.arange(2), self.rng, self.device, captions)
        return [(1.0, self._step(DenoisingObjective(self.stages[0]), source, self.recipe.denoiser.batch, 0.0))]

    def _enlarger(self, stage: Stage) -> Steps:
        size = stage.image_size
        pictures = self.pictures[size]
        source = crop_examples(self.recipe, size, pictures, self.device)(pictures.train_indices)
        return [(1.0, self._step(DenoisingObjective(stage), source, self.recipe.enlarger(size).batch, 0.0))]

    def encode(self) -> float:
        """Seconds a picture; 0 in pixels."""
        if isinstance(self.space, PixelSpace):
            return 0.0
        images = self._images(max(1, min(16, 16 * SAMPLE_VALUES // (3 * self.recipe.chain[0] ** 2))))
        return best_time(lambda: self.space.moments(images), self.device, 2) / len(images)

    @cached_property
    def reading(self) -> tuple[float, int]:
        """Seconds until a frozen text encoder has read all captions, and the bytes of what it says; 0 without one."""
        text = self.recipe.denoiser.text
        if not isinstance(text, FrozenConfig):
            return 0.0, 0
        some = self.texts[:: max(1, len(self.texts) // 32)][:32]
        reader, share = build_frozen(text).reader, len(self.texts) / len(some)
        seconds = best_time(lambda: read_on(reader, some, self.device), self.device, 1)
        return share * seconds, int(share * read_on(reader, some, self.device).context.nbytes)

    def inspect(self) -> float:
        """Seconds of the doctor's look between two legs; 0 in pixels."""
        if not isinstance(space := self.space, LatentSpace):
            return 0.0
        images = self._images(8)
        a_picture = best_time(lambda: measure(space, images, 0, thorough=False), self.device, 1) / len(images)
        return a_picture * inspection_count(images[0].numel())

    def sample(self) -> float:
        """Seconds a picture through all stages, with the recipe's steps and guidance."""
        return sum(self.sample_stage(index) for index in range(len(self.stages)))

    @torch.no_grad()
    def sample_stage(self, index: int) -> float:
        """Seconds a picture."""
        stage, sampling = self.stages[index], self.recipe.samplings[index]
        steps = 2 if index == 0 else 1
        few_steps = sampling.model_copy(update={"steps": steps, "conditioning": "whole"})
        count = max(1, min(8, SAMPLE_VALUES // stage.image_size**2))
        labels = torch.full((count,), NULL_LABEL, device=self.device)
        rngs = [self.rng.at(place) for place in range(count)]
        small = stage.low_res_size and torch.zeros(count, 3, stage.low_res_size, stage.low_res_size, device=self.device)
        low_res = small if isinstance(small, torch.Tensor) else None
        latents = torch.zeros(count, *stage.shape, device=self.device)
        whole = best_time(lambda: generate([stage], labels, [few_steps], rngs, low_res), self.device, 1)
        decode = best_time(lambda: stage.space.decode(latents), self.device, 1)
        return (max(0.0, whole - decode) / steps * sampling.steps + decode) / count

    def parameters(self) -> dict[str, int]:
        first = {"autoencoder": count_parameters(self.space.vae)} if isinstance(self.space, LatentSpace) else {}
        names = ["denoiser", *(leg_above(stage.image_size) for stage in self.stages[1:])]
        counts = (count_parameters(stage.denoiser) for stage in self.stages)
        return {**first, **dict(zip(names, counts, strict=True))}

    def critic(self) -> int:
        """Parameters of the critic, which is trained beside the autoencoder and is no part of the model."""
        with torch.device("meta"):
            return count_parameters(Critic(self.recipe.autoencoder.critic))

    def fit(self, count: int) -> float:
        """Seconds for the closed form of so many pictures."""
        if (form := self.stages[0].denoiser.prior) is None:
            return 0.0
        square = torch.ones(SQUARE, SQUARE, device=self.device)
        operations = FITTED + (TOLD if isinstance(form, CaptionedMixture) else 0)
        values = min(MOST_VALUES, count * math.prod(self.stages[0].shape))
        return operations * values * best_time(lambda: square @ square, self.device) / (2 * SQUARE**3)

    def closed_form(self) -> int:
        """Numbers of the model that are computed from the pictures and not trained, at most."""
        return sum(constant_count(stage.denoiser) for stage in self.stages)

    def constants(self) -> int:
        """The same as a run keeps them: of few pictures each fold has a mixture of its own, without captions."""
        form, kept = self.stages[0].denoiser.prior, constant_count(self.stages[0].denoiser)
        if form is None:
            return self.closed_form()
        plain = (
            constant_count(form) // 2 if isinstance(form, CaptionedMixture) else kept
        )  # two groups a class: see told.py
        return self.closed_form() + max(0, (1 + FOLDS) * plain - kept)

    def _images(self, count: int) -> Images:
        pixels = self.pictures[self.recipe.chain[0]].pixels
        images = images_from_pixels(pixels[torch.arange(count) % len(pixels)])
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def _step(self, objective: Objective, source: BatchSource, batch: int, progress: float) -> StepCost:
        players = {name: TrainState(network, OptimizerConfig()) for name, network in objective.networks.items()}
        clock = TrainProgress(total=10**6, batch=batch, seed=0)

        def step() -> None:
            train_step(players, objective.losses(source.batch(0, batch), progress, clock.rng()), clock)

        flops = counted(step)
        return StepCost(best_time(step, self.device, 2) / batch, flops / batch)


def few(pictures: Pictures) -> Pictures:
    """Enough of them for a step; the closed form of the autoencoder wants more of small ones."""
    return pictures.first(max(64, min(len(pictures), 2**25 // pictures.pixels[0].numel())))


def by_class(mixture: GaussianMixture, classes: int, groups: int) -> GaussianMixture:
    """As a fit has it, with so many groups a class: of a picture whose class is told, the others are not asked."""
    number, each = torch.arange(len(mixture.means)), len(mixture.means) // max(1, classes)
    mixture.group[:] = number // (each // groups)
    mixture.label[:] = number // each if classes else NULL_LABEL
    return mixture


def phase_ends(losses: AutoencoderLossConfig) -> list[float]:
    """Fractions of the first leg at which its steps change their cost."""
    changes = {1.0}
    if losses.perceptual:
        changes |= {losses.perceptual_start}
    if losses.adversarial:
        changes |= {losses.critic_start, max(losses.critic_start, losses.critic_used)}
    return sorted(changes - {0.0})


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
