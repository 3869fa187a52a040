"""Where sampling starts: image-to-image, inpainting, other sizes, condition switches. None needs training.

Each is an `Initializer`, and wraps another one. `full` is the image size of the last stage; a stage below it gets the
given image downsampled to its own size. Images are in [-1, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.diffusion.guidance import switched, with_known_part
from calotype.diffusion.stage import DenoiserFor, Initializer, SamplerInit, Sampling, Stage, from_noise, last, shrunk
from calotype.types import Condition, Denoise, Images, Labels, Latents, Randomness, Sigmas, Text

RESAMPLING = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of inpainting: 5.5 times the steps in all, and half of the seam."""

SWITCH_STEPS = 100
"""Steps of the grid on which a condition switch is placed."""


class State(NamedTuple):
    """One call of a denoiser."""

    stage: Stage
    noisy: Latents
    sigma: float
    estimate: Latents


Mask = Float[Tensor, "1 1 rows columns"]  # 1: to be repainted, 0: kept


def canvas(height: int, width: int, full: int) -> Initializer:
    """Samples of another size, in pixels, than the training size."""

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        sides = (side * stage.image_size // full for side in (height, width))
        return SamplerInit(mean if stage.low_res_size else mean.new_zeros(1, *stage.shape_of(*sides)))

    return begin


def image_to_image(picture: Images, full: int, strength: float, start: Initializer = from_noise) -> Initializer:
    """Image-to-image (SDEdit, arXiv 2108.01073, algorithm 1): the last `strength` of the steps, from the noisy picture.

    Structures larger than that noise stay. In a cascade every stage does so. A strength of 1 is plain sampling.
    """

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        init = start(stage, mean)
        if strength == 1:
            return init
        return replace(init, clean=stage.space.encode(shrunk(picture, full // stage.image_size)), strength=strength)

    return begin


def inpainting(picture: Images, mask: Mask, full: int, start: Initializer = from_noise) -> Initializer:
    """Repaints where the mask is 1; elsewhere the picture replaces every estimate (RePaint, arXiv 2201.09865).

    The masked area is painted grey first, so that no latent beside it depends on it.
    """

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        init, factor = start(stage, mean), full // stage.image_size
        known = stage.space.encode(shrunk(picture * (1 - mask), factor))
        repaint = F.max_pool2d(mask, factor * stage.space.reduction)

        def wrapper(denoiser_for: DenoiserFor, condition: Condition) -> Denoise:
            return with_known_part(init.wrapper(denoiser_for, condition), known, repaint)

        clean = torch.lerp(known, init.clean.to(known), repaint)
        return replace(init, clean=clean, wrapper=wrapper, resampling=RESAMPLING)

    return begin


def condition_switch(labels: Labels, text: Text | None, share: Sigmas, start: Initializer = from_noise) -> Initializer:
    """Switches to these labels and this text for the last `share` of the steps, in [0, 1], of each sample."""

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        steps = min(SWITCH_STEPS, stage.schedule.most_steps)
        init, grid = start(stage, mean), stage.schedule.grid(steps)
        sigmas = [grid[round(steps * (1 - fraction))] for fraction in share.tolist()]
        limits = torch.tensor(sigmas, device=labels.device)

        def wrapper(denoiser_for: DenoiserFor, condition: Condition) -> Denoise:
            after = init.wrapper(denoiser_for, replace(condition, labels=labels, text=text))
            return switched(init.wrapper(denoiser_for, condition), after, limits)

        return replace(init, wrapper=wrapper)

    return begin


def recorded(states: list[State], start: Initializer = from_noise) -> Initializer:
    """Appends what the denoiser gets and gives at each call. For one sample at a time: slices run at once."""

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        init = start(stage, mean)

        def wrapper(denoiser_for: DenoiserFor, condition: Condition) -> Denoise:
            denoise = init.wrapper(denoiser_for, condition)

            def record(noisy: Latents, sigma: float) -> Latents:
                estimate = denoise(noisy, sigma)
                states.append(State(stage, noisy, sigma, estimate))
                return estimate

            return record

        return replace(init, wrapper=wrapper)

    return begin


def feathered(mask: Mask, reach: int) -> Mask:
    """1 in the mask, falling linearly to 0 at `reach` pixels from it, rounded up to an even number."""
    radius = math.ceil(reach / 2)
    wider = F.max_pool2d(mask, 2 * radius + 1, 1, radius)
    return F.avg_pool2d(wider, 2 * radius + 1, 1, radius, count_include_pad=False)


@torch.no_grad()
def sdedit(
    stage: Stage,
    images: Images,
    labels: Labels,
    sampling: Sampling,
    share: float,
    rngs: Sequence[Randomness],
    text: Text | None = None,
) -> Images:
    """Noise and denoise images with the last `share` of the steps (SDEdit, arXiv 2108.01073, algorithm 1).

    They keep structures larger than that noise; the rest has the artefacts of the stage.
    """
    low_res = shrunk(images, stage.factor) if stage.low_res_size else None
    sampling = sampling.model_copy(update={"conditioning": "whole"})
    start = image_to_image(images, stage.image_size, share)
    return stage.space.decode(last(stage.steps(labels, low_res, sampling, rngs, start=start, text=text)))


@dataclass(frozen=True)
class Between:
    """The noise a `share` of the way from that of `first` to that of `last`, in [0, 1]."""

    first: Randomness
    last: Randomness
    share: float

    def at(self, *where: int | str) -> Between:
        return Between(self.first.at(*where), self.last.at(*where), self.share)

    def normal(self, *shape: int) -> Tensor:
        return slerp(self.first.normal(*shape), self.last.normal(*shape), self.share)


def slerp(first: Tensor, last: Tensor, share: float) -> Tensor:
    """Spherical interpolation (Shoemake, SIGGRAPH 1985), which keeps the norm of Gaussian noise."""
    cosine = float(F.cosine_similarity(first.flatten().double(), last.flatten().double(), 0))
    angle = max(1e-4, math.acos(max(-1.0, min(1.0, cosine))))
    weight_first, weight_last = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return weight_first * first + weight_last * last
