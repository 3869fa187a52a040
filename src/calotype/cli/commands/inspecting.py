"""Inspection of an autoencoder: whether it is fit to diffuse on, and if not, what to change."""

from __future__ import annotations

import datetime
from pathlib import Path

import torch
from PIL import Image

from calotype.build import build_space
from calotype.cli.commands.reading import check_empty, read_as_run
from calotype.cli.console import Console
from calotype.cli.options import InspectOptions
from calotype.data.images import grid, images_from_pixels, pils_from_images, shown
from calotype.evaluation.autoencoder import error_map, measure_autoencoder
from calotype.evaluation.diagnosis import InspectionResult, diagnose
from calotype.evaluation.features import Lite0
from calotype.files import is_whole, listed, read_tensors, write_json
from calotype.interop.autoencoders import read_autoencoder_weights
from calotype.machine import find_device
from calotype.nets.vae import VaeConfig
from calotype.nets.weights import load_weights
from calotype.recipe import ImportedSpace, Recipe
from calotype.report.inspection import write_inspection
from calotype.run import Run
from calotype.settings import parse_recipe, read_recipe
from calotype.spaces.latent import LatentSpace
from calotype.store import AUTOENCODER
from calotype.training.checkpoint import checkpoints
from calotype.training.inspection import critic_health
from calotype.training.previews import PictureLimit, validation_first
from calotype.training.warm_start import START_FOLDER
from calotype.types import Images, UserError

THOROUGHLY = PictureLimit(256, 2**22)
"""Pictures that are measured; four times as many for statistics where there are none."""
SHOWN_PICTURES, SHOWN_VALUES, SHOWN_LATENTS, LATENT_SCALE = 8, 2**21, 3, 4
"""Pictures on the page, fewer where they are large, and latents, each value of a small one as a square."""


def inspect(options: InspectOptions, console: Console) -> Path:
    """Writes `inspection.json` and `inspection.html`, says the verdict, and returns the folder with them.

    Raises `UserError` for what is no run, has no autoencoder (yet), or is a cascade.
    """
    folder, data, out = options.run, options.data, options.out or options.run
    run, where = Run.open(folder), find_device(options.device)
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    if recipe.kind == "cascade":
        raise UserError(f"{folder} is a cascade: it works in pixels, and has no autoencoder to inspect")
    if options.out is not None:
        check_empty(options.out, "inspection.json")
    weights, state = find_weights(folder, recipe)
    pictures = read_as_run(run, data, recipe.size, out / "cache", console)
    foreign = not run.state.is_of(pictures)
    pictures = pictures.shrunk(recipe.chain[0])
    values = pictures.pixels[0].numel()
    space = build_space(recipe).to(where)
    load_weights(space, {**space.state_dict(), **weights}, str(folder))
    space.eval().requires_grad_(False)
    if "mean" not in weights:
        parts = pictures.train_indices[: max(16, 4 * THOROUGHLY.values // values)].split(16)
        space.measure(space.moments(images_from_pixels(pictures.pixels[part]).to(where)) for part in parts)
    count = THOROUGHLY.count(values)
    images, held_out = validation_first(pictures, count, where)
    if foreign:  # all of them are unseen, whatever set they would be in
        images = images_from_pixels(pictures.pixels[:count]).to(where)
        held_out = len(images)
    with console.bar("inspect"):
        measures = measure_autoencoder(space, images, held_out, Lite0(where), critic=critic_health(run))
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    result = InspectionResult(
        format=1, name=run.name, created=created, data=shown(data or run.state.data), state=state, device=str(where),
        foreign=foreign, **dict(diagnose(measures)),
    )  # fmt: skip
    write_json(out / "inspection.json", result.stored())
    write_inspection(out, result, plates(space, images))
    for line in result.lines:
        console.say(line)
    console.say(f"look at {out / 'inspection.html'}")
    return out


def find_weights(folder: Path, recipe: Recipe) -> tuple[dict[str, torch.Tensor], str]:
    """Of the finished model, else of the newest checkpoint of the autoencoder, without statistics; and which it was."""
    if is_whole(folder / "model"):
        return read_tensors(listed(folder / "model", AUTOENCODER)), "finished"
    network = recipe.autoencoder.network
    whole = [path for path in checkpoints(folder / "checkpoints", "autoencoder") if is_whole(path)]
    if not whole and isinstance(recipe.space, ImportedSpace) and not isinstance(network, VaeConfig):
        weights = read_autoencoder_weights(Path(recipe.space.path), network)
        return {f"vae.{name}": value for name, value in weights.items()}, "as imported"
    if not whole and is_whole(folder / START_FOLDER):
        return read_tensors(listed(folder / START_FOLDER, AUTOENCODER)), "as in the run that it starts from"
    if not whole:
        raise UserError(f"{folder} has no autoencoder yet; go on with: calotype resume {folder}")
    tensors = read_tensors(listed(whole[-1], AUTOENCODER))
    average = {f"vae.{name.removeprefix('average.')}": value for name, value in tensors.items() if "average." in name}
    return average, f"after {int(whole[-1].name.rpartition('-')[2]):,} images"


def plates(space: LatentSpace, images: Images) -> dict[str, Image.Image]:
    """Originals, reconstructions and errors; and the channels of a few latents, black to white over six spreads."""
    images = images[: max(2, min(SHOWN_PICTURES, SHOWN_VALUES // images[0].numel()))]
    latents = space.encode(images)
    fake = space.decode(latents)
    rows = torch.cat([images, fake, error_map(images, fake)])
    few = (latents[:SHOWN_LATENTS] / 3).clamp(-1, 1).flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
    scale = LATENT_SCALE if few.shape[-1] < 32 else 1
    enlarged = few.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return {
        "reconstructions": grid(pils_from_images(rows), len(images)),
        "channels": grid(pils_from_images(enlarged), min(space.channels, 16)),
    }
