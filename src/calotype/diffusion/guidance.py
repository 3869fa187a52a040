"""Guidance and epsilon scaling: functions that wrap a `Denoise` in another one, so that samplers know nothing of it."""

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


def guided(strong: Denoise, weak: Denoise, scale: float) -> Denoise:
    """`weak + scale * (strong - weak)`: extrapolates from a weaker denoiser through a stronger one.

    With the unconditional model as `weak` this is classifier-free guidance (arXiv 2207.12598, eq. 6, `scale = 1 + w`);
    with a worse model of the same data and condition it is autoguidance (arXiv 2406.02507, eq. 4).
    """
    return lambda noisy, sigma: extrapolated(weak(noisy, sigma), strong(noisy, sigma), scale)


def extrapolated(weak: Latents, strong: Latents, scale: float | Tensor) -> Latents:
    return weak + scale * (strong - weak)


def rising(scale: float, slope: float, reference: Sigmas) -> Scale:
    """`1 + (scale - 1) * (1 + slope * r)`, where r rises from -1 at `reference / 5` to 1 at `5 * reference`.

    It is `scale` at the reference. A positive slope guides large shapes more than details.
    """

    def at(sigma: float) -> Float[Tensor, "batch 1 1 1"]:
        ramp = (torch.log(sigma / reference) / RAMP).clamp(-1, 1)
        return per_image(1 + (scale - 1) * (1 + slope * ramp))

    return at


def in_interval(inside: Denoise, outside: Denoise, low: float = 0.0, high: float = math.inf) -> Denoise:
    """`inside` where `low < sigma <= high`, else `outside` (guidance in an interval, arXiv 2404.07724, eq. 5)."""
    return lambda noisy, sigma: (inside if low < sigma <= high else outside)(noisy, sigma)


def epsilon_scaled(denoise: Denoise, amount: float, reference: Sigmas) -> Denoise:
    """`D + amount * 4 v / (1 + v)^2 * (noisy - D)` with `v = (sigma / reference)^2`: less of the noise is removed, and
    the least where signal and noise are equal.

    Epsilon scaling (arXiv 2308.15321) by `lambda = 1 / (1 - share)`, against exposure bias: states of sampling are not
    as noisy training images are. Here they have less variance than those, so their estimates are too smooth.
    """

    def scaled(noisy: Latents, sigma: float) -> Latents:
        ratio = (sigma / reference) ** 2
        return extrapolated(denoise(noisy, sigma), noisy, per_image(amount * 4 * ratio / (1 + ratio) ** 2))

    return scaled


def switched(before: Denoise, after: Denoise, limits: Sigmas) -> Denoise:
    """`before` above each sample's own sigma, `after` from there down: shapes of the one, details of the other.

    Averaging both instead gives grey mixtures of two images.
    """
    return lambda noisy, sigma: torch.where(per_image(limits) >= sigma, after(noisy, sigma), before(noisy, sigma))


def with_known_part(denoise: Denoise, known: Latents, mask: Tensor) -> Denoise:
    """`denoise` where the mask is 1, `known` where it is 0; the mask is in [0, 1].

    Samplers then give the known part exactly the noise of the rest (arXiv 2011.13456, appendix I.2).
    """
    return lambda noisy, sigma: torch.lerp(known, denoise(noisy, sigma), mask)
