"""The variance outside the axes of a closed form, calibrated on validation pictures.

A component's axes are fitted to its training pictures, so less variance is left outside them there than in other
pictures: of fewer pictures than dimensions the maximum-likelihood estimate (Tipping and Bishop, J. R. Stat. Soc. B 61,
1999, eq. 8) is too small. At low noise the closed form then takes detail for noise.
"""

from __future__ import annotations

import copy
import math
from typing import TypeVar

import torch

from calotype.priors.captioned import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture, flow_errors
from calotype.types import Labels, Latents, Sigmas, Text

FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""That are tried on the variance outside the axes."""
LEAST_SIGMA, MOST_SIGMA = 0.03, 0.3
"""Noise at which they are judged: above it, what lies outside the axes is lost with any of them."""

Fitted = TypeVar("Fitted", GaussianMixture, CaptionedMixture)


def calibrated(form: Fitted, clean: Latents, labels: Labels, noise: Latents, text: Text | None = None) -> Fitted:
    """`form`, or with more variance outside its axes if that denoises these validation pictures clearly better.

    Clearly: the mean change of their flow errors is below 0 by more than its standard error.
    """
    if len(clean) < 2:
        return form
    sigma = log_spaced(LEAST_SIGMA, MOST_SIGMA, len(clean)).to(clean)

    def errors(one: Fitted) -> torch.Tensor:
        return flow_errors(one, clean, labels, sigma, noise, text)

    before = errors(form)
    changes = {factor: errors(with_more_outside(form, factor)) - before for factor in FACTORS}
    factor, change = min(changes.items(), key=lambda item: float(item[1].mean()))
    clearly = float(change.mean() + change.std() / len(clean) ** 0.5) < 0
    return with_more_outside(form, factor) if clearly else form


def log_spaced(least: float, most: float, count: int) -> Sigmas:
    return torch.linspace(math.log(least), math.log(most), count).exp()


def with_more_outside(form: Fitted, factor: float) -> Fitted:
    """Another one that shares all constants but these variances; those along axes are never smaller than outside."""
    changed = sharing(form)
    if isinstance(changed, CaptionedMixture):
        changed.mixture = sharing(changed.mixture)
    mixture = changed.mixture if isinstance(changed, CaptionedMixture) else changed
    mixture.rest = factor * mixture.rest
    mixture.variances = torch.maximum(mixture.variances, mixture.rest[:, None])
    return changed


def sharing(form: Fitted) -> Fitted:
    """Another module with the same tensors, each of which can be replaced here alone."""
    other = copy.copy(form)
    other._buffers, other._modules = {**form._buffers}, {**form._modules}
    return other
