"""Samplers: they start from noise and ask the denoiser again and again, with smaller and smaller sigma.

Each is a generator function whose body is the algorithm of its paper. `sigmas` falls and ends in 0; the state stays
float32. All take the same arguments; `fresh` gives new noise, and only `ancestral` uses it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from calotype.types import Denoise, Fresh, Latents, Sampler


def euler(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """First order; the same steps as DDIM (arXiv 2010.02502, eq. 12), and as Euler on a flow model."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        noisy = noisy + (next_sigma - sigma) * slope
        yield noisy


def heun(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """Second order, two questions a step; the last step, to sigma 0, is Euler's (arXiv 2206.00364, algorithm 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        ahead = noisy + (next_sigma - sigma) * slope
        if next_sigma > 0:
            slope = (slope + (ahead - denoise(ahead, next_sigma)) / next_sigma) / 2
        noisy = noisy + (next_sigma - sigma) * slope
        yield noisy


def dpm_solver(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """DPM-Solver++(2M): second order, one question a step (arXiv 2211.01095, algorithm 2, eq. 4.1).

    In sigma the half log-SNR is `-log(sigma)`. The first and the last step are of first order: before the first there
    is no history, and at sigma 0 the log-SNR has no end.
    """
    before: tuple[float, Latents] | None = None
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(noisy, sigma)
        slanted = denoised
        if before is not None and next_sigma > 0:
            last_sigma, last_denoised = before
            ratio = math.log(sigma / next_sigma) / math.log(last_sigma / sigma)
            slanted = denoised + ratio / 2 * (denoised - last_denoised)
        noisy = slanted + next_sigma / sigma * (noisy - slanted)
        before = sigma, denoised
        yield noisy


def ancestral(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """DDPM: draws from the posterior `q(x_next | x, denoised)` (arXiv 2006.11239, eq. 6 and 7)."""
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(noisy, sigma)
        kept = (next_sigma / sigma) ** 2
        noisy = denoised + kept * (noisy - denoised) + next_sigma * math.sqrt(1 - kept) * fresh()
        yield noisy


def resampled(sampler: Sampler, shares: Sequence[float]) -> Sampler:
    """Goes back up, with fresh noise, and takes the last steps again, `shares` of them (arXiv 2201.09865, algorithm 1).

    So what is new and what is known in a picture come to agree, turn by turn.
    """

    def walk(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
        state = noisy
        for state in sampler(denoise, noisy, sigmas, fresh):
            yield state
        for share in shares:
            part = last_steps(sigmas, share)
            up = state + math.sqrt(part[0] ** 2 - part[-1] ** 2) * fresh()
            for state in sampler(denoise, up, part, fresh):
                yield state

    return walk


def last_steps(sigmas: list[float], share: float) -> list[float]:
    """The sigmas of the last `share` of the steps, at least of one."""
    return sigmas[-1 - max(1, round(share * (len(sigmas) - 1))) :]


SamplerName = Literal["euler", "heun", "dpm_solver", "ancestral"]
SAMPLERS: dict[SamplerName, Sampler] = {
    "euler": euler, "heun": heun, "dpm_solver": dpm_solver, "ancestral": ancestral,
}  # fmt: skip
