"""Pictures from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from calotype.commands.reading import check_empty, free, safe
from calotype.commands.talk import Voice
from calotype.data.captions import decoded
from calotype.data.folder import list_pictures
from calotype.data.images import UnreadableError, grid, read_image
from calotype.files import write_json
from calotype.model import changed_all, load
from calotype.vocabulary import NOT_TOLD, UserError


def sample(
    folder: Path, count: int, label: str | None, seed: int, out: Path | None, device: str, voice: Voice, **wanted: Any
) -> Path:
    """Writes `count` pictures, one PNG each, and a grid of them; `wanted` is what else `Model.draw` takes."""
    if count < 1:
        raise UserError(f"count is {count}, but must be at least 1")
    model = load(folder, device)
    prompt, negative = wanted.get("prompt"), wanted.get("negative")
    labels, text = model.labels(count, label, prompt), model.text(count, prompt, negative)
    names = [model.classes[index] if index != NOT_TOLD else "picture" for index in labels]
    for warning in model.cuts(prompt):
        voice.say(warning)
    out = out or free(folder / "samples")
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []
    with voice.bar("samples") as progress:
        for index, picture in enumerate(model.draw(count, label, seed, **wanted)):
            name = (text and text.wanted[index]) or names[index]
            picture.save(out / f"{seed}-{index:04d}-{safe(name)}.png")
            pictures.append(picture)
            progress(index + 1, count, "")
    grid(pictures, columns(count)).save(out / "grid.png")
    changes = {name: value for name, value in wanted.items() if name not in ("prompt", "negative")}
    first, *above = (one.model_dump(mode="json") for one in changed_all(model.samplings, changes))
    said = {"prompts": text.wanted, "negative": negative} if text else {}
    write_json(out / "samples.json", {"labels": names, "seed": seed, **said, "sampling": first, "enlarge": above})
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
