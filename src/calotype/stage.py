"""A stage makes images of one size. Latent diffusion is one stage in latents; a cascade is several in pixels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.guidance import guided, within
from calotype.diffusion.samplers import SAMPLERS, SamplerName
from calotype.spaces.pixel import Space
from calotype.vocabulary import NOT_TOLD, Condition, Config, Denoise, Images, Labels, Latents, NoiseSchedule, Rng


class Sampling(Config):
    """How a stage is sampled; stored with the model, so that it is sampled as it was judged."""

    sampler: SamplerName = "dpm_solver"
    steps: PositiveInt = 24
    guidance: float = Field(default=2.0, ge=0)
    """1 is none; above 1 away from what the model says without the label."""
    guidance_low: float = Field(default=0.0, ge=0)
    guidance_high: float = Field(default=1e6, gt=0)
    """Guidance is used for sigmas between these two."""
    augmentation: float = Field(default=0.0, ge=0)
    """Noise put on the smaller picture, of which the denoiser is told; only for stages that look at one."""


@dataclass(frozen=True)
class Stage:
    """Makes images of one size: from noise, or from noise and a smaller image."""

    denoiser: Denoiser
    space: Space
    schedule: NoiseSchedule
    image_size: int
    smaller_size: int | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the latents of one image."""
        side = self.image_size // self.space.reduction
        return self.space.channels, side, side

    def condition(self, labels: Labels, smaller: Images | None, augmentation: float, rngs: Sequence[Rng]) -> Condition:
        """All that the denoiser is told: one line of code for training and sampling, so the two cannot drift apart.

        `smaller` is enlarged, brought into the space, and noised by `augmentation` (arXiv 2106.15282, section 4.2).
        """
        if smaller is None:
            return Condition(labels)
        enlarged = F.interpolate(smaller, size=(self.image_size, self.image_size), mode="bicubic", antialias=True)
        known = self.space.sample(self.space.moments(enlarged), rngs[0].at("smaller"))
        noise = noise_each([rng.at("augmentation") for rng in rngs], self.shape).to(known)
        return Condition(labels, known + augmentation * noise, torch.full_like(known[:, 0, 0, 0], augmentation))

    def denoise(self, condition: Condition, sampling: Sampling) -> Denoise:
        """The denoiser as a sampler sees it: a function of the noisy picture and sigma, guided as `sampling` says."""

        def told(condition: Condition) -> Denoise:
            return lambda noisy, sigma: self.denoiser(noisy, torch.full_like(noisy[:, 0, 0, 0], sigma), condition)

        strong = told(condition)
        if sampling.guidance == 1 or bool((condition.labels == NOT_TOLD).all()):
            return strong
        both = guided(strong, told(condition.untold()), sampling.guidance)
        return within(both, strong, sampling.guidance_low, sampling.guidance_high)

    def steps(
        self, labels: Labels, smaller: Images | None, sampling: Sampling, rngs: Sequence[Rng]
    ) -> Iterator[Latents]:
        """The sampler's states, one image a `Rng`: each image depends on its own randomness only."""
        sigmas = self.schedule.grid(sampling.steps)
        draws = iter(range(1 << 30))

        def fresh() -> Latents:
            draw = next(draws)
            return noise_each([rng.at("fresh", draw) for rng in rngs], self.shape).to(labels.device)

        denoise = self.denoise(self.condition(labels, smaller, sampling.augmentation, rngs), sampling)
        noisy = sigmas[0] * noise_each([rng.at("start") for rng in rngs], self.shape).to(labels.device)
        yield from SAMPLERS[sampling.sampler](denoise, noisy, sigmas, fresh)


def noise_each(rngs: Sequence[Rng], shape: tuple[int, ...]) -> Latents:
    return torch.stack([rng.normal(*shape) for rng in rngs])


@torch.no_grad()
def generate(stages: Sequence[Stage], labels: Labels, samplings: Sequence[Sampling], rngs: Sequence[Rng]) -> Images:
    """Pictures from noise, through all stages. `labels` and `rngs` have one entry a picture."""
    images: Images | None = None
    for number, (stage, sampling) in enumerate(zip(stages, samplings, strict=True)):
        latents = None
        for latents in stage.steps(labels, images, sampling, [rng.at(number) for rng in rngs]):  # noqa: B007
            pass
        assert latents is not None
        images = stage.space.decode(latents)
    assert images is not None
    return images
