"""Priors without a branch on a value: all components at once, and a matrix gathered for every window.

They compute more than `GaussianMixture` and `ByCluster`, which leave out what has no weight, but their operations are
always the same, as the graphs that are exported must be.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.priors.captions import Bags, CaptionedMixture
from calotype.priors.gaussian import GaussianMixture, component_posterior
from calotype.priors.patches import Clusters, PatchPrior, Windows, normalised
from calotype.spaces.tiling import in_windows
from calotype.types import Labels, Latents, Sigmas

WINDOWS_GATHERED = 4096
"""Windows whose matrices are in memory together: 60 MB for a factor of 4."""


class StaticMixture(nn.Module):
    """`GaussianMixture.mean`, or that of a `CaptionedMixture`, given the bags of the captions."""

    def __init__(self, prior: GaussianMixture | CaptionedMixture) -> None:
        super().__init__()
        self.prior = prior
        self.mixture = prior.mixture if isinstance(prior, CaptionedMixture) else prior

    def forward(self, noisy: Latents, sigma: Sigmas, label: Labels, bag: Bags | None = None) -> Latents:
        """`label` is `NULL_LABEL` where there is none."""
        means = self.mixture.means[None]
        if bag is None:
            weights = self.mixture.weights(label)
        else:
            assert isinstance(self.prior, CaptionedMixture)
            weights = self.prior.weights(bag, label)
            directions = torch.einsum("bw,gwr->bgr", bag, self.prior.regression_in)
            means = means + torch.einsum("bgr,grd->bgd", directions, self.prior.regression_out)[:, self.mixture.group]

        def mean(window: Latents) -> Latents:
            posterior = component_posterior(weights, window.flatten(1), sigma[:, None] ** 2, means, *self._some_axes())
            return posterior[1].reshape(window.shape)

        side = self.mixture.side(noisy.shape[1])
        return mean(noisy) if noisy.shape[-2:] == (side, side) else in_windows(mean, noisy, side)

    def _some_axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Axes, their variances, and the variance beside them; graphs have no empty tensors, so where there is no
        axis, one of length 0 with the variance of the others stands for none."""
        axes, variances, rest = self.mixture.axes, self.mixture.variances, self.mixture.rest
        if axes.shape[1]:
            return axes, variances, rest
        return axes.new_zeros(len(axes), 1, axes.shape[2]), rest[:, None], rest


class Gathered(NamedTuple):
    """Windows with their clusters, each of which is multiplied with a copy of its cluster's matrix."""

    clusters: Clusters
    each: int
    """Windows of an image."""

    def times(
        self, patches: Float[Tensor, "window value"], matrices: Float[Tensor, "cluster value other"]
    ) -> Float[Tensor, "window other"]:
        images = patches.unflatten(0, (-1, self.each)), self.clusters.unflatten(0, (-1, self.each))
        parts = zip(*(values.split(WINDOWS_GATHERED, 1) for values in images), strict=True)
        return torch.cat([(part[:, :, None] @ matrices[cluster])[:, :, 0] for part, cluster in parts], 1).flatten(0, 1)


def gathered(prior: PatchPrior, windows: Windows, count: int) -> Gathered:
    """With the nearest cluster of each window; an image has `count` of them."""
    centres = prior.centres
    distances = centres.square().sum(1) - 2 * normalised(windows) @ centres.T  # less the square of the window
    return Gathered(distances.argmin(1), count)
