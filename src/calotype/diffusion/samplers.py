"""Samplers: generator functions whose bodies are the algorithms of their papers.

`noisy` is the state at `sigmas[0]`; `sigmas` falls, usually to 0, and may be the last part of a grid (image-to-image);
each step yields its state, in float32. `fresh` draws new noise, for the stochastic ones. Sigmas are in the units of the
data, whose standard deviation is 1 in latents.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal

from calotype.types import Denoise, Fresh, Latents, Sampler


def euler(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """First order; the same steps as DDIM (arXiv 2010.02502, eq. 12 with eta = 0), and as Euler on a flow."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        noisy = noisy + (next_sigma - sigma) * slope
        yield noisy


def heun(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """Second order, two evaluations a step; the last step, to sigma 0, is Euler's (arXiv 2206.00364, algorithm 1)."""
    for sigma, next_sigma in pairwise(sigmas):
        slope = (noisy - denoise(noisy, sigma)) / sigma
        ahead = noisy + (next_sigma - sigma) * slope
        if next_sigma > 0:
            slope = (slope + (ahead - denoise(ahead, next_sigma)) / next_sigma) / 2
        noisy = noisy + (next_sigma - sigma) * slope
        yield noisy


def dpm_solver(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """DPM-Solver++(2M): second order, one evaluation a step (arXiv 2211.01095, algorithm 2, eq. 4.1).

    In sigma the half log-SNR is `-log(sigma)`. The first and the last step are of first order: before the first there
    is no history, and at sigma 0 the log-SNR has no end.
    """
    before: tuple[float, Latents] | None = None
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(noisy, sigma)
        extrapolated = denoised
        if before is not None and next_sigma > 0:
            last_sigma, last_denoised = before
            ratio = math.log(sigma / next_sigma) / math.log(last_sigma / sigma)
            extrapolated = denoised + ratio / 2 * (denoised - last_denoised)
        noisy = extrapolated + next_sigma / sigma * (noisy - extrapolated)
        before = sigma, denoised
        yield noisy


def ancestral(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
    """DDPM: draws from the posterior `q(x_next | x, denoised)` (arXiv 2006.11239, eq. 6 and 7)."""
    for sigma, next_sigma in pairwise(sigmas):
        denoised = denoise(noisy, sigma)
        ratio = (next_sigma / sigma) ** 2
        noisy = denoised + ratio * (noisy - denoised) + next_sigma * math.sqrt(1 - ratio) * fresh()
        yield noisy


def denoised_again(sampler: Sampler, level: float) -> Sampler:
    """Denoises the state at sigma 0 once more, as if it still had noise of the sigma `level`; 0 leaves it as it is.

    Errors of the steps before are left in it as noise, which decoders show as grain. Langevin samples, which have real
    noise left, are denoised so in arXiv 2009.05475 (the expected denoised sample).
    """

    def sample(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
        state = None
        for following in sampler(denoise, noisy, sigmas, fresh):
            if state is not None:
                yield state
            state = following
        if state is not None:
            yield denoise(state, level) if sigmas[-1] == 0 else state

    return sample if level else sampler


def resampled(sampler: Sampler, strengths: Sequence[float]) -> Sampler:
    """Adds noise and repeats the last steps, once for each of `strengths` (RePaint, arXiv 2201.09865, alg. 1).

    So that the repainted part and the known one come to agree.
    """

    def sample(denoise: Denoise, noisy: Latents, sigmas: list[float], fresh: Fresh) -> Iterator[Latents]:
        state = noisy
        for state in sampler(denoise, noisy, sigmas, fresh):
            yield state
        for strength in strengths:
            part = last_steps(sigmas, strength)
            noised = state + math.sqrt(part[0] ** 2 - part[-1] ** 2) * fresh()
            for state in sampler(denoise, noised, part, fresh):
                yield state

    return sample


def last_steps(sigmas: list[float], strength: float) -> list[float]:
    """The sigmas of the last `strength` of the steps, in (0, 1]; at least one step."""
    return sigmas[-1 - max(1, round(strength * (len(sigmas) - 1))) :]


SamplerName = Literal["euler", "heun", "dpm_solver", "ancestral"]
SAMPLERS: dict[SamplerName, Sampler] = {
    "euler": euler, "heun": heun, "dpm_solver": dpm_solver, "ancestral": ancestral,
}  # fmt: skip
CALLS_A_STEP: dict[SamplerName, int] = {"euler": 1, "heun": 2, "dpm_solver": 1, "ancestral": 1}
"""Calls of the denoiser."""
