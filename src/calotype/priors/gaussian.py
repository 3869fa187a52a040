"""The denoiser in closed form: what is known before anything is learned.

At high noise a trained denoiser is almost that of a Gaussian with the mean and the covariance of the data (Wang and
Vastola, arXiv 2412.09726, section 3). With a mixture of Gaussians, some for each class, the posterior mean still has a
closed form. So that part is computed, and the network starts beside it and learns what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from calotype.priors.fitted import Fitted
from calotype.priors.windows import windowed
from calotype.types import NULL_LABEL, Folds, Labels, Latents, Rng, Sigmas, Text, per_image

RANKS = (256, 64, 16, 0)
"""Numbers of principal axes that are tried; more than the data bear out does worse on held-out ones."""
CLUSTERS = (4,)
"""Numbers of components a class that are tried beside one."""
MOST_CLASSES = 16
FEWEST = 40
"""Pictures that a component needs."""
SHARED = 0.5
"""How much of a component's covariance is that of its class around the components' means."""
MOST_AXIS_VALUES = 2**24
"""The axes of all components take 64 MB, or 16 axes each if that is more; with words (`told.py`) twice that."""

AT_ONCE = 64
"""Pictures of which the distances to all means are in memory together."""

Weights = Float[Tensor, "batch component"]
Flat = Float[Tensor, "batch dimension"]
Shift = Callable[[int, Int[Tensor, " rows"]], Flat]  # how far the means of a group lie from theirs, for these pictures


@runtime_checkable
class Prior(Protocol):
    """The posterior mean of the clean picture, given the noisy one, its label and its caption; differentiable."""

    def side(self, channels: int) -> int: ...

    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents: ...


class GaussianMixture(Fitted):
    """A mixture of Gaussians, each with `rank` principal axes of their own variance and one variance for the rest.

    The components of a group, which is a class or a part of one, lie together and are asked together.
    """

    means: Float[Tensor, "component dimension"]
    axes: Float[Tensor, "component rank dimension"]
    variances: Float[Tensor, "component rank"]
    rest: Float[Tensor, " component"]
    prior: Float[Tensor, " component"]
    label: Int[Tensor, " component"]
    group: Int[Tensor, " component"]

    def __init__(self, components: int, rank: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(components, dimension))
        self.register_buffer("axes", torch.zeros(components, rank, dimension))
        self.register_buffer("variances", torch.ones(components, rank))
        self.register_buffer("rest", torch.ones(components))
        self.register_buffer("prior", torch.full((components,), 1 / components))
        self.register_buffer("label", torch.full((components,), NULL_LABEL))
        self.register_buffer("group", torch.zeros(components, dtype=torch.long))

    @property
    def shape(self) -> dict[str, int]:
        return dict(zip(("components", "rank", "dimension"), self.axes.shape, strict=True))

    def side(self, channels: int) -> int:
        """Of the square that the mixture is fitted to."""
        return math.isqrt(self.means.shape[1] // channels)

    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents:
        """The posterior mean of the clean picture, over the components of its class, or over all where it is not told.

        What captions say is not known here (but in `told.py`).
        """
        return self.around(self.prior * self.possible(labels), noisy, sigma)

    def possible(self, labels: Labels) -> Bool[Tensor, "batch component"]:
        """Which components may have made a picture of this class."""
        possible = (labels[:, None] == self.label) | (self.label == NULL_LABEL) | (labels[:, None] == NULL_LABEL)
        return possible | ~possible.any(1, keepdim=True)  # a class without a component of its own may be any

    def around(self, prior: Weights, noisy: Latents, sigma: Sigmas, shift: Shift | None = None) -> Latents:
        """The same where the components are so likely for each picture, and the means of its groups are shifted so.

        A picture that is larger than what the mixture is fitted to is seen through windows of that size.
        """
        return windowed(noisy, self.side(noisy.shape[1]), lambda part: self._around(prior, part, sigma, shift))

    def _around(self, prior: Weights, noisy: Latents, sigma: Sigmas, shift: Shift | None) -> Latents:
        """What the groups say, each as likely as it makes the noisy picture; one without a prior is not asked."""
        flat, noise, asked = noisy.flatten(1), sigma[:, None] ** 2, (prior > 0).cpu()
        said, groups = [], self._groups()
        found = exact(prior).new_full((len(flat), len(groups)), -torch.inf)
        for number, some in enumerate(groups):
            rows = asked[:, some].any(1).nonzero()[:, 0].to(flat.device)
            if len(rows):
                centre = torch.zeros_like(flat[:1]) if shift is None else shift(number, rows)
                found[rows, number], answer = self._ask(some, prior[rows, some], flat[rows] - centre, noise[rows])
                said.append((rows, number, centre + answer))
        chosen, denoised = torch.softmax(found, 1).to(flat), torch.zeros_like(flat)
        for rows, number, answer in said:
            denoised[rows] += chosen[rows, number, None] * answer
        return denoised.reshape(noisy.shape)

    def _groups(self) -> list[slice]:
        ends = [0, *accumulate(self.group.unique_consecutive(return_counts=True)[1].tolist())]
        return [slice(*both) for both in pairwise(ends)]

    def _ask(
        self, some: slice, prior: Weights, flat: Flat, noise: Float[Tensor, "batch 1"]
    ) -> tuple[Float[Tensor, " batch"], Flat]:
        """The logarithm of how likely these components together make pictures, and their posterior mean.

        Within a component each axis is shrunk by `variance / (variance + sigma ** 2)`, and a component counts as likely
        as it makes the noisy picture (Bishop 2006, eq. 2.116 and 9.13).
        """
        means, axes, variances, rest = (one[some] for one in (self.means, self.axes, self.variances, self.rest))
        away = flat[:, None] - means
        along = torch.einsum("bkd,krd->bkr", away, axes)
        of_axes, of_rest, others = variances + noise[..., None], rest + noise, means.shape[1] - axes.shape[1]
        distance = (along.square() / of_axes).sum(2)
        distance = distance + (squared_lengths(away) - along.square().sum(2)).clamp(min=0) / of_rest
        volume = of_axes.log().sum(2) + others * of_rest.log()
        likely = prior.log() - (distance + volume) / 2
        chosen, elsewhere = torch.softmax(likely, 1).to(flat), rest / of_rest
        kept = chosen * elsewhere
        inside = (chosen[..., None] * (variances / of_axes - elsewhere[..., None]) * along).flatten(1)
        middle = (chosen - kept) @ means + kept.sum(1, keepdim=True) * flat
        return likely.logsumexp(1), middle + inside @ axes.flatten(0, 1)


@dataclass(frozen=True)
class CrossFitted:
    """For each fold of the training pictures, the mixture of all others (stacking: Wolpert, Neural Networks, 1992).

    The mixture of a few pictures knows them too well, and a network that learns beside it would rely on that.
    """

    mixtures: tuple[GaussianMixture, ...]

    def of(self, fold: Folds, labels: Labels) -> Callable[[Latents, Sigmas], Latents]:
        """The closed form for pictures of these folds."""

        def denoise(noisy: Latents, sigma: Sigmas) -> Latents:
            known = torch.empty_like(noisy)
            for number, mixture in enumerate(self.mixtures):
                if bool((inside := fold == number).any()):
                    known[inside] = mixture.denoise(noisy[inside], sigma[inside], labels[inside])
            return known

        return denoise


def exact(values: Tensor) -> Tensor:
    """In float64 where there is one: small differences of large distances count, and the batch must not change them."""
    return values if values.device.type == "mps" else values.double()


def squared_lengths(away: Float[Tensor, "batch component dimension"]) -> Float[Tensor, "batch component"]:
    return exact(away).square().sum(2)


class Component(NamedTuple):
    mean: Float[Tensor, " dimension"]
    axes: Float[Tensor, "rank dimension"]
    variances: Float[Tensor, " rank"]
    total: Float[Tensor, ""]
    """The sum of the variances in all directions."""
    size: int
    label: int


def fit(
    train: Float[Tensor, "count channel height width"],
    labels: Int[Tensor, " count"],
    held_out: Latents,
    held_out_labels: Labels,
    sigma: Sigmas,
    noise: Latents,
) -> GaussianMixture:
    """The mixture of `train`, of several ranks and sizes, that denoises `held_out + sigma * noise` best."""
    points, groups = train.flatten(1), groups_of(labels)
    smallest = min(int(members.sum()) for members in groups.values())
    single = components_of(points, groups, 1, largest_rank(smallest, points.shape[1], len(groups)))
    candidates = [mixture_of(single, min(rank, len(single[0].variances))) for rank in RANKS]
    for clusters in CLUSTERS:
        if smallest >= FEWEST * clusters:
            rank = largest_rank(smallest, points.shape[1], clusters * len(groups))
            several = components_of(points, groups, clusters, rank)
            candidates.append(mixture_of(several, len(several[0].variances)))
    return min(candidates, key=lambda one: flow_error(one, held_out, held_out_labels, sigma, noise))


def flow_error(
    mixture: Prior, clean: Latents, labels: Labels, sigma: Sigmas, noise: Latents, text: Text | None = None
) -> float:
    """The mean of `flow_errors`."""
    return float(flow_errors(mixture, clean, labels, sigma, noise, text).mean())


def flow_errors(
    mixture: Prior, clean: Latents, labels: Labels, sigma: Sigmas, noise: Latents, text: Text | None = None
) -> Float[Tensor, " batch"]:
    """As in the loss of a flow: `((1 + sigma) / sigma) ** 2` times the squared error, of pictures + `sigma * noise`."""
    noisy, parts = clean + per_image(sigma) * noise, torch.arange(len(clean)).split(AT_ONCE)
    denoised = torch.cat(
        [mixture.denoise(noisy[some], sigma[some], labels[some], text and text.at(some.tolist())) for some in parts]
    )
    return (denoised - clean).square().flatten(1).mean(1) * ((1 + sigma) / sigma) ** 2


def refit(
    like: GaussianMixture,
    train: Float[Tensor, "count channel height width"],
    labels: Int[Tensor, " count"],
    folds: Folds,
) -> CrossFitted:
    """For each fold, a mixture of as many components and axes as `like`, of the pictures outside it."""
    points, made = train.flatten(1), []
    for fold in folds.unique().tolist():
        groups = groups_of(labels[folds != fold])
        clusters, smallest = max(1, len(like.means) // len(groups)), min(int(one.sum()) for one in groups.values())
        rank = largest_rank(smallest, points.shape[1], clusters * len(groups))
        components = components_of(points[folds != fold], groups, clusters, rank)
        made.append(mixture_of(components, min(like.axes.shape[1], rank)))
    return CrossFitted(tuple(made))


def groups_of(labels: Labels) -> dict[int, Tensor]:
    """Which pictures belong together: a class, or all where labels are missing, too many, or too rare."""
    counts = torch.bincount(labels.clamp(min=0))
    usable = len(counts) <= MOST_CLASSES and int(counts.min()) >= 8 and not bool((labels == NULL_LABEL).any())
    return (
        {label: labels == label for label in range(len(counts))}
        if usable
        else {NULL_LABEL: torch.ones_like(labels) > 0}
    )


def largest_rank(count: int, dimension: int, components: int) -> int:
    """The most axes a component may have, for `count` pictures of `dimension` values each in the smallest group."""
    return min(max(RANKS), count, dimension, max(16, MOST_AXIS_VALUES // (components * dimension)))


def components_of(
    points: Float[Tensor, "count dimension"], groups: dict[int, Tensor], clusters: int, rank: int
) -> list[Component]:
    """Each group in `clusters` parts. A part's covariance is half its own and half its group's within the parts.

    The last of the axes are rough: who wants few takes the first of many.
    """
    components = []
    for label, members in groups.items():
        mine = points[members]
        part = nearest_means(mine, clusters).unique(return_inverse=True)[1]  # renumbered, as some may be empty
        means = torch.stack([mine[part == index].mean(0) for index in range(int(part.max()) + 1)])
        away = mine - means[part]
        _, spreads, axes = torch.svd_lowrank(away, q=min(3 * rank // 2, *away.shape), niter=1)
        common = (SHARED / len(mine)) ** 0.5 * (axes * spreads).T
        for index in range(len(means)):
            own = away[part == index]
            both = torch.cat([((1 - SHARED) / len(own)) ** 0.5 * own, common])
            _, spreads, axes = torch.svd_lowrank(both, q=rank, niter=1)
            total = (1 - SHARED) * own.square().sum() / len(own) + SHARED * away.square().sum() / len(mine)
            components.append(Component(means[index], axes.T, spreads**2, total, len(own), label))
    return components


def nearest_means(points: Float[Tensor, "count dimension"], clusters: int, rounds: int = 12) -> Int[Tensor, " count"]:
    """Lloyd's algorithm in the 64 principal coordinates; a cluster that is left by all takes a point at random."""
    if clusters == 1:
        return torch.zeros(len(points), dtype=torch.long, device=points.device)
    _, _, axes = torch.svd_lowrank(points - points.mean(0), q=min(64, *points.shape), niter=1)
    places = (points - points.mean(0)) @ axes
    means = places[Rng(("clusters",)).permutation(len(points))[:clusters].to(points.device)]
    for number in range(rounds):
        nearest = torch.cdist(places, means).argmin(1)
        spare = places[Rng(("clusters", number)).permutation(len(points))[:clusters].to(points.device)]
        means = torch.stack(
            [places[nearest == k].mean(0) if (nearest == k).any() else spare[k] for k in range(clusters)]
        )
    return torch.cdist(places, means).argmin(1)


def mixture_of(components: Sequence[Component], rank: int) -> GaussianMixture:
    """With the first so many axes of each. One that has fewer gets axes of no length, which change nothing."""
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
