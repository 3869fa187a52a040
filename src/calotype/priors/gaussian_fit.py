"""Fitting of Gaussian mixtures: k-means within classes, then the principal axes of each cluster."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.prior import Prior
from calotype.types import NULL_LABEL, Condition, Folds, Labels, Latents, Rng, Sigmas, Text, per_image

RANKS = (256, 64, 16, 0)
"""Numbers of principal axes that are tried; too many do worse on validation images."""
CLUSTERS = (4,)
"""Numbers of components a class that are tried beside one."""
MOST_CLASSES = 16
FEWEST_PER_CLASS = 8
"""Images that each class needs for components of its own."""
FEWEST_PER_COMPONENT = 40
"""Images that a component needs."""
SHARED = 0.5
"""Share of its class's within-cluster covariance in a component's covariance."""
MOST_AXIS_VALUES = 2**24
"""Values of the axes of all components: 64 MB, or 16 axes each if that is more; with captions twice that."""
IMAGES_AT_ONCE = 64
"""Images whose distances to all means are in memory together."""

Points = Float[Tensor, "count dimension"]


class Component(NamedTuple):
    mean: Float[Tensor, " dimension"]
    axes: Float[Tensor, "rank dimension"]
    variances: Float[Tensor, " rank"]
    total: Float[Tensor, ""]
    """Trace of the covariance."""
    size: int
    label: int


def fit_classes(
    train: Float[Tensor, "count channel height width"],
    labels: Int[Tensor, " count"],
    validation: Latents,
    validation_labels: Labels,
    sigma: Sigmas,
    noise: Latents,
) -> GaussianMixture:
    """The mixture of `train` whose rank and size denoise `validation + sigma * noise` best."""
    points, classes = train.flatten(1), members_of_classes(labels)
    smallest = min(int(members.sum()) for members in classes.values())
    single = components_of(points, classes, 1, largest_rank(smallest, points.shape[1], len(classes)))
    candidates = [mixture_of(single, min(rank, len(single[0].variances))) for rank in RANKS]
    for clusters in CLUSTERS:
        if smallest >= FEWEST_PER_COMPONENT * clusters:
            rank = largest_rank(smallest, points.shape[1], clusters * len(classes))
            several = components_of(points, classes, clusters, rank)
            candidates.append(mixture_of(several, len(several[0].variances)))
    return min(candidates, key=lambda mixture: flow_error(mixture, validation, validation_labels, sigma, noise))


def flow_error(
    prior: Prior, clean: Latents, labels: Labels, sigma: Sigmas, noise: Latents, text: Text | None = None
) -> float:
    """The mean of `flow_errors`."""
    return float(flow_errors(prior, clean, labels, sigma, noise, text).mean())


def flow_errors(
    prior: Prior, clean: Latents, labels: Labels, sigma: Sigmas, noise: Latents, text: Text | None = None
) -> Float[Tensor, " batch"]:
    """The loss of a flow, `((1 + sigma) / sigma) ** 2` times the squared error, of each image."""
    noisy, parts = clean + per_image(sigma) * noise, torch.arange(len(clean)).split(IMAGES_AT_ONCE)
    means = torch.cat(
        [
            prior.mean(noisy[part], sigma[part], Condition(labels[part], text=text and text.at(part.tolist())))
            for part in parts
        ]
    )
    return (means - clean).square().flatten(1).mean(1) * ((1 + sigma) / sigma) ** 2


def cross_fit(
    like: GaussianMixture,
    train: Float[Tensor, "count channel height width"],
    labels: Int[Tensor, " count"],
    folds: Folds,
) -> CrossFitted:
    """For each fold, a mixture of as many components and axes as `like`, of the images outside it."""
    points, mixtures = train.flatten(1), []
    for fold in folds.unique().tolist():
        classes = members_of_classes(labels[folds != fold])
        clusters, smallest = max(1, len(like.means) // len(classes)), min(int(one.sum()) for one in classes.values())
        rank = largest_rank(smallest, points.shape[1], clusters * len(classes))
        components = components_of(points[folds != fold], classes, clusters, rank)
        mixtures.append(mixture_of(components, min(like.axes.shape[1], rank)))
    return CrossFitted(tuple(mixtures))


def members_of_classes(labels: Labels) -> dict[int, Tensor]:
    """A mask of the members of each class; one class, `NULL_LABEL`, where labels are missing, too many or too rare."""
    counts = torch.bincount(labels.clamp(min=0))
    usable = (
        len(counts) <= MOST_CLASSES and int(counts.min()) >= FEWEST_PER_CLASS and not bool((labels == NULL_LABEL).any())
    )
    if not usable:
        return {NULL_LABEL: torch.ones_like(labels) > 0}
    return {label: labels == label for label in range(len(counts))}


def largest_rank(count: int, dimension: int, components: int) -> int:
    """The most axes a component may have, for `count` images of `dimension` values each in the smallest class."""
    return min(max(RANKS), count, dimension, max(16, MOST_AXIS_VALUES // (components * dimension)))


def components_of(points: Points, classes: dict[int, Tensor], clusters: int, rank: int) -> list[Component]:
    """Each class in `clusters` parts; a part's covariance is shrunk halfway to the within-cluster one of its class.

    The last of the axes are rough, since the randomised decomposition is: for few, take the first of many.
    """
    components = []
    for label, members in classes.items():
        own = points[members]
        cluster = k_means(own, clusters).unique(return_inverse=True)[1]  # renumbered, as some may be empty
        means = torch.stack([own[cluster == index].mean(0) for index in range(int(cluster.max()) + 1)])
        away = own - means[cluster]
        _, deviations, axes = torch.svd_lowrank(away, q=min(3 * rank // 2, *away.shape), niter=1)
        common = (SHARED / len(own)) ** 0.5 * (axes * deviations).T
        for index in range(len(means)):
            inside = away[cluster == index]
            both = torch.cat([((1 - SHARED) / len(inside)) ** 0.5 * inside, common])
            _, deviations, axes = torch.svd_lowrank(both, q=rank, niter=1)
            total = (1 - SHARED) * inside.square().sum() / len(inside) + SHARED * away.square().sum() / len(own)
            components.append(Component(means[index], axes.T, deviations**2, total, len(inside), label))
    return components


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
