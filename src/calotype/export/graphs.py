"""The parts of a stage as modules whose operations are always the same, so that they can be exported as graphs.

The last word is `sample.py` in `standalone`: it puts the graphs of a stage together as `Stage` does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from calotype.diffusion.augmentation import BlurAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Stage
from calotype.nets.blocks import Resized, TextContext, Tokens, Vector
from calotype.nets.frozen import ProjectedEncoder
from calotype.nets.text import LETTERS, BytesEncoder, TextConditioned
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import PATCH_CLUSTERS, Gathered, PatchPosterior, PatchPrior, enlarged
from calotype.priors.static import StaticMixture, gathered
from calotype.spaces.latent import LatentSpace
from calotype.types import Condition, Images, Labels, Latents, Sigmas, per_image

PICTURES, EXAMPLE_WORDS = 2, 5
"""In the examples: any other numbers but 1 would do."""
VARIABLE_WORDS = ("words", "mask", "tokens")
"""Inputs whose second dimension is the number of words, which varies."""


class Graph(NamedTuple):
    """A module, examples of its inputs by name, and the names of its outputs.

    The first dimension of all inputs is the batch; see `VARIABLE_WORDS` for others that vary.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]


class DenoiserGraph(nn.Module):
    """The network with its scalings, beside the prior's mean where there is a prior."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(  # noqa: PLR0913, PLR0917 - all that a stage may need
        self,
        noisy: Latents,
        sigma: Sigmas,
        label: Labels,
        mean: Latents | None = None,
        low_res: Latents | None = None,
        augmentation: Sigmas | None = None,
        deviation: Float[Tensor, "batch 1 _ _"] | None = None,
        words: Tokens | None = None,
        mask: Bool[Tensor, "batch token"] | None = None,
        pooled: Vector | None = None,
    ) -> Latents:
        condition, backbone = Condition(label, low_res, augmentation, deviation), None
        if words is not None and mask is not None and pooled is not None:
            conditioned = self.denoiser.backbone
            assert isinstance(conditioned, TextConditioned)
            backbone = partial(conditioned.with_words, words=TextContext(words, mask, pooled))
        if mean is None:
            mean = self.denoiser.prior_estimate(noisy, sigma, condition)
        return self.denoiser.around(mean, noisy, sigma, condition, backbone)


class PatchGraph(nn.Module):
    """The posterior mean under a `PatchPrior`, given what `ConditionGraph` knows of the low-resolution picture."""

    def __init__(self, prior: PatchPrior) -> None:
        super().__init__()
        self.prior = prior

    def forward(
        self, noisy: Latents, sigma: Sigmas, low_res: Latents, clusters: Int[Tensor, "batch window"],
        variances: Float[Tensor, "batch window axis"],
    ) -> Latents:  # fmt: skip
        windows, noise = Gathered(clusters.flatten(), clusters.shape[1]), variances.flatten(0, 1)
        known = PatchPosterior(low_res, noise, windows, self.prior.axes, noise, noise, self.prior.factor)
        return known.denoise(noisy, sigma)  # for which the noise is all that counts


class ConditionGraph(nn.Module):
    """What a stage that enlarges is given of a low-resolution picture: see `Stage.condition`."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self.stage, self.denoiser = stage, stage.denoiser

    def forward(self, images: Images, noise: Images, augmentation: Sigmas) -> tuple[Tensor, ...]:
        stage, prior, count = self.stage, self.denoiser.prior, images.shape[2] * images.shape[3]
        if isinstance(stage.augmentation, BlurAugmentation):
            augmented = shifted_blur(images, augmentation, stage.augmentation.most)
        else:
            augmented = stage.augmentation.apply(images, augmentation, noise)
        if not isinstance(prior, PatchPrior):
            return enlarged(augmented, stage.factor), per_image(stage.augmentation.deviation(augmentation))
        level = stage.augmentation.noise(augmentation)
        posterior = prior.posterior(augmented, level, lambda windows: gathered(prior, windows, count))
        clusters, variances = (
            values.unflatten(0, (-1, count)) for values in (posterior.by_cluster.clusters, posterior.noise_variances)
        )
        return posterior.mean, posterior.deviation, clusters, variances


def shifted_blur(images: Images, deviation: Sigmas, most: float) -> Images:
    """`augmentation.gaussian_blur` as a sum of shifted images, without a convolution for each image."""
    radius = math.ceil(3 * most)
    places = torch.arange(-radius, radius + 1, device=images.device)
    weights = torch.softmax(-(places**2) / (2 * deviation.clamp(min=1e-2)[:, None] ** 2), 1)
    blurred = F.pad(images, [radius] * 4, mode="replicate")
    for dim, size in ((2, images.shape[2]), (3, images.shape[3])):
        shifted = [blurred.narrow(dim, start, size) for start in range(2 * radius + 1)]
        blurred = torch.stack(
            [per_image(weight) * image for weight, image in zip(weights.T, shifted, strict=True)]
        ).sum(0)
    return blurred


class DecoderGraph(nn.Module):
    def __init__(self, space: LatentSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, latents: Latents) -> Resized:
        return self.space.vae.decode(latents * self.space.spread + self.space.mean).clamp(-1, 1)


class EncoderGraph(nn.Module):
    def __init__(self, space: LatentSpace) -> None:
        super().__init__()
        self.space = space

    def forward(self, images: Images) -> Resized:
        return (self.space.vae.encode(images).mean - self.space.mean) / self.space.spread


class TextGraph(nn.Module):
    """Texts as bytes (batch, word, 12), or as tokens (batch, token) of one length -> words, pooled text."""

    def __init__(self, encoder: BytesEncoder | ProjectedEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.network = encoder.frozen.pretrained.network if isinstance(encoder, ProjectedEncoder) else None

    def forward(self, tokens: Int[Tensor, "batch word *letter"]) -> tuple[Tensor, Tensor]:
        if isinstance(self.encoder, BytesEncoder):
            encoded = self.encoder.encode(tokens)
            return encoded.context, encoded.pooled
        assert self.network is not None
        context, pooled = self.network(tokens)
        return self.encoder.learned(context.half()), self.encoder.learned(pooled.half())  # as the table has them


# -- All graphs of a stage ---------------------------------------------------------------------------------------------


def stage_graphs(stage: Stage) -> dict[str, Graph]:
    """The graphs of a stage by their names, in the order in which sampling uses them."""
    return dict(_graphs(stage))


def encoder_of(stage: Stage) -> BytesEncoder | ProjectedEncoder | None:
    backbone = stage.denoiser.backbone
    encoder = backbone.encoder if isinstance(backbone, TextConditioned) else None
    assert encoder is None or isinstance(encoder, BytesEncoder | ProjectedEncoder)
    return encoder


def _graphs(stage: Stage) -> Iterator[tuple[str, Graph]]:
    prior, noisy = stage.denoiser.prior, torch.randn(PICTURES, *stage.shape)
    inputs = {"noisy": noisy, "sigma": torch.ones(PICTURES), "label": torch.zeros(PICTURES, dtype=torch.long)}
    if (encoder := encoder_of(stage)) is not None:
        yield "text", text_graph(encoder)
    if stage.low_res_size:
        yield "condition", condition_graph(stage)
    if isinstance(prior, PatchPrior):
        known = {"noisy": noisy, "sigma": inputs["sigma"], "low_res": noisy, **_example_of_condition(stage)}
        del known["deviation"]
        yield "prior", Graph(PatchGraph(prior), known, ("mean",))
    elif isinstance(prior, GaussianMixture | CaptionedMixture):
        bag = {"bag": torch.zeros(PICTURES, len(prior.vocabulary))} if isinstance(prior, CaptionedMixture) else {}
        yield "prior", Graph(StaticMixture(prior), {**inputs, **bag}, ("mean",))
    yield "denoiser", denoiser_graph(stage, inputs)
    if isinstance(stage.space, LatentSpace):
        images = torch.zeros(PICTURES, 3, stage.image_size, stage.image_size)
        yield "decoder", Graph(DecoderGraph(stage.space), {"latents": noisy}, ("images",))
        yield "encoder", Graph(EncoderGraph(stage.space), {"images": images}, ("latents",))


def text_graph(encoder: BytesEncoder | ProjectedEncoder) -> Graph:
    shape = (PICTURES, EXAMPLE_WORDS, LETTERS) if isinstance(encoder, BytesEncoder) else (PICTURES, EXAMPLE_WORDS)
    return Graph(TextGraph(encoder), {"tokens": torch.ones(shape, dtype=torch.long)}, ("words", "pooled"))


def condition_graph(stage: Stage) -> Graph:
    assert stage.low_res_size is not None
    images = torch.zeros(PICTURES, 3, stage.low_res_size, stage.low_res_size)
    inputs = {"images": images, "noise": images, "augmentation": torch.zeros(PICTURES)}
    return Graph(ConditionGraph(stage), inputs, ("low_res", *_example_of_condition(stage)))


def denoiser_graph(stage: Stage, inputs: Mapping[str, Tensor]) -> Graph:
    inputs, noisy = dict(inputs), inputs["noisy"]
    if stage.denoiser.prior is not None:
        inputs["mean"] = noisy
    if stage.low_res_size:
        condition = _example_of_condition(stage)
        inputs |= {"low_res": noisy, "augmentation": torch.zeros(PICTURES), "deviation": condition["deviation"]}
    if (encoder := encoder_of(stage)) is not None:
        mask = torch.ones(PICTURES, EXAMPLE_WORDS, dtype=torch.bool)
        words, pooled = torch.zeros(*mask.shape, encoder.width), torch.zeros(PICTURES, encoder.width)
        inputs |= {"words": words, "mask": mask, "pooled": pooled}
    return Graph(DenoiserGraph(stage.denoiser), inputs, ("denoised",))


def _example_of_condition(stage: Stage) -> dict[str, Tensor]:
    """The outputs of `ConditionGraph` beside `low_res`."""
    if not isinstance(prior := stage.denoiser.prior, PatchPrior):
        return {"deviation": torch.zeros(PICTURES, 1, 1, 1)}
    assert stage.low_res_size is not None
    count, values = stage.low_res_size**2, prior.axes.shape[1]
    deviation = torch.ones(PICTURES, 1, stage.image_size, stage.image_size)
    clusters = torch.arange(PICTURES * count).reshape(PICTURES, count) % PATCH_CLUSTERS
    return {"deviation": deviation, "clusters": clusters, "variances": torch.ones(PICTURES, count, values)}
