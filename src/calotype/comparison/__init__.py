"""Finished runs side by side: what the lecture claims of latent diffusion and cascades, measured on their pictures."""

from calotype.comparison.gather import FORMAT, compare

__all__ = ["FORMAT", "compare"]
