"""A denoiser: a network, and the scaling that makes its output an estimate of the clean picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.nets.blocks import Precision, autocast, fourier_features
from calotype.priors.gaussian import Prior
from calotype.priors.patches import PatchPrior
from calotype.types import NULL_LABEL, Condition, Latents, Sigmas, per_image


class Scaling(NamedTuple):
    """`denoised = skip * noisy + out * network(input * noisy)` (arXiv 2206.00364, eq. 7)."""

    skip: Tensor
    out: Tensor
    input: Tensor


def epsilon(sigma: Tensor) -> Scaling:
    """The network says the noise (DDPM, arXiv 2006.11239, eq. 14)."""
    return Scaling(torch.ones_like(sigma), -sigma, (1 + sigma**2) ** -0.5)


def x0(sigma: Tensor) -> Scaling:
    """The network says the clean picture."""
    return Scaling(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2) ** -0.5)


def velocity(sigma: Tensor) -> Scaling:
    """The network says `a * noise - b * clean` of the variance-preserving process (arXiv 2202.00512, section 4)."""
    return Scaling(1 / (1 + sigma**2), -sigma * (1 + sigma**2) ** -0.5, (1 + sigma**2) ** -0.5)


def flow(sigma: Tensor) -> Scaling:
    """The network says `noise - clean` at time `t = sigma / (1 + sigma)` (arXiv 2209.03003, eq. 1)."""
    return Scaling(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma))


def edm(sigma: Tensor) -> Scaling:
    """Inputs and targets of unit variance (arXiv 2206.00364, table 1, for data of spread 1: see `for_spread`)."""
    variance = 1 + sigma**2
    return Scaling(1 / variance, sigma * variance**-0.5, variance**-0.5)


def for_spread(scaling: Callable[[Tensor], Scaling], sigma: Tensor, spread: Tensor) -> Scaling:
    """The scaling of data with another standard deviation than 1: sigma is measured by that."""
    of_one = scaling(sigma / spread)
    return Scaling(of_one.skip, spread * of_one.out, of_one.input / spread)


ScalingName = Literal["epsilon", "x0", "velocity", "flow", "edm"]
SCALINGS: dict[ScalingName, Callable[[Tensor], Scaling]] = {
    "epsilon": epsilon, "x0": x0, "velocity": velocity, "flow": flow, "edm": edm,
}  # fmt: skip


class Denoiser(nn.Module):
    """Looks at a noisy picture and its sigma, and says what the clean picture is.

    `backbone(image, vector)` gives an image of the shape of the noisy one; all that is told to it besides the picture
    (the noise level, the label, the level of the augmentation) is summed into `vector`. One that reads is also given
    the texts.

    What is known in closed form stands beside the backbone, which also sees it: a `mixture` of all pictures, or, for a
    denoiser that looks at a smaller picture, `local` Gaussians around that.

    Where it looks at a smaller picture, clean pictures are taken to lie around the enlarged one, and else around 0;
    `spread` is their standard deviation about that, to which the condition's doubt is added, square to square.
    """

    def __init__(
        self,
        backbone: nn.Module,
        width: int,
        classes: int,
        scaling: ScalingName,
        precision: Precision = "float32",
        spread: float = 1.0,
        mixture: Prior | None = None,
        local: PatchPrior | None = None,
    ) -> None:
        super().__init__()
        self.mixture, self.local = mixture, local
        self.backbone, self.classes, self.precision, self.spread = backbone, classes, precision, spread
        self.row = SCALINGS[scaling]
        self.noise_level = LevelEmbedding(width)
        self.augmentation_level = LevelEmbedding(width)
        self.label = nn.Embedding(classes + 1, width)  # the last row is "not told"
        nn.init.normal_(self.label.weight, std=0.02)

    def forward(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """Estimate of the clean picture, float32, of the shape of `noisy`; `sigma` is one number an image."""
        scaling = self.scaling(sigma, condition)
        known = self._known(scaling, noisy, sigma, condition)
        return known + scaling.out * self._network(scaling.input, noisy, known, sigma, condition)

    def loss(self, clean: Latents, sigma: Sigmas, noise: Latents, condition: Condition) -> Float[Tensor, " batch"]:
        """Squared error of the network's own output: of epsilon, x0, v or the flow, as the scaling has it."""
        scaling = self.scaling(sigma, condition)
        noisy = clean + per_image(sigma) * noise
        known = self._known(scaling, noisy, sigma, condition)
        target = (clean - known) / scaling.out
        guess = self._network(scaling.input, noisy, known, sigma, condition)
        return (guess - target).square().flatten(1).mean(1)

    @property
    def has_prior(self) -> bool:
        """Whether a closed form stands beside the network."""
        return self.mixture is not None or self.local is not None

    def prior_mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """The posterior mean of the clean picture under the closed form alone, given the same condition."""
        return self._known(self.scaling(sigma, condition), noisy, sigma, condition)

    def sigma_data(self, condition: Condition) -> Sigmas:
        """Standard deviation of what is to be generated about its prior mean, of each image."""
        return self._spread(torch.ones_like(condition.labels, dtype=torch.float32), condition).mean((1, 2, 3))

    def scaling(self, sigma: Sigmas, condition: Condition) -> Scaling:
        return for_spread(self.row, per_image(sigma), self._spread(sigma, condition))

    def _spread(self, sigma: Sigmas, condition: Condition) -> Float[Tensor, "batch 1 _ _"]:
        """At every place, where the doubt is larger in some than in others."""
        everywhere = per_image(torch.full_like(sigma, self.spread))
        return everywhere if condition.deviation is None else torch.hypot(everywhere, condition.deviation)

    def _known(self, scaling: Scaling, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """What the network need not say: the scaling's skip, or in its place the denoiser in closed form."""
        if condition.known is not None:
            return condition.known(noisy, sigma)
        if self.mixture is not None:
            return self.mixture.denoise(noisy, sigma, condition.labels, condition.text)
        return scaling.skip * noisy if condition.low_res is None else torch.lerp(condition.low_res, noisy, scaling.skip)

    def _network(self, scale: Tensor, noisy: Latents, known: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        image = scale * (noisy if condition.low_res is None else noisy - condition.low_res)
        vector = self.noise_level(sigma / self._spread(sigma, condition).mean((1, 2, 3))) + self.label(
            condition.labels.where(condition.labels != NULL_LABEL, self.classes)
        )
        if condition.augmentation is not None:
            vector = vector + self.augmentation_level(condition.augmentation)
        if self.has_prior:
            image = torch.cat([image, known], 1)
        if condition.low_res is not None:
            image = torch.cat([image, condition.low_res], 1)
        told = () if condition.text is None else (condition.text.prompts,)
        with autocast(image.device, self.precision):
            return self.backbone(image, vector, *told).float()


class LevelEmbedding(nn.Module):
    """A noise level as a vector: Fourier features of `2 / pi * atan(sigma)`, which lies in [0, 1], and an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Sigmas) -> Float[Tensor, "batch width"]:
        return self.mlp(fourier_features(torch.atan(sigma) * 2 / math.pi, 64, highest=64.0))
