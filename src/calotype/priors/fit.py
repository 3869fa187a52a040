"""Fits the prior of a stage that starts from noise. What has to be chosen is chosen on validation images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.machine import release_memory
from calotype.priors.captions import (
    MOST_WORDS,
    Bags,
    CaptionedMixture,
    NgramVocabulary,
    bags_of,
    columns_of,
    vocabulary_of,
)
from calotype.priors.clusters import (
    FEWEST_IN_FOLD,
    MOST_RANK,
    MOST_TURNED,
    Component,
    Points,
    class_component,
    components_of,
    largest_rank,
    members_of_classes,
    mixture_of,
    most_clusters,
    most_components,
)
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.prior import Prior
from calotype.types import NULL_LABEL, Condition, Folds, Labels, Latents, Sigmas, Text, per_image

RANKS = (MOST_RANK, 64, 16, 0)
"""Numbers of principal axes that are tried; too many do worse on validation images."""
IMAGES_AT_ONCE = 64
"""Images whose distances to all means are in memory together."""
CLUSTER_PARTS = (1, 4)
"""Numbers of clusters that are tried: the most that there may be, divided by these."""

RESIDUAL_FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
"""That are tried on the residual variance."""
CALIBRATION_SIGMAS = (0.03, 0.3)
"""Noise at which they are judged: above it the residual directions are lost with any of them."""

FEWEST_TO_FOLD = 8
"""Images that each fold needs, if a mixture of the others is to stand in for its own."""
OPTIMISTIC = 1.3
"""Ratio of validation to training error from which a mixture is cross-fitted."""
OPTIMISTIC_SIGMAS = (1.0, 10.0)
"""The noise at which this is judged. Overfitting at lower noise is calibrated, and there the weaker mixture of half the
images does more harm than good (dev/LOG.md)."""

FEWEST_CAPTIONED = 64
"""Captioned images below which a captioned mixture is not tried."""
DIRECTIONS = 64
"""Rank of the regressions (reduced-rank regression: Izenman, J. Multivariate Analysis 5, 1975)."""
RIDGES = (100.0, 10.0, 1.0)
GATE_STEPS = 30
"""Of L-BFGS."""
GATE_DECAY = 1.0
"""Weight of the squared norm of the gate, in units of one image's cross-entropy."""


class Observations(NamedTuple):
    bags: Bags
    points: Points


Mixture = TypeVar("Mixture", GaussianMixture, CaptionedMixture)


class CaptionedLatents(NamedTuple):
    """Latents with labels and captions ("" for none), and the captions as caption dropout shortens them."""

    latents: Latents
    labels: Labels
    captions: Sequence[str]
    shortened: Sequence[str]

    def levels(self) -> tuple[CaptionLevel, CaptionLevel]:
        """Those with captions, and all of them with shortened captions."""
        captioned = [row for row, caption in enumerate(self.captions) if caption]
        every = [*range(len(self.labels))]
        return CaptionLevel(self, captioned, self.captions), CaptionLevel(self, every, self.shortened)


class CaptionLevel(NamedTuple):
    """Some rows of `examples`, and captions for all rows; latents are copied only by `observations`."""

    examples: CaptionedLatents
    rows: Sequence[int]
    captions: Sequence[str]

    @property
    def labels(self) -> Labels:
        return self.examples.labels[self.rows]

    @property
    def texts(self) -> list[str]:
        return [self.captions[row] for row in self.rows]

    def of(self, label: int) -> CaptionLevel:
        own = (self.labels == label).tolist()
        return self if label == NULL_LABEL else self._replace(rows=[*compress(self.rows, own)])

    def observations(self, vocabulary: NgramVocabulary) -> Observations:
        points = self.examples.latents[self.rows].flatten(1)
        return Observations(bags_of(self.texts, columns_of(vocabulary)).to(points), points)


class Group(NamedTuple):
    """One label at one level: of each set of training images, and of the validation images."""

    fitted: Sequence[CaptionLevel]
    held_out: CaptionLevel

    @property
    def texts(self) -> list[str]:
        return [text for level in self.fitted for text in level.texts]

    @property
    def latents(self) -> Latents:
        """All, of which the group is a part."""
        return self.fitted[0].examples.latents

    def observations(self, vocabulary: NgramVocabulary) -> Observations:
        bags, points = zip(*(level.observations(vocabulary) for level in self.fitted), strict=True)
        return Observations(torch.cat(bags), torch.cat(points))


@dataclass(frozen=True)
class PriorValidation:
    """Validation images by which priors are judged, with a sigma and a noise for each."""

    examples: CaptionedLatents
    sigma: Sigmas
    noise: Latents

    def errors(
        self, prior: Prior, sigma: Sigmas | None = None, examples: CaptionedLatents | None = None
    ) -> Float[Tensor, " batch"]:
        """The loss of a flow, `((1 + sigma) / sigma) ** 2` times the squared error, of each image.

        Of the validation images, or of as many `examples` with the same noise; at `sigma`, by default their own.
        """
        clean, labels, captions, _ = examples or self.examples
        sigma = self.sigma if sigma is None else sigma
        count, means = min(len(clean), len(sigma)), []
        clean, sigma = clean[:count], sigma[:count]
        noisy = clean + per_image(sigma) * self.noise[:count]
        for rows in torch.arange(count).split(IMAGES_AT_ONCE):
            condition = Condition(labels[rows], text=Text(tuple(captions[row] for row in rows.tolist())))
            means.append(prior.mean(noisy[rows], sigma[rows], condition))
        return (torch.cat(means) - clean).square().flatten(1).mean(1) * ((1 + sigma) / sigma) ** 2

    def error(self, prior: Prior, sigma: Sigmas | None = None, examples: CaptionedLatents | None = None) -> float:
        return float(self.errors(prior, sigma, examples).mean())

    def optimistic(self, prior: Prior, train: CaptionedLatents) -> bool:
        """Whether the means and the large variances of `prior` overfit its training images."""
        count = min(len(train.latents), len(self.examples.latents))
        sigma = log_spaced(OPTIMISTIC_SIGMAS, count).to(self.examples.latents)
        return self.error(prior, sigma) >= OPTIMISTIC * self.error(prior, sigma, train)

    def calibrated(self, prior: Mixture) -> Mixture:
        """`prior`, or with more residual variance if that denoises the validation images significantly better.

        Components are fitted to their training images, so the maximum-likelihood estimate of the variance outside the
        principal axes (Tipping and Bishop, J. R. Stat. Soc. B 61, 1999, eq. 8) is too small where images are fewer than
        dimensions. At low noise the posterior mean then removes detail as if it were noise. Significantly better: the
        mean change of the errors is below 0 by more than its standard error.
        """
        count = len(self.examples.latents)
        if count < 2:
            return prior
        sigma = log_spaced(CALIBRATION_SIGMAS, count).to(self.examples.latents)
        before = self.errors(prior, sigma)
        changes = {factor: self.errors(prior.with_residual(factor), sigma) - before for factor in RESIDUAL_FACTORS}
        factor, change = min(changes.items(), key=lambda item: float(item[1].mean()))
        significant = float(change.mean() + change.std() / count**0.5) < 0
        return prior.with_residual(factor) if significant else prior


def log_spaced(limits: tuple[float, float], count: int) -> Sigmas:
    low, high = limits
    return torch.linspace(math.log(low), math.log(high), count).exp()


def fit_prior(
    train: CaptionedLatents,
    validation: PriorValidation,
    folds: Folds | None = None,
    more: CaptionedLatents | None = None,
) -> tuple[GaussianMixture | CaptionedMixture, Sequence[GaussianMixture]]:
    """The prior of `train`; and the mixtures of `cross_fit`, to train beside, where it overfits and `folds` are given.

    `more` are the same images with other augmentations and captions, for the regression on captions.
    """
    release_memory(train.latents.device)
    more = more if sum(map(bool, train.captions)) >= FEWEST_CAPTIONED else None
    mixture = validation.calibrated(fit_classes(train.latents, train.labels, validation, more is not None))
    release_memory(train.latents.device)
    if (
        folds is not None
        and min(folds.bincount(minlength=2)) >= FEWEST_TO_FOLD
        and validation.optimistic(mixture, train)
    ):
        labels = train.labels if in_all_folds(train.labels, folds) else torch.full_like(train.labels, NULL_LABEL)
        if labels is not train.labels and bool((mixture.label >= 0).any()):  # both must know the same classes
            mixture = validation.calibrated(fit_classes(train.latents, labels, validation, more is not None))
        crossed = cross_fit(mixture, train.latents, labels, folds)
        return mixture, [*map(validation.calibrated, crossed)]
    captioned = None if more is None else fit_captioned(mixture, [train, more], validation.examples)
    if captioned is None:
        return mixture, ()
    # Shortened captions are not judged: there it may be a little worse, as it has the axes of two groups to estimate.
    captioned = validation.calibrated(captioned)
    worse = validation.optimistic(captioned, train) or validation.error(captioned) >= validation.error(mixture)
    return mixture if worse else captioned, ()


def largest_prior(count: int, dimension: int, classes: int, captioned: bool) -> GaussianMixture | CaptionedMixture:
    """The largest that `fit_prior` may give for `count` images of `dimension` values: not fitted, to measure its cost.

    Its groups have labels, so a labelled image evaluates those of its class alone.
    """
    components, levels = most_components(classes), 2 if captioned else 1
    clusters = most_clusters(count // components, components == classes, captioned)
    rank = largest_rank(count, dimension, components)
    turned = min(rank, MOST_TURNED) if clusters > 1 else 0
    mixture = GaussianMixture(levels * components, rank, dimension, clusters, turned)
    mixture.group[:] = torch.arange(len(mixture.means))
    mixture.label[:] = mixture.group // levels if components == classes else NULL_LABEL
    return CaptionedMixture(mixture, 2 * components, MOST_WORDS, DIRECTIONS) if captioned else mixture


# -- Without captions --------------------------------------------------------------------------------------------------


def fit_classes(
    train: Latents, labels: Labels, validation: PriorValidation, captioned: bool = False
) -> GaussianMixture:
    """The mixture of `train` whose rank and number of clusters denoise the validation images best."""
    return min(class_mixtures(train.flatten(1), members_of_classes(labels), captioned), key=validation.error)


def class_mixtures(points: Points, classes: dict[int, Tensor], captioned: bool) -> Iterator[GaussianMixture]:
    """Of one Gaussian a class, by falling rank, and of several along the most axes, where there are images enough."""
    smallest = min(int(members.sum()) for members in classes.values())
    components = components_of(points, classes, largest_rank(smallest, points.shape[1], len(classes)))
    most, clusters = len(components[0].variances), most_clusters(smallest, NULL_LABEL not in classes, captioned)
    for rank in RANKS:
        yield mixture_of(components, min(rank, most))
    for number in sorted({clusters // part for part in CLUSTER_PARTS} - {0, 1}):
        yield mixture_of([component.divided(number) for component in components], most)


def in_all_folds(labels: Labels, folds: Folds) -> bool:
    """Whether what is left without a fold has the classes of all."""
    classes = members_of_classes(labels).keys()
    rests = (labels[folds != fold] for fold in folds.unique())
    return all(members_of_classes(rest, FEWEST_IN_FOLD).keys() == classes for rest in rests)


def cross_fit(like: GaussianMixture, train: Latents, labels: Labels, folds: Folds) -> list[GaussianMixture]:
    """For each fold, a mixture of the images outside it, with as many clusters and axes as `like` or, where they are
    too few for that, with fewer."""
    points, mixtures = train.flatten(1), []
    for fold in folds.unique().tolist():
        classes = members_of_classes(labels[folds != fold], FEWEST_IN_FOLD)
        smallest = min(int(members.sum()) for members in classes.values())
        clusters = min(like.shares.shape[1], most_clusters(smallest))
        rank = rank_like(like, smallest, len(classes))
        components = components_of(points[folds != fold], classes, rank)
        mixtures.append(mixture_of([part.divided(clusters) for part in components], min(like.axes.shape[1], rank)))
    return mixtures


def rank_like(like: GaussianMixture, count: int, components: int) -> int:
    """Axes to fit for a component of so many images, of which a mixture takes as many as `like` has: clusters, which
    are fitted along them, have no others."""
    _, most, dimension = like.axes.shape
    largest = largest_rank(count, dimension, components)
    return min(most, largest) if like.shares.shape[1] > 1 else largest


# -- With captions -----------------------------------------------------------------------------------------------------


def fit_captioned(
    like: GaussianMixture, train: Sequence[CaptionedLatents], validation: CaptionedLatents
) -> CaptionedMixture | None:
    """Of as many clusters a group as `like` has a class, and as many axes; None where no word is frequent enough.

    The sets in `train` are one after the other; each group's latents are copied while it is fitted, and no others.

    A group is a class at one level of captions (whole, or shortened), or all images at it where the levels differ in
    their classes.
    """
    levels = list(zip(zip(*(part.levels() for part in train), strict=True), validation.levels(), strict=True))
    vocabulary = vocabulary_of(text for fitted, _ in levels for level in fitted for text in level.texts)
    if not len(vocabulary):
        return None
    full, shortened = (list(members_of_classes(torch.cat([part.labels for part in fitted]))) for fitted, _ in levels)
    labels = full if full == shortened else [NULL_LABEL]
    components, regressions = [], []
    groups = [
        Group([part.of(label) for part in fitted], held_out.of(label))
        for label in labels for fitted, held_out in levels
    ]  # fmt: skip
    gate, gate_bias = fit_gate(groups, vocabulary)  # first: its bags are large, and so are the components
    for number, group in enumerate(groups):
        regression, own = fit_group(like, group, number, vocabulary, len(labels))
        regressions.append(regression)
        components.append(own)
        release_memory(group.latents.device)
    mixture = mixture_of(components, min(like.axes.shape[1], max(len(part.variances) for part in components)))
    directions = max(len(regression.factor_out) for regression in regressions)
    prior = CaptionedMixture(mixture, len(groups), len(vocabulary), directions).to(mixture.means.device)
    mixture.prior /= torch.zeros_like(prior.gate_bias).index_add(0, mixture.group, mixture.prior)[mixture.group]
    mixture.label[:] = torch.tensor(labels).repeat_interleave(len(levels)).to(mixture.label)[mixture.group]
    prior.vocabulary[:] = vocabulary
    prior.gate[:], prior.gate_bias[:] = gate, gate_bias
    for number, (factor_in, factor_out, constant) in enumerate(regressions):
        mixture.means[mixture.group == number] += constant
        prior.regression_in[number, :, : len(factor_out)] = factor_in
        prior.regression_out[number, : len(factor_out)] = factor_out
    return prior


def fit_group(
    like: GaussianMixture, group: Group, number: int, vocabulary: NgramVocabulary, components: int
) -> tuple[Regression, Component]:
    """The regression of a group on its captions, and a component of what it leaves; a level has `components`."""
    bags, points = observations = group.observations(vocabulary)
    regression = regress(observations, group.held_out.observations(vocabulary))
    points -= regression.predict(bags)
    clusters = min(like.shares.shape[1], most_clusters(len(points)))
    component = class_component(points, number, rank_like(like, len(points), components))
    return regression, component.divided(clusters)


def fit_gate(
    groups: Sequence[Group], vocabulary: NgramVocabulary
) -> tuple[Float[Tensor, "word group"], Float[Tensor, " group"]]:
    """Weight and bias of the softmax regression of the group on the bag of words; starts at the groups' frequencies."""
    texts = [group.texts for group in groups]
    bags = bags_of([*chain.from_iterable(texts)], columns_of(vocabulary)).to(groups[0].latents)
    group = torch.arange(len(groups)).repeat_interleave(torch.tensor([*map(len, texts)])).to(bags.device)
    bias = torch.bincount(group).to(bags).log().requires_grad_()
    weight = bags.new_zeros(bags.shape[1], len(bias)).requires_grad_()
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=GATE_STEPS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(bags @ weight + bias, group) + GATE_DECAY * weight.square().sum() / len(bags)
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


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
    words, validation_words, targets = train.bags - middle, validation.bags - middle, validation.points - centre
    values, basis = torch.linalg.eigh((words.T @ words).double())
    shared, rotated = basis.T.to(words) @ (words.T @ train.points), validation_words @ basis.to(words)
    of_ridges = (shared / (values + ridge)[:, None].to(words) for ridge in RIDGES)
    weights = min(of_ridges, key=lambda each: float((targets - rotated @ each).norm()))
    # The predictions of the training images have these right singular vectors, too, but a row for each image.
    predicted = values.clamp(min=0).sqrt()[:, None].to(words) * weights
    *_, directions = torch.svd_lowrank(predicted, q=min(DIRECTIONS, *weights.shape, len(words)))
    factor_in = basis.to(words) @ (weights @ directions)
    return Regression(factor_in, directions.T, centre - middle @ factor_in @ directions.T)
