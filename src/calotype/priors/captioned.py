"""The prior of captioned images: captions shift the means of the mixture and gate its groups.

A mixture of linear experts (Jordan and Jacobs, Neural Computation 6, 1994, section 2). Given its caption, an image of a
group is Gaussian around the ridge regression of latents on the caption's bag of words, and a softmax gate on that bag
gives the probability of the group.

Each class has two groups: images with whole captions, and with shortened captions or none. So what a caption leaves
open keeps the variance of the images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.nets.blocks import rename_keys
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.gaussian_fit import Points, components_of, largest_rank, members_of_classes, mixture_of
from calotype.priors.ngrams import Bags, NgramVocabulary, bags_of, vocabulary_of
from calotype.priors.prior import Prior
from calotype.types import NULL_LABEL, Condition, Labels, Latents, Sigmas

DIRECTIONS = 64
"""Rank of the regressions (reduced-rank regression: Izenman, J. Multivariate Analysis 5, 1975)."""
RIDGES = (100.0, 10.0, 1.0)
NEGLIGIBLE = 1e-3
"""Components whose weight is below this fraction of the largest are skipped."""
GATE_STEPS = 30
"""Of L-BFGS."""
GATE_DECAY = 1.0
"""Weight of the squared norm of the gate, in units of one image's cross-entropy."""
RENAMED_CAPTIONED = {
    "heard": "vocabulary",
    "into": "regression_in",
    "out": "regression_out",
    "vote": "gate",
    "bias": "gate_bias",
}
"""Names of the tensors in version 0.1, and now."""


class CaptionedMixture(Prior):
    """A mixture whose groups are shifted and gated by the caption.

    With the bag of words `b` of a caption, the means of group g shift by `b @ regression_in[g] @ regression_out[g]`,
    and its probability is `softmax(b @ gate + gate_bias)[g]`. The weights of `mixture` are those within each group.
    """

    vocabulary: NgramVocabulary
    regression_in: Float[Tensor, "group word direction"]
    regression_out: Float[Tensor, "group direction dimension"]
    gate: Float[Tensor, "word group"]
    gate_bias: Float[Tensor, " group"]

    def __init__(self, mixture: GaussianMixture, groups: int, words: int, directions: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.register_buffer("vocabulary", torch.arange(words))
        self.register_buffer("regression_in", torch.zeros(groups, words, directions))
        self.register_buffer("regression_out", torch.zeros(groups, directions, mixture.means.shape[1]))
        self.register_buffer("gate", torch.zeros(words, groups))
        self.register_buffer("gate_bias", torch.zeros(groups))

    @classmethod
    def sized(
        cls, components: int, rank: int, dimension: int, groups: int, words: int, directions: int
    ) -> CaptionedMixture:
        """An empty prior."""
        return cls(GaussianMixture(components, rank, dimension), groups, words, directions)

    @property
    def shape(self) -> dict[str, int]:
        groups, words, directions = self.regression_in.shape
        return {**self.mixture.shape, "groups": groups, "words": words, "directions": directions}

    def side(self, channels: int) -> int:
        return self.mixture.side(channels)

    def mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """A label overrides the gate; components that the gate makes negligible are skipped."""
        captions = ("",) * len(noisy) if condition.text is None else condition.text.prompts
        bags = bags_of(captions, self.vocabulary).to(noisy)
        logits = self.mixture.prior.log() + (bags @ self.gate + self.gate_bias)[:, self.mixture.group]
        weights = torch.softmax(logits.masked_fill(~self.mixture.admissible(condition.labels), -torch.inf), 1)
        weights = weights.where(weights >= NEGLIGIBLE * weights.amax(1, keepdim=True), 0)

        def shift(group: int, rows: Tensor) -> Points:
            return bags[rows] @ self.regression_in[group] @ self.regression_out[group]

        return self.mixture.posterior_mean(weights, noisy, sigma, shift)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        rename_keys(state_dict, prefix, RENAMED_CAPTIONED)
        super()._load_from_state_dict(state_dict, prefix, *args)


class Observations(NamedTuple):
    bags: Bags
    points: Points


class FittingSet(NamedTuple):
    """Latents with labels and captions; "" where an image has no caption."""

    clean: Latents
    labels: Labels
    texts: Sequence[str]

    def captioned(self) -> FittingSet:
        return self.at([row for row, text in enumerate(self.texts) if text])

    def of(self, label: int) -> FittingSet:
        return self if label == NULL_LABEL else self.at((self.labels == label).nonzero()[:, 0].tolist())

    def at(self, rows: Sequence[int]) -> FittingSet:
        return FittingSet(self.clean[rows], self.labels[rows], [self.texts[row] for row in rows])

    def joined(self, others: FittingSet) -> FittingSet:
        clean, labels = torch.cat([self.clean, others.clean]), torch.cat([self.labels, others.labels])
        return FittingSet(clean, labels, [*self.texts, *others.texts])

    def observations(self, vocabulary: NgramVocabulary) -> Observations:
        return Observations(bags_of(self.texts, vocabulary).to(self.clean), self.clean.flatten(1))


class CaptionLevel(NamedTuple):
    """Training and validation examples with captions of one level: whole, or shortened and empty."""

    train: FittingSet
    validation: FittingSet

    def of(self, label: int) -> CaptionLevel:
        return CaptionLevel(*(part.of(label) for part in self))


def fit_captioned(like: GaussianMixture, levels: Sequence[CaptionLevel]) -> CaptionedMixture | None:
    """Of as many components a group as `like` has a class, and as many axes; None where no word is frequent enough.

    A group is a class at one caption level, or all images at it where levels differ in their classes.
    """
    vocabulary = vocabulary_of(text for level in levels for text in level.train.texts)
    classes = {tuple(members_of_classes(level.train.labels)) for level in levels}
    labels = list(classes.pop()) if len(classes) == 1 else [NULL_LABEL]
    if not len(vocabulary):
        return None
    groups = [level.of(label) for label in labels for level in levels]
    clusters = max(1, len(like.means) // len(members_of_classes(levels[-1].train.labels)))
    components, regressions = [], []
    for number, group in enumerate(groups):
        (bags, points), validation = (examples.observations(vocabulary) for examples in group)
        regressions.append(regress(Observations(bags, points), validation))
        rank = largest_rank(len(points), points.shape[1], clusters * len(labels))
        members = {number: torch.ones(len(points), dtype=torch.bool, device=points.device)}
        residuals = points - regressions[-1].predict(bags)
        components += components_of(residuals, members, min(clusters, len(points)), rank)
    mixture = mixture_of(components, min(like.axes.shape[1], max(len(one.variances) for one in components)))
    directions = max(len(one.factor_out) for one in regressions)
    prior = CaptionedMixture(mixture, len(groups), len(vocabulary), directions).to(mixture.means.device)
    mixture.prior /= torch.zeros_like(prior.gate_bias).index_add(0, mixture.group, mixture.prior)[mixture.group]
    mixture.label[:] = torch.tensor(labels).repeat_interleave(len(levels)).to(mixture.label)[mixture.group]
    prior.vocabulary[:] = vocabulary
    bags = torch.cat([group.train.observations(vocabulary).bags for group in groups])
    sizes = torch.tensor([len(group.train.texts) for group in groups], device=bags.device)
    prior.gate[:], prior.gate_bias[:] = fit_gate(bags, torch.arange(len(groups)).to(sizes).repeat_interleave(sizes))
    for number, (factor_in, factor_out, constant) in enumerate(regressions):
        mixture.means[mixture.group == number] += constant
        prior.regression_in[number, :, : len(factor_out)] = factor_in
        prior.regression_out[number, : len(factor_out)] = factor_out
    return prior


class Gate(NamedTuple):
    weight: Float[Tensor, "word group"]
    bias: Float[Tensor, " group"]


def fit_gate(bags: Bags, group: Int[Tensor, " count"]) -> Gate:
    """Softmax regression of the group on the bag of words, which starts at the groups' frequencies."""
    start = torch.bincount(group).to(bags).log()
    gate = Gate(bags.new_zeros(bags.shape[1], len(start)).requires_grad_(), start.requires_grad_())
    optimizer = torch.optim.LBFGS(list(gate), max_iter=GATE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        cross_entropy = F.cross_entropy(bags @ gate.weight + gate.bias, group)
        loss = cross_entropy + GATE_DECAY * gate.weight.square().sum() / len(bags)
        loss.backward()
        return loss

    optimizer.step(closure)
    return Gate(*(value.detach() for value in gate))


class Regression(NamedTuple):
    """Points are about `bags @ factor_in @ factor_out + constant`."""

    factor_in: Float[Tensor, "word direction"]
    factor_out: Float[Tensor, "direction dimension"]
    constant: Float[Tensor, " dimension"]

    def predict(self, bags: Bags) -> Points:
        return bags @ self.factor_in @ self.factor_out + self.constant


def regress(train: Observations, validation: Observations) -> Regression:
    """Reduced-rank ridge regression, with the ridge of `RIDGES` that predicts `validation` best."""
    middle, centre = train.bags.mean(0), train.points.mean(0)
    words, others, targets = train.bags - middle, validation.bags - middle, validation.points - centre
    values, basis = torch.linalg.eigh((words.T @ words).double())
    shared, rotated = basis.T.to(words) @ (words.T @ (train.points - centre)), others @ basis.to(words)

    def error(ridge: float) -> float:
        return float((targets - rotated @ (shared / (values + ridge)[:, None].to(words))).square().sum())

    weights = basis.to(words) @ (shared / (values + min(RIDGES, key=error))[:, None].to(words))
    *_, directions = torch.svd_lowrank(words @ weights, q=min(DIRECTIONS, *weights.shape, len(words)))
    factor_in = weights @ directions
    return Regression(factor_in, directions.T, centre - middle @ factor_in @ directions.T)
