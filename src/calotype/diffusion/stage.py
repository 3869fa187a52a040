"""A stage makes images of one size. Latent diffusion is one stage in latents; a cascade is several in pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor

from calotype.diffusion.augmentation import BlurAugmentation, NoiseAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.guidance import guided, rising, within
from calotype.diffusion.samplers import SAMPLERS, SamplerName, last_steps, resampled
from calotype.priors.patches import enlarged
from calotype.spaces.pixel import Space
from calotype.types import (
    NULL_LABEL,
    Condition,
    Config,
    Denoise,
    Images,
    Labels,
    Latents,
    NoiseSchedule,
    OtherImages,
    Randomness,
    Sampler,
    Sigmas,
    Text,
    per_image,
)

NO_AUGMENTATION = NoiseAugmentation(share=0.0)
NEGATIVE = 1.3
"""Guidance scale away from a negative prompt, where the prior is the guide."""
AT_ONCE, AT_ONCE_VALUES = 32, 2**22
"""So many pictures at most, and so many pixel values of them, are made together."""


Guide = Literal["unconditional", "prior"]


class Sampling(Config):
    """How a stage is sampled; stored with the model, so that it is sampled as it was judged."""

    sampler: SamplerName = "dpm_solver"
    steps: PositiveInt = 24
    guide: Guide = "unconditional"
    """The weaker denoiser that guidance leads away from: the model without label and caption (classifier-free
    guidance), or its closed form with the same label and caption (autoguidance: no second call of the network)."""
    guidance: float = Field(default=2.0, ge=0)
    """Guidance scale; 1 disables it. With the prior as the guide, the scale at `sigma = sigma_data`."""
    guidance_slope: float = Field(default=0.75, ge=-1, le=1)
    """How much the scale grows with sigma where the prior is the guide (`guidance.rising`)."""
    guidance_low: float = Field(default=0.0, ge=0)
    guidance_high: float = Field(default=1e6, gt=0)
    """Guidance is used for sigmas between these two."""
    augmentation: float = Field(default=0.0, ge=0)
    """How much the smaller picture is spoilt, of which the denoiser is told; only for stages that look at one."""
    conditioning: Literal["whole", "truncated"] = "whole"
    """The smaller picture is made to its end and then made noisy by `augmentation`, or the stage before stops there."""


DenoiserFor = Callable[[Condition], Denoise]  # the denoiser as a sampler sees it, told this
Wrapper = Callable[
    [DenoiserFor, Condition], Denoise
]  # another one in its place: what edits a picture, or mixes what is told


def straight(ask: DenoiserFor, condition: Condition) -> Denoise:
    return ask(condition)


@dataclass(frozen=True)
class SamplerInit:
    """What the sampling of one stage starts from, and whom it asks."""

    clean: Latents
    """Noise is put on this: on the prior mean, or on a picture. One for all pictures, or one each."""
    share: float = 1.0
    """Of the sampler's steps: the last ones are taken, and the others' noise is not put on."""
    bend: Wrapper = straight
    again: tuple[float, ...] = ()
    """Shares of these steps that are taken again, one after the other, with new noise."""


Initializer = Callable[["Stage", Latents], SamplerInit]  # of a stage, given the prior mean; `editing` has more of them


def from_noise(stage: Stage, mean: Latents) -> SamplerInit:
    """Plain sampling: noise around the prior mean."""
    return SamplerInit(mean)


@dataclass(frozen=True)
class Stage:
    """Makes images of one size: from noise, or from noise and a smaller image."""

    denoiser: Denoiser
    space: Space
    schedule: NoiseSchedule
    image_size: int
    low_res_size: int | None = None
    augmentation: NoiseAugmentation | BlurAugmentation = NO_AUGMENTATION

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents of one image."""
        return self.shape_of(self.image_size, self.image_size)

    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """Of the latents of an image of another size than the stage has learned."""
        return self.space.channels, height // self.space.reduction, width // self.space.reduction

    @property
    def factor(self) -> int:
        """How many times larger than the smaller image; 1 if there is none."""
        return self.image_size // (self.low_res_size or self.image_size)

    def condition(
        self, labels: Labels, low_res: Images | None, level: Sigmas, noise: Tensor, text: Text | None = None
    ) -> Condition:
        """All that the denoiser is told: one line of code for training and sampling, so the two cannot drift apart.

        `low_res` is spoilt by `level`, enlarged, and brought into the space (arXiv 2106.15282, section 4).
        """
        if low_res is None:
            return Condition(labels, text=text)
        spoilt = self.augmentation.apply(low_res, level, noise)
        if self.denoiser.local is None:
            above = self.space.encode(enlarged(spoilt, self.factor))
            return Condition(labels, above, level, per_image(self.augmentation.deviation(level)), text=text)
        around = self.denoiser.local.around(spoilt, self.augmentation.noise(level))
        return Condition(labels, around.mean, level, around.deviation, around.denoise, text)

    def prior_mean(self, condition: Condition) -> Latents:
        """The mean of clean pictures before anything of the noisy one is seen, where sampling starts.

        It is the smaller picture, enlarged (the size follows it), and 0 where there is none. Sigma starts at a few
        times the deviation from this mean, not at that of pictures from 0, so no other start will do.
        """
        if condition.low_res is not None:
            return condition.low_res
        return torch.zeros(1, *self.shape, device=condition.labels.device)

    def denoise(self, condition: Condition, sampling: Sampling) -> Denoise:
        """The denoiser as a sampler sees it: a function of the noisy picture and sigma, guided as `sampling` says."""
        strong, unconditional = self._network(condition), condition.unconditional()
        if sampling.guidance == 1:
            return strong
        if sampling.guide == "prior":
            guided_by_prior = self._guided_by_prior(condition, sampling)
            negative = unconditional if condition.text is not None and condition.text.negatives else None
            both = guided_by_prior if negative is None else guided(
                guided_by_prior, self._guided_by_prior(negative, sampling), NEGATIVE
            )  # fmt: skip
        elif (condition.labels == NULL_LABEL).all() and condition.text == unconditional.text:
            return strong
        else:
            both = guided(strong, self._network(unconditional), sampling.guidance)
        return within(both, strong, sampling.guidance_low, sampling.guidance_high)

    def _network(self, condition: Condition) -> Denoise:
        return lambda noisy, sigma: self.denoiser(noisy, filled(sigma, noisy), condition)

    def _guided_by_prior(self, condition: Condition, sampling: Sampling) -> Denoise:
        """Autoguidance with the closed form as the weaker model: it costs no second call of the network."""

        def prior(noisy: Latents, sigma: float) -> Latents:
            return self.denoiser.prior_mean(noisy, filled(sigma, noisy), condition)

        scale = rising(sampling.guidance, sampling.guidance_slope, self.denoiser.sigma_data(condition))
        return guided(self._network(condition), prior, scale)

    def steps(
        self,
        labels: Labels,
        low_res: OtherImages | None,
        sampling: Sampling,
        rngs: Sequence[Randomness],
        until: float = 0.0,
        start: Initializer = from_noise,
        text: Text | None = None,
    ) -> Iterator[Latents]:
        """The sampler's states down to sigma `until`, the first included; an image hangs on its own `Rng` alone."""
        condition = self.told(labels, low_res, sampling, rngs, text)
        origin = start(self, self.prior_mean(condition))
        grid = last_steps(self.schedule.grid(sampling.steps), origin.share)
        sigmas = [*(sigma for sigma in grid if sigma > until), until]
        noise = noise_each([rng.at("start") for rng in rngs], tuple(origin.clean.shape[1:]))
        noisy = origin.clean.to(labels.device) + sigmas[0] * noise.to(labels.device)
        denoise = origin.bend(lambda condition: self.denoise(condition, sampling), condition)
        yield noisy
        yield from self.develop(noisy, sigmas, denoise, resampled(SAMPLERS[sampling.sampler], origin.again), rngs)

    def develop(
        self, noisy: Latents, sigmas: list[float], denoise: Denoise, sampler: Sampler, rngs: Sequence[Randomness]
    ) -> Iterator[Latents]:
        """The sampler's states after each step through `sigmas`, from `noisy` at the first of them."""
        draws = iter(range(1 << 30))

        def fresh() -> Latents:
            draw = next(draws)
            return noise_each([rng.at("fresh", draw) for rng in rngs], tuple(noisy.shape[1:])).to(noisy.device)

        yield from sampler(denoise, noisy, sigmas, fresh)

    def told(
        self,
        labels: Labels,
        low_res: Images | None,
        sampling: Sampling,
        rngs: Sequence[Randomness],
        text: Text | None = None,
    ) -> Condition:
        """The condition for sampling, with each image's own randomness."""
        level = torch.full(labels.shape, sampling.augmentation, device=labels.device)
        if low_res is None or sampling.conditioning == "truncated":  # a truncated picture is as noisy as that already
            return self.condition(labels, low_res, level, torch.zeros(()), text)
        noise = noise_each([rng.at("augmentation") for rng in rngs], tuple(low_res.shape[1:]))
        return self.condition(labels, low_res, level, noise.to(low_res), text)


def filled(sigma: float, noisy: Latents) -> Sigmas:
    """The same sigma for every image."""
    return torch.full_like(noisy[:, 0, 0, 0], sigma)


def noise_each(rngs: Sequence[Randomness], shape: tuple[int, ...]) -> Latents:
    return torch.stack([rng.normal(*shape) for rng in rngs])


def shrunk(images: Images, factor: int) -> OtherImages:
    """The mean of each square of `factor` pixels: so a crop of the shrunk picture is the shrunk crop."""
    return F.avg_pool2d(images, factor)


@torch.no_grad()
def generate(
    stages: Sequence[Stage],
    labels: Labels,
    samplings: Sequence[Sampling],
    rngs: Sequence[Randomness],
    low_res: Images | None = None,
    start: Initializer = from_noise,
    text: Text | None = None,
) -> OtherImages:
    """Pictures through all stages, from noise or from `low_res`; labels, rngs and text have one entry a picture."""
    images = low_res
    for stage, sampling, until in zip(stages, samplings, stops(samplings), strict=True):
        own = [rng.at(stage.image_size) for rng in rngs]
        latents = last(stage.steps(labels, images, sampling, own, until, start, text))
        images = latents if until else stage.space.decode(latents)
    assert images is not None
    return images


def in_turn(count: int, height: int, width: int) -> list[slice]:
    """Which pictures are made together: a few at a time, so that a thousand need no more memory than these."""
    few = max(1, min(AT_ONCE, AT_ONCE_VALUES // (3 * height * width)))
    return [slice(start, start + few) for start in range(0, count, few)]


def last(states: Iterator[Latents]) -> Latents:
    return deque(states, maxlen=1).pop()


def stops(samplings: Sequence[Sampling]) -> list[float]:
    """The sigma at which each stage stops: 0, or the noise that the next one wants to see (arXiv 2106.15282, 4.2)."""
    wanted = [one.augmentation if one.conditioning == "truncated" else 0.0 for one in samplings[1:]]
    return [*wanted, 0.0]
