"""The denoiser in closed form: what is known before anything is learned.

At high noise a trained denoiser is almost that of a Gaussian with the mean and the covariance of the data (Wang and
Vastola, arXiv 2412.09726, section 3). With a mixture of Gaussians, some for each class, the posterior mean still has a
closed form. So that part is computed, and the network starts beside it and learns what is left.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calotype.diffusion.windows import windowed
from calotype.vocabulary import NOT_TOLD, Folds, Labels, Latents, Rng, Sigmas, Text, per_image

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
"""The axes of all components take 64 MB, or 16 axes each if that is more."""

AT_ONCE = 64
"""Pictures of which the distances to all means are in memory together."""

Means = Float[Tensor, "pictures component dimension"]  # of every picture (1), or of each
Prior = Float[Tensor, "pictures component"]


@runtime_checkable
class ClosedForm(Protocol):
    """The posterior mean of the clean picture, given the noisy one, its label and its caption."""

    def side(self, channels: int) -> int: ...

    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents: ...


class Mixture(nn.Module):
    """A mixture of Gaussians, each with `rank` principal axes of their own variance and one variance for the rest."""

    means: Float[Tensor, "component dimension"]
    axes: Float[Tensor, "component rank dimension"]
    variances: Float[Tensor, "component rank"]
    rest: Float[Tensor, " component"]
    prior: Float[Tensor, " component"]
    label: Int[Tensor, " component"]

    def __init__(self, components: int, rank: int, dimension: int) -> None:
        super().__init__()
        self.register_buffer("means", torch.zeros(components, dimension))
        self.register_buffer("axes", torch.zeros(components, rank, dimension))
        self.register_buffer("variances", torch.ones(components, rank))
        self.register_buffer("rest", torch.ones(components))
        self.register_buffer("prior", torch.full((components,), 1 / components))
        self.register_buffer("label", torch.full((components,), NOT_TOLD))

    def side(self, channels: int) -> int:
        """Of the square that the mixture is fitted to."""
        return math.isqrt(self.means.shape[1] // channels)

    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents:
        """The posterior mean of the clean picture, over the components of its class, or over all where it is not told.

        What captions say is not known here (but in `told.py`).
        """
        return self.around(self.means[None], self.prior[None], noisy, sigma, labels)

    @torch.no_grad()
    def around(self, means: Means, prior: Prior, noisy: Latents, sigma: Sigmas, labels: Labels) -> Latents:
        """The same where the components have these means and weights, for every picture or for each.

        A picture that is larger than what the mixture is fitted to is seen through windows of that size.
        """
        return windowed(noisy, self.side(noisy.shape[1]), lambda part: self._around(means, prior, part, sigma, labels))

    def _around(self, means: Means, prior: Prior, noisy: Latents, sigma: Sigmas, labels: Labels) -> Latents:
        """Within a component each axis is shrunk by `variance / (variance + sigma ** 2)`.

        And a component counts as likely as it makes the noisy picture (Bishop 2006, eq. 2.116 and 9.13).
        """
        flat, noise = noisy.flatten(1), sigma[:, None] ** 2
        away = flat[:, None] - means
        along = torch.einsum("bkd,krd->bkr", away, self.axes)
        chosen = self._chosen(prior, squared_lengths(away), along, noise, labels).to(flat)
        shrunk, elsewhere = self.variances / (self.variances + noise[..., None]), self.rest / (self.rest + noise)
        kept = chosen * elsewhere
        inside = (chosen[..., None] * (shrunk - elsewhere[..., None]) * along).flatten(1) @ self.axes.flatten(0, 1)
        middle = ((chosen - kept)[:, None] @ means)[:, 0] + kept.sum(1, keepdim=True) * flat
        return (middle + inside).reshape(noisy.shape)

    def _chosen(
        self,
        prior: Prior,
        away: Float[Tensor, "batch component"],
        along: Float[Tensor, "batch component rank"],
        noise: Float[Tensor, "batch 1"],
        labels: Labels,
    ) -> Float[Tensor, "batch component"]:
        """Posterior probabilities, from the squared distance to each mean (`away`) and the part along each axis."""
        of_axes, of_rest = self.variances + noise[..., None], self.rest + noise
        others = self.means.shape[1] - along.shape[2]
        distance = (along.square() / of_axes).sum(2) + (away - along.square().sum(2)).clamp(min=0) / of_rest
        volume = of_axes.log().sum(2) + others * of_rest.log()
        possible = (labels[:, None] == self.label) | (self.label == NOT_TOLD) | (labels[:, None] == NOT_TOLD)
        possible = possible | ~possible.any(1, keepdim=True)  # a class without a component of its own may be any
        likely = prior.log() - (distance + volume) / 2
        return torch.softmax(likely.masked_fill(~possible, -torch.inf), 1)


@dataclass(frozen=True)
class Unseen:
    """For each fold of the training pictures, the mixture of all others (stacking: Wolpert, Neural Networks, 1992).

    The mixture of a few pictures knows them too well, and a network that learns beside it would rely on that.
    """

    mixtures: tuple[Mixture, ...]

    def of(self, fold: Folds, labels: Labels) -> Callable[[Latents, Sigmas], Latents]:
        """The closed form for pictures of these folds."""

        def denoise(noisy: Latents, sigma: Sigmas) -> Latents:
            known = torch.empty_like(noisy)
            for number, mixture in enumerate(self.mixtures):
                if bool((inside := fold == number).any()):
                    known[inside] = mixture.denoise(noisy[inside], sigma[inside], labels[inside])
            return known

        return denoise


def squared_lengths(away: Float[Tensor, "batch component dimension"]) -> Float[Tensor, "batch component"]:
    """In float64 where there is one: small differences of large distances count, and the batch must not change them."""
    return (away if away.device.type == "mps" else away.double()).square().sum(2)


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
) -> Mixture:
    """The mixture of `train`, of several ranks and sizes, that denoises `held_out + sigma * noise` best."""
    points, groups = train.flatten(1), groups_of(labels)
    smallest = min(int(members.sum()) for members in groups.values())
    single = components_of(points, groups, 1)
    candidates = [mixture_of(single, min(rank, len(single[0].variances))) for rank in RANKS]
    for clusters in CLUSTERS:
        if smallest >= FEWEST * clusters:
            several = components_of(points, groups, clusters)
            candidates.append(mixture_of(several, len(several[0].variances)))
    return min(candidates, key=lambda one: flow_error(one, held_out, held_out_labels, sigma, noise))


def flow_error(
    mixture: ClosedForm, clean: Latents, labels: Labels, sigma: Sigmas, noise: Latents, text: Text | None = None
) -> float:
    """As in the loss of a flow: `((1 + sigma) / sigma) ** 2` times the squared error, of pictures + `sigma * noise`."""
    noisy, parts = clean + per_image(sigma) * noise, torch.arange(len(clean)).split(AT_ONCE)
    denoised = torch.cat(
        [mixture.denoise(noisy[some], sigma[some], labels[some], text and text.at(some.tolist())) for some in parts]
    )
    return float(((denoised - clean).square().flatten(1).mean(1) * ((1 + sigma) / sigma) ** 2).mean())


def refit(
    like: Mixture, train: Float[Tensor, "count channel height width"], labels: Int[Tensor, " count"], folds: Folds
) -> Unseen:
    """For each fold, a mixture of as many components and axes as `like`, of the pictures outside it."""
    points, made = train.flatten(1), []
    for fold in folds.unique().tolist():
        groups = groups_of(labels[folds != fold])
        components = components_of(points[folds != fold], groups, max(1, len(like.means) // len(groups)))
        made.append(mixture_of(components, min(like.axes.shape[1], len(components[0].variances))))
    return Unseen(tuple(made))


def groups_of(labels: Labels) -> dict[int, Tensor]:
    """Which pictures belong together: a class, or all where labels are missing, too many, or too rare."""
    counts = torch.bincount(labels.clamp(min=0))
    usable = len(counts) <= MOST_CLASSES and int(counts.min()) >= 8 and not bool((labels == NOT_TOLD).any())
    return (
        {label: labels == label for label in range(len(counts))} if usable else {NOT_TOLD: torch.ones_like(labels) > 0}
    )


def largest_rank(count: int, dimension: int, components: int) -> int:
    """The most axes a component may have, for `count` pictures in all of `dimension` values each."""
    return min(max(RANKS), count, dimension, max(16, MOST_AXIS_VALUES // (components * dimension)))


def components_of(
    points: Float[Tensor, "count dimension"], groups: dict[int, Tensor], clusters: int
) -> list[Component]:
    """Each group in `clusters` parts. A part's covariance is half its own and half its group's within the parts."""
    smallest = min(int(members.sum()) for members in groups.values())
    rank = largest_rank(smallest, points.shape[1], clusters * len(groups))
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


def mixture_of(components: Sequence[Component], rank: int) -> Mixture:
    dimension, count = len(components[0].mean), sum(component.size for component in components)
    mixture = Mixture(len(components), rank, dimension).to(components[0].mean.device)
    for index, component in enumerate(components):
        mixture.means[index] = component.mean
        mixture.axes[index] = component.axes[:rank]
        mixture.variances[index] = component.variances[:rank].clamp(min=1e-6)
        left = component.total - component.variances[:rank].sum()
        mixture.rest[index] = (left / max(1, dimension - rank)).clamp(min=1e-4)
        mixture.prior[index] = component.size / count
        mixture.label[index] = component.label
    return mixture
