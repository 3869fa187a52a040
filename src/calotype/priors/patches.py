"""What is known of a large picture from its smaller one in closed form, place by place, before anything is learned.

Around each pixel of the smaller picture, its 5 x 5 neighbours tell which kind of place it is: plain, an edge of some
direction, a corner. For each kind, the square of the large picture below that pixel is a linear function of them (as in
RAISR, arXiv 1606.01299, section 3), and what is left is a Gaussian that scales with the contrast. So the posterior mean
of a noisy picture has a closed form, and the network beside it learns what is left.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.priors.fitted import Fitted
from calotype.types import Images, Latents, OtherImages, Rng, Sigmas

WINDOW = 5
"""Side of the neighbourhood, in pixels of the smaller picture."""
KINDS = 512
MOST_PLACES = 60_000
"""Of which the kinds are found, all from the half with more contrast."""
AT_ONCE = 2**16
"""Places whose distances to all kinds are in memory together: 128 MB."""
RIDGE = 0.02
"""Of the linear functions, as a share of the mean square of what they look at."""
SPARE = 50
"""For how many places what is known of all kinds counts in what is known of each."""
SURE = 0.5
"""Fraction of the residual standard deviation treated as noise by `denoise`: the network can learn to say the rest."""
STILLEST = 4
"""Plain is the quarter of all places with the least contrast."""
IN_CONTRAST = 1 - 1 / WINDOW**2
"""Of the variance of noise, what is left in a neighbourhood less its mean."""
INTERPOLATED = 0.86**2
"""Of the variance of noise, what bicubic interpolation leaves."""
FAINTEST = 1 / 510
"""Half a step of 8 bits, in [-1, 1]: nothing is known better than that."""

Places = Float[Tensor, "place neighbour"]
Kinds = Int[Tensor, " place"]


class ByKind(NamedTuple):
    """Places sorted by their kind, so that the matrix of each kind is applied in one product."""

    order: Int[Tensor, " place"]
    counts: list[int]

    def times(
        self, patches: Float[Tensor, "place value"], matrices: Float[Tensor, "kind value other"]
    ) -> Float[Tensor, "place other"]:
        parts = patches[self.order].split(self.counts)
        products = torch.cat([part @ matrix for part, matrix in zip(parts, matrices, strict=True)])
        return torch.empty_like(products).index_copy_(0, self.order, products)


class PatchPosterior(NamedTuple):
    """Where large pictures lie, given their smaller ones."""

    mean: OtherImages
    deviation: Float[Tensor, "batch 1 _ _"]
    """Standard deviation about it: the root of the mean of `variances` at each place."""
    by_kind: ByKind
    axes: Float[Tensor, "kind value axis"]
    variances: Float[Tensor, "place axis"]
    """About the mean, along the axes of each place's kind."""
    random: Float[Tensor, "place axis"]
    """The part of them that is treated as noise: the variances of the Gaussians of `denoise`."""
    factor: int

    def denoise(self, noisy: Latents, sigma: Sigmas) -> Latents:
        """The posterior mean of the clean picture: each axis of each patch is shrunk by `v / (v + sigma^2)`."""
        patches = patches_of(noisy - self.mean, self.factor)
        noise = (sigma**2).repeat_interleave(len(patches) // len(noisy))[:, None]
        shrunk = self.by_kind.times(patches, self.axes) * (self.random / (self.random + noise))
        return self.mean + images_of(self.by_kind.times(shrunk, self.axes.mT), self.mean, self.factor)


class PatchPrior(Fitted):
    """`around(low_res)` says where the larger pictures lie; all of it is fitted, nothing trained."""

    centres: Float[Tensor, "kind window"]
    weights: Float[Tensor, "kind neighbour value"]
    axes: Float[Tensor, "kind value axis"]
    variances: Float[Tensor, "kind axis"]
    noise_gain: Float[Tensor, "kind axis"]
    """Variance of the mean along each axis, by that of noise on the smaller picture."""
    contrast_gain: Float[Tensor, ""]
    """Variance of the contrast by that of such noise."""
    random_share: Float[Tensor, ""]
    """Of the variances that scale with the contrast."""
    plain: Float[Tensor, ""]

    def __init__(self, factor: int, channels: int = 3) -> None:
        super().__init__()
        self.factor, self.channels = factor, channels
        neighbours, values = self.neighbours(channels), channels * factor**2
        self.register_buffer("centres", torch.zeros(KINDS, WINDOW**2))
        self.register_buffer("weights", torch.zeros(KINDS, neighbours, values))
        self.register_buffer("axes", torch.eye(values).repeat(KINDS, 1, 1))
        self.register_buffer("variances", torch.ones(KINDS, values))
        self.register_buffer("noise_gain", torch.ones(KINDS, values))
        self.register_buffer("contrast_gain", torch.tensor(IN_CONTRAST))
        self.register_buffer("random_share", torch.tensor(SURE**2))
        self.register_buffer("plain", torch.tensor(FAINTEST))

    @staticmethod
    def neighbours(channels: int) -> int:
        """Values in the neighbourhood of a pixel."""
        return channels * WINDOW**2

    @property
    def shape(self) -> dict[str, int]:
        return {"factor": self.factor, "channels": self.channels}

    @torch.no_grad()
    def around(self, low_res: Images, noise: Sigmas) -> PatchPosterior:
        """`noise` is the standard deviation of noise that has been put on each of the smaller pictures.

        That noise is in the mean, `noise_gain` times as large, and in the contrast, of which it is taken away again.
        """
        places, contrast = neighbourhoods(low_res)
        kinds = self.kinds(places)
        by_kind = ByKind(kinds.argsort(stable=True), kinds.bincount(minlength=KINDS).tolist())
        above = enlarged(low_res, self.factor)
        mean = above + images_of(by_kind.times(places, self.weights), above, self.factor)
        added = (noise**2).repeat_interleave(len(places) // len(low_res))[:, None]
        strength = (contrast[:, None] ** 2 - self.contrast_gain * added).clamp(min=0)
        scaling, fixed = strength * self.variances[kinds], self.plain**2 + self.noise_gain[kinds] * added
        variances, random = scaling + fixed, self.random_share * scaling + fixed
        deviation = variances.mean(1).sqrt().reshape(len(low_res), 1, *low_res.shape[-2:])
        deviation = F.interpolate(deviation, scale_factor=self.factor)
        return PatchPosterior(mean, deviation, by_kind, self.axes, variances, random, self.factor)

    def kinds(self, places: Places) -> Kinds:
        return torch.cat([torch.cdist(some, self.centres).argmin(1) for some in forms(places).split(AT_ONCE)])

    @torch.no_grad()
    def fit(self, pairs: Iterable[tuple[Images, OtherImages]]) -> None:
        """From smaller pictures and their large ones."""
        parts = [self._examples(low_res, large) for low_res, large in pairs]
        places, contrast, left = (torch.cat(part) for part in zip(*parts, strict=True))
        still = left[contrast.argsort()[: len(left) // STILLEST + 1]]
        self.plain.copy_(still.square().mean().sqrt().clamp(min=FAINTEST))
        places, left, contrast = (values[contrast >= contrast.median()] for values in (places, left, contrast))
        self.centres.copy_(centres_of(forms(places)))
        kinds, spare = self.kinds(places), SPARE * contrast.square().mean()
        unit = RIDGE * torch.eye(places.shape[1], device=places.device)
        common = torch.linalg.solve(places.T @ places + contrast.square().sum() * unit, places.T @ left)
        left = left - places @ common
        spread = left.T @ left / contrast.square().sum()
        order, counts = kinds.argsort(stable=True), kinds.bincount(minlength=KINDS).tolist()
        by_kind = zip(*(values[order].split(counts) for values in (places, left, contrast)), strict=True)
        for kind, (seen, wanted, contrasts) in enumerate(by_kind):
            strength = contrasts.square().sum()
            inverse = torch.linalg.inv(seen.T @ seen + (strength + spare) * unit)
            more = inverse @ (seen.T @ wanted)
            wrong = (wanted - seen @ more) / (1 - leverage(seen, inverse))
            variances, self.axes[kind] = torch.linalg.eigh((wrong.T @ wrong + spare * spread) / (strength + spare))
            self.weights[kind] = common + more
            self.variances[kind] = variances.clamp(min=0)
        self.noise_gain.copy_(self._noise_gain())

    def _noise_gain(self) -> Float[Tensor, "kind axis"]:
        """Of each kind's linear function of its window: interpolation and weights, applied to one pixel at a time."""
        values = self.weights.shape[1]
        pixels = torch.eye(values).to(self.weights).unflatten(1, (-1, WINDOW, WINDOW))
        interpolated, seen = (
            rows.reshape(values, WINDOW**2, -1)[:, WINDOW**2 // 2]
            for rows in (patches_of(enlarged(pixels, self.factor), self.factor), neighbourhoods(pixels)[0])
        )
        return ((interpolated + seen @ self.weights) @ self.axes).square().sum(1)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Models of format 5 lack these: they were trained with one gain for all, and all of the variances random."""
        state_dict.setdefault(f"{prefix}noise_gain", torch.full_like(self.noise_gain, INTERPOLATED))
        state_dict.setdefault(f"{prefix}contrast_gain", torch.full_like(self.contrast_gain, INTERPOLATED))
        state_dict.setdefault(f"{prefix}random_share", torch.ones_like(self.random_share))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _examples(self, low_res: Images, large: OtherImages) -> tuple[Places, Tensor, Tensor]:
        """Neighbourhoods, their contrast, and what bicubic interpolation leaves to be said."""
        places, contrast = neighbourhoods(low_res)
        left = patches_of(large - enlarged(low_res, self.factor), self.factor)
        return places, contrast.clamp(min=1e-4), left


def leverage(seen: Places, inverse: Float[Tensor, "neighbour neighbour"]) -> Float[Tensor, "place 1"]:
    """How much of each place its own fit follows: an error divided by the rest is that of a fit without the place.

    The leave-one-out residual of ridge regression (Allen, Technometrics 16, 1974), so few pictures do not look well
    known.
    """
    return ((seen @ inverse) * seen).sum(1, keepdim=True).clamp(0, 0.9)


def neighbourhoods(low_res: Images) -> tuple[Places, Float[Tensor, " place"]]:
    """Around each pixel, less its mean colour; and the standard deviation in it."""
    margin = WINDOW // 2
    places = F.unfold(F.pad(low_res, [margin] * 4, mode="replicate"), WINDOW).transpose(1, 2).flatten(0, 1)
    colours = places.unflatten(1, (low_res.shape[1], -1))
    places = (colours - colours.mean(2, keepdim=True)).flatten(1)
    return places, places.square().mean(1).sqrt()


def forms(places: Places) -> Float[Tensor, "place window"]:
    """Light and dark in a neighbourhood, whatever its contrast."""
    light = places.unflatten(1, (-1, WINDOW**2)).mean(1)
    return F.normalize(light, dim=1)


def centres_of(points: Float[Tensor, "point window"], rounds: int = 10) -> Float[Tensor, "kind window"]:
    """Lloyd's algorithm; a centre that is left by all takes back the point it began with."""
    chosen = Rng(("local",)).permutation(len(points)).to(points.device)[:MOST_PLACES]
    points = points[chosen]
    spare = points[torch.arange(KINDS, device=points.device) % len(points)]
    centres = spare
    for _ in range(rounds):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = nearest.bincount(minlength=KINDS)[:, None]
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), spare)
    return centres


def patches_of(images: Latents, factor: int) -> Float[Tensor, "place value"]:
    """The square below each pixel of the smaller picture."""
    return F.pixel_unshuffle(images, factor).permute(0, 2, 3, 1).flatten(0, 2)


def images_of(patches: Float[Tensor, "place value"], like: Latents, factor: int) -> Latents:
    """The other way round; `like` has their shape."""
    count, _, height, width = like.shape
    folded = patches.reshape(count, height // factor, width // factor, -1).permute(0, 3, 1, 2)
    return F.pixel_shuffle(folded, factor)


def enlarged(images: Images, factor: int) -> OtherImages:
    return F.interpolate(images, scale_factor=factor, mode="bicubic")
