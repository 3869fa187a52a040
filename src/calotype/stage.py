"""A stage makes images of one size. Latent diffusion is one stage in latents; a cascade is several in pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from calotype.diffusion.augmentation import Blurring, Noising
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.guidance import guided, within
from calotype.diffusion.samplers import SAMPLERS, SamplerName
from calotype.spaces.pixel import Space
from calotype.vocabulary import (
    NOT_TOLD,
    Condition,
    Config,
    Denoise,
    Images,
    Labels,
    Latents,
    NoiseSchedule,
    OtherImages,
    Rng,
    Sigmas,
    Text,
    per_image,
)

NO_AUGMENTATION = Noising(share=0.0)


class Sampling(Config):
    """How a stage is sampled; stored with the model, so that it is sampled as it was judged."""

    sampler: SamplerName = "dpm_solver"
    steps: PositiveInt = 24
    guidance: float = Field(default=2.0, ge=0)
    """1 is none; above 1 away from what the model says without label and text."""
    guidance_low: float = Field(default=0.0, ge=0)
    guidance_high: float = Field(default=1e6, gt=0)
    """Guidance is used for sigmas between these two."""
    augmentation: float = Field(default=0.0, ge=0)
    """How much the smaller picture is spoilt, of which the denoiser is told; only for stages that look at one."""
    conditioning: Literal["whole", "truncated"] = "whole"
    """The smaller picture is made to its end and then made noisy by `augmentation`, or the stage before stops there."""


@dataclass(frozen=True)
class Stage:
    """Makes images of one size: from noise, or from noise and a smaller image."""

    denoiser: Denoiser
    space: Space
    schedule: NoiseSchedule
    image_size: int
    smaller_size: int | None = None
    augmentation: Noising | Blurring = NO_AUGMENTATION
    contrast: float = 0.0
    """How far off the enlarged picture is, as a multiple of its local contrast: edges are, plain areas are not."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents of one image."""
        return self.space.channels, self.image_size // self.space.reduction, self.image_size // self.space.reduction

    @property
    def factor(self) -> int:
        """How many times larger than the smaller image; 1 if there is none."""
        return self.image_size // (self.smaller_size or self.image_size)

    def condition(
        self, labels: Labels, smaller: Images | None, level: Sigmas, noise: Tensor, text: Text | None = None
    ) -> Condition:
        """All that the denoiser is told: one line of code for training and sampling, so the two cannot drift apart.

        `smaller` is spoilt by `level`, enlarged, and brought into the space (arXiv 2106.15282, section 4).
        """
        if smaller is None:
            return Condition(labels, text=text)
        spoilt = self.augmentation.apply(smaller, level, noise)
        above = self.space.encode(enlarged(spoilt, self.factor))
        spoils = per_image(self.augmentation.doubt(level))
        contrast = (local_contrast(above, max(1, self.factor // 2)).square() - spoils**2).clamp(min=0).sqrt()
        return Condition(labels, above, level, torch.hypot(self.contrast * contrast, spoils), text)

    def denoise(self, condition: Condition, sampling: Sampling) -> Denoise:
        """The denoiser as a sampler sees it: a function of the noisy picture and sigma, guided as `sampling` says."""

        def told(condition: Condition) -> Denoise:
            return lambda noisy, sigma: self.denoiser(noisy, torch.full_like(noisy[:, 0, 0, 0], sigma), condition)

        strong = told(condition)
        untold = condition.untold()
        if sampling.guidance == 1 or (bool((condition.labels == NOT_TOLD).all()) and condition.text == untold.text):
            return strong
        both = guided(strong, told(untold), sampling.guidance)
        return within(both, strong, sampling.guidance_low, sampling.guidance_high)

    def steps(
        self,
        labels: Labels,
        smaller: Images | None,
        sampling: Sampling,
        rngs: Sequence[Rng],
        until: float = 0.0,
        text: Text | None = None,
    ) -> Iterator[Latents]:
        """The sampler's states from noise down to sigma `until`, one image a `Rng`, on whose randomness alone it hangs.

        The size is that of `smaller` times the factor, where there is one: a crop, or a larger picture.
        """
        shape = self.shape if smaller is None else self._shape_above(smaller)
        sigmas = [*(sigma for sigma in self.schedule.grid(sampling.steps) if sigma > until), until]
        noisy = sigmas[0] * noise_each([rng.at("start") for rng in rngs], shape).to(labels.device)
        yield from self.develop(noisy, sigmas, self.told(labels, smaller, sampling, rngs, text), sampling, rngs)

    def develop(
        self, noisy: Latents, sigmas: list[float], condition: Condition, sampling: Sampling, rngs: Sequence[Rng]
    ) -> Iterator[Latents]:
        """The sampler's states after each step through `sigmas`, from `noisy` at the first of them."""
        draws = iter(range(1 << 30))

        def fresh() -> Latents:
            draw = next(draws)
            return noise_each([rng.at("fresh", draw) for rng in rngs], tuple(noisy.shape[1:])).to(noisy.device)

        yield from SAMPLERS[sampling.sampler](self.denoise(condition, sampling), noisy, sigmas, fresh)

    def told(
        self,
        labels: Labels,
        smaller: Images | None,
        sampling: Sampling,
        rngs: Sequence[Rng],
        text: Text | None = None,
    ) -> Condition:
        """The condition for sampling, with each image's own randomness."""
        level = torch.full(labels.shape, sampling.augmentation, device=labels.device)
        if smaller is None or sampling.conditioning == "truncated":  # a truncated picture is as noisy as that already
            return self.condition(labels, smaller, level, torch.zeros(()), text)
        noise = noise_each([rng.at("augmentation") for rng in rngs], tuple(smaller.shape[1:]))
        return self.condition(labels, smaller, level, noise.to(smaller), text)

    def _shape_above(self, smaller: Images) -> tuple[int, int, int]:
        height, width = (side * self.factor // self.space.reduction for side in smaller.shape[-2:])
        return self.space.channels, height, width


@torch.no_grad()
def redrawn(
    stage: Stage,
    images: Images,
    labels: Labels,
    sampling: Sampling,
    share: float,
    rngs: Sequence[Rng],
    text: Text | None = None,
) -> Images:
    """Pictures made noisy, and made clean again by the last steps of sampling (arXiv 2108.01073): `share` of them.

    They keep what is larger than that noise; the rest is the stage's own, mistakes included.
    """
    sigmas = stage.schedule.grid(sampling.steps)[-1 - max(1, round(share * sampling.steps)) :]
    clean = stage.space.encode(images)
    noise = noise_each([rng.at("start") for rng in rngs], tuple(clean.shape[1:])).to(clean)
    smaller = shrunk(images, stage.factor) if stage.smaller_size else None
    condition = stage.told(labels, smaller, sampling.model_copy(update={"conditioning": "whole"}), rngs, text)
    return stage.space.decode(last(stage.develop(clean + sigmas[0] * noise, sigmas, condition, sampling, rngs)))


def noise_each(rngs: Sequence[Rng], shape: tuple[int, ...]) -> Latents:
    return torch.stack([rng.normal(*shape) for rng in rngs])


def enlarged(images: Images, factor: int) -> OtherImages:
    return F.interpolate(images, scale_factor=factor, mode="bicubic")


def local_contrast(images: Latents, radius: int) -> Float[Tensor, "batch 1 height width"]:
    """Standard deviation in the square around each pixel, up to `radius` pixels away, over all channels."""

    def around(values: Latents) -> Latents:
        return F.avg_pool2d(values, 2 * radius + 1, 1, radius, count_include_pad=False)

    variance = around(images.square()) - around(images).square()
    return variance.mean(1, keepdim=True).clamp(min=0).sqrt()


def shrunk(images: Images, factor: int) -> OtherImages:
    """The mean of each square of `factor` pixels: so a crop of the shrunk picture is the shrunk crop."""
    return F.avg_pool2d(images, factor)


@torch.no_grad()
def generate(
    stages: Sequence[Stage],
    labels: Labels,
    samplings: Sequence[Sampling],
    rngs: Sequence[Rng],
    smaller: Images | None = None,
    text: Text | None = None,
) -> OtherImages:
    """Pictures through all stages, from noise or from `smaller`; labels, rngs and text have one entry a picture."""
    images = smaller
    for stage, sampling, until in zip(stages, samplings, stops(samplings), strict=True):
        own = [rng.at(stage.image_size) for rng in rngs]
        latents = last(stage.steps(labels, images, sampling, own, until, text))
        images = latents if until else stage.space.decode(latents)
    assert images is not None
    return images


def last(states: Iterator[Latents]) -> Latents:
    return deque(states, maxlen=1).pop()


def stops(samplings: Sequence[Sampling]) -> list[float]:
    """The sigma at which each stage stops: 0, or the noise that the next one wants to see (arXiv 2106.15282, 4.2)."""
    wanted = [one.augmentation if one.conditioning == "truncated" else 0.0 for one in samplings[1:]]
    return [*wanted, 0.0]
