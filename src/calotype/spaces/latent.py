"""The latents of an autoencoder, with the mean and the spread of each channel measured on the data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from calotype.nets.blocks import Recoloured
from calotype.nets.vae import Moments, Vae
from calotype.vocabulary import Images, Latents, Rng


class LatentSpace(nn.Module):
    """Images <-> latents of mean 0 and spread 1 in every channel. Moments are (batch, 2 * channels, ...)."""

    mean: Tensor
    spread: Tensor

    def __init__(self, vae: Vae) -> None:
        super().__init__()
        self.vae = vae
        self.channels, self.reduction = vae.config.channels, vae.config.reduction
        self.register_buffer("mean", torch.zeros(1, self.channels, 1, 1))
        self.register_buffer("spread", torch.ones(1, self.channels, 1, 1))

    @torch.no_grad()
    def moments(self, images: Images) -> Latents:
        return torch.cat(self.vae.encode(images), 1)

    def sample(self, moments: Recoloured, rng: Rng) -> Latents:
        parts = Moments(*moments.chunk(2, 1))
        return (self.vae.sample(parts, rng.noise_like(parts.mean)) - self.mean) / self.spread

    @torch.no_grad()
    def encode(self, images: Images) -> Latents:
        return (self.vae.encode(images).mean - self.mean) / self.spread

    @torch.no_grad()
    def decode(self, latents: Latents) -> Images:
        return self.developed(latents).clamp(-1, 1)

    def developed(self, latents: Latents) -> Images:
        """As `decode`, for training: with gradients, and not clamped."""
        return self.vae.decode(latents * self.spread + self.mean)

    @torch.no_grad()
    def follow(self, moments: Latents, new: float) -> None:
        """Moves mean and spread a little towards those of these latents, while the autoencoder changes."""
        mean, log_variance = moments.chunk(2, 1)
        square = self.spread**2 + self.mean**2
        self.mean.lerp_(mean.mean((0, 2, 3), keepdim=True), new)
        square.lerp_((mean.square() + log_variance.exp()).mean((0, 2, 3), keepdim=True), new)
        self.spread.copy_((square - self.mean**2).clamp(min=1e-8).sqrt())

    @torch.no_grad()
    def measure(self, moments: Iterable[Latents]) -> None:
        """Sets mean and spread from the training pictures' moments: spread of the means, and the posterior's own."""
        count, total, squares = 0, torch.zeros(self.mean.shape).double(), torch.zeros(self.mean.shape).double()
        for batch in moments:
            mean, log_variance = batch.cpu().double().chunk(2, 1)
            count += mean.numel() // self.channels
            total += mean.sum((0, 2, 3), keepdim=True)
            squares += (mean.square() + log_variance.exp()).sum((0, 2, 3), keepdim=True)
        self.mean.copy_(total / count)
        self.spread.copy_((squares / count - (total / count) ** 2).clamp(min=1e-8).sqrt())
