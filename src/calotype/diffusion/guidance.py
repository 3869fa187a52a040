"""Guidance: functions that wrap a `Denoise` in another one. They nest, and no sampler knows of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.vocabulary import Denoise, Latents, Sigmas, per_image


def guided(strong: Denoise, weak: Denoise, scale: float) -> Denoise:
    """Steps away from what `weak` says (classifier-free guidance, arXiv 2207.12598, eq. 6, with `scale = 1 + w`)."""

    def denoise(noisy: Latents, sigma: float) -> Latents:
        away = weak(noisy, sigma)
        return away + scale * (strong(noisy, sigma) - away)

    return denoise


def within(inside: Denoise, outside: Denoise, low: float = 0.0, high: float = math.inf) -> Denoise:
    """`inside` where `low < sigma <= high`, else `outside` (guidance in an interval, arXiv 2404.07724, eq. 5)."""
    return lambda noisy, sigma: (inside if low < sigma <= high else outside)(noisy, sigma)


def handed_over(one: Denoise, other: Denoise, limits: Sigmas) -> Denoise:
    """`other` up to each picture's own sigma, `one` above that: the large shapes of one, the details of the other.

    The mean of both, in place of that, makes grey pictures of two at once.
    """
    return lambda noisy, sigma: torch.where(per_image(limits) >= sigma, other(noisy, sigma), one(noisy, sigma))


def kept(denoise: Denoise, known: Latents, anew: Tensor) -> Denoise:
    """Where `anew` is 0 the clean picture is `known`, where it is 1 `denoise` says it, with that before its eyes.

    Samplers then make the known part exactly as noisy as the rest (arXiv 2011.13456, appendix I.2).
    """
    return lambda noisy, sigma: torch.lerp(known, denoise(noisy, sigma), anew)
