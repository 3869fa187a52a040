"""Inspection of an autoencoder: whether it is fit to diffuse on, and if not, what to change."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file

from calotype.build import build_space
from calotype.cli.commands.reading import read_as_run
from calotype.cli.console import Console
from calotype.cli.options import InspectOptions
from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.evaluation.autoencoder import Measures, error_map, measure_autoencoder
from calotype.evaluation.diagnosis import Diagnosis, diagnose
from calotype.files import is_whole, write_json
from calotype.interop import diffusers
from calotype.machine import find_device
from calotype.nets.kl import KlConfig
from calotype.recipe import ImportedSpace, Recipe
from calotype.report.inspection import write_inspection
from calotype.run import Run
from calotype.settings import parse_recipe, read_recipe
from calotype.spaces.latent import LatentSpace
from calotype.training.checkpoint import checkpoints
from calotype.training.inspection import as_record, critic_health, finite, say_diagnosis
from calotype.training.previews import validation_first
from calotype.types import Images, UserError

FORMAT = 1
COUNT, VALUES = 256, 2**22
"""Pictures that are looked at, fewer where they are large; four times as many for statistics where there are none."""
SHOWN, SHOWN_VALUES, SHOWN_LATENTS, TILE = 8, 2**21, 3, 4
"""Pictures on the page, fewer where they are large, and latents, whose small places are shown as squares."""


def inspect(options: InspectOptions, console: Console) -> Path:
    """Writes `inspection.json` and `inspection.html`, says the verdict, and returns the folder with them.

    Raises `UserError` for what is no run, has no autoencoder (yet), or is a cascade.
    """
    folder, data, out = options.run, options.data, options.out or options.run
    run, where = Run.open(folder), find_device(options.device)
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    if recipe.kind == "cascade":
        raise UserError(f"{folder} is a cascade: it works in pixels, and has no autoencoder to inspect")
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; choose a folder")
    weights, stage = find_weights(folder, recipe)
    source = str(data or run.state.data)
    pictures = read_as_run(run, data, recipe.size, out / "cache", console)
    foreign = pictures.content != run.state.content
    pictures = pictures.shrunk(recipe.chain[0])
    space = build_space(recipe).to(where)
    space.load_state_dict({**space.state_dict(), **weights})
    space.eval().requires_grad_(False)
    if "mean" not in weights:
        space.measure(space.moments(part) for part in trained(pictures, where))
    count = max(4, min(COUNT, VALUES // pictures.pixels[0].numel()))
    images, held_out = validation_first(pictures, count, where)
    if foreign:  # all of them are unseen, whatever set they would be in
        images = images_from_pixels(pictures.pixels[:count]).to(where)
    with console.bar("inspect"):
        measures = measure_autoencoder(space, images, len(images) if foreign else held_out, critic=critic_health(run))
    diagnosis = diagnose(measures)
    about = {"data": source, "state": stage, "device": str(where), "foreign": foreign}
    result = inspection_record(run, about, measures, diagnosis)
    write_json(out / "inspection.json", result)
    write_inspection(out, result, plates(space, images))
    say_diagnosis(diagnosis, console.say)
    console.say(f"look at {out / 'inspection.html'}")
    return out


def find_weights(folder: Path, recipe: Recipe) -> tuple[dict[str, torch.Tensor], str]:
    """Of the finished model, else of the newest checkpoint of the autoencoder, without statistics; and which it was."""
    if is_whole(folder / "model"):
        return load_file(folder / "model" / "autoencoder.safetensors"), "finished"
    whole = [path for path in checkpoints(folder / "checkpoints", "autoencoder") if is_whole(path)]
    if not whole and isinstance(recipe.space, ImportedSpace) and isinstance(recipe.autoencoder.network, KlConfig):
        weights = diffusers.read_kl_weights(Path(recipe.space.path), recipe.autoencoder.network)
        return {f"vae.{name}": value for name, value in weights.items()}, "as imported"
    if not whole:
        raise UserError(f"{folder} has no autoencoder yet; go on with: calotype resume {folder}")
    tensors = load_file(whole[-1] / "autoencoder.safetensors")
    average = {f"vae.{name.removeprefix('average.')}": value for name, value in tensors.items() if "average." in name}
    return average, f"after {int(whole[-1].name.rpartition('-')[2]):,} images"


def trained(pictures: Pictures, device: torch.device) -> Iterator[torch.Tensor]:
    """Some training pictures, for statistics."""
    most = max(16, 4 * VALUES // pictures.pixels[0].numel())
    for chosen in pictures.train_indices[:most].split(16):
        yield images_from_pixels(pictures.pixels[chosen]).to(device)


def inspection_record(run: Run, about: dict[str, Any], measures: Measures, diagnosis: Diagnosis) -> dict[str, Any]:
    name = run.name
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"format": FORMAT, "name": name, "created": created, **about}
    return dict(finite({**facts, **as_record(diagnosis), "measures": asdict(measures)}))


def plates(space: LatentSpace, images: Images) -> dict[str, Image.Image]:
    """Originals, reconstructions and errors; and the channels of a few latents, black to white over six spreads."""
    shown = images[: max(2, min(SHOWN, SHOWN_VALUES // images[0].numel()))]
    latents = space.encode(shown)
    fake = space.decode(latents)
    rows = torch.cat([shown, fake, error_map(shown, fake)])
    few = (latents[:SHOWN_LATENTS] / 3).clamp(-1, 1).flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
    enlarged = few.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3) if few.shape[-1] < 32 else few
    return {
        "reconstructions": grid(pils_from_images(rows), len(shown)),
        "channels": grid(pils_from_images(enlarged), min(space.channels, 16)),
    }
