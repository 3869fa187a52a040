"""The latent space of an autoencoder, standardised by the mean and the standard deviation of each channel."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.nets.blocks import Recoloured
from calotype.nets.deterministic import DeterministicAutoencoder
from calotype.nets.kl import Autoencoder
from calotype.nets.vae import Moments
from calotype.spaces.tiles import LARGE, CellScale, in_tiles, measure_reach, tiled
from calotype.types import Images, Latents, Rng

PROBE = 0.5
"""Standard deviation of the noise by which the effect of a channel is measured, where latents have 1."""


class LatentSpace(nn.Module):
    """Images in [-1, 1] <-> latents of mean 0 and standard deviation 1 in every channel, `reduction` times smaller.

    Moments (batch, 2 * channels, height, width) are mean and log-variance of the posterior. `spread` is the standard
    deviation of the raw latents: the inverse of the scaling factor of LDM (arXiv 2112.10752, appendix G), a channel.
    """

    mean: Tensor
    spread: Tensor

    def __init__(self, vae: Autoencoder) -> None:
        super().__init__()
        self.vae = vae
        self.channels, self.reduction = vae.config.channels, vae.config.reduction
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, self.channels, 1, 1))

    @property
    def image_side(self) -> int | None:
        """Of the only images that it takes; None if it takes all that are multiples of `reduction`."""
        return self.vae.config.image_side if isinstance(self.vae, DeterministicAutoencoder) else None

    @torch.no_grad()
    def moments(self, images: Images) -> Latents:
        return in_tiles(self._moments, images, CellScale(self.reduction, 1), 2 * self.channels)

    def _moments(self, images: Images) -> Latents:
        return torch.cat(self.vae.encode(images), 1)

    def sample(self, moments: Recoloured, rng: Rng) -> Latents:
        parts = Moments(*moments.chunk(2, 1))
        return (parts.sample(rng.noise_like(parts.mean)) - self.mean) / self.spread

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        return (self.moments(images).chunk(2, 1)[0] - self.mean) / self.spread

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        raw = latents * self.spread + self.mean
        return in_tiles(self.vae.decode, raw, CellScale(1, self.reduction), 3).clamp_(-1, 1)

    @torch.no_grad()
    def measure(self, moments: Iterable[Latents]) -> None:
        """Sets mean and standard deviation from moments of training images; the posterior's variance is included."""
        count, total, squares = 0, torch.zeros(self.mean.shape).double(), torch.zeros(self.mean.shape).double()
        for batch in moments:
            mean, log_variance = batch.cpu().double().chunk(2, 1)
            count += mean.numel() // self.channels
            total += mean.sum((0, 2, 3), keepdim=True)
            squares += (mean.square() + log_variance.exp()).sum((0, 2, 3), keepdim=True)
        self.mean.copy_(total / count)
        self.spread.copy_((squares / count - (total / count) ** 2).clamp(min=1e-8).sqrt())


@torch.no_grad()
def channel_effects(space: LatentSpace, latents: Latents, rng: Rng) -> Float[Tensor, " channel"]:
    """How much each channel does to the picture, measured at these latents: the root mean square change of the decoded
    picture in [-1, 1] a standard deviation of noise in the channel, for noise of `PROBE`."""
    places, plain = latents[:, :1].shape, space.decode(latents)
    effects = []
    for channel in range(space.channels):
        changed = latents.clone()
        changed[:, channel : channel + 1] += PROBE * rng.at("channel", channel).normal(*places).to(latents)
        effects.append((space.decode(changed) - plain).square().mean().sqrt() / PROBE)
    return torch.stack(effects)


@torch.no_grad()
def about_tiles(space: LatentSpace, images: Images) -> str:
    """A sentence: whether tiled decoding of large images is exact, measured on these images."""
    latents, scale = space.vae.encode(images).mean, CellScale(1, space.reduction)
    reach, side = measure_reach(space.vae.decode, latents, scale), max(1, max(latents.shape[-2:]) // 2)
    expected = space.vae.decode(latents).clamp(-1, 1)
    in_parts = tiled(space.vae.decode, latents, scale, 3, reach, side).clamp(-1, 1)
    difference, mean = float((in_parts - expected).abs().max()) / 2, float((in_parts - expected).abs().mean()) / 2
    measured = (
        f"on a held-out picture of {images.shape[-1]} px, in tiles of {side * space.reduction} px, values differ by"
    )
    large = f"Pictures of more than {LARGE**0.5:.0f} x {LARGE**0.5:.0f} px"
    if reach.exact:
        return f"{large} are decoded in tiles, which equals decoding them whole: {measured} up to {difference:.1e}."
    return (
        f"{large} cannot be decoded in exact tiles: this decoder looks at the whole picture; "
        f"{measured} up to {100 * difference:.2g} % of the range, {100 * mean:.2g} % on average."
    )
