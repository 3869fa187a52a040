"""A stage generates images of one size: latent diffusion is one stage in latents, a cascade is several in pixels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from calotype.bounds import AugmentationLevel, GuidanceScale, SamplingSteps, Sigma
from calotype.diffusion.augmentation import Augmentation, NoiseAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.guidance import epsilon_scaled, extrapolated, guided, in_interval, rising
from calotype.diffusion.samplers import CALLS_A_STEP, SAMPLERS, SamplerName, denoised_again, last_steps, resampled
from calotype.diffusion.schedules import Schedule
from calotype.priors.patches import PatchPrior, enlarged
from calotype.spaces.pixel import Space
from calotype.threads import at_once, rows_of
from calotype.types import (
    NULL_LABEL,
    Condition,
    Config,
    Denoise,
    Images,
    Labels,
    Latents,
    OtherImages,
    Randomness,
    Sampler,
    Sigmas,
    Text,
    per_image,
)

NO_AUGMENTATION = NoiseAugmentation(share=0.0)
NEGATIVE = 1.3
"""Guidance scale of a negative prompt where the prior is the guide."""
THREAD_IMAGES, BATCH_VALUES = 16, 3 * 2**19
"""Images a thread, and pixel values of all images, that are sampled together at most: 8 pictures of 256 px."""

Guide = Literal["unconditional", "prior"]


class Sampling(Config):
    """How a stage is sampled; stored with the model."""

    sampler: SamplerName = Field(default="dpm_solver", description="The sampler: `euler` is DDIM, `heun` is EDM's.")
    steps: SamplingSteps = Field(default=24, description="Number of sampling steps.")
    guide: Guide = "unconditional"
    """The weaker denoiser from which guidance extrapolates: the network without label and caption (classifier-free
    guidance), or the prior with the same label and caption (autoguidance without a second call of the network)."""
    guidance: GuidanceScale = 2.0
    """Guidance scale; 1 disables it. With the prior as the guide, the scale at sigma = sigma_data."""
    guidance_slope: float = Field(default=0.75, strict=True, ge=-1, le=1)
    """Growth of the scale with sigma if the prior is the guide; see `guidance.rising`."""
    prior_guidance: GuidanceScale = 0.0
    """Classifier-free guidance of the prior, if the prior is the guide: its mean with label and caption minus its mean
    without them, times this, is added (no call of the network), unless the guidance scale is 1. It keeps samples nearer
    to their captions."""
    guidance_low: float = Field(default=0.0, strict=True, ge=0, le=1e6, description="Lower end; see `guidance_high`.")
    guidance_high: Sigma = 1e6
    """Guidance is applied for sigma in (guidance_low, guidance_high]."""
    epsilon_scaling: float = Field(default=0.0, strict=True, ge=0, le=1)
    """Share of the noise that an estimate keeps where signal and noise have equal variance; elsewhere it keeps less.
    Keeps the amplitude of samples from collapsing; see `guidance.epsilon_scaled`. Fitted after training."""
    final_denoising: float = Field(default=0.0, strict=True, ge=0, le=1)
    """Sigma of the noise that a finished sample is taken to have left; it is denoised once more. 0 disables it, as the
    fit of epsilon scaling does where samples have too little amplitude."""
    augmentation: AugmentationLevel = 0.0
    """Level of the augmentation of the low-resolution image; only for stages that enlarge."""
    conditioning: Literal["whole", "truncated"] = "whole"
    """`whole`: the low-resolution image is sampled to the end and then augmented. `truncated`: its sampling stops at
    that noise level (truncated conditioning, arXiv 2106.15282, section 4.2)."""

    def algorithm(self, resampling: Sequence[float] = ()) -> Sampler:
        """The sampler, which repeats the last steps for each strength in `resampling`, then final denoising."""
        return denoised_again(resampled(SAMPLERS[self.sampler], resampling), self.final_denoising)

    def scaled(self, amount: float) -> Sampling:
        """With this epsilon scaling; above 0 without final denoising, which takes more of the amplitude."""
        final = 0.0 if amount else self.final_denoising
        return self.model_copy(update={"epsilon_scaling": amount, "final_denoising": final})

    def calls(self, negative: bool = False) -> int:
        """Calls of the network for one picture; Heun's last step, which has one, is counted with two."""
        twice = self.guidance != 1 and (negative or self.guide == "unconditional")
        return (self.steps * CALLS_A_STEP[self.sampler] + (self.final_denoising > 0)) * (1 + twice)


DenoiserFor = Callable[[Condition], Denoise]  # the stage's denoiser, with guidance, for a condition
Wrapper = Callable[[DenoiserFor, Condition], Denoise]  # what is sampled with, made from it, at the sample's condition


@dataclass(frozen=True)
class SamplerInit:
    """Where the sampling of a stage starts, and the denoiser that it uses."""

    clean: Latents
    """Latents to which noise is added: the prior mean, or an image; one for all samples, or one each."""
    strength: float = 1.0
    """Fraction of the sampler's steps that are taken, the last ones: (0, 1]."""
    wrapper: Wrapper = lambda denoiser_for, condition: denoiser_for(condition)
    resampling: tuple[float, ...] = ()
    """Fractions of these steps that are repeated with new noise, one after the other (RePaint)."""


Initializer = Callable[["Stage", Latents], SamplerInit]  # (stage, prior mean) -> init; see `diffusion/init.py`
Initializers = Callable[[slice], Initializer]  # rows of a batch -> their initializer


def from_noise(stage: Stage, mean: Latents) -> SamplerInit:
    """Plain sampling: noise about the prior mean."""
    return SamplerInit(mean)


def for_all(start: Initializer) -> Initializers:
    return lambda rows: start


def beginning_at(first: int, starts: Initializers) -> Initializers:
    """Those of a part of a batch, whose rows are counted from `first`."""
    return lambda rows: starts(slice(first + rows.start, first + rows.stop))


@dataclass(frozen=True)
class Stage:
    """Generates images of `image_size`, from noise, or from noise and images of `low_res_size`."""

    denoiser: Denoiser
    space: Space
    schedule: Schedule
    image_size: int
    low_res_size: int | None = None
    augmentation: Augmentation = NO_AUGMENTATION

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the latents of one image."""
        return self.shape_of(self.image_size, self.image_size)

    def shape_of(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the latents of an image of another size, in pixels."""
        return self.space.channels, height // self.space.reduction, width // self.space.reduction

    @property
    def factor(self) -> int:
        """Size relative to the low-resolution image; 1 if there is none."""
        return self.image_size // (self.low_res_size or self.image_size)

    @property
    def largest_sigma(self) -> float:
        """At which sampling starts, with however many steps."""
        return self.schedule.grid(1)[0]

    def condition(
        self, labels: Labels, low_res: Images | None, level: Sigmas, noise: Tensor, text: Text | None = None
    ) -> Condition:
        """The condition in training and in sampling alike, so that the two cannot drift apart.

        `low_res` is augmented at `level` with `noise` (conditioning augmentation, arXiv 2106.15282, section 4),
        enlarged and encoded.
        """
        if low_res is None:
            return Condition(labels, text=text)
        augmented, prior = self.augmentation.apply(low_res, level, noise), self.denoiser.prior
        if not isinstance(prior, PatchPrior):
            above = self.space.encode(enlarged(augmented, self.factor))
            return Condition(labels, above, level, per_image(self.augmentation.deviation(level)), text=text)
        posterior = prior.posterior(augmented, self.augmentation.noise(level))
        return Condition(labels, posterior.mean, level, posterior.deviation, posterior.denoise, text)

    def prior_mean(self, condition: Condition) -> Latents:
        """The mean of clean latents given the condition alone, about which sampling starts.

        It is the enlarged low-resolution image, or 0. The largest sigma is a few times the standard deviation about
        this mean, which is too little noise for any other start.
        """
        if condition.low_res is not None:
            return condition.low_res
        return torch.zeros(1, *self.shape, device=condition.labels.device)

    def denoise(self, condition: Condition, sampling: Sampling) -> Denoise:
        """The denoiser as a function of noisy latents and sigma, guided and scaled as `sampling` says."""
        plain = self._guided(condition, sampling)
        if not sampling.epsilon_scaling:
            return plain
        return epsilon_scaled(plain, sampling.epsilon_scaling, self.denoiser.deviation(condition))

    def _guided(self, condition: Condition, sampling: Sampling) -> Denoise:
        strong, unconditional = self._network(condition), condition.unconditional()
        if sampling.guidance == 1:
            return strong
        if sampling.guide == "prior":
            inside = self._guided_by_prior(condition, sampling)
            if condition.text is not None and condition.text.negatives:
                inside = guided(inside, self._guided_by_prior(unconditional, sampling), NEGATIVE)
        elif (condition.labels == NULL_LABEL).all() and condition.text == unconditional.text:
            return strong
        else:
            inside = guided(strong, self._network(unconditional), sampling.guidance)
        return in_interval(inside, strong, sampling.guidance_low, sampling.guidance_high)

    def _network(self, condition: Condition) -> Denoise:
        return lambda noisy, sigma: self.denoiser(noisy, filled(sigma, noisy), condition)

    def _guided_by_prior(self, condition: Condition, sampling: Sampling) -> Denoise:
        """Autoguidance (arXiv 2406.02507, eq. 4) with the prior as the weaker model, evaluated once for both."""
        without, shift = condition.unconditional(), sampling.prior_guidance
        if torch.equal(without.labels, condition.labels) and without.text == condition.text:
            shift = 0.0
        scale = rising(sampling.guidance, sampling.guidance_slope, self.denoiser.deviation(condition))

        def denoise(noisy: Latents, sigma: float) -> Latents:
            sigmas = filled(sigma, noisy)
            estimate, mean = self.denoiser.with_prior_estimate(noisy, sigmas, condition)
            away = extrapolated(mean, estimate, scale(sigma))
            return away + shift * (mean - self.denoiser.prior_estimate(noisy, sigmas, without)) if shift else away

        return denoise

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
        """The sampler's states down to sigma `until`, the first included; a sample depends on its own `Rng` alone."""
        condition = self.sampling_condition(labels, low_res, sampling, rngs, text)
        init = start(self, self.prior_mean(condition))
        grid = last_steps(self.schedule.grid(sampling.steps), init.strength)
        sigmas = [*(sigma for sigma in grid if sigma > until), until]
        noise = noise_each([rng.at("start") for rng in rngs], tuple(init.clean.shape[1:]))
        noisy = init.clean.to(labels.device) + sigmas[0] * noise.to(labels.device)
        denoise = init.wrapper(lambda condition: self.denoise(condition, sampling), condition)
        yield noisy
        yield from self.sampler_states(noisy, sigmas, denoise, sampling.algorithm(init.resampling), rngs)

    def sampler_states(
        self, noisy: Latents, sigmas: list[float], denoise: Denoise, sampler: Sampler, rngs: Sequence[Randomness]
    ) -> Iterator[Latents]:
        """The sampler's states after each step through `sigmas`, from `noisy` at the first of them."""
        draws = iter(range(1 << 30))

        def fresh() -> Latents:
            draw = next(draws)
            return noise_each([rng.at("fresh", draw) for rng in rngs], tuple(noisy.shape[1:])).to(noisy.device)

        yield from sampler(denoise, noisy, sigmas, fresh)

    def sampling_condition(
        self,
        labels: Labels,
        low_res: Images | None,
        sampling: Sampling,
        rngs: Sequence[Randomness],
        text: Text | None = None,
    ) -> Condition:
        """The condition for sampling, with each sample's own randomness."""
        level = torch.full(labels.shape, sampling.augmentation, device=labels.device)
        if low_res is None or sampling.conditioning == "truncated":  # that is as noisy already
            return self.condition(labels, low_res, level, torch.zeros(()), text)
        noise = noise_each([rng.at("augmentation") for rng in rngs], tuple(low_res.shape[1:]))
        return self.condition(labels, low_res, level, noise.to(low_res), text)


def filled(sigma: float, noisy: Latents) -> Sigmas:
    """The same sigma for every image."""
    return torch.full_like(noisy[:, 0, 0, 0], sigma)


def noise_each(rngs: Sequence[Randomness], shape: tuple[int, ...]) -> Latents:
    return torch.stack([rng.normal(*shape) for rng in rngs])


def shrunk(images: Images, factor: int) -> OtherImages:
    """Area downsampling: the mean of each square of `factor` pixels, so it commutes with crops."""
    return F.avg_pool2d(images, factor)


def generate(
    stages: Sequence[Stage],
    labels: Labels,
    samplings: Sequence[Sampling],
    rngs: Sequence[Randomness],
    low_res: Images | None = None,
    starts: Initializers = lambda rows: from_noise,
    text: Text | None = None,
) -> OtherImages:
    """Samples in [-1, 1] of all stages in turn, from noise or `low_res`; labels, rngs and text have one entry each."""

    def part(rows: slice) -> OtherImages:
        prompts, images = text and text.at(rows), None if low_res is None else low_res[rows]
        return _in_chain(stages, labels[rows], samplings, rngs[rows], images, starts(rows), prompts)

    return _divided(part, labels)


def sampled_latents(
    stage: Stage, labels: Labels, sampling: Sampling, rngs: Sequence[Randomness], text: Text | None = None
) -> Latents:
    """Latents of the samples of the first stage, before they are decoded; labels, rngs and text have one entry each."""

    def part(rows: slice) -> Latents:
        return last(stage.steps(labels[rows], None, sampling, rngs[rows], text=text and text.at(rows)))

    return _divided(part, labels)


def _divided(part: Callable[[slice], Tensor], labels: Labels) -> Tensor:
    """The parts for all labels. On a CPU they are divided among the threads, which is faster than dividing every
    operation among them."""
    slices = torch.get_num_threads() if labels.device.type == "cpu" else 1
    return torch.cat(at_once([partial(torch.no_grad()(part), rows) for rows in rows_of(len(labels), slices)]))


def _in_chain(
    stages: Sequence[Stage], labels: Labels, samplings: Sequence[Sampling], rngs: Sequence[Randomness],
    low_res: Images | None, start: Initializer, text: Text | None,
) -> OtherImages:  # fmt: skip
    images = low_res
    for stage, sampling, until in zip(stages, samplings, stops(samplings), strict=True):
        own = [rng.at(stage.image_size) for rng in rngs]
        latents = last(stage.steps(labels, images, sampling, own, until, start, text))
        images = latents if until else stage.space.decode(latents)
    assert images is not None
    return images


def in_turn(count: int, height: int, width: int) -> list[slice]:
    """Slices of `count` images that are processed together, in bounded memory."""
    few = max(1, min(THREAD_IMAGES * max(2, torch.get_num_threads()), BATCH_VALUES // (3 * height * width)))
    return [slice(start, start + few) for start in range(0, count, few)]


def generate_in_turn(
    stages: Sequence[Stage], labels: Labels, samplings: Sequence[Sampling], rngs: Sequence[Randomness],
    low_res: Images | None = None, starts: Initializers = lambda rows: from_noise, text: Text | None = None,
    sides: tuple[int, int] | None = None,
) -> Iterator[OtherImages]:  # fmt: skip
    """As `generate`, in parts of bounded memory. `sides` are height and width of the samples: by default those of
    `low_res`, enlarged, or of squares."""
    if low_res is not None:
        factor = prod(stage.factor for stage in stages)
        sides = low_res.shape[-2] * factor, low_res.shape[-1] * factor
    for part in in_turn(len(labels), *(sides or (stages[-1].image_size,) * 2)):
        prompts, images = text and text.at(part), None if low_res is None else low_res[part]
        yield generate(stages, labels[part], samplings, rngs[part], images, beginning_at(part.start, starts), prompts)


def last(states: Iterator[Latents]) -> Latents:
    return deque(states, maxlen=1).pop()


def stops(samplings: Sequence[Sampling]) -> list[float]:
    """The sigma at which each stage stops: 0, or the augmentation of a truncated next one (arXiv 2106.15282, 4.2)."""
    above = [sampling.augmentation if sampling.conditioning == "truncated" else 0.0 for sampling in samplings[1:]]
    return [*above, 0.0]
