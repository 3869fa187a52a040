"""The denoiser: a network, a scaling of its output, and a prior beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.diffusion.scalings import SCALINGS, Scaling, ScalingName, for_sigma_data
from calotype.nets.blocks import Migrated, Precision, autocast, fourier_features
from calotype.priors.prior import Prior
from calotype.types import NULL_LABEL, Condition, Latents, Sigmas, per_image


class Denoiser(Migrated):
    """Estimates the clean image from a noisy one, its sigma and a condition.

    `backbone(image, vector)` gives an image of the shape of the noisy one. `vector` is the sum of the embeddings of
    noise level, label and augmentation level, and of the place of a view where it was trained on `views`; a
    text-conditioned backbone also gets the prompts. Noisy image, prior mean and low-resolution image are concatenated
    along channels.

    The output is the `prior`'s mean (without a prior: the scaling's skip) plus `out` times the backbone. `sigma_data`
    is the standard deviation of clean images: about 0, or about the enlarged low-resolution image where there is one,
    and then the condition's deviation is added to it in quadrature.
    """

    old_names: ClassVar = {"mixture.": "prior.", "local.": "prior."}

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        classes: int,
        scaling: ScalingName,
        precision: Precision = "float32",
        sigma_data: float = 1.0,
        prior: Prior | None = None,
        views: bool = False,
    ) -> None:
        super().__init__()
        self.prior = prior
        self.backbone, self.classes, self.precision, self.sigma_data = backbone, classes, precision, sigma_data
        self.scaling = SCALINGS[scaling]
        self.noise_level = LevelEmbedding(width)
        self.augmentation_level = LevelEmbedding(width)
        self.label = nn.Embedding(classes + 1, width)  # the last row is the null label
        nn.init.normal_(self.label.weight, std=0.02)
        self.view: nn.Linear | None = None
        if views:
            self.view = nn.Linear(4, width, bias=False)  # of a whole picture, zeros: 0
            nn.init.normal_(self.view.weight, std=0.02)

    def forward(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """Estimate of the clean image, float32, of the shape of `noisy`; sigma is one number an image, above 0."""
        return self.with_prior_estimate(noisy, sigma, condition)[0]

    def with_prior_estimate(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> tuple[Latents, Latents]:
        """The estimate, and beside it `prior_estimate`, of one evaluation of the prior."""
        mean = self.prior_estimate(noisy, sigma, condition)
        return self.around(mean, noisy, sigma, condition), mean

    def around(
        self,
        mean: Latents,
        noisy: Latents,
        sigma: Sigmas,
        condition: Condition,
        backbone: Callable[..., Latents] | None = None,
    ) -> Latents:
        """The estimate where `prior_estimate` is known; with a `backbone` in place of its own."""
        scaling = self.scalings(sigma, condition)
        return mean + scaling.out * self._network(scaling.input, noisy, mean, sigma, condition, backbone)

    def loss(
        self, clean: Latents, sigma: Sigmas, noise: Latents, condition: Condition,
        weights: Float[Tensor, " channel"] | None = None,
    ) -> Float[Tensor, " batch"]:  # fmt: skip
        """Squared error of the network's own output: the epsilon, x0, v, flow or EDM loss, by the scaling.

        Channels count by their `weights`, of mean 1, or all alike.
        """
        scaling = self.scalings(sigma, condition)
        noisy = clean + per_image(sigma) * noise
        mean = self._mean(scaling, noisy, sigma, condition)
        target = (clean - mean) / scaling.out
        output = self._network(scaling.input, noisy, mean, sigma, condition)
        error = (output - target).square()
        return (error if weights is None else error * weights[:, None, None]).flatten(1).mean(1)

    def prior_estimate(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """The posterior mean of the clean image under the prior alone, given the same condition."""
        return self._mean(self.scalings(sigma, condition), noisy, sigma, condition)

    def deviation(self, condition: Condition) -> Sigmas:
        """Standard deviation of clean images about the mean at which sampling starts, of each image."""
        return self._deviation(torch.ones_like(condition.labels, dtype=torch.float32), condition).mean((1, 2, 3))

    def scalings(self, sigma: Sigmas, condition: Condition) -> Scaling:
        return for_sigma_data(self.scaling, per_image(sigma), self._deviation(sigma, condition))

    def _deviation(self, sigma: Sigmas, condition: Condition) -> Float[Tensor, "batch 1 _ _"]:
        everywhere = per_image(torch.full_like(sigma, self.sigma_data))
        if condition.deviation is None:
            return everywhere
        return (everywhere.square() + condition.deviation.square()).sqrt()  # not hypot, which ONNX does not have

    def _mean(self, scaling: Scaling, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """What the network's output is added to: the prior's mean, or the scaling's skip."""
        if condition.posterior_mean is not None:
            return condition.posterior_mean(noisy, sigma)
        if self.prior is not None:
            return self.prior.mean(noisy, sigma, condition)
        return scaling.skip * noisy if condition.low_res is None else torch.lerp(condition.low_res, noisy, scaling.skip)

    def _network(
        self, scale: Tensor, noisy: Latents, mean: Latents, sigma: Sigmas, condition: Condition,
        backbone: Callable[..., Latents] | None = None,
    ) -> Latents:  # fmt: skip
        image = scale * (noisy if condition.low_res is None else noisy - condition.low_res)
        vector = self.noise_level(sigma / self._deviation(sigma, condition).mean((1, 2, 3))) + self.label(
            condition.labels.where(condition.labels != NULL_LABEL, self.classes)
        )
        if condition.augmentation is not None:
            vector = vector + self.augmentation_level(condition.augmentation)
        if self.view is not None and condition.view is not None:
            vector = vector + self.view(condition.view)
        if self.prior is not None:
            image = torch.cat([image, mean], 1)
        if condition.low_res is not None:
            image = torch.cat([image, condition.low_res], 1)
        prompts = () if condition.text is None else (condition.text.prompts,)
        with autocast(image.device, self.precision):
            return (backbone or self.backbone)(image, vector, *prompts).float()


class LevelEmbedding(nn.Module):
    """Embeds a noise level in [0, inf): Fourier features of `2 / pi * atan(sigma)`, in [0, 1], and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Sigmas) -> Float[Tensor, "batch width"]:
        return self.mlp(fourier_features(torch.atan(sigma) * 2 / math.pi, 64, highest=64.0))
