"""Batches as a function of the clock: what comes depends on the seed and the images seen, and on nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import LatentCache
from calotype.stage import shrunk
from calotype.vocabulary import Batch, Rng


def order(count: int, images_seen: int, batch: int, rng: Rng) -> Tensor:
    """Which of `count` pictures come next: each epoch is a new permutation, and a batch may span two epochs."""
    first, last = images_seen // count, (images_seen + batch - 1) // count
    epochs = torch.cat([rng.at("epoch", epoch).permutation(count) for epoch in range(first, last + 1)])
    return epochs[images_seen - first * count :][:batch]


@dataclass(frozen=True)
class PictureSource:
    """Chosen pictures as images, cropped at random to `crop` pixels, half of them mirrored if `flip`.

    With a `factor` above 1 each comes with its shrunk picture, and a crop's corner lies on a pixel of that.
    """

    pictures: Pictures
    chosen: Tensor
    rng: Rng
    device: torch.device
    crop: int
    flip: bool
    factor: int = 1

    def batch(self, images_seen: int, count: int) -> Batch:
        chosen = self.chosen[order(len(self.chosen), images_seen, count, self.rng)]
        rng = self.rng.at("pictures", images_seen)
        images = images_from_pixels(self._crops(chosen, rng).to(self.device))
        if self.flip:
            images = torch.where(rng.at("flip").uniform(count, 1, 1, 1).to(self.device) < 0.5, images.flip(-1), images)
        images = images.contiguous(memory_format=torch.channels_last)
        smaller = shrunk(images, self.factor) if self.factor > 1 else None
        return Batch(images, self.pictures.labels[chosen].to(self.device), smaller)

    def _crops(self, chosen: Tensor, rng: Rng) -> Tensor:
        pixels = self.pictures.pixels
        free = (pixels.shape[-1] - self.crop) // self.factor + 1
        corners = (self.factor * rng.at("crop").integers(free, len(chosen), 2)).tolist()
        places = zip(chosen.tolist(), corners, strict=True)
        return torch.stack([pixels[one, :, y : y + self.crop, x : x + self.crop] for one, (y, x) in places])


@dataclass(frozen=True)
class LatentSource:
    """Cached moments of the training pictures, and of their mirror images if the cache has them."""

    cache: LatentCache
    labels: Tensor
    chosen: Tensor
    rng: Rng
    device: torch.device

    def batch(self, images_seen: int, count: int) -> Batch:
        picks = self.chosen[order(len(self.chosen), images_seen, count, self.rng)]
        sides = self.rng.at("flip", images_seen).integers(len(self.cache.moments), count)
        moments = self.cache.moments[sides, picks].float().to(self.device)
        return Batch(moments.contiguous(memory_format=torch.channels_last), self.labels[picks].to(self.device))
