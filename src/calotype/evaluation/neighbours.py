"""Samples of a run above the training pictures that are nearest to them, found in seconds at the end of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pil, images_from_pixels, pils_from_images, read_image
from calotype.evaluation.memorisation import (
    Compared,
    Nearest,
    concatenated,
    mirrored_to_match,
    nearest_trained,
    thumbnails,
)
from calotype.files import write_json, write_png
from calotype.types import Images, Progress, no_progress

SHOWN_SAMPLES = 6
SEARCHED_VALUES = 2**30
"""Limit of the training pictures that are searched: 5,461 of 256 px, evenly spread."""
CHUNK = 64


@dataclass(frozen=True)
class Neighbours:
    """Training pictures that can be searched: their rows in `pictures`, and thumbnails of them."""

    pictures: Pictures
    rows: Int[Tensor, " searched"]
    thumbnails: Compared

    def nearest(self, images: Images) -> Nearest:
        """Of images of any size; `place` is an index into `rows`."""
        return nearest_trained(thumbnails(images), self.thumbnails)

    def beside(self, images: Images, nearest: Nearest) -> Images:
        """The nearest training picture of each image of their size, mirrored where it is nearer that way."""
        chosen = self.rows[torch.from_numpy(nearest.place)]
        return mirrored_to_match(images_from_pixels(self.pictures.pixels[chosen]), images)


def neighbours_among(pictures: Pictures, progress: Progress = no_progress) -> Neighbours:
    """The training pictures that fit into `SEARCHED_VALUES`, evenly spread."""
    most = max(1, SEARCHED_VALUES // pictures.pixels[0].numel())
    rows = pictures.train_indices[:: max(1, math.ceil(len(pictures.train_indices) / most))]
    parts = []
    for part in rows.split(CHUNK):
        parts.append(thumbnails(images_from_pixels(pictures.pixels[part])))
        progress(min(len(parts) * CHUNK, len(rows)), len(rows))
    return Neighbours(pictures, rows, concatenated(parts))


def write_neighbours(run: Path, pictures: Pictures) -> None:
    """Writes the first samples of a run above their nearest training pictures, with the distances as JSON."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.name != "grid.png")[:SHOWN_SAMPLES]
    samples = torch.cat([images_from_pil(read_image(file)) for file in files])
    unseen = pictures.test_indices if len(pictures.test_indices) else pictures.validation_indices
    held_out = images_from_pixels(pictures.pixels[unseen[: len(samples)]])
    searched = neighbours_among(pictures)
    ours, theirs = searched.nearest(samples), searched.nearest(held_out)
    both = torch.cat([samples, searched.beside(samples, ours)])
    write_png(run / "previews" / "nearest.png", grid(pils_from_images(both), len(samples)))
    medians = {"samples_median": float(np.median(ours.apart)), "held_out_median": float(np.median(theirs.apart))}
    about = {**medians, "n": [len(samples), len(held_out)], "trained": len(searched.rows)}
    write_json(run / "previews" / "nearest.json", about)
