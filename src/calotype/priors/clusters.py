"""Components of a mixture: the principal axes of each class, and clusters along them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.priors.gaussian import GaussianMixture
from calotype.types import NULL_LABEL, Labels, Rng

MOST_RANK = 512
"""Principal axes of a component at most."""
MOST_CLASSES = 16
FEWEST_PER_CLASS, FEWEST_IN_FOLD = 8, 2
"""Images that each class needs for components of its own, and in what is left of them without a fold."""
MOST_CLUSTERS, MOST_CAPTIONED, MOST_UNLABELLED, FEWEST_PER_CLUSTER = 32, 8, 4, 25
"""Clusters at most of the component of a class, where captions are read, and of one component for all images; and the
images that each needs on average. With 32 the mixture of captioned images overfits; of photographs, whose many kinds
are one component, more than 4 lower the validation loss, but samples are farther (dev/LOG.md, 2026-11-30)."""
VARIANCE_SHRINKAGE, ROTATION_SHRINKAGE = 20.0, 100.0
"""The variances of a cluster are estimated as if it had so many images more, with the variances that all clusters have
on average; and the covariance of its first coordinates, from which it has axes of its own."""
FIRST_AXES = 64
"""Principal coordinates by which k-means divides the images, from where expectation maximisation starts."""
MOST_TURNED = 128
"""Axes of a cluster of its own at most, within the first axes of its component."""
EM_ROUNDS, SMOOTHING = 5, 0.05
"""Of expectation maximisation, and the variance of the noise that the images have for it: in many dimensions the
responsibilities of exact points are 0 or 1."""
MOST_AXIS_VALUES = 2**24
"""Values of the axes of all components: 64 MB, or 16 axes each if that is more; with captions twice that."""

Points = Float[Tensor, "count dimension"]


class Component(NamedTuple):
    mean: Float[Tensor, " dimension"]
    axes: Float[Tensor, "rank dimension"]
    variances: Float[Tensor, " rank"]
    """Along the axes, of all clusters together."""
    total: Float[Tensor, ""]
    """Trace of the covariance."""
    label: int
    coordinates: Float[Tensor, "count rank"]
    """Of its images along the axes, from the mean."""
    clusters: AxisClusters

    def divided(self, clusters: int) -> Component:
        """With at most so many clusters; without the coordinates, which take memory."""
        clustered = clusters_of(self.coordinates, clusters)
        return self._replace(clusters=clustered, coordinates=self.coordinates.new_empty(len(self.coordinates), 0))


class AxisClusters(NamedTuple):
    """Gaussians along the common axes of a component."""

    offsets: Float[Tensor, "cluster rank"]
    """Their means, from the mean of the component."""
    variances: Float[Tensor, "cluster rank"]
    """Along the columns of `rotations`, and along the common axes after those."""
    shares: Float[Tensor, " cluster"]
    """Their weights, of sum 1."""
    rotations: Float[Tensor, "cluster turned turned"]
    """A column is an axis of the cluster's own, in coordinates of the first `turned` common axes; `turned` may be 0."""


def members_of_classes(labels: Labels, fewest: int = FEWEST_PER_CLASS) -> dict[int, Tensor]:
    """A mask of the members of each class; one class, `NULL_LABEL`, where labels are missing, too many or too rare."""
    counts = torch.bincount(labels.clamp(min=0))
    usable = len(counts) <= MOST_CLASSES and int(counts.min()) >= fewest and not bool((labels == NULL_LABEL).any())
    if not usable:
        return {NULL_LABEL: torch.ones_like(labels) > 0}
    return {label: labels == label for label in range(len(counts))}


def most_components(classes: int) -> int:
    """Of the images of so many classes: one for each class, or one for all where there are none or too many."""
    return classes if 0 < classes <= MOST_CLASSES else 1


def largest_rank(count: int, dimension: int, components: int) -> int:
    """The most axes a component may have, for `count` images of `dimension` values each in the smallest class."""
    return min(MOST_RANK, count, dimension, max(16, MOST_AXIS_VALUES // (components * dimension)))


def components_of(points: Points, classes: dict[int, Tensor], rank: int) -> list[Component]:
    """One of each class, in one cluster.

    The last of the axes are rough, since the randomised decomposition is: for few, take the first of many.
    """
    return [class_component(points[members], label, rank) for label, members in classes.items()]


def class_component(own: Points, label: int, rank: int) -> Component:
    """Of the points of one class, from which their mean is subtracted in place."""
    mean = own.mean(0)
    own -= mean
    _, deviations, axes = torch.svd_lowrank(own, q=min(3 * rank // 2, *own.shape), niter=1)
    axes, variances = axes[:, :rank], deviations[:rank] ** 2 / len(own)
    total, coordinates = own.norm(dim=1).square().sum() / len(own), own @ axes
    return Component(mean, axes.T, variances, total, label, coordinates, clusters_of(coordinates, 1))


def clusters_of(coordinates: Float[Tensor, "count rank"], clusters: int) -> AxisClusters:
    """Expectation maximisation (Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1977) from k-means.

    Clusters that k-means leaves with too few images are dropped, and the first expectation step divides their images
    among the others; where that leaves one, it is the Gaussian of all images.
    """
    members = F.one_hot(k_means(coordinates[:, :FIRST_AXES], clusters), clusters).to(coordinates)
    members = members[:, members.sum(0) >= FEWEST_PER_CLASS]
    if members.shape[1] < 2:
        return _weighted_clusters(coordinates, coordinates.new_ones(len(coordinates), 1))
    parts = _weighted_clusters(coordinates, members)
    for _ in range(EM_ROUNDS):
        members = _responsibilities(coordinates, parts)
        parts = _weighted_clusters(coordinates, members)
    return _turned_clusters(coordinates[:, :MOST_TURNED], members, parts)


def _weighted_clusters(
    coordinates: Float[Tensor, "count rank"], members: Float[Tensor, "count cluster"]
) -> AxisClusters:
    """Shares, means and shrunken variances of images that are `members` of clusters to these degrees, in [0, 1]; no
    cluster has axes of its own yet."""
    counts = members.sum(0)[:, None].clamp(min=1e-3)
    offsets = members.T @ coordinates / counts
    within = (members.T @ coordinates.square() / counts - offsets.square()).clamp(min=0)
    common, trust = (counts * within).sum(0) / counts.sum(), counts / (counts + VARIANCE_SHRINKAGE)
    variances = (trust * within + (1 - trust) * common).clamp(min=1e-6)
    return AxisClusters(offsets, variances, counts[:, 0] / counts.sum(), coordinates.new_zeros(len(offsets), 0, 0))


def _turned_clusters(
    first: Float[Tensor, "count turned"], members: Float[Tensor, "count cluster"], parts: AxisClusters
) -> AxisClusters:
    """With the principal axes of each cluster in place of the first axes of the component."""
    turned, counts = first.shape[1], members.sum(0).clamp(min=1e-3)[:, None, None]
    offsets = parts.offsets[:, :turned]
    products = torch.stack(
        [(weight * (away := first - offset).T) @ away for weight, offset in zip(members.T, offsets, strict=True)]
    )
    trust = counts / (counts + ROTATION_SHRINKAGE)
    covariances = trust * products / counts + (1 - trust) * products.sum(0) / counts.sum()
    variances, rotations = torch.linalg.eigh(covariances)
    variances = torch.cat([variances.clamp(min=1e-6), parts.variances[:, turned:]], 1)
    return parts._replace(variances=variances, rotations=rotations)


def _responsibilities(coordinates: Float[Tensor, "count rank"], parts: AxisClusters) -> Float[Tensor, "count cluster"]:
    """Probabilities of the clusters for each image, from matrix products: a difference for each image and cluster would
    be `cluster` times as large as the coordinates."""
    precisions = 1 / (parts.variances + SMOOTHING)
    weighted = precisions * parts.offsets
    distance = coordinates.square() @ precisions.T - 2 * coordinates @ weighted.T + (weighted * parts.offsets).sum(1)
    return torch.softmax(parts.shares.log() + (precisions.log().sum(1) - distance) / 2, 1)


def k_means(coordinates: Float[Tensor, "count axis"], clusters: int, rounds: int = 12) -> Int[Tensor, " count"]:
    """Lloyd's algorithm; an empty cluster is moved to a random point."""
    count = len(coordinates)
    if clusters == 1:
        return torch.zeros(count, dtype=torch.long, device=coordinates.device)
    means = coordinates[Rng(("clusters",)).permutation(count)[:clusters].to(coordinates.device)]
    for number in range(rounds):
        nearest = torch.cdist(coordinates, means).argmin(1)
        spare = coordinates[Rng(("clusters", number)).permutation(count)[:clusters].to(coordinates.device)]
        means = torch.stack(
            [coordinates[nearest == k].mean(0) if (nearest == k).any() else spare[k] for k in range(len(means))]
        )
    return torch.cdist(coordinates, means).argmin(1)


def most_clusters(count: int, labelled: bool = True, captioned: bool = False) -> int:
    """Of a component of so many images."""
    limit = min(MOST_CAPTIONED if captioned else MOST_CLUSTERS, MOST_CLUSTERS if labelled else MOST_UNLABELLED)
    return max(1, min(limit, count // FEWEST_PER_CLUSTER))


def mixture_of(components: Sequence[Component], rank: int) -> GaussianMixture:
    """With the first `rank` axes of each component; one that has fewer gets zero axes, which change nothing.

    Of components with fewer clusters than others have, the missing ones have no weight.
    """
    dimension, count = len(components[0].mean), sum(len(component.coordinates) for component in components)
    most = max(len(component.clusters.shares) for component in components)
    turned = min(rank, max(component.clusters.rotations.shape[1] for component in components))
    mixture = GaussianMixture(len(components), rank, dimension, most, turned).to(components[0].mean.device)
    mixture.shares.zero_()
    for index, component in enumerate(components):
        offsets, variances, shares, rotations = component.clusters
        own = min(rank, len(component.variances))
        left = component.total - component.variances[:own].sum()
        mixture.means[index] = component.mean
        mixture.rest[index] = (left / max(1, dimension - own)).clamp(min=1e-4)
        mixture.axes[index, :own] = component.axes[:own]
        mixture.offsets[index, : len(shares), :own] = offsets[:, :own]
        mixture.variances[index] = mixture.rest[index]
        mixture.variances[index, : len(shares), :own] = variances[:, :own]
        mixture.shares[index, : len(shares)] = shares
        mixture.rotations[index, : len(shares), : rotations.shape[1], : rotations.shape[1]] = rotations
        mixture.prior[index] = len(component.coordinates) / count
        mixture.label[index] = component.label
    mixture.group[:] = mixture.label.unique_consecutive(return_inverse=True)[1]
    return mixture
