"""The doctor: whether an autoencoder is fit to diffuse on, and if not, what to change."""

from __future__ import annotations

import datetime
import math
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
from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.evaluation.autoencoder import CriticHealth, Measures, error_map, measure
from calotype.evaluation.diagnosis import Diagnosis, diagnose
from calotype.files import is_whole, write_json
from calotype.interop import diffusers
from calotype.machine import find_device
from calotype.nets.kl import KlConfig
from calotype.nets.perceptual import efficientnet_lite0
from calotype.recipe import ImportedSpace, Recipe
from calotype.report.inspection import write_inspection
from calotype.run import Inspection, Run
from calotype.settings import parse_recipe, read_recipe
from calotype.spaces.latent import LatentSpace
from calotype.tables import number, numbers, within
from calotype.training.checkpoint import checkpoints
from calotype.training.previews import look_count, unseen_first
from calotype.types import Images, UserError

FORMAT = 1
COUNT, VALUES = 256, 2**22
"""Pictures that are looked at, fewer where they are large; four times as many for statistics where there are none."""
SHOWN, SHOWN_VALUES, SHOWN_LATENTS, TILE = 8, 2**21, 3, 4
"""Pictures on the page, fewer where they are large, and latents, whose small places are shown as squares."""


def inspect(folder: Path, data: Path | None, out: Path | None, device: str, console: Console) -> Path:
    """Writes `inspection.json` and `inspection.html`, says the verdict, and returns the folder with them.

    Raises `UserError` for what is no run, has no autoencoder (yet), or is a cascade.
    """
    run, where = Run.open(folder), find_device(device)
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    if recipe.kind == "cascade":
        raise UserError(f"{folder} is a cascade: it works in pixels, and has no autoencoder to inspect")
    if (out := out or folder).exists() and not out.is_dir():
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
        space.measure(space.moments(some) for some in trained(pictures, where))
    count = max(4, min(COUNT, VALUES // pictures.pixels[0].numel()))
    images, held_out = unseen_first(pictures, count, where)
    if foreign:  # all of them are unseen, whatever set they would be in
        images = images_from_pixels(pictures.pixels[:count]).to(where)
    efficientnet_lite0().to(where)
    with console.bar("inspect"):
        found = measure(space, images, len(images) if foreign else held_out, critic=critic_of(folder))
    diagnosis = diagnose(found)
    about = {"data": source, "state": stage, "device": str(where), "foreign": foreign}
    said = as_json(run, about, found, diagnosis)
    write_json(out / "inspection.json", said)
    write_inspection(out, said, plates(space, images))
    tell(diagnosis, console)
    return out


def find_weights(folder: Path, recipe: Recipe) -> tuple[dict[str, torch.Tensor], str]:
    """Of the finished model, else of the newest checkpoint of the autoencoder, without statistics; and which it was."""
    if is_whole(folder / "model"):
        return load_file(folder / "model" / "autoencoder.safetensors"), "finished"
    whole = [path for path in checkpoints(folder / "checkpoints", "autoencoder") if is_whole(path)]
    if not whole and isinstance(recipe.space, ImportedSpace) and isinstance(recipe.autoencoder.network, KlConfig):
        weights = diffusers.read_weights(Path(recipe.space.path), recipe.autoencoder.network)
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


def critic_of(folder: Path) -> CriticHealth | None:
    """What the log says of the critic; None where there is none, or it has not been listened to yet."""
    run = Run.open(folder)
    terms = within(run.latest("step", "autoencoder"), "terms")
    guarded, checked = run.history("guard", "autoencoder"), run.history("check", "autoencoder")
    right, gap = number(terms.get("critic.right")), number(terms.get("critic.gap"))
    found = [psnr for one in checked if (psnr := numbers(within(one, "measures")).get("psnr"))]
    if right is None or gap is None or not found or "autoencoder.adversarial" not in terms:
        return None
    back = sum(bool(one.get("taken_back")) for one in guarded)
    trust = number(guarded[-1].get("trust")) if guarded else None
    return CriticHealth(right, gap, max(found), found[-1], back, 1.0 if trust is None else trust)


def short_look(run: Run, space: LatentSpace, pictures: Pictures, console: Console, force: bool) -> None:
    """The doctor's short look between two legs. Raises `UserError` where going on would waste the user's time."""
    found = run.state.inspection
    if found is None:
        found = run.state.inspection = seen_in_short(run, space, pictures, console)
    if found.advice and not force and not found.forced:
        raise UserError(
            f"{found.verdict} {found.advice}. A denoiser on it would be a waste of time, so the run has stopped; "
            f"look closer with: calotype inspect {run.folder}; or go on with: calotype resume {run.folder} --force"
        )
    found.forced = bool(found.advice)
    run.save()


def seen_in_short(run: Run, space: LatentSpace, pictures: Pictures, console: Console) -> Inspection:
    device = space.mean.device
    images, held_out = unseen_first(pictures, look_count(pictures.pixels[0].numel()), device)
    efficientnet_lite0().to(device)
    space.requires_grad_(False)
    measures = measure(space, images, held_out, thorough=False, critic=critic_of(run.folder))
    diagnosis = diagnose(measures)
    tell(diagnosis, console)
    run.log("inspection", **known({**summary(diagnosis), "measures": asdict(measures)}))
    advice = "" if diagnosis.fit else diagnosis.advice
    return Inspection(verdict=diagnosis.verdict, score=diagnosis.score, advice=advice)


def tell(diagnosis: Diagnosis, console: Console) -> None:
    console.say(f"autoencoder: {diagnosis.verdict}")
    for one in diagnosis.findings:
        console.say(f"- {one.name}: {one.what}; {one.advice}")


def summary(diagnosis: Diagnosis) -> dict[str, Any]:
    findings = [asdict(one) for one in diagnosis.findings]
    return {"verdict": diagnosis.verdict, "fit": diagnosis.fit, "score": diagnosis.score, "findings": findings}


def as_json(run: Run, about: dict[str, Any], measures: Measures, diagnosis: Diagnosis) -> dict[str, Any]:
    name = run.name
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    facts = {"format": FORMAT, "name": name, "created": created, **about}
    return dict(known({**facts, **summary(diagnosis), "measures": asdict(measures)}))


def known(value: Any) -> Any:
    """The same, with `None` for what is no number: JSON has no word for that."""
    match value:
        case dict():
            return {key: known(one) for key, one in value.items()}
        case list():
            return [known(one) for one in value]
        case float():
            return value if math.isfinite(value) else None
    return value


def plates(space: LatentSpace, images: Images) -> dict[str, Image.Image]:
    """Originals, reconstructions and errors; and the channels of a few latents, black to white over six spreads."""
    some = images[: max(2, min(SHOWN, SHOWN_VALUES // images[0].numel()))]
    latents = space.encode(some)
    fake = space.decode(latents)
    rows = torch.cat([some, fake, error_map(some, fake)])
    few = (latents[:SHOWN_LATENTS] / 3).clamp(-1, 1).flatten(0, 1)[:, None].expand(-1, 3, -1, -1).contiguous()
    enlarged = few.repeat_interleave(TILE, 2).repeat_interleave(TILE, 3) if few.shape[-1] < 32 else few
    return {
        "reconstructions": grid(pils_from_images(rows), len(some)),
        "channels": grid(pils_from_images(enlarged), min(space.channels, 16)),
    }
