"""The best linear denoiser, in closed form: what is known before anything is learned.

At high noise a trained denoiser is almost that of a Gaussian with the mean and the covariance of the data (Wang and
Vastola, arXiv 2412.09726, section 3). So that part is computed, and the network starts at 0 beside it and learns what
is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.vocabulary import Latents, Sigmas, per_image

RANKS = (1024, 256, 64, 16, 0)
"""Numbers of principal axes that are tried; more than the data bear out does worse on held-out ones."""


class Gaussian(nn.Module):
    """A Gaussian with `rank` principal axes of their own variance and one variance for all other directions."""

    mean: Float[Tensor, "channel height width"]
    axes: Float[Tensor, "rank dimension"]
    variances: Float[Tensor, " rank"]
    rest: Float[Tensor, ""]

    def __init__(self, shape: Sequence[int], rank: int) -> None:
        super().__init__()
        dimension = int(torch.tensor(shape).prod())
        self.register_buffer("mean", torch.zeros(*shape))
        self.register_buffer("axes", torch.zeros(rank, dimension))
        self.register_buffer("variances", torch.ones(rank))
        self.register_buffer("rest", torch.ones(()))

    def denoise(self, noisy: Latents, sigma: Sigmas) -> Latents:
        """The posterior mean of the clean picture: each axis shrunk by `variance / (variance + sigma ** 2)`."""
        away = noisy - self.mean
        noise = sigma[:, None] ** 2
        elsewhere = self.rest / (self.rest + noise)
        along = away.flatten(1) @ self.axes.T * (self.variances / (self.variances + noise) - elsewhere)
        return self.mean + per_image(elsewhere[:, 0]) * away + (along @ self.axes).reshape(away.shape)


def largest_rank(count: int, dimension: int) -> int:
    """Of the ranks that are tried, for so many pictures of so many values; the axes take 64 MB at most."""
    return min(max(RANKS), count, dimension, max(16, 2**24 // dimension))


def fit(train: Latents, held_out: Latents, sigma: Sigmas, noise: Latents) -> Gaussian:
    """The Gaussian of `train` whose rank denoises `held_out`, made noisy by `sigma * noise`, best.

    Errors count as in the loss of a flow, `((1 + sigma) / sigma) ** 2` times the squared error.
    """
    weight = ((1 + sigma) / sigma) ** 2
    noisy = held_out + per_image(sigma) * noise
    mean = train.mean(0)
    away = (train - mean).flatten(1)
    most = largest_rank(*away.shape)
    _, spreads, axes = torch.svd_lowrank(away, q=most, niter=2)
    variances = spreads**2 / len(away)

    def of_rank(rank: int) -> Gaussian:
        gaussian = Gaussian(mean.shape, rank).to(train.device)
        gaussian.mean.copy_(mean)
        gaussian.axes.copy_(axes.T[:rank])
        gaussian.variances.copy_(variances[:rank])
        left = away.square().sum() / len(away) - variances[:rank].sum()
        gaussian.rest.copy_((left / max(1, away.shape[1] - rank)).clamp(min=1e-4))
        return gaussian

    def error(gaussian: Gaussian) -> float:
        return float(((gaussian.denoise(noisy, sigma) - held_out).square().flatten(1).mean(1) * weight).mean())

    return min((of_rank(min(rank, most)) for rank in RANKS), key=error)
