"""Priors without a branch on a value: all components at once, and a matrix gathered for every window.

They compute more than `GaussianMixture` and `ByCluster`, which leave out what has no weight, but their operations are
always the same, as the graphs that are exported must be.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.priors.captions import Bags, CaptionedMixture
from calotype.priors.gaussian import Flat, GaussianMixture, Weights, exact
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
            return self._mean(weights, means, window.flatten(1), sigma[:, None] ** 2).reshape(window.shape)

        side = self.mixture.side(noisy.shape[1])
        return mean(noisy) if noisy.shape[-2:] == (side, side) else in_windows(mean, noisy, side)

    def _mean(
        self, weights: Weights, means: Float[Tensor, "_ component dimension"], flat: Flat, variance: Tensor
    ) -> Flat:
        """As `GaussianMixture._group_mean`, of all groups, whose means differ by image where there are captions."""
        axes, variances, rest = self._some_axes()
        away = flat[:, None] - means
        along = torch.einsum("bkd,krd->bkr", away, axes)
        of_axes, of_rest, rest_count = variances + variance[..., None], rest + variance, axes.shape[2] - axes.shape[1]
        distance = (along.square() / of_axes).sum(2)
        distance = distance + (exact(away).square().sum(2) - along.square().sum(2)).clamp(min=0) / of_rest
        log_determinant = of_axes.log().sum(2) + rest_count * of_rest.log()
        responsibilities = torch.softmax(weights.log() - (distance + log_determinant) / 2, 1).to(flat)
        shrink = rest / of_rest
        shrunk = responsibilities * shrink
        inside = (responsibilities[..., None] * (variances / of_axes - shrink[..., None]) * along).flatten(1)
        middle = ((responsibilities - shrunk)[..., None] * means).sum(1) + shrunk.sum(1, keepdim=True) * flat
        return middle + inside @ axes.flatten(0, 1)

    def _some_axes(self) -> tuple[Tensor, Tensor, Tensor]:
        """Axes, their variances, and the variance beside them; graphs have no empty tensors, so where there is no
        axis, one of length 0 with the variance of the others stands for none."""
        axes, variances, rest = self.mixture.axes, self.mixture.variances, self.mixture.rest
        if axes.shape[1]:
            return axes, variances, rest
        return axes.new_zeros(len(axes), 1, axes.shape[2]), rest[:, None], rest


def gathered(prior: PatchPrior, windows: Windows, count: int) -> Gathered:
    """With the nearest cluster of each window; an image has `count` of them."""
    centres = prior.centres
    distances = centres.square().sum(1) - 2 * normalised(windows) @ centres.T  # less the square of the window
    return Gathered(distances.argmin(1), count)
