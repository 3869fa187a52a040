"""The interface of a space, and the space that does nothing: pixels."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from calotype.nets.blocks import Recoloured
from calotype.types import Images, Latents, Rng


@runtime_checkable
class Space(Protocol):
    """Images in, latents out, and back. Latents are spread about 1 in every channel."""

    channels: int
    reduction: int

    def moments(self, images: Images) -> Latents:
        """What is certain about the latents: slow to compute, the same every time, worth caching on disk."""
        ...

    def sample(self, moments: Recoloured, rng: Rng) -> Latents:
        """One draw of the latents: fast, random."""
        ...

    def encode(self, images: Images) -> Latents:
        """The likeliest latents."""
        ...

    def decode(self, latents: Latents) -> Images: ...


class PixelSpace:
    """Returns what it is given."""

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
