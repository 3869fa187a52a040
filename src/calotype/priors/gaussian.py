"""The prior of a stage that starts from noise: a mixture of Gaussians, those of a class along common axes.

At high noise a trained denoiser is almost that of a Gaussian with the mean and the covariance of the data (Wang and
Vastola, arXiv 2412.09726, section 3). The posterior mean under a mixture of Gaussians has a closed form, too, so that
part is computed, and the network learns the rest.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calotype.devices import is_host, sent
from calotype.priors.prior import Prior
from calotype.spaces.tiling import in_windows
from calotype.types import NULL_LABEL, Condition, Folds, Labels, Latents, Sigmas

Weights = Float[Tensor, "batch component"]
Flat = Float[Tensor, "batch dimension"]
Shift = Callable[[int, Int[Tensor, " rows"]], Flat]  # (group, rows of the batch) -> what to add to the group's means


class GaussianMixture(Prior):
    """A mixture of Gaussians over latents (channel, side, side), flattened to `dimension` values.

    Each component has a mean, `rank` orthonormal axes, and one variance `rest` in all other directions. Along its axes
    it is a mixture of `clusters` Gaussians, with `offsets` from the mean, `variances` and weights `shares`: a mixture
    of factor analysers with common axes (Baek, McLachlan and Flack, IEEE Transactions on Pattern Analysis and Machine
    Intelligence 32, 2010). Each cluster rotates the first `turned` axes: the columns of its `rotations` are axes of its
    own within these, and its first `variances` are along them. With one cluster that rotates none, a component is
    probabilistic PCA (Tipping and Bishop, Neural Computation 11, 1999).
    `prior` are the weights of the components, `label` is the class of each or `NULL_LABEL`. Components of a `group`, a
    class or a part of one, lie together and are evaluated together.
    """

    means: Float[Tensor, "component dimension"]
    axes: Float[Tensor, "component rank dimension"]
    offsets: Float[Tensor, "component cluster rank"]
    variances: Float[Tensor, "component cluster rank"]
    shares: Float[Tensor, "component cluster"]
    rotations: Float[Tensor, "component cluster turned turned"]
    rest: Float[Tensor, " component"]
    prior: Float[Tensor, " component"]
    label: Int[Tensor, " component"]
    group: Int[Tensor, " component"]

    def __init__(self, components: int, rank: int, dimension: int, clusters: int = 1, turned: int = 0) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(components, dimension))
        self.register_buffer("axes", torch.zeros(components, rank, dimension))
        self.register_buffer("offsets", torch.zeros(components, clusters, rank))
        self.register_buffer("variances", torch.ones(components, clusters, rank))
        self.register_buffer("shares", torch.full((components, clusters), 1 / clusters))
        self.register_buffer("rotations", torch.eye(turned).repeat(components, clusters, 1, 1))
        self.register_buffer("rest", torch.ones(components))
        self.register_buffer("prior", torch.full((components,), 1 / components))
        self.register_buffer("label", torch.full((components,), NULL_LABEL))
        self.register_buffer("group", torch.zeros(components, dtype=torch.long))

    @cached_property
    def parts(self) -> list[slice]:
        """The components of each group, on the host."""
        ends = accumulate(self.group.unique_consecutive(return_counts=True)[1].tolist(), initial=0)
        return [slice(first, last) for first, last in pairwise(ends)]

    def _load_from_state_dict(self, *args: Any) -> None:
        self.__dict__.pop("parts", None)
        super()._load_from_state_dict(*args)

    def migrate(self, tensors: MutableMapping[str, Tensor], prefix: str) -> None:
        """Components of earlier versions are one Gaussian each."""
        super().migrate(tensors, prefix)
        variances = tensors.get(prefix + "variances")
        if variances is not None and variances.ndim == 2 and prefix + "offsets" not in tensors:
            tensors[prefix + "variances"] = variances[:, None]
            tensors[prefix + "offsets"] = torch.zeros_like(variances[:, None])
            tensors[prefix + "shares"] = variances.new_ones(len(variances), 1)
            tensors[prefix + "rotations"] = variances.new_zeros(len(variances), 1, 0, 0)

    @property
    def shape(self) -> dict[str, int]:
        components, rank, dimension = self.axes.shape
        own = {"clusters": self.shares.shape[1], "turned": self.rotations.shape[2]}
        return {"components": components, "rank": rank, "dimension": dimension, **own}

    def side(self, channels: int) -> int:
        """Side of the square of latents to which the mixture is fitted."""
        return math.isqrt(self.means.shape[1] // channels)

    def mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """Over the components of the label, or over all where it is `NULL_LABEL`; captions are ignored.

        Latents larger than `side` are denoised in overlapping windows.
        """
        return self.posterior_mean(self.weights(condition.labels), noisy, sigma)

    def weights(self, labels: Labels) -> Weights:
        """Of the components, given the label of each image."""
        return self.prior * self.admissible(labels)

    def admissible(self, labels: Labels) -> Bool[Tensor, "batch component"]:
        """Which components a label allows; all where it has none of its own."""
        allowed = (labels[:, None] == self.label) | (self.label == NULL_LABEL) | (labels[:, None] == NULL_LABEL)
        return allowed | ~allowed.any(1, keepdim=True)

    def with_residual(self, factor: float) -> GaussianMixture:
        """With `factor` times the residual variance, to which variances along the axes are raised at least."""
        scaled = copy.copy(self)
        scaled.rest = factor * self.rest
        scaled.variances = torch.maximum(self.variances, scaled.rest[:, None, None])
        return scaled

    def posterior_mean(self, weights: Weights, noisy: Latents, sigma: Sigmas, shift: Shift | None = None) -> Latents:
        """With mixture weights of each image's own, and means shifted by `shift`."""

        def mean(window: Latents) -> Latents:
            return self._window_mean(weights, window, sigma, shift)

        return in_windows(mean, noisy, self.side(noisy.shape[1]))

    def _window_mean(self, weights: Weights, noisy: Latents, sigma: Sigmas, shift: Shift | None) -> Latents:
        """Posterior means of the groups, weighted by their responsibilities; a CPU skips groups of weight 0.

        The sum is rescaled where a group has a larger evidence than those before it, so that no means are kept.
        """
        flat, variance, every = noisy.flatten(1), sigma[:, None] ** 2, torch.arange(len(noisy), device=noisy.device)
        denoised, total = torch.zeros_like(flat), exact(weights).new_zeros(len(flat), 1)
        largest = torch.full_like(total, torch.finfo(total.dtype).min)
        for number, part in enumerate(self.parts):
            present = (weights[:, part] > 0).any(1)
            rows = present.nonzero()[:, 0] if is_host(flat.device) else every
            if len(rows):
                centre = torch.zeros_like(flat[:1]) if shift is None else shift(number, rows)
                own = weights[rows, part].where(present[rows, None], 1)
                log_evidence, mean = self._group_mean(part, own, flat[rows] - centre, variance[rows])
                evidence = log_evidence.where(present[rows], -torch.inf)[:, None]
                before, largest[rows] = largest[rows], torch.maximum(largest[rows], evidence)
                rescaled, share = (before - largest[rows]).exp(), (evidence - largest[rows]).exp()
                total[rows] = rescaled * total[rows] + share
                denoised[rows] = rescaled.to(flat) * denoised[rows] + share.to(flat) * (centre + mean)
        return (denoised / total.to(flat)).reshape(noisy.shape)

    def _group_mean(
        self, part: slice, weights: Weights, flat: Flat, variance: Float[Tensor, "batch 1"]
    ) -> tuple[Float[Tensor, " batch"], Flat]:
        """Log evidence of these components together, and their posterior mean; `variance` is `sigma ** 2`."""
        log_joint, mean = component_posterior(weights, flat, variance, self.means[part], self.components(part))
        return log_joint.logsumexp(1), mean

    def components(self, part: slice = slice(None)) -> Components:
        """What does not depend on the image."""
        own = (self.axes, self.offsets, self.variances, self.shares, self.rotations, self.rest)
        return Components(*(value[part] for value in own))


class Components(NamedTuple):
    """Some components of a mixture, without their means."""

    axes: Float[Tensor, "component rank dimension"]
    offsets: Float[Tensor, "component cluster rank"]
    variances: Float[Tensor, "component cluster rank"]
    shares: Float[Tensor, "component cluster"]
    rotations: Float[Tensor, "component cluster turned turned"]
    rest: Float[Tensor, " component"]


def component_posterior(
    weights: Weights, flat: Flat, variance: Float[Tensor, "batch 1"], means: Float[Tensor, "*each component dimension"],
    components: Components,
) -> tuple[Float[Tensor, "batch gaussian"], Flat]:  # fmt: skip
    """Log of the joint density of each Gaussian and the noisy image, and the posterior mean over all of them.

    A Gaussian is one cluster of a component. Each axis is shrunk by `v / (v + sigma ** 2)` towards the offset of the
    cluster; Gaussians are weighted by their responsibilities (Bishop, Pattern Recognition and Machine Learning, 2006,
    eq. 2.116 and 9.13). Means may be those of each image.
    """
    axes, offsets, variances, shares, rotations, rest = components
    away = flat[:, None] - means
    along = torch.einsum("bkd,krd->bkr", away, axes)
    beside = (exact(away).square().sum(2) - along.square().sum(2)).clamp(min=0)
    of_axes, of_rest = variances + variance[..., None, None], rest + variance
    from_cluster, rest_count = rotated(along[:, :, None] - offsets, rotations), axes.shape[2] - axes.shape[1]
    distance = (from_cluster.square() / of_axes + of_axes.log()).sum(3)
    distance = distance + (beside / of_rest + rest_count * of_rest.log())[..., None]
    log_joint = (weights.log()[..., None] + shares.log() - distance / 2).flatten(1)
    responsibilities = torch.softmax(log_joint, 1).to(flat).unflatten(1, shares.shape)
    of_component, shrink = responsibilities.sum(2), rest / of_rest
    shrunk = of_component * shrink
    shift = rotated(variances / of_axes * from_cluster, rotations.mT)
    posterior = (responsibilities[..., None] * (offsets + shift)).sum(2)
    inside = (posterior - shrunk[..., None] * along).flatten(1)
    middle = ((of_component - shrunk)[:, None] @ means)[:, 0] + shrunk.sum(1, keepdim=True) * flat
    return log_joint, middle + inside @ axes.flatten(0, 1)


def rotated(
    coordinates: Float[Tensor, "batch component cluster rank"],
    rotations: Float[Tensor, "component cluster turned turned"],
) -> Float[Tensor, "batch component cluster rank"]:
    """The first coordinates along the axes of each cluster in place of the common ones, the others as they are; with
    `rotations.mT`, back again."""
    if not (count := rotations.shape[2]):
        return coordinates
    first = torch.einsum("bkcr,kcrs->bkcs", coordinates[..., :count], rotations)
    return torch.cat([first, coordinates[..., count:]], 3)


@dataclass(frozen=True)
class CrossFitted:
    """For each fold of the training images, the mixture of all others (stacking: Wolpert, Neural Networks 5, 1992).

    A mixture overfits small sets, and a network that learns beside it would rely on that.
    """

    mixtures: tuple[GaussianMixture, ...]

    def of(self, fold: Folds, labels: Labels) -> Callable[[Latents, Sigmas], Latents]:
        """The posterior mean of images of these folds, which are on the host, as a function of (noisy, sigma)."""

        def mean(noisy: Latents, sigma: Sigmas) -> Latents:
            means = torch.empty_like(noisy)
            for number, mixture in enumerate(self.mixtures):
                if len(inside := sent((fold == number).nonzero()[:, 0], noisy.device)):
                    means[inside] = mixture.mean(noisy[inside], sigma[inside], Condition(labels[inside]))
            return means

        return mean


def exact(values: Tensor) -> Tensor:
    """In float64 where the device has it: differences of large distances must not depend on the batch."""
    return values if values.device.type == "mps" else values.double()
