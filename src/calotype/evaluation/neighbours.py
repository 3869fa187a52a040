"""Samples of a run above the training pictures that are nearest to them, found in seconds at the end of training."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pil, images_from_pixels, pils_from_images, read_image
from calotype.evaluation.memorisation import concatenated, mirrored_to_match, nearest_trained, thumbnails
from calotype.files import write_json, write_png

SHOWN_SAMPLES = 6
SEARCHED_VALUES = 2**30
"""Limit of the training pictures that are searched: 5,461 of 256 px, evenly spread."""
CHUNK = 64


def write_neighbours(run: Path, pictures: Pictures) -> None:
    """Writes the first samples of a run above their nearest training pictures, with the distances as JSON."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.name != "grid.png")[:SHOWN_SAMPLES]
    samples = torch.cat([images_from_pil(read_image(file)) for file in files])
    unseen = pictures.test_indices if len(pictures.test_indices) else pictures.validation_indices
    held_out = images_from_pixels(pictures.pixels[unseen[: len(samples)]])
    most = max(1, SEARCHED_VALUES // pictures.pixels[0].numel())
    chosen = pictures.train_indices[:: max(1, math.ceil(len(pictures.train_indices) / most))]
    trained = concatenated(thumbnails(images_from_pixels(pictures.pixels[part])) for part in chosen.split(CHUNK))
    ours, theirs = (nearest_trained(thumbnails(images), trained) for images in (samples, held_out))
    nearest = mirrored_to_match(images_from_pixels(pictures.pixels[chosen[torch.from_numpy(ours.place)]]), samples)
    write_png(run / "previews" / "nearest.png", grid(pils_from_images(torch.cat([samples, nearest])), len(samples)))
    medians = {"samples_median": float(np.median(ours.apart)), "held_out_median": float(np.median(theirs.apart))}
    about = {**medians, "n": [len(samples), len(held_out)], "trained": len(chosen)}
    write_json(run / "previews" / "nearest.json", about)
