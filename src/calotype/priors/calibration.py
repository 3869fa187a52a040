"""Calibration of a mixture's residual variance on validation images.

Components are fitted to their training images, so the maximum-likelihood estimate of the variance outside the principal
axes (Tipping and Bishop, J. R. Stat. Soc. B 61, 1999, eq. 8) is too small where images are fewer than dimensions. At
low noise the posterior mean then removes detail as if it were noise.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch

from calotype.priors.captioned import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.gaussian_fit import flow_errors
from calotype.types import Labels, Latents, Sigmas, Text

FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""That are tried on the residual variance."""
LEAST_SIGMA, MOST_SIGMA = 0.03, 0.3
"""Noise at which they are judged: above it the residual directions are lost with any of them."""

Mixture = TypeVar("Mixture", GaussianMixture, CaptionedMixture)


def calibrated(prior: Mixture, clean: Latents, labels: Labels, noise: Latents, text: Text | None = None) -> Mixture:
    """`prior`, or with more residual variance if that denoises these validation images significantly better.

    Significantly: the mean change of their flow errors is below 0 by more than its standard error.
    """
    if len(clean) < 2:
        return prior
    sigma = log_spaced(LEAST_SIGMA, MOST_SIGMA, len(clean)).to(clean)

    def errors(candidate: Mixture) -> torch.Tensor:
        return flow_errors(candidate, clean, labels, sigma, noise, text)

    before = errors(prior)
    changes = {factor: errors(with_residual(prior, factor)) - before for factor in FACTORS}
    factor, change = min(changes.items(), key=lambda item: float(item[1].mean()))
    significant = float(change.mean() + change.std() / len(clean) ** 0.5) < 0
    return with_residual(prior, factor) if significant else prior


def log_spaced(least: float, most: float, count: int) -> Sigmas:
    return torch.linspace(math.log(least), math.log(most), count).exp()


def with_residual(prior: Mixture, factor: float) -> Mixture:
    """A prior with `factor` times the residual variance, which shares all other tensors.

    Variances along the axes are raised to at least the residual one.
    """
    scaled = sharing(prior)
    if isinstance(scaled, CaptionedMixture):
        scaled.mixture = sharing(scaled.mixture)
    mixture = scaled.mixture if isinstance(scaled, CaptionedMixture) else scaled
    mixture.rest = factor * mixture.rest
    mixture.variances = torch.maximum(mixture.variances, mixture.rest[:, None])
    return scaled


def sharing(prior: Mixture) -> Mixture:
    """Another module with the same tensors, each of which can be replaced there alone."""
    other = copy.copy(prior)
    other._buffers, other._modules = {**prior._buffers}, {**prior._modules}
    return other
