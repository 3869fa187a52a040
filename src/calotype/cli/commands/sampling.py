"""`calotype sample` and `calotype enlarge`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.cli.commands.reading import check_empty, free, safe
from calotype.cli.console import Console
from calotype.data.captions import decoded
from calotype.data.folder import Pictures, list_pictures
from calotype.data.images import (
    UnreadableError,
    grid,
    images_from_pil,
    images_from_pixels,
    pils_from_images,
    read_image,
)
from calotype.evaluation.memorisation import concatenated, mirrored_to_match, nearest_trained, thumbnails
from calotype.files import write_json
from calotype.model import Model, load
from calotype.types import NULL_LABEL, UserError

PAIRS = 6
"""Samples that are shown beside training pictures."""
MOST_VALUES = 2**30
"""Limit of the training pictures that are searched: 5,461 of 256 px, evenly spread."""
CHUNK = 64


@dataclass(frozen=True)
class SampleRequest:
    """What to sample: new pictures, or variations of a picture (everywhere, or where its mask is white)."""

    size: str | None = None
    """`256x384`: width and height in pixels; None: the training size."""
    picture: Path | None = None
    strength: float | None = None
    mask: Path | None = None

    def draw(
        self, model: Model, count: int, label: str | None, seed: int, changes: dict[str, Any]
    ) -> Iterator[Image.Image]:
        """Pictures as they are made. Raises `UserError` for a mask or a strength without a picture."""
        size = read_size(self.size)
        if self.picture is not None:
            mask = read_image(self.mask) if self.mask else None
            return model.draw(
                count, label, seed, size, picture=read_image(self.picture), strength=self.strength, mask=mask, **changes
            )
        for name in ("strength", "mask"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is for image-to-image, but there is no picture; add --from PICTURE")
        return model.draw(count, label, seed, size, **changes)

    def names(self, model: Model, count: int, label: str | None, prompt: Any) -> list[str]:
        """The class of each picture."""
        labels = [NULL_LABEL] * count if self.picture and label is None else model.labels(count, label, prompt)
        return [model.classes[index] if index != NULL_LABEL else "picture" for index in labels]


def sample(
    folder: Path, count: int, label: str | None, seed: int, out: Path | None, device: str, console: Console,
    request: SampleRequest = SampleRequest(), **changes: Any,
) -> Path:  # fmt: skip
    """Writes `count` pictures, a PNG file each, and a grid of them; `changes` are prompts and sampling settings."""
    if count < 1:
        raise UserError(f"count is {count}, but must be at least 1")
    model = load(folder, device)
    prompt, negative = changes.get("prompt"), changes.get("negative")
    for warning in model.truncations(prompt):
        console.say(warning)
    text, names = model.text(count, prompt, negative), request.names(model, count, label, prompt)
    drawn = request.draw(model, count, label, seed, changes)
    settings = {name: value for name, value in changes.items() if name not in ("prompt", "negative")}
    samplings = model.settings(settings, inpaint=request.mask is not None)
    first, *above = (sampling.model_dump(mode="json") for sampling in samplings)
    out = out or free(folder / "samples")
    pictures: list[Image.Image] = []
    with console.bar("samples") as progress:
        for index, picture in enumerate(drawn):
            out.mkdir(parents=True, exist_ok=True)
            name = (text and text.prompts[index]) or names[index]
            picture.save(out / f"{seed}-{index:04d}-{safe(name)}.png")
            pictures.append(picture)
            progress(index + 1, count, "")
    grid(pictures, columns(count)).save(out / "grid.png")
    source = {name: str(value) for name, value in vars(request).items() if value is not None}
    prompts = {"prompts": text.prompts, "negative": negative} if text else {}
    about = {"labels": names, "seed": seed, **prompts, "sampling": first, "enlarge": above, **source}
    write_json(out / "samples.json", about)
    return out


def read_prompts(path: Path) -> list[str]:
    """The prompts in a file, one per line. Raises `UserError` where it has none, or is no text file."""
    try:
        prompts = [line for line in decoded(path.read_bytes()).splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} is not a file of prompts, one per line: {reason}") from None
    if not prompts:
        raise UserError(f"{path} is empty; write prompts into it, one per line")
    return prompts


def enlarge(
    folder: Path, pictures: Path, size: int | None, label: str | None, seed: int, out: Path, device: str,
    console: Console,
) -> int:  # fmt: skip
    """Writes every picture enlarged, as PNG, and returns how many; unreadable pictures are named and left out."""
    model, paths = load(folder, device), list_pictures(pictures)
    model.enlarger(size)
    model.labels(1, label)
    check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    with console.bar("enlarge") as progress:
        for index, path in enumerate(paths):
            try:
                model.enlarge(read_image(path), size, label, seed).save(out / f"{index:04d}-{safe(path.stem)}.png")
                written += 1
            except UnreadableError as error:
                console.say(str(error))
            progress(index + 1, len(paths), path.name)
    if not written:
        raise UserError(f"no picture in {pictures} could be read, so none was enlarged; see the reasons above")
    return written


def read_size(text: str | None) -> tuple[int, int] | None:
    """`256x384`: width and height in pixels."""
    if text is None:
        return None
    sides = re.fullmatch(r"(\d{1,6})x(\d{1,6})", text.strip().lower())
    if sides is None:
        raise UserError(f"--size is {text!r}, but must be width x height in pixels, as in 256x384")
    return int(sides[1]), int(sides[2])


def columns(count: int) -> int:
    """Of a grid: 6 where that fills it, else about square."""
    return 6 if count > 6 and count % 6 == 0 else max(1, round(count**0.5))


def show_neighbours(run: Path, pictures: Pictures) -> None:
    """Writes the first samples of a run above their nearest training pictures, with the distances as JSON."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.name != "grid.png")[:PAIRS]
    samples = torch.cat([images_from_pil(read_image(file)) for file in files])
    unseen = pictures.test_indices if len(pictures.test_indices) else pictures.validation_indices
    held_out = images_from_pixels(pictures.pixels[unseen[: len(samples)]])
    most = max(1, MOST_VALUES // pictures.pixels[0].numel())
    chosen = pictures.train_indices[:: max(1, math.ceil(len(pictures.train_indices) / most))]
    trained = concatenated(thumbnails(images_from_pixels(pictures.pixels[part])) for part in chosen.split(CHUNK))
    ours, theirs = (nearest_trained(thumbnails(images), trained) for images in (samples, held_out))
    nearest = mirrored_to_match(images_from_pixels(pictures.pixels[chosen[torch.from_numpy(ours.place)]]), samples)
    grid(pils_from_images(torch.cat([samples, nearest])), len(samples)).save(run / "previews" / "nearest.png")
    medians = {"samples_median": float(np.median(ours.apart)), "held_out_median": float(np.median(theirs.apart))}
    about = {**medians, "n": [len(samples), len(held_out)], "trained": len(chosen)}
    write_json(run / "previews" / "nearest.json", about)
