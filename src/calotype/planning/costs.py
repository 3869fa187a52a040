"""What a plan must know of the cost of a run, whether that is measured or counted."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import nn

from calotype.build import build_enlarger, build_frozen, build_stage
from calotype.data.folder import Pictures
from calotype.data.sources import FOLDS
from calotype.diffusion.stage import Stage
from calotype.nets.critic import Critic
from calotype.nets.frozen import FrozenEncoder, PretrainedEncoder
from calotype.priors.captions import CaptionedMixture
from calotype.priors.fit import largest_prior
from calotype.priors.prior import MOST_VALUES, constant_count
from calotype.recipe import Recipe, leg_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import Space
from calotype.training.fitting import fitted_sides
from calotype.training.previews import INSPECTED

FIT_FLOPS, CAPTION_FIT_FLOPS = 235_000, 550_000
"""To fit the prior, for each value that it is fitted to, and more with captions; measured on 7,630 portraits."""


class StepCost(NamedTuple):
    """The cost of an image in a training step, up to the fraction `end` of its leg."""

    end: float
    seconds: float
    flops: float
    slices: int = 1
    """Slices of the batch that are worked on at once: as many as there are cores, unless that is clearly slower."""
    compiled: bool = False
    """Whether the network is compiled while it trains: see `training.compiling`."""


class Costs(ABC):
    """Seconds are those of one image, if nothing else is said."""

    space: Space
    stages: list[Stage]
    """On the device, or without values."""

    def __init__(self, recipe: Recipe, pictures: Pictures, memory: int, rounds: Mapping[str, int]) -> None:
        self.recipe, self.memory, self.rounds = recipe, memory, rounds
        self.frozen, self.all_captions = build_frozen(recipe.denoiser.text), pictures.captions
        self.weight, self.counts = pictures.total / len(pictures), (pictures.trained, len(pictures.validation_indices))

    @property
    @abstractmethod
    def steps(self) -> dict[str, list[StepCost]]:
        """The costs of every leg."""

    @cached_property
    def captions(self) -> tuple[float, int]:
        """Seconds in which a frozen text encoder encodes all captions, and the bytes of their encodings; else zeros."""
        if self.frozen is None or self.all_captions is None:
            return 0.0, 0
        texts, pretrained = self.all_captions.distinct, self.frozen.pretrained
        few = texts[:: max(1, len(texts) // 32)][:32]
        scale = self.weight * len(texts) / len(few)
        values = pretrained.width * sum(len(pretrained.tokenize(text).tokens) for text in few)
        return scale * self.encode_texts(pretrained, few), int(scale * 2 * values)  # in half precision

    @abstractmethod
    def encode_texts(self, pretrained: PretrainedEncoder, texts: Sequence[str]) -> float:
        """Seconds in which a frozen text encoder encodes these."""

    @property
    @abstractmethod
    def sampling(self) -> list[float]:
        """Seconds in which each stage samples a picture, with the recipe's steps and guidance."""

    @property
    @abstractmethod
    def feature(self) -> float:
        """Seconds in which the features of a picture are extracted, by which sampling settings are searched."""

    @abstractmethod
    def encode(self) -> float:
        """Seconds in which a picture is encoded into latents; 0 in pixels."""

    @abstractmethod
    def inspect(self) -> float:
        """Seconds in which the autoencoder is inspected; 0 in pixels."""

    @abstractmethod
    def fit(self, count: int) -> float:
        """Seconds in which the prior is fitted to so many pictures."""

    @abstractmethod
    def peak_memory(self, sets: Sequence[int]) -> int:
        """The most bytes that the run holds, with so many pictures in each set of the first stage."""

    # -- Sizes ---------------------------------------------------------------------------------------------------------

    @property
    def inspected(self) -> int:
        """Pictures by which the autoencoder is inspected: see `previews.validation_first`."""
        return min(sum(self.counts), INSPECTED.count(3 * self.recipe.chain[0] ** 2))

    def parameters(self) -> dict[str, int]:
        """Parameters of each network in the model, by the leg that trains it first."""
        counts = {"autoencoder": count_parameters(self.space.vae)} if isinstance(self.space, LatentSpace) else {}
        counts["denoiser"] = count_parameters(self.stages[0].denoiser)
        return counts | {leg_above(stage.image_size): count_parameters(stage.denoiser) for stage in self.stages[1:]}

    def critic_parameters(self) -> int:
        with torch.device("meta"):
            return count_parameters(Critic(self.recipe.autoencoder.critic))

    def prior_values(self) -> int:
        """Values of the model that are fitted in closed form, at most."""
        return sum(constant_count(stage.denoiser) for stage in self.stages)

    def constant_values(self) -> int:
        """The same as a run stores them: of few pictures, each fold has a mixture of its own, without captions."""
        prior, stored = self.stages[0].denoiser.prior, constant_count(self.stages[0].denoiser)
        if prior is None:
            return self.prior_values()
        # with captions, each class has two groups
        plain = constant_count(prior.mixture) // 2 if isinstance(prior, CaptionedMixture) else stored
        return self.prior_values() + max(0, (1 + FOLDS) * plain - stored)


def build_stages(recipe: Recipe, space: Space, count: int, classes: int, frozen: FrozenEncoder | None) -> list[Stage]:
    """All stages, the first with the largest prior that `count` pictures may give; nothing is fitted."""
    prior, side = None, recipe.chain[0] // space.reduction
    if recipe.denoiser.prior != "none":
        captioned = recipe.denoiser.text.kind != "none"
        prior = largest_prior(count * fitted_sides(recipe), space.channels * side**2, classes, captioned)
    base = build_stage(recipe, space, classes, prior, frozen)
    return [base, *(build_enlarger(recipe, size, classes, frozen) for size in recipe.chain[1:])]


def fit_flops(base: Stage, count: int) -> int:
    """Of fitting the prior of the first stage to so many pictures."""
    if (prior := base.denoiser.prior) is None:
        return 0
    flops = FIT_FLOPS + (CAPTION_FIT_FLOPS if isinstance(prior, CaptionedMixture) else 0)
    return flops * min(MOST_VALUES, count * math.prod(base.shape))


def count_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
