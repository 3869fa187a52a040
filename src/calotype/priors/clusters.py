"""Components of a mixture: k-means within classes, then the principal axes of each cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calotype.priors.gaussian import GaussianMixture
from calotype.types import NULL_LABEL, Labels, Rng

MOST_RANK = 256
"""Principal axes of a component at most."""
MOST_CLASSES = 16
FEWEST_PER_CLASS, FEWEST_IN_FOLD = 8, 2
"""Images that each class needs for components of its own, and in what is left of them without a fold."""
SHARED = 0.5
"""Share of its class's within-cluster covariance in a component's covariance."""
MOST_AXIS_VALUES = 2**24
"""Values of the axes of all components: 64 MB, or 16 axes each if that is more; with captions twice that."""

Points = Float[Tensor, "count dimension"]


class Component(NamedTuple):
    mean: Float[Tensor, " dimension"]
    axes: Float[Tensor, "rank dimension"]
    variances: Float[Tensor, " rank"]
    total: Float[Tensor, ""]
    """Trace of the covariance."""
    size: int
    label: int


def members_of_classes(labels: Labels, fewest: int = FEWEST_PER_CLASS) -> dict[int, Tensor]:
    """A mask of the members of each class; one class, `NULL_LABEL`, where labels are missing, too many or too rare."""
    counts = torch.bincount(labels.clamp(min=0))
    usable = len(counts) <= MOST_CLASSES and int(counts.min()) >= fewest and not bool((labels == NULL_LABEL).any())
    if not usable:
        return {NULL_LABEL: torch.ones_like(labels) > 0}
    return {label: labels == label for label in range(len(counts))}


def largest_rank(count: int, dimension: int, components: int) -> int:
    """The most axes a component may have, for `count` images of `dimension` values each in the smallest class."""
    return min(MOST_RANK, count, dimension, max(16, MOST_AXIS_VALUES // (components * dimension)))


def components_of(points: Points, classes: dict[int, Tensor], clusters: int, rank: int) -> list[Component]:
    """Each class in `clusters` parts; a part's covariance is shrunk halfway to the within-cluster one of its class.

    The last of the axes are rough, since the randomised decomposition is: for few, take the first of many.
    """
    parts = (class_components(points[members], label, clusters, rank) for label, members in classes.items())
    return [*chain.from_iterable(parts)]


def class_components(own: Points, label: int, clusters: int, rank: int) -> Iterator[Component]:
    """Of the points of one class, from which the means of their clusters are subtracted in place."""
    cluster = k_means(own, clusters).unique(return_inverse=True)[1]  # renumbered, as some may be empty
    means = torch.stack([own[cluster == index].mean(0) for index in range(int(cluster.max()) + 1)])
    away = own.sub_(means[cluster])
    _, deviations, axes = torch.svd_lowrank(away, q=min(3 * rank // 2, *away.shape), niter=1)
    common = (SHARED / len(own)) ** 0.5 * (axes * deviations).T
    for index in range(len(means)):
        inside = away[cluster == index]
        rows = torch.cat([((1 - SHARED) / len(inside)) ** 0.5 * inside, common])
        _, deviations, axes = torch.svd_lowrank(rows, q=rank, niter=1)
        total = (1 - SHARED) * inside.square().sum() / len(inside) + SHARED * away.square().sum() / len(own)
        yield Component(means[index], axes.T, deviations**2, total, len(inside), label)


def k_means(points: Points, clusters: int, rounds: int = 12) -> Int[Tensor, " count"]:
    """Lloyd's algorithm in the 64 principal coordinates; an empty cluster is moved to a random point."""
    if clusters == 1:
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    _, _, axes = torch.svd_lowrank(points - points.mean(0), q=min(64, *points.shape), niter=1)
    coordinates = (points - points.mean(0)) @ axes
    means = coordinates[Rng(("clusters",)).permutation(len(points))[:clusters].to(points.device)]
    for number in range(rounds):
        nearest = torch.cdist(coordinates, means).argmin(1)
        spare = coordinates[Rng(("clusters", number)).permutation(len(points))[:clusters].to(points.device)]
        means = torch.stack(
            [coordinates[nearest == k].mean(0) if (nearest == k).any() else spare[k] for k in range(clusters)]
        )
    return torch.cdist(coordinates, means).argmin(1)


def mixture_of(components: Sequence[Component], rank: int) -> GaussianMixture:
    """With the first `rank` axes of each component; one that has fewer gets zero axes, which change nothing."""
    dimension, count = len(components[0].mean), sum(component.size for component in components)
    mixture = GaussianMixture(len(components), rank, dimension).to(components[0].mean.device)
    for index, component in enumerate(components):
        mixture.means[index] = component.mean
        own = min(rank, len(component.variances))
        left = component.total - component.variances[:own].sum()
        mixture.rest[index] = (left / max(1, dimension - own)).clamp(min=1e-4)
        mixture.axes[index, :own] = component.axes[:own]
        mixture.variances[index] = mixture.rest[index]
        mixture.variances[index, :own] = component.variances[:own].clamp(min=1e-6)
        mixture.prior[index] = component.size / count
        mixture.label[index] = component.label
    mixture.group[:] = mixture.label.unique_consecutive(return_inverse=True)[1]
    return mixture
