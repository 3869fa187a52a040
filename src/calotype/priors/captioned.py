"""What captions say in closed form: their words move the Gaussians.

A mixture of linear experts (Jordan and Jacobs, Neural Computation 6, 1994, section 2): given its caption, a picture of
a group is Gaussian around the ridge regression of pictures on the words of their captions, and which group it is, the
words say too. What words explain is no longer left to chance, so that a model obeys before it has learned.

Each class has two groups: pictures with whole captions, and with parts of them or none. What a caption leaves open is
spread as widely as pictures are, and what it says is not.
"""

from __future__ import annotations

import re
import zlib
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.priors.fitted import Fitted
from calotype.priors.gaussian import GaussianMixture, components_of, groups_of, largest_rank, mixture_of
from calotype.types import NULL_LABEL, Labels, Latents, Sigmas, Text

WHOLE = r"\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff"
"""Thai, Japanese and Chinese have no spaces between words: each letter is one, and runs of three do the rest."""
WORD = re.compile(rf"[{WHOLE}]|(?:(?![{WHOLE}])\w)+")
LONGEST = 3
"""Words and runs of so many words are heard,"""
BUCKETS = 4096
"""known by a hash,"""
MOST_HEARD = 1024
"""the most frequent of them,"""
FEWEST_HEARD = 8
"""where so many captions have them."""
DIRECTIONS = 64
"""Words move the pictures of a group in so many ways (reduced rank: Izenman, J. Multivariate Analysis 5, 1975)."""
RIDGES = (100.0, 10.0, 1.0)
UNLIKELY = 1e-3
"""A component that words make so much less likely than the likeliest is not asked."""
ROUNDS = 30
"""Of the search for what words say of the group,"""
DOUBT = 1.0
"""whose weights cost so much."""

Bags = Float[Tensor, "count heard"]
Flat = Float[Tensor, "count dimension"]


class CaptionedMixture(Fitted):
    """A mixture whose groups are moved, and made more or less likely, by the words that are told.

    Of each group, `into` and `out` are the regression on the words that are `heard`, in two factors; `vote` and `bias`
    say how likely it is, and the prior of `mixture` how likely a component is within its group.
    """

    heard: Int[Tensor, " heard"]
    into: Float[Tensor, "group heard direction"]
    out: Float[Tensor, "group direction dimension"]
    vote: Float[Tensor, "heard group"]
    bias: Float[Tensor, " group"]

    def __init__(self, mixture: GaussianMixture, groups: int, heard: int, directions: int) -> None:
        super().__init__()
        self.mixture = mixture
        self.register_buffer("heard", torch.arange(heard))
        self.register_buffer("into", torch.zeros(groups, heard, directions))
        self.register_buffer("out", torch.zeros(groups, directions, mixture.means.shape[1]))
        self.register_buffer("vote", torch.zeros(heard, groups))
        self.register_buffer("bias", torch.zeros(groups))

    @classmethod
    def sized(
        cls, components: int, rank: int, dimension: int, groups: int, heard: int, directions: int
    ) -> CaptionedMixture:
        """An empty one."""
        return cls(GaussianMixture(components, rank, dimension), groups, heard, directions)

    @property
    def shape(self) -> dict[str, int]:
        return {**self.mixture.shape, **dict(zip(("groups", "heard", "directions"), self.into.shape, strict=True))}

    def side(self, channels: int) -> int:
        return self.mixture.side(channels)

    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents:
        """The posterior mean of the clean picture, given what is told of it."""
        bags = bags_of(("",) * len(noisy) if text is None else text.prompts, self.heard).to(noisy)
        likely = self.mixture.prior.log() + (bags @ self.vote + self.bias)[:, self.mixture.group]
        prior = torch.softmax(likely.masked_fill(~self.mixture.possible(labels), -torch.inf), 1)
        prior = prior.where(prior >= UNLIKELY * prior.amax(1, keepdim=True), 0)

        def shift(group: int, rows: Tensor) -> Flat:
            return bags[rows] @ self.into[group] @ self.out[group]

        return self.mixture.around(prior, noisy, sigma, shift)


def closed_form_like(tensors: Mapping[str, Tensor], prefix: str) -> GaussianMixture | CaptionedMixture:
    """An empty one with room for these tensors."""
    if f"{prefix}into" not in tensors:
        return GaussianMixture(*tensors[f"{prefix}axes"].shape)
    return CaptionedMixture(GaussianMixture(*tensors[f"{prefix}mixture.axes"].shape), *tensors[f"{prefix}into"].shape)


class Pair(NamedTuple):
    bags: Bags
    points: Flat


class Captioned(NamedTuple):
    """Pictures with what is told of them: of each its label and its caption, "" where it has none."""

    clean: Latents
    labels: Labels
    texts: Sequence[str]

    def told(self) -> Captioned:
        """Those that have a caption."""
        return self.at([row for row, text in enumerate(self.texts) if text])

    def of(self, group: int) -> Captioned:
        return self if group == NULL_LABEL else self.at((self.labels == group).nonzero()[:, 0].tolist())

    def at(self, rows: Sequence[int]) -> Captioned:
        return Captioned(self.clean[rows], self.labels[rows], [self.texts[row] for row in rows])

    def and_again(self, others: Captioned) -> Captioned:
        clean, labels = torch.cat([self.clean, others.clean]), torch.cat([self.labels, others.labels])
        return Captioned(clean, labels, [*self.texts, *others.texts])

    def pair(self, heard: Int[Tensor, " heard"]) -> Pair:
        """Their words, those that are heard, and their values."""
        return Pair(bags_of(self.texts, heard).to(self.clean), self.clean.flatten(1))


class Known(NamedTuple):
    """Pictures to learn from and others to judge by, all told so much: whole captions, or parts of them and none."""

    train: Captioned
    held_out: Captioned

    def of(self, group: int) -> Known:
        return Known(*(one.of(group) for one in self))


def fit_told(like: GaussianMixture, levels: Sequence[Known]) -> CaptionedMixture | None:
    """Of as many components a group as `like` has a class, and as many axes; None where no words come often enough.

    A group is a class, told so much of as one of `levels` has it, or all pictures where these differ in their classes.
    Held-out pictures choose the ridges.
    """
    heard = often(text for level in levels for text in level.train.texts)
    classes = {tuple(groups_of(level.train.labels)) for level in levels}
    labels = list(classes.pop()) if len(classes) == 1 else [NULL_LABEL]
    if not len(heard):
        return None
    groups = [level.of(label) for label in labels for level in levels]
    clusters = max(1, len(like.means) // len(groups_of(levels[-1].train.labels)))
    components, best = [], []
    for number, group in enumerate(groups):
        (bags, points), unseen = (one.pair(heard) for one in group)
        best.append(regress(Pair(bags, points), unseen))
        rank = largest_rank(len(points), points.shape[1], clusters * len(labels))
        members = {number: torch.ones(len(points), dtype=torch.bool, device=points.device)}
        components += components_of(points - best[-1].of(bags), members, min(clusters, len(points)), rank)
    mixture = mixture_of(components, min(like.axes.shape[1], max(len(one.variances) for one in components)))
    made = CaptionedMixture(mixture, len(groups), len(heard), max(len(one.out) for one in best)).to(
        mixture.means.device
    )
    mixture.prior /= torch.zeros_like(made.bias).index_add(0, mixture.group, mixture.prior)[mixture.group]
    mixture.label[:] = torch.tensor(labels).repeat_interleave(len(levels)).to(mixture.label)[mixture.group]
    made.heard[:] = heard
    made.vote[:], made.bias[:] = gate_of(spoken([one.train for one in groups], heard))
    for number, one in enumerate(best):
        mixture.means[mixture.group == number] += one.constant
        made.into[number, :, : len(one.out)], made.out[number, : len(one.out)] = one.into, one.out
    return made


class Spoken(NamedTuple):
    """Words of pictures, and which group each is in."""

    bags: Bags
    group: Int[Tensor, " count"]


def spoken(groups: Sequence[Captioned], heard: Int[Tensor, " heard"]) -> Spoken:
    parts = [one.pair(heard).bags for one in groups]
    numbers = [torch.full((len(one),), number, device=one.device) for number, one in enumerate(parts)]
    return Spoken(torch.cat(parts), torch.cat(numbers))


class Gate(NamedTuple):
    """Of a picture with these words, group g is as likely as `softmax(bags @ vote + bias)` says."""

    vote: Float[Tensor, "heard group"]
    bias: Float[Tensor, " group"]


def gate_of(known: Spoken) -> Gate:
    """Softmax regression, which starts with each group as likely as it is large."""
    shares = torch.bincount(known.group).to(known.bags).log()
    gate = Gate(known.bags.new_zeros(known.bags.shape[1], len(shares)).requires_grad_(), shares.requires_grad_())
    search = torch.optim.LBFGS(list(gate), max_iter=ROUNDS, line_search_fn="strong_wolfe")

    def ask() -> Tensor:
        search.zero_grad()
        wrong = F.cross_entropy(known.bags @ gate.vote + gate.bias, known.group)
        loss = wrong + DOUBT * gate.vote.square().sum() / len(known.bags)
        loss.backward()
        return loss

    search.step(ask)
    return Gate(*(one.detach() for one in gate))


class Regression(NamedTuple):
    """Points are about `bags @ into @ out + constant`."""

    into: Float[Tensor, "heard direction"]
    out: Float[Tensor, "direction dimension"]
    constant: Float[Tensor, " dimension"]

    def of(self, bags: Bags) -> Flat:
        return bags @ self.into @ self.out + self.constant


def regress(known: Pair, unseen: Pair) -> Regression:
    """Ridge regression in the directions in which it moves points most; with the ridge that says most of `unseen`."""
    middle, centre = known.bags.mean(0), known.points.mean(0)
    words, others, wanted = known.bags - middle, unseen.bags - middle, unseen.points - centre
    values, basis = torch.linalg.eigh((words.T @ words).double())
    shared, seen = basis.T.to(words) @ (words.T @ (known.points - centre)), others @ basis.to(words)

    def missed(ridge: float) -> float:
        return float((wanted - seen @ (shared / (values + ridge)[:, None].to(words))).square().sum())

    weights = basis.to(words) @ (shared / (values + min(RIDGES, key=missed))[:, None].to(words))
    *_, directions = torch.svd_lowrank(words @ weights, q=min(DIRECTIONS, *weights.shape, len(words)))
    into = weights @ directions
    return Regression(into, directions.T, centre - middle @ into @ directions.T)


def often(texts: Iterable[str]) -> Int[Tensor, " heard"]:
    """The buckets that are heard."""
    count = Counter(bucket for text in texts for bucket in buckets(text))
    most = sorted(bucket for bucket, times in count.most_common(MOST_HEARD) if times >= FEWEST_HEARD)
    return torch.tensor(most, dtype=torch.long)


def bags_of(texts: Sequence[str], heard: Int[Tensor, " heard"]) -> Bags:
    """1 where a text has a word, or a run of words, of that bucket."""
    columns = {bucket: column for column, bucket in enumerate(heard.tolist())}
    bags = torch.zeros(len(texts), len(heard))
    for row, text in enumerate(texts):
        bags[row, [columns[bucket] for bucket in buckets(text) if bucket in columns]] = 1
    return bags


@lru_cache(maxsize=2**16)
def buckets(text: str) -> Sequence[int]:
    """In two bytes each, as those of many captions are kept."""
    words = WORD.findall(text.lower())
    runs = {" ".join(words[at : at + length]) for length in range(1, LONGEST + 1) for at in range(len(words))}
    return array("H", {zlib.crc32(run.encode("utf-8", "replace")) % BUCKETS for run in runs})
