"""Pictures from a trained model."""

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
from calotype.cli.commands.talk import Console
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
from calotype.evaluation.memorisation import facing, glanced_at, nearest_trained, together
from calotype.files import write_json
from calotype.model import Model, changed_all, load, seamless
from calotype.types import NULL_LABEL, UserError

PAIRS = 6
"""Samples that are shown beside training pictures."""
MOST_VALUES = 2**30
"""Of training pictures among which the nearest is sought: 5,461 of 256 px, evenly spread."""
GLANCES = 64


@dataclass(frozen=True)
class SampleRequest:
    """What pictures are drawn on: an empty one, or a picture, which changes all over or where its mask is white."""

    size: str | None = None
    """`256x384`: width and height in pixels; None: as learned."""
    picture: Path | None = None
    strength: float | None = None
    mask: Path | None = None

    def draw(
        self, model: Model, count: int, label: str | None, seed: int, wanted: dict[str, Any]
    ) -> Iterator[Image.Image]:
        """Pictures as they are made. Raises `UserError` for a mask or a strength without a picture."""
        size = read_size(self.size)
        if self.picture is not None:
            white = read_image(self.mask) if self.mask else None
            given = read_image(self.picture)
            return model.draw_again(given, self.strength, white, label, seed, count, size, **wanted)
        for name in ("strength", "mask"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} says how a picture changes, but there is none; add --from PICTURE")
        return model.draw(count, label, seed, size, **wanted)


def sample(
    folder: Path, count: int, label: str | None, seed: int, out: Path | None, device: str, console: Console,
    sheet: SampleRequest = SampleRequest(), **wanted: Any,
) -> Path:  # fmt: skip
    """Writes `count` pictures, one PNG each, and a grid of them; `wanted` is what else `Model.draw` takes."""
    if count < 1:
        raise UserError(f"count is {count}, but must be at least 1")
    model = load(folder, device)
    prompt, negative = wanted.get("prompt"), wanted.get("negative")
    for warning in model.cuts(prompt):
        console.say(warning)
    text = model.text(count, prompt, negative)
    told = [NULL_LABEL] * count if sheet.picture and label is None else model.labels(count, label, prompt)
    names = [model.classes[index] if index != NULL_LABEL else "picture" for index in told]
    made = sheet.draw(model, count, label, seed, wanted)
    changes = {name: value for name, value in wanted.items() if name not in ("prompt", "negative")}
    changes = seamless(changes) if sheet.mask else changes
    first, *above = (one.model_dump(mode="json") for one in changed_all(model.samplings, changes))
    out = out or free(folder / "samples")
    pictures: list[Image.Image] = []
    with console.bar("samples") as progress:
        for index, picture in enumerate(made):
            out.mkdir(parents=True, exist_ok=True)
            name = (text and text.prompts[index]) or names[index]
            picture.save(out / f"{seed}-{index:04d}-{safe(name)}.png")
            pictures.append(picture)
            progress(index + 1, count, "")
    grid(pictures, columns(count)).save(out / "grid.png")
    about = {name: str(value) for name, value in vars(sheet).items() if value is not None}
    said = {"prompts": text.prompts, "negative": negative} if text else {}
    settings = {"seed": seed, **said, "sampling": first, "enlarge": above, **about}
    write_json(out / "samples.json", {"labels": names, **settings})
    return out


def read_prompts(path: Path) -> list[str]:
    """One a line. Raises `UserError` where that is not what the file holds."""
    try:
        prompts = [line for line in decoded(path.read_bytes()).splitlines() if line.strip()]
    except (OSError, ValueError) as problem:
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"{path} is no file of prompts, one a line: {reason}") from None
    if not prompts:
        raise UserError(f"{path} is empty; write prompts into it, one a line")
    return prompts


def enlarge(
    folder: Path,
    pictures: Path,
    size: int | None,
    label: str | None,
    seed: int,
    out: Path,
    device: str,
    console: Console,
) -> int:
    """Writes every picture enlarged, as PNG; those that cannot be read are named and left out. Returns how many."""
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
        raise UserError(f"no picture in {pictures} could be read, so none was enlarged")
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
    """Writes the first samples of a run above the training pictures nearest to them, and how near both lie."""
    files = sorted(file for file in (run / "samples").glob("*.png") if file.name != "grid.png")[:PAIRS]
    made = torch.cat([images_from_pil(read_image(file)) for file in files])
    own = pictures.test_indices if len(pictures.test_indices) else pictures.validation_indices
    held_out = images_from_pixels(pictures.pixels[own[: len(made)]])
    many = max(1, MOST_VALUES // pictures.pixels[0].numel())
    chosen = pictures.train_indices[:: max(1, math.ceil(len(pictures.train_indices) / many))]
    trained = together(glanced_at(images_from_pixels(pictures.pixels[part])) for part in chosen.split(GLANCES))
    ours, theirs = (nearest_trained(glanced_at(images), trained) for images in (made, held_out))
    nearest = facing(images_from_pixels(pictures.pixels[chosen[torch.from_numpy(ours.place)]]), made)
    grid(pils_from_images(torch.cat([made, nearest])), len(made)).save(run / "previews" / "nearest.png")
    found = {"samples_median": ours.apart, "held_out_median": theirs.apart}
    medians = {name: float(np.median(values)) for name, values in found.items()}
    write_json(run / "previews" / "nearest.json", {**medians, "n": [len(made), len(held_out)], "trained": len(chosen)})
