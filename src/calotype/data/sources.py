"""Batches as a function of the seed and the images seen, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from calotype.data.captions import Captions
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import StoredLatents, whole_sides
from calotype.data.permutation import LARGE_SET, FeistelPermutation
from calotype.data.views import VIEW_SHARE, placement, whole_boxes
from calotype.devices import sent
from calotype.diffusion.stage import shrunk
from calotype.types import Batch, Folds, Images, Rng, Text

FOLDS = 2
EPOCHS_KEPT = 8
"""Permutations in memory: two where a batch spans two epochs, for each aspect bucket; half a megabyte each."""


def order(count: int, images_seen: int, batch: int, rng: Rng) -> Int[Tensor, " batch"]:
    """The indices of the next batch of `count` pictures: each epoch is a permutation; a batch may span two epochs."""
    first, last = images_seen // count, (images_seen + batch - 1) // count
    start = images_seen - first * count
    parts = []
    for epoch in range(first, last + 1):
        parts.append(_of_epoch(count, epoch, rng, slice(start, min(count, start + batch))))
        start, batch = 0, batch - len(parts[-1])
    return torch.cat(parts)


def _of_epoch(count: int, epoch: int, rng: Rng, places: slice) -> Int[Tensor, " _"]:
    """A part of the epoch's permutation."""
    if count <= LARGE_SET:
        return epoch_permutation(count, epoch, rng)[places].long()
    return FeistelPermutation(count, rng.at("epoch", epoch)).at(torch.arange(places.start, places.stop))


@lru_cache(EPOCHS_KEPT)
def epoch_permutation(count: int, epoch: int, rng: Rng) -> Int[Tensor, " count"]:
    """Computed once an epoch and not once a batch; read-only."""
    return rng.at("epoch", epoch).permutation(count).int()


def folds(chosen: Tensor) -> Folds:
    """Two halves of the pictures for cross-fitting, by their order, which is that of their content hashes."""
    return chosen % FOLDS


@dataclass(frozen=True)
class PictureSource:
    """Chosen pictures as images, half of them mirrored if `flip`: random crops of `crop` pixels, or uncropped (0).

    With a `factor` above 1 each comes with its low-resolution picture, to whose pixels the crops are aligned: the
    downsampled picture, or the one in `low_res`, which has a row for each of `chosen`.
    """

    pictures: Pictures
    chosen: Tensor
    rng: Rng
    device: torch.device
    crop: int
    flip: bool
    factor: int = 1
    low_res: Tensor | None = None
    reflected: bool = False
    """Every picture the other way round, for the mirror images of the same batches."""

    def batch(self, images_seen: int, count: int) -> Batch:
        places = order(len(self.chosen), images_seen, count, self.rng)
        rng, chosen = self.rng.at("pictures", images_seen), self.chosen[places]
        shape = self.pictures.pixels.shape[-2:]
        height, width = (self.crop or side for side in shape)
        free = (shape[-1] - width) // self.factor + 1
        corners = rng.at("crop").integers(free, count, 2)
        mirrored = ((rng.at("flip").uniform(count, 1, 1, 1) < 0.5) ^ self.reflected) & self.flip
        images = self._crops(self.pictures.pixels, chosen, self.factor * corners, (height, width), mirrored)
        low_res = shrunk(images, self.factor) if self.factor > 1 else None
        if self.low_res is not None:
            sides = height // self.factor, width // self.factor
            low_res = self._crops(self.low_res, places, corners, sides, mirrored)
        text = draw_captions(self.pictures.captions, chosen, rng)
        files = tuple(map(self.pictures.file, chosen.tolist()))
        return Batch(images, self.pictures.labels[chosen], low_res, folds(chosen), text, files)

    def _crops(self, pixels: Tensor, rows: Tensor, corners: Tensor, sides: tuple[int, int], mirrored: Tensor) -> Images:
        places, (height, width) = zip(rows.tolist(), corners.tolist(), strict=True), sides
        whole = pixels.numpy()  # slices of arrays take a sixth of the time
        cuts = np.stack([whole[row, :, y : y + height, x : x + width] for row, (y, x) in places])
        images = images_from_pixels(sent(torch.from_numpy(cuts), self.device))
        if self.flip:
            images = torch.where(sent(mirrored, self.device), images.flip(-1), images)
        return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class LatentSource:
    """Cached moments of the training pictures, and of their mirror images and views if the cache has them."""

    cache: StoredLatents
    labels: Tensor
    chosen: Tensor
    rng: Rng
    device: torch.device
    captions: Captions | None = None
    file: Callable[[int], str] = str
    """The name of a picture's file, by its index."""
    reflected: bool = False
    """Every picture the other way round, for the mirror images of the same batches."""
    view: int | None = None
    """0: whole pictures alone; v: their v-th views alone; None: both, as in training."""

    def batch(self, images_seen: int, count: int) -> Batch:
        picks = self.chosen[order(len(self.chosen), images_seen, count, self.rng)]
        whole = whole_sides(self.cache)
        sides = (self.rng.at("flip", images_seen).integers(whole, count) + self.reflected) % whole
        places = None
        if self.cache.boxes is not None:
            views = self._views(self.rng.at("views", images_seen), len(self.cache.boxes), count)
            sides = torch.where(views > 0, whole + views - 1, sides)
            boxes = self.cache.boxes[(views - 1).clamp(min=0), picks]
            places = sent(placement(torch.where(views[:, None] > 0, boxes, whole_boxes(count))), self.device)
        moments = sent(self.cache.at(sides, picks), self.device)
        clean = moments.float().contiguous(memory_format=torch.channels_last)
        text = draw_captions(self.captions, picks, self.rng.at("pictures", images_seen))
        files = tuple(map(self.file, picks.tolist()))
        return Batch(clean, self.labels[picks], None, folds(picks), text, files, places)

    def _views(self, rng: Rng, views: int, count: int) -> Tensor:
        """The number of the view of each picture; 0: the whole one."""
        if self.view is not None:
            return torch.full((count,), self.view)
        return torch.where(rng.at("share").uniform(count) < VIEW_SHARE, 1 + rng.at("which").integers(views, count), 0)


def draw_captions(captions: Captions | None, chosen: Tensor, rng: Rng) -> Text | None:
    """One of each picture's captions, at random."""
    if captions is None:
        return None
    draws = rng.at("caption").uniform(len(chosen)).tolist()
    choices = [captions.of[index] or ("",) for index in chosen.tolist()]
    return Text(tuple(own[int(draw * len(own))] for own, draw in zip(choices, draws, strict=True)))
