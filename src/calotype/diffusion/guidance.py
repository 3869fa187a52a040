"""Guidance: functions that wrap a `Denoise` in another one. They nest, and no sampler knows of them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from calotype.vocabulary import Denoise, Latents


def guided(strong: Denoise, weak: Denoise, scale: float) -> Denoise:
    """Steps away from what `weak` says (classifier-free guidance, arXiv 2207.12598, eq. 6, with `scale = 1 + w`)."""

    def denoise(noisy: Latents, sigma: float) -> Latents:
        away = weak(noisy, sigma)
        return away + scale * (strong(noisy, sigma) - away)

    return denoise


def within(inside: Denoise, outside: Denoise, low: float = 0.0, high: float = math.inf) -> Denoise:
    """`inside` where `low < sigma <= high`, else `outside` (guidance in an interval, arXiv 2404.07724, eq. 5)."""
    return lambda noisy, sigma: (inside if low < sigma <= high else outside)(noisy, sigma)


def mixed(one: Denoise, other: Denoise, share: Tensor) -> Denoise:
    """From what `one` says at a share of 0 to what `other` says at 1: gradients of log-densities are mixed alike."""
    return lambda noisy, sigma: torch.lerp(one(noisy, sigma), other(noisy, sigma), share)


def kept(denoise: Denoise, known: Latents, anew: Tensor) -> Denoise:
    """Where `anew` is 0 the clean picture is `known`, where it is 1 `denoise` says it, with that before its eyes.

    Samplers then make the known part exactly as noisy as the rest (arXiv 2011.13456, appendix I.2).
    """
    return lambda noisy, sigma: torch.lerp(known, denoise(noisy, sigma), anew)


def windowed(denoise: Denoise, height: int, width: int) -> Denoise:
    """The mean of what `denoise` says in windows of this size that overlap by half (arXiv 2302.08113, eq. 5)."""

    def everywhere(noisy: Latents, sigma: float) -> Latents:
        total, times = torch.zeros_like(noisy), torch.zeros_like(noisy[:1, :1])
        for top in window_starts(noisy.shape[-2], height):
            for left in window_starts(noisy.shape[-1], width):
                part = (..., slice(top, top + height), slice(left, left + width))
                total[part] += denoise(noisy[part], sigma)
                times[part] += 1
        return total / times

    return everywhere


def window_starts(side: int, window: int) -> list[int]:
    """Evenly from one end to the other, so that neighbours overlap by half of the window or more."""
    count = 1 + math.ceil((side - window) / max(1, window // 2))
    return [round(index * (side - window) / max(1, count - 1)) for index in range(count)]
