"""Guidance: functions that wrap a `Denoise` in another one. They nest, and no sampler knows of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from calotype.types import Denoise, Latents, Sigmas, per_image

Scale = Callable[[float], Float[Tensor, "batch 1 1 1"]]  # sigma -> guidance scale of each image
RAMP = math.log(5)
"""The scale changes between a fifth of the reference sigma and five times it, linearly in log sigma."""


def guided(strong: Denoise, weak: Denoise, scale: float | Scale) -> Denoise:
    """`weak + scale * (strong - weak)`: extrapolates from a weaker denoiser through a stronger one.

    With the unconditional model as `weak` this is classifier-free guidance (arXiv 2207.12598, eq. 6, `scale = 1 + w`);
    with a worse model of the same data and condition it is autoguidance (arXiv 2406.02507, eq. 4).
    """

    def denoise(noisy: Latents, sigma: float) -> Latents:
        away = weak(noisy, sigma)
        return away + (scale(sigma) if callable(scale) else scale) * (strong(noisy, sigma) - away)

    return denoise


def rising(scale: float, slope: float, reference: Sigmas) -> Scale:
    """`1 + (scale - 1) * (1 + slope * r)`, where r rises from -1 at `reference / 5` to 1 at `5 * reference`.

    At `sigma = reference` it is `scale`. A positive slope guides where large shapes are decided, and spares details.
    """

    def at(sigma: float) -> Float[Tensor, "batch 1 1 1"]:
        ramp = (torch.log(sigma / reference) / RAMP).clamp(-1, 1)
        return per_image(1 + (scale - 1) * (1 + slope * ramp))

    return at


def within(inside: Denoise, outside: Denoise, low: float = 0.0, high: float = math.inf) -> Denoise:
    """`inside` where `low < sigma <= high`, else `outside` (guidance in an interval, arXiv 2404.07724, eq. 5)."""
    return lambda noisy, sigma: (inside if low < sigma <= high else outside)(noisy, sigma)


def switched(one: Denoise, other: Denoise, limits: Sigmas) -> Denoise:
    """`other` up to each picture's own sigma, `one` above that: the large shapes of one, the details of the other.

    The mean of both, in place of that, makes grey pictures of two at once.
    """
    return lambda noisy, sigma: torch.where(per_image(limits) >= sigma, other(noisy, sigma), one(noisy, sigma))


def kept(denoise: Denoise, known: Latents, anew: Tensor) -> Denoise:
    """Where `anew` is 0 the clean picture is `known`, where it is 1 `denoise` says it, with that before its eyes.

    Samplers then make the known part exactly as noisy as the rest (arXiv 2011.13456, appendix I.2).
    """
    return lambda noisy, sigma: torch.lerp(known, denoise(noisy, sigma), anew)
