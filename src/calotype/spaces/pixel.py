"""The interface of a space, and pixel space."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from calotype.nets.blocks import Recoloured
from calotype.types import Images, Latents, Rng


@runtime_checkable
class Space(Protocol):
    """Images in [-1, 1] <-> latents of standard deviation about 1 in every channel, `reduction` times smaller."""

    channels: int
    reduction: int

    def moments(self, images: Images) -> Latents:
        """The deterministic part of encoding, slow, cached on disk: for an autoencoder, moments of the posterior."""
        ...

    def sample(self, moments: Recoloured, rng: Rng) -> Latents:
        """A random draw of latents from their moments: fast."""
        ...

    def encode(self, images: Images) -> Latents:
        """The mean of the latents."""
        ...

    def decode(self, latents: Latents) -> Images: ...


class PixelSpace:
    """Latents are the images themselves."""

    channels = 3
    reduction = 1

    def moments(self, images: Images) -> Latents:
        return images

    def sample(self, moments: Latents, rng: Rng) -> Latents:
        return moments

    def encode(self, images: Images) -> Latents:
        return images

    def decode(self, latents: Latents) -> Images:
        return latents.clamp(-1, 1)
