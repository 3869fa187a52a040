"""Recipes of the first stage against one another: what each makes of the same seconds, on held-out pictures.

    python bench/recipes.py [FOLDER] [--size 128] [--seconds 150] [--only NAME ...] [--out FOLDER]

Each starts from what the plan proposes and changes one thing. Seconds are of processor time, so that other jobs do not
count; on one core they are those of the clock (`taskset -c 0`). Beside the reconstruction stands the doctor's score,
which asks how fit the latents are to diffuse on.
"""

from __future__ import annotations

import argparse
import time
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image

from calotype.data.folder import Pictures, read_folder
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.demo.portraits import read_portraits
from calotype.evaluation.autoencoder import AutoencoderMeasures, measure_autoencoder
from calotype.evaluation.diagnosis import diagnose
from calotype.evaluation.features import Lite0
from calotype.machine import examine
from calotype.nets import vae
from calotype.nets.kl import Autoencoder
from calotype.planning.choose import propose
from calotype.planning.laws import vae_widths
from calotype.recipe import Recipe
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace
from calotype.tables import merge
from calotype.training.leg import Leg
from calotype.training.legs import autoencoder_leg
from calotype.training.previews import INSPECTED, validation_first, validation_images

CHECKED, MEASURED = 48, 64
SHOWN, SIDE = 4, 512


def network(reduction: int, channels: int, **others: object) -> dict[str, object]:
    return {"network": {"reduction": reduction, "channels": channels, "widths": vae_widths(reduction), **others}}


def losses(**weights: float) -> dict[str, object]:
    return {"losses": weights}


RECIPES: dict[str, dict[str, object]] = {
    "the plan's": {},
    "f4, 8 channels": network(4, 8),
    "f8, 32 channels": network(8, 32),
    "f16, 64 channels": network(16, 64),
    "f32, 192 channels": network(32, 192),
    "no closed-form start": {},
    "no shortcuts": {},
    "no edges": losses(edges=0.0),
    "no perceptual loss": losses(perceptual=0.0),
    "perceptual x 4": losses(perceptual=0.08),
    "no critic": losses(adversarial=0.0),
    "half the rate": {"learn": {"learning_rate": 1e-3}},
    "warm-up of a quarter": {"learn": {"learning_rate": 2e-3, "warmup": 0.25}},
    "encoder 2, decoder 1": {"network": {"encoder_blocks": 2, "decoder_blocks": 1}},
    "encoder 1, decoder 3": {"network": {"encoder_blocks": 1, "decoder_blocks": 3}},
}


def begin_anywhere(network: vae.Vae, pictures: Pictures, device: torch.device) -> None:
    """In place of the closed form: the linear path begins at random and is trained."""
    for conv in (network.linear_in, network.linear_out):
        conv.reset_parameters()
        conv.requires_grad_(True)


SURGERY = {
    "no closed-form start": ("calotype.build.start_linear", begin_anywhere),
    "no shortcuts": ("calotype.nets.vae.match_channels", lambda image, count: torch.zeros(())),
}


def learned(recipe: Recipe, pictures: Pictures, device: torch.device, seconds: float) -> Leg[Autoencoder]:
    """After so many seconds of the processor, the closed-form start among them; progress is the share of them."""
    start = time.process_time()
    leg = autoencoder_leg(recipe, pictures, device)
    progress = leg.progress
    progress.total = 10**6 * recipe.autoencoder.batch
    for _ in leg.steps():
        spent = time.process_time() - start
        progress.total = max(progress.images_seen, round(progress.images_seen * seconds / spent))
    return leg


def looked_at(leg: Leg[Autoencoder], pictures: Pictures, device: torch.device) -> AutoencoderMeasures:
    space = LatentSpace(leg.trained)
    count = min(CHECKED, INSPECTED.count(pictures.pixels[0].numel()))
    chosen = pictures.train_indices[: max(MEASURED, 4 * count)]
    space.measure(space.moments(images_from_pixels(pictures.pixels[some]).to(device)) for some in chosen.split(4))
    return measure_autoencoder(space, *validation_first(pictures, count, device), Lite0(device))


@torch.no_grad()
def drawn(leg: Leg[Autoencoder], pictures: Pictures, device: torch.device) -> Image.Image:
    """Held-out pictures above what the autoencoder makes of them: their middles, where they are large."""
    images = validation_images(pictures, SHOWN, device)
    fake = torch.cat([leg.trained.decode(leg.trained.encode(one).mean).clamp(-1, 1) for one in images.split(1)])
    edge = max(0, (images.shape[-1] - SIDE) // 2)
    shown = [one[..., edge : edge + SIDE, edge : edge + SIDE] for one in (images, fake)]
    return grid(pils_from_images(torch.cat(shown)), len(images))


def row(name: str, recipe: Recipe, pictures: Pictures, device: torch.device, seconds: float, out: Path | None) -> str:
    with patch(*SURGERY[name]) if name in SURGERY else nullcontext():
        leg = learned(recipe, pictures, device, seconds)
        measures = looked_at(leg, pictures, device)
        if out:
            drawn(leg, pictures, device).save(out / f"{name.replace(' ', '-')}.png")
    found, diagnosis = measures.reconstruction, diagnose(measures)
    equivariance = " ".join(f"{value:.2f}" for value in measures.equivariance.values())
    findings = ", ".join(one.name for one in diagnosis.findings) or "nothing"
    return (
        f"{name} | {leg.progress.images_seen:,} | {found.psnr:.2f} | {found.ssim:.3f} | {found.perceptual:.3f} | "
        f"{equivariance} | {diagnosis.score:.3f} | {findings}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of pictures; none: the embedded portraits")
    parser.add_argument("--count", type=int, help="of portraits; all where it is left out")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, default=150)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--out", type=Path, help="a folder for pictures: originals above reconstructions")
    arguments = parser.parse_args()
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
    size, machine = arguments.size, examine()
    pictures = read_folder(arguments.folder, size) if arguments.folder else read_portraits(size, arguments.count)
    what = f"{len(pictures.train_indices):,} pictures of {size} px, {len(pictures.validation_indices)} held out"
    print(f"{machine}; {what}, {arguments.seconds:.0f} s each", flush=True)
    print("recipe | pictures seen | PSNR | SSIM | perceptual | equivariance | score | found", flush=True)
    proposal, _ = propose(pictures, machine, arguments.seconds, {"size": size, "stages": [size]})
    for name in arguments.only:
        recipe = parse_recipe(merge(proposal, {"autoencoder": RECIPES[name]}))
        print(row(name, recipe, pictures, machine.device, arguments.seconds, arguments.out), flush=True)


if __name__ == "__main__":
    main()
