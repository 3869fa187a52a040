"""Priors without a branch on a value: all components at once, and a matrix gathered for every window.

They compute more than `GaussianMixture` and `ByCluster`, which leave out what has no weight, but their operations are
always the same, as the graphs that are exported must be.
"""

from __future__ import annotations

import torch
from torch import nn

from calotype.priors.captions import Bags, CaptionedMixture
from calotype.priors.gaussian import Components, GaussianMixture, component_posterior
from calotype.priors.patches import Gathered, PatchPrior, Windows, normalised
from calotype.spaces.tiling import in_windows
from calotype.types import Labels, Latents, Sigmas


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
            posterior = component_posterior(weights, window.flatten(1), sigma[:, None] ** 2, means, self._components())
            return posterior[1].reshape(window.shape)

        side = self.mixture.side(noisy.shape[1])
        return mean(noisy) if noisy.shape[-2:] == (side, side) else in_windows(mean, noisy, side)

    def _components(self) -> Components:
        """Graphs have no empty tensors, so where there is no axis, one of length 0 with the variance of the others
        stands for none."""
        own = self.mixture.components()
        if own.axes.shape[1]:
            return own
        (count, clusters), dimension = own.shares.shape, own.axes.shape[2]
        offsets = own.axes.new_zeros(count, clusters, 1)
        variances = own.rest[:, None, None].expand_as(offsets)
        return own._replace(axes=own.axes.new_zeros(count, 1, dimension), offsets=offsets, variances=variances)


def gathered(prior: PatchPrior, windows: Windows, count: int) -> Gathered:
    """With the nearest cluster of each window; an image has `count` of them."""
    centres = prior.centres
    distances = centres.square().sum(1) - 2 * normalised(windows) @ centres.T  # less the square of the window
    return Gathered(distances.argmin(1), count)
