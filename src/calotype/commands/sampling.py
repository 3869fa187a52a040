"""Pictures from a trained model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.commands.reading import check_empty, free, safe
from calotype.commands.talk import Voice
from calotype.data.folder import Pictures, list_pictures
from calotype.data.images import (
    UnreadableError,
    grid,
    images_from_pil,
    images_from_pixels,
    pils_from_images,
    read_image,
)
from calotype.evaluate.neighbours import neighbours
from calotype.files import write_json
from calotype.model import changed_all, load
from calotype.nets.perceptual import efficientnet_lite0
from calotype.vocabulary import NOT_TOLD, UserError

PAIRS = 6
"""Samples that are shown beside training pictures."""
MOST_VALUES = 2**30
"""Of training pictures among which the nearest is sought: 5,461 of 256 px, evenly spread."""


def sample(
    folder: Path, count: int, label: str | None, seed: int, out: Path | None, device: str, voice: Voice, **changes: Any
) -> Path:
    """Writes `count` pictures, one PNG each, and a grid of them."""
    if count < 1:
        raise UserError(f"count is {count}, but must be at least 1")
    model = load(folder, device)
    names = [model.classes[index] if index != NOT_TOLD else "picture" for index in model.labels(count, label)]
    out = out or free(folder / "samples")
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []
    with voice.bar("samples") as progress:
        for index, picture in enumerate(model.draw(count, label, seed, **changes)):
            picture.save(out / f"{seed}-{index:04d}-{safe(names[index])}.png")
            pictures.append(picture)
            progress(index + 1, count, "")
    grid(pictures, columns(count)).save(out / "grid.png")
    first, *above = (one.model_dump(mode="json") for one in changed_all(model.samplings, changes))
    write_json(out / "samples.json", {"labels": names, "seed": seed, "sampling": first, "enlarge": above})
    return out


def enlarge(
    folder: Path, pictures: Path, size: int | None, label: str | None, seed: int, out: Path, device: str, voice: Voice
) -> int:
    """Writes every picture enlarged, as PNG; those that cannot be read are named and left out. Returns how many."""
    model, paths = load(folder, device), list_pictures(pictures)
    model.enlarger(size)
    model.labels(1, label)
    check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    with voice.bar("enlarge") as progress:
        for index, path in enumerate(paths):
            try:
                model.enlarge(read_image(path), size, label, seed).save(out / f"{index:04d}-{safe(path.stem)}.png")
                written += 1
            except UnreadableError as error:
                voice.say(str(error))
            progress(index + 1, len(paths), path.name)
    if not written:
        raise UserError(f"no picture in {pictures} could be read, so none was enlarged")
    return written


def columns(count: int) -> int:
    """Of a grid: 6 where that fills it, else about square."""
    return 6 if count > 6 and count % 6 == 0 else max(1, round(count**0.5))


def show_neighbours(run: Path, pictures: Pictures, device: torch.device) -> None:
    """Writes the first samples of a run above the training pictures nearest to them, and how near both lie."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.name != "grid.png")[:PAIRS]
    made = torch.cat([images_from_pil(read_image(file)) for file in files])
    held_out = images_from_pixels(pictures.pixels[pictures.held_out_indices[: len(made)]])
    many = max(1, MOST_VALUES // pictures.pixels[0].numel())
    chosen = pictures.train_indices[:: max(1, math.ceil(len(pictures.train_indices) / many))]
    trained = pictures.pixels[chosen]
    efficientnet_lite0().to(device)
    ours, theirs = neighbours(made, trained), neighbours(held_out, trained)
    grid(pils_from_images(torch.cat([made, ours.images])), len(made)).save(run / "previews" / "nearest.png")
    found = {"samples_median": ours.distances, "held_out_median": theirs.distances}
    medians = {name: float(np.median(values)) for name, values in found.items()}
    write_json(run / "previews" / "nearest.json", {**medians, "n": [len(made), len(held_out)], "trained": len(trained)})
