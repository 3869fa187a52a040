"""Whether the doctor's score ranks autoencoders as the denoisers trained on them do: Spearman's correlation.

    python bench/doctor.py [--size 32] [--pictures 800] [--autoencoder 240] [--denoiser 480] [--count 100]

Six autoencoders of portraits, then as many denoisers with an equal number of pictures each, and the FD-Lite0 of their
samples against as many held-out pictures. Six is few: by chance alone 0.83 and more comes in 1 of 35 cases.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import LatentCache, Sides, cache_latents
from calotype.demo.portraits import read_portraits
from calotype.diffusion.stage import Stage, generate
from calotype.evaluation.autoencoder import measure_autoencoder
from calotype.evaluation.diagnosis import diagnose
from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import Lite0, features
from calotype.planning.laws import vae_widths
from calotype.recipe import Recipe
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace
from calotype.tables import merge
from calotype.training.examples import Bucket, latent_examples
from calotype.training.legs import autoencoder_leg, denoiser_leg
from calotype.training.previews import INSPECTED, each_class, validation_first
from calotype.types import Images, Rng

CPU = torch.device("cpu")
AUTOENCODERS = {
    "linear start": {"images": 8},
    "trained": {},
    "noisy posterior": {},
    "many channels": {"network": {"reduction": 4, "channels": 24, "widths": vae_widths(4)}},
    "coarse": {"network": {"reduction": 8, "channels": 16, "widths": vae_widths(8)}},
    "wrong statistics": {},
}
COLLAPSED = 40.0
"""Added to the bias of the log variance (times 0.1): noise as large as three quarters of the spread, where a strong KL
loss leads in many steps."""
FORGOTTEN = 5.0
"""A scale of the latents that the statistics do not know of, about that of Stable Diffusion (1 / 0.18215)."""


def settings(arguments: argparse.Namespace, changes: dict[str, object]) -> Recipe:
    usual = {"images": arguments.autoencoder, "network": {"reduction": 4, "channels": 8, "widths": vae_widths(4)}}
    backbone = {"kind": "dit", "width": 128, "depth": 3, "heads": 2}
    denoiser = {"images": arguments.denoiser, "batch": 32, "backbone": backbone, "prior": arguments.prior}
    denoiser["learn"] = {"learning_rate": 0.003, "warmup": 0.2}
    recipe = {"size": arguments.size, "autoencoder": merge(usual, changes), "denoiser": denoiser}
    return parse_recipe({**recipe, "sampling": {"steps": 16, "guidance": 1.0}})


def first_stage(name: str, recipe: Recipe, pictures: Pictures, folder: Path) -> tuple[LatentSpace, LatentCache]:
    leg = autoencoder_leg(recipe, pictures, CPU)
    for _ in leg.steps():
        pass
    space = LatentSpace(leg.trained)
    if name == "noisy posterior":
        leg.trained.encoder.out.bias[space.channels :] += COLLAPSED
    cache = cache_latents(space, pictures.pixels, pictures.content, Sides(), folder, CPU, lambda done, total: None)
    space.measure(moments.float() for moments in cache.of(pictures.train_indices))
    if name == "wrong statistics":
        space.spread /= FORGOTTEN
    return space, cache


def samples(stage: Stage, recipe: Recipe, classes: int, count: int) -> Iterator[Images]:
    rngs = [Rng(("doctor", index)) for index in range(count)]
    labels = each_class(count, classes, CPU)
    for start in range(0, count, 50):
        part = slice(start, start + 50)
        yield generate([stage], labels[part], [recipe.sampling], rngs[part])


def ranks(values: list[float]) -> np.ndarray:
    return np.argsort(np.argsort(values)).astype(float)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--pictures", type=int, default=800)
    parser.add_argument("--autoencoder", type=int, default=240)
    parser.add_argument("--denoiser", type=int, default=480)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--prior", choices=["gaussian", "none"], default="gaussian")
    arguments = parser.parse_args()
    begun, pictures = time.perf_counter(), read_portraits(arguments.size, arguments.pictures)
    images, held_out = validation_first(pictures, INSPECTED.count(3 * arguments.size**2), CPU)
    lite0 = Lite0()
    chosen = pictures.validation_indices[: arguments.count]
    real = features(images_from_pixels(pictures.pixels[chosen]).split(50), lite0)
    scores, distances = [], []
    for name, changes in AUTOENCODERS.items():
        recipe = settings(arguments, changes)
        with tempfile.TemporaryDirectory() as folder:
            space, cache = first_stage(name, recipe, pictures, Path(folder))
        measures = measure_autoencoder(space, images, held_out, lite0, thorough=False)
        diagnosis = diagnose(measures)
        form = Bucket(pictures, latent_examples(recipe, pictures, cache, CPU))
        leg = denoiser_leg(recipe, [form], space, CPU)
        for _ in leg.steps():
            pass
        made = features(samples(leg.trained, recipe, len(pictures.classes), len(chosen)), lite0)
        scores.append(diagnosis.score)
        distances.append(frechet_distance(made, real))
        found = ", ".join(one.name for one in diagnosis.findings) or "nothing"
        left = " ".join(f"{value:.2f}" for value in measures.developed.values())
        print(
            f"{name:<17} score {scores[-1]:.3f} (lost by sigma: {left}), {measures.reconstruction.psnr:.1f} dB, "
            f"FD-Lite0 {distances[-1]:.0f}; found: {found}; {time.perf_counter() - begun:.0f} s",
            flush=True,
        )
    correlation = np.corrcoef(ranks(scores), ranks([-distance for distance in distances]))[0, 1]
    print(f"Spearman {correlation:.2f} of six autoencoders, {len(chosen)} samples each")


if __name__ == "__main__":
    main()
