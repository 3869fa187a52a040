"""The cost of training on a machine that is not here: counted on networks without values, not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from itertools import pairwise

import torch

from calotype.build import build_space
from calotype.data.caches import encode_on
from calotype.data.folder import Pictures
from calotype.evaluation.counting import counted
from calotype.evaluation.features import FEATURE_SIZE
from calotype.machine import UTILIZATION, Machine
from calotype.nets.critic import Critic, CriticConfig
from calotype.nets.frozen import PretrainedEncoder
from calotype.nets.perceptual import BLOCK_GROUPS, STAGES, EfficientNetLite0
from calotype.nets.weights import ShapesOnly
from calotype.planning.costs import Costs, StepCost, build_stages, fit_flops
from calotype.planning.memory import (
    derived_bytes,
    fit_memory,
    legs_in_outline,
    pixel_bytes,
    predicted_memory,
    validation_bytes,
)
from calotype.priors.clusters import most_components
from calotype.priors.prior import constant_count
from calotype.recipe import AdversarialLossConfig, Recipe, exposure_above, leg_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.training.muon import hidden_matrices, orthogonal

TRAINING = 3
"""Operations of a training step by those of its forward pass: the backward pass computes two products for each."""
TEXT = 1.1
"""Operations with a text encoder that is trained, by those without: see `choose.choose_text`."""
PRIOR = 4
"""Operations of the closed form for each of its values that it uses: two products."""
LIBRARIES = 2**29
"""Bytes of torch and what it loads, about: 0.45 GB on a CPU."""
INSPECTION = 8
"""Encodings and decodings of a picture in the inspection of an autoencoder, about."""


class Counted(Costs):
    """Operations by the machine's FLOP/s, of which a step reaches `UTILIZATION`. `pictures` are all pictures."""

    def __init__(self, recipe: Recipe, pictures: Pictures, machine: Machine, rounds: Mapping[str, int]) -> None:
        super().__init__(recipe, pictures, machine.memory, rounds)
        self.machine, classes, self.pixel_bytes = machine, len(pictures.classes), pixel_bytes(pictures, machine.memory)
        with ShapesOnly():
            self.space: Space = build_space(recipe) if recipe.kind == "latent" else PixelSpace()
            self.stages = build_stages(recipe, self.space, pictures.total, classes, self.frozen)
            self.outlines = list(legs_in_outline(recipe))
        prior, components = self.stages[0].denoiser.prior, most_components(classes)
        self.prior_flops = 0.0 if prior is None else PRIOR * constant_count(prior) / components

    def seconds(self, flops: float) -> float:
        return flops / (UTILIZATION * self.machine.flops)

    # -- Training ------------------------------------------------------------------------------------------------------

    @cached_property
    def forward(self) -> dict[str, float]:
        """Operations of a forward pass of each leg's network on one image, or crop."""
        return {outline.leg: counted_outline(outline.forward) for outline in self.outlines}

    @cached_property
    def steps(self) -> dict[str, list[StepCost]]:
        recipe, sides, steps = self.recipe, {outline.leg: outline.side for outline in self.outlines}, {}
        if recipe.trains_space:
            config = recipe.autoencoder
            extra = adversarial_flops(config.losses, config.critic, sides["autoencoder"])
            steps["autoencoder"] = self._phases("autoencoder", extra)
        steps["denoiser"] = self._phases("denoiser", [(1.0, self.prior_flops)])
        for size in recipe.chain[1:]:
            leg, stage = leg_above(size), recipe.enlarging(size)
            one_step = stage.objective == "one_step"
            extra = adversarial_flops(stage.losses, stage.critic, sides[leg]) if one_step else [(1.0, 0.0)]
            steps[leg] = steps[exposure_above(size)] = self._phases(leg, extra)
        return {leg: steps[leg] for leg in recipe.legs}

    def _phases(self, leg: str, extra: list[tuple[float, float]]) -> list[StepCost]:
        text = TEXT if leg != "autoencoder" and self.recipe.denoiser.text.kind == "bytes" else 1.0
        update = self._update_flops(leg) / self.recipe.legs[leg].batch
        flops = [(end, TRAINING * self.forward[leg] * text + update + more) for end, more in extra]
        return [StepCost(end, self.seconds(each) / self.machine.ranks, each) for end, each in flops]

    def _update_flops(self, leg: str) -> float:
        """Operations of the update of all weights after a step: those of Muon; others have no products."""
        if self.recipe.learning(leg, leg).optimizer != "muon":
            return 0.0
        networks = [outline.network for outline in self.outlines if outline.leg == leg]
        matrices = [matrix[None] for network in networks for matrix in hidden_matrices(network)]
        return sum(counted_outline(partial(orthogonal, matrix)) for matrix in matrices)

    # -- Between the legs ----------------------------------------------------------------------------------------------

    def encode(self) -> float:
        return self.seconds(self._coding[0])

    @cached_property
    def _coding(self) -> tuple[float, float]:
        """Operations of encoding and of decoding a picture of the first stage; zeros in pixels."""
        if not isinstance(space := self.space, LatentSpace):
            return 0.0, 0.0
        base = self.recipe.chain[0]
        images = torch.empty(1, 3, base, base, device="meta")
        latents = torch.empty(1, space.channels, base // space.reduction, base // space.reduction, device="meta")
        return counted_outline(lambda: space.vae.encode(images)), counted_outline(lambda: space.vae.decode(latents))

    def encode_texts(self, pretrained: PretrainedEncoder, texts: Sequence[str]) -> float:
        return self.seconds(counted(lambda: encode_on(pretrained, texts, torch.device("cpu"))))

    def inspect(self) -> float:
        if not isinstance(self.space, LatentSpace):
            return 0.0
        return self.inspected * (self.seconds(INSPECTION * sum(self._coding)) + self.feature)

    def fit(self, count: int) -> float:
        return self.seconds(float(fit_flops(self.stages[0], count)))

    @cached_property
    def sampling(self) -> list[float]:
        flops, below = [self._sampling_flops(0, "denoiser", 1.0) + self._coding[1]], self.recipe.chain
        for index, (_, size) in enumerate(pairwise(below), 1):
            crop = self.recipe.enlarging(size).crop or size
            flops.append(self._sampling_flops(index, leg_above(size), (size / crop) ** 2))
        return [self.seconds(each) for each in flops]

    def _sampling_flops(self, index: int, leg: str, area: float) -> float:
        """Of one picture, `area` times as large as what the leg is trained on."""
        prior = self.prior_flops if index == 0 else 0.0
        return self.recipe.samplings[index].calls() * (area * self.forward[leg] + prior)

    @cached_property
    def feature(self) -> float:
        return self.seconds(lite0_flops(FEATURE_SIZE, len(BLOCK_GROUPS)))

    def peak_memory(self, sets: Sequence[int]) -> int:
        """With the libraries, the closed forms, validation pictures, and all pictures where they are in the same
        memory and not mapped from files."""
        pictures = 0
        if self.machine.device.type != "cuda":
            pictures = self.pixel_bytes + derived_bytes(self.recipe, sets, self.memory)
        step = predicted_memory(self.recipe, self.machine, self.rounds) + validation_bytes(self.recipe)
        with ShapesOnly():
            fits = fit_memory(self.recipe, self.stages[0], *self.counts).values()
        return LIBRARIES + pictures + max(4 * self.constant_values() + step, max(fits, default=0))


def counted_outline(forward: Callable[[], object]) -> float:
    """Operations of what is computed without values."""
    with torch.device("meta"), torch.no_grad():
        return float(counted(forward))


def lite0_flops(side: int, stages: int) -> float:
    """Of the features of a picture after so many stages of EfficientNet-Lite0."""
    with ShapesOnly():
        network, images = EfficientNetLite0().eval(), torch.empty(1, 3, side, side)
    return counted_outline(lambda: network.stages(images, stages))


def adversarial_flops(losses: AdversarialLossConfig, config: CriticConfig, side: int) -> list[tuple[float, float]]:
    """Operations of perceptual distance and critic for an image, beside the network's own, up to each phase's end."""
    with ShapesOnly():
        network, images = Critic(config), torch.empty(1, 3, side, side)
    critic, features = counted_outline(lambda: network(images)), lite0_flops(side, STAGES)
    terms = [
        (losses.perceptual_start if losses.perceptual else 1.0, losses.perceptual_share * (1 + TRAINING) * features),
        (losses.critic_start if losses.adversarial else 1.0, losses.critic_share * 2 * TRAINING * critic),
        (max(losses.critic_start, losses.critic_used) if losses.adversarial else 1.0, losses.critic_share * 3 * critic),
    ]
    return [(end, sum((flops for start, flops in terms if start < end), 0.0)) for end in losses.phase_ends]
