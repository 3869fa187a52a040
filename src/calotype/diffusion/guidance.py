"""Guidance: functions that wrap a `Denoise` in another one. They nest, and no sampler knows of them."""

from __future__ import annotations

import math

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
