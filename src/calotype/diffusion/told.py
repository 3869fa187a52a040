"""What captions say in closed form: their words move the Gaussians.

A mixture of linear experts (Jordan and Jacobs, Neural Computation 6, 1994, section 2): given its caption, a picture of
a group is Gaussian around the ridge regression of pictures on the words of their captions, and which group it is, the
words say too. What words explain is no longer left to chance, so that a model obeys before it has learned.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from calotype.diffusion.gaussian import Mixture, components_of, groups_of, mixture_of
from calotype.vocabulary import NOT_TOLD, Labels, Latents, Sigmas, Text

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
UNLIKELY = 1e-4
"""A group that the words speak against is at least so likely."""

Bags = Float[Tensor, "batch 4096"]
Heard = Float[Tensor, "count heard"]
Flat = Float[Tensor, "count dimension"]


class ToldMixture(nn.Module):
    """A mixture for pictures of which something is told, beside the one for those of which nothing is.

    Of each group, `into` and `out` are the regression on words in two factors; `vote` and `bias` say how likely it is,
    and the prior of `told` how likely a component is within its group.
    """

    group: Int[Tensor, " component"]
    into: Float[Tensor, "group 4096 direction"]
    out: Float[Tensor, "group direction dimension"]
    vote: Float[Tensor, "4096 group"]
    bias: Float[Tensor, " group"]

    def __init__(self, untold: Mixture, told: Mixture, groups: int, directions: int) -> None:
        super().__init__()
        self.untold, self.told = untold, told
        components, dimension = told.means.shape
        self.register_buffer("group", torch.arange(components) % groups)
        self.register_buffer("into", torch.zeros(groups, BUCKETS, directions))
        self.register_buffer("out", torch.zeros(groups, directions, dimension))
        self.register_buffer("vote", torch.zeros(BUCKETS, groups))
        self.register_buffer("bias", torch.full((groups,), 1 / groups))

    def side(self, channels: int) -> int:
        return self.untold.side(channels)

    @torch.no_grad()
    def denoise(self, noisy: Latents, sigma: Sigmas, labels: Labels, text: Text | None = None) -> Latents:
        """The posterior mean of the clean picture, given what is told of it."""
        texts = ("",) * len(noisy) if text is None else text.wanted
        told = torch.tensor([bool(one) for one in texts], device=noisy.device)
        if not told.any():
            return self.untold.denoise(noisy, sigma, labels)
        denoised = torch.empty_like(noisy)
        denoised[told] = self._told(noisy[told], sigma[told], labels[told], [one for one in texts if one])
        if not told.all():
            denoised[~told] = self.untold.denoise(noisy[~told], sigma[~told], labels[~told])
        return denoised

    def _told(self, noisy: Latents, sigma: Sigmas, labels: Labels, texts: Sequence[str]) -> Latents:
        bags, mixture = bags_of(texts).to(noisy), self.told
        moved = torch.einsum("gbr,grd->bgd", bags @ self.into, self.out)
        likely = (bags @ self.vote + self.bias).clamp(min=UNLIKELY)
        prior = mixture.prior * likely[:, self.group]
        return mixture.around(mixture.means + moved[:, self.group], prior / prior.sum(1, True), noisy, sigma, labels)


def closed_form_like(tensors: Mapping[str, Tensor], prefix: str) -> Mixture | ToldMixture:
    """An empty one with room for these tensors."""
    if f"{prefix}into" not in tensors:
        return Mixture(*tensors[f"{prefix}axes"].shape)
    untold, told = (Mixture(*tensors[f"{prefix}{name}.axes"].shape) for name in ("untold", "told"))
    groups, _, directions = tensors[f"{prefix}into"].shape
    return ToldMixture(untold, told, groups, directions)


class Pair(NamedTuple):
    bags: Heard
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
        return self if group == NOT_TOLD else self.at((self.labels == group).nonzero()[:, 0].tolist())

    def at(self, rows: Sequence[int]) -> Captioned:
        return Captioned(self.clean[rows], self.labels[rows], [self.texts[row] for row in rows])

    def and_again(self, others: Captioned) -> Captioned:
        clean, labels = torch.cat([self.clean, others.clean]), torch.cat([self.labels, others.labels])
        return Captioned(clean, labels, [*self.texts, *others.texts])

    def pair(self, heard: Int[Tensor, " heard"]) -> Pair:
        """Their words, those that are heard, and their values."""
        parts = [bags_of(self.texts[start : start + 1024])[:, heard] for start in range(0, len(self.texts), 1024)]
        return Pair(torch.cat(parts or [torch.zeros(0, len(heard))]).to(self.clean), self.clean.flatten(1))

    def membership(self, groups: Sequence[int]) -> Flat:
        """1 in the column of a picture's group."""
        columns = [self.labels == label if label != NOT_TOLD else self.labels == self.labels for label in groups]
        return torch.stack(columns, 1).to(self.clean)


def fit_told(untold: Mixture, train: Captioned, again: Captioned, held_out: Captioned) -> ToldMixture | None:
    """Of as many components and axes as `untold`; None where no words come often enough.

    `again` are the same pictures, perhaps with others of their captions. `held_out` ones choose the ridges.
    """
    more, groups = train.and_again(again), groups_of(train.labels)
    heard = often(more.texts)
    if not len(heard):
        return None
    best = [regress(more.of(label).pair(heard), held_out.of(label).pair(heard)) for label in groups]
    bags, points = train.pair(heard)
    left = points.clone()
    for members, one in zip(groups.values(), best, strict=True):
        left[members] -= one.of(bags[members])
    components = components_of(left, groups, max(1, len(untold.means) // len(groups)))
    mixture = mixture_of(components, min(untold.axes.shape[1], len(components[0].variances)))
    votes = regress(*(one.pair(heard)._replace(points=one.membership(list(groups))) for one in (more, held_out)))
    made = ToldMixture(untold, mixture, len(groups), max(len(one.out) for one in best)).to(left.device)
    made.group[:] = torch.tensor([list(groups).index(one.label) for one in components])
    mixture.prior /= torch.zeros_like(made.bias).index_add(0, made.group, mixture.prior)[made.group]
    made.vote[heard], made.bias[:] = votes.into @ votes.out, votes.constant
    for index, one in enumerate(best):
        mixture.means[made.group == index] += one.constant
        made.into[index, heard, : len(one.out)], made.out[index, : len(one.out)] = one.into, one.out
    return made


class Regression(NamedTuple):
    """Points are about `bags @ into @ out + constant`."""

    into: Float[Tensor, "heard direction"]
    out: Float[Tensor, "direction dimension"]
    constant: Float[Tensor, " dimension"]

    def of(self, bags: Heard) -> Flat:
        return bags @ self.into @ self.out + self.constant


def regress(known: Pair, unseen: Pair) -> Regression:
    """Ridge regression in the directions in which it moves points most; with the ridge that says most of `unseen`."""
    middle, centre = known.bags.mean(0), known.points.mean(0)
    words, found = known.bags - middle, []
    gram, shared = (words.T @ words).double(), (words.T @ (known.points - centre)).double()
    for ridge in RIDGES:
        weights = torch.linalg.solve(gram + ridge * torch.eye(len(gram)).to(gram), shared).to(words)
        *_, directions = torch.svd_lowrank(words @ weights, q=min(DIRECTIONS, *weights.shape, len(words)))
        into = weights @ directions
        found.append(Regression(into, directions.T, centre - middle @ into @ directions.T))
    return min(found, key=lambda one: float((unseen.points - one.of(unseen.bags)).square().sum()))


def often(texts: Iterable[str]) -> Int[Tensor, " heard"]:
    """The buckets that are heard."""
    count = Counter(bucket for text in texts for bucket in buckets(text))
    most = sorted(bucket for bucket, times in count.most_common(MOST_HEARD) if times >= FEWEST_HEARD)
    return torch.tensor(most, dtype=torch.long)


def bags_of(texts: Sequence[str]) -> Bags:
    """1 where a text has a word, or a run of words, of that bucket."""
    bags = torch.zeros(len(texts), BUCKETS)
    for row, text in enumerate(texts):
        bags[row, list(buckets(text))] = 1
    return bags


@lru_cache(maxsize=2**16)
def buckets(text: str) -> tuple[int, ...]:
    words = WORD.findall(text.lower())
    runs = {" ".join(words[at : at + length]) for length in range(1, LONGEST + 1) for at in range(len(words))}
    return tuple({zlib.crc32(run.encode("utf-8", "replace")) % BUCKETS for run in runs})
