"""Pictures as conditions, without training anything more.

Every edit is a `Initializer`: what a stage starts from, and whom it asks. Starts wrap one another, as denoisers do.
`full` is the size of the last stage's pictures; a stage below sees the given picture shrunk to its own size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.diffusion.guidance import kept, switched
from calotype.diffusion.stage import DenoiserFor, Initializer, SamplerInit, Sampling, Stage, from_noise, last, shrunk
from calotype.types import (
    Condition,
    Denoise,
    Images,
    Labels,
    Latents,
    Randomness,
    Sigmas,
    Text,
)

AGAIN = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""How inpainting goes on after its first way down: 5.5 times the steps in all, and half of the seam."""

FINE = 100
"""Steps of the grid on which one label is handed over to the next."""

Mask = Float[Tensor, "1 1 rows columns"]  # 1: to be made anew, 0: kept


def canvas(height: int, width: int, full: int) -> Initializer:
    """Pictures of another size than the stages have learned: the first one starts from it, the others follow."""

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        sides = (side * stage.image_size // full for side in (height, width))
        return SamplerInit(mean if stage.low_res_size else mean.new_zeros(1, *stage.shape_of(*sides)))

    return begin


def image_to_image(picture: Images, full: int, strength: float, start: Initializer = from_noise) -> Initializer:
    """Image-to-image (arXiv 2108.01073): the last steps alone, `strength` of them, from the picture with their noise.

    What is larger than that noise stays. In a cascade every stage does so, and each looks at what the one below has
    made. With a strength of 1 nothing of the picture is left: that is plain sampling.
    """

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        origin = start(stage, mean)
        if strength == 1:
            return origin
        return replace(origin, clean=stage.space.encode(shrunk(picture, full // stage.image_size)), share=strength)

    return begin


def inpainting(picture: Images, mask: Mask, full: int, start: Initializer = from_noise) -> Initializer:
    """Inpainting: `start` where the mask is 1; elsewhere the picture is known to every stage, at every step.

    What lies under the mask is painted grey first, so that no latent beside it knows of it.
    """

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        origin, factor = start(stage, mean), full // stage.image_size
        known = stage.space.encode(shrunk(picture * (1 - mask), factor))
        anew = F.max_pool2d(mask, factor * stage.space.reduction)

        def bend(ask: DenoiserFor, condition: Condition) -> Denoise:
            return kept(origin.bend(ask, condition), known, anew)

        return replace(origin, clean=torch.lerp(known, origin.clean.to(known), anew), bend=bend, again=AGAIN)

    return begin


def condition_switch(labels: Labels, text: Text | None, share: Sigmas, start: Initializer = from_noise) -> Initializer:
    """From what is told (at a share of 0) to these labels and this text (at 1), for the last `share` of the steps."""

    def begin(stage: Stage, mean: Latents) -> SamplerInit:
        origin, grid = start(stage, mean), stage.schedule.grid(FINE)
        limits = torch.tensor([grid[round(FINE * (1 - float(one)))] for one in share], device=labels.device)

        def bend(ask: DenoiserFor, condition: Condition) -> Denoise:
            other = origin.bend(ask, replace(condition, labels=labels, text=text))
            return switched(origin.bend(ask, condition), other, limits)

        return replace(origin, bend=bend)

    return begin


def feathered(mask: Mask, reach: int) -> Mask:
    """1 where the mask is, falling to 0 around it: all that is more than `reach` pixels away, rounded up to even."""
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
    """Pictures made noisy, and made clean again by the last steps of sampling (arXiv 2108.01073): `share` of them.

    They keep what is larger than that noise; the rest is the stage's own, mistakes included.
    """
    low_res = shrunk(images, stage.factor) if stage.low_res_size else None
    whole = sampling.model_copy(update={"conditioning": "whole"})
    start = image_to_image(images, stage.image_size, share)
    return stage.space.decode(last(stage.steps(labels, low_res, whole, rngs, start=start, text=text)))


@dataclass(frozen=True)
class Between:
    """The randomness that lies a `share` of the way from `one` to `other`."""

    one: Randomness
    other: Randomness
    share: float

    def at(self, *where: int | str) -> Between:
        return Between(self.one.at(*where), self.other.at(*where), self.share)

    def normal(self, *shape: int) -> Tensor:
        return slerp(self.one.normal(*shape), self.other.normal(*shape), self.share)


def slerp(one: Tensor, other: Tensor, share: float) -> Tensor:
    """Along the arc from `one` to `other`, so that noise stays as large as noise (Shoemake 1985)."""
    cosine = float(F.cosine_similarity(one.flatten().double(), other.flatten().double(), 0))
    angle = max(1e-4, math.acos(max(-1.0, min(1.0, cosine))))
    left, right = (math.sin(part * angle) / math.sin(angle) for part in (1 - share, share))
    return left * one + right * other
