"""Our autoencoder against diffusers' `AutoencoderKL`: held-out PSNR after the same seconds on the same cores.

    python bench/first_stage.py [FOLDER] [--size 128] [--seconds 120 600] [--rates 4.5e-6 1e-4]

Both see the same pictures in the same order and have latents of the same shape; theirs has the widths whose operations
a picture are nearest to ours. It is trained as diffusers' own `train_autoencoderkl.py` does by default: batches of 4,
AdamW at 4.5e-6 with a weight decay of 0.01, gradients clipped at 1, squared error summed over a picture plus half a
perceptual distance taken under `no_grad`, 1e-6 of the KL. Its critic is idle for the first 50,000 steps and is left
out, which gives it more steps. A second rate is tried because the first is for weights that are there already.
Ours is trained as the plan would, once for each time, since its schedules follow the time; theirs has a constant rate.
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, see cli/process.py

import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from calotype.cli.process import tune_process
from calotype.data.folder import Pictures, read_folder
from calotype.demo.portraits import read_portraits
from calotype.evaluation.autoencoder import psnr
from calotype.machine import Machine, examine
from calotype.nets.perceptual import perceptual_distance, pretrained_lite0
from calotype.planning.choose import propose
from calotype.recipe import Recipe
from calotype.settings import parse_recipe
from calotype.training.examples import picture_source
from calotype.training.legs import autoencoder_leg
from calotype.training.previews import validation_images
from calotype.types import Images

BATCH, WEIGHT_DECAY, CLIP, PERCEPTUAL, KL = 4, 1e-2, 1.0, 0.5, 1e-6
BLOCK_GROUPS = 4
CHECKED = 128


class Reconstruct(nn.Module):
    """There and back through the mean of the posterior, for either network."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @torch.no_grad()
    def forward(self, images: Images) -> Images:
        if isinstance(self.network, AutoencoderKL):
            return self.network.decode(self.network.encode(images).latent_dist.mean).sample
        return self.network.decode(self.network.encode(images).mean)


def quality(network: nn.Module, images: Images) -> float:
    made = torch.cat([Reconstruct(network)(some) for some in images.split(8)]).clamp(-1, 1)
    return float(psnr(images, made).mean())


def operations(network: nn.Module, size: int) -> int:
    """Of one picture there and back."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        Reconstruct(network)(torch.zeros(1, 3, size, size, device=device))
    return counter.get_total_flops()


def ours(recipe: Recipe, pictures: Pictures, device: torch.device, seconds: float) -> tuple[nn.Module, int]:
    """The averaged weights after so many seconds, and the pictures seen: progress is the share of the time."""
    start = time.perf_counter()
    leg = autoencoder_leg(recipe, pictures, device)
    progress = leg.progress
    progress.seconds = time.perf_counter() - start  # its closed-form start is part of it
    progress.total = 10**6 * recipe.autoencoder.batch
    for _ in leg.steps():
        progress.total = max(progress.images_seen, round(progress.images_seen * seconds / progress.seconds))
    return leg.trained, progress.images_seen


def comparable(recipe: Recipe, size: int, wanted: int) -> AutoencoderKL:
    """Of the width whose operations are nearest to those that are wanted; they are counted without being done."""

    def distance(width: int) -> float:
        with torch.device("meta"):
            return abs(math.log(operations(their_network(recipe, width), size) / wanted))

    return their_network(recipe, min(range(BLOCK_GROUPS, 33 * BLOCK_GROUPS, BLOCK_GROUPS), key=distance))


def their_network(recipe: Recipe, width: int) -> AutoencoderKL:
    """As Stable Diffusion's, but narrow: levels of 1, 2, 4, 4 times a width, two blocks each, attention below."""
    network = recipe.autoencoder.network
    levels = network.reduction.bit_length()
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=tuple(width * min(4, 2**level) for level in range(levels)),
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=2,
        latent_channels=network.channels,
        norm_num_groups=BLOCK_GROUPS,
    )


def follow_their_script(
    theirs: AutoencoderKL, recipe: Recipe, pictures: Pictures, device: torch.device, rate: float, marks: list[float]
) -> list[tuple[float, int]]:
    """Held-out PSNR and pictures seen at each of these seconds of training."""
    theirs.train().to(device)
    features, source = pretrained_lite0(device), picture_source(recipe, pictures, device)
    optimizer = torch.optim.AdamW(theirs.parameters(), rate, (0.9, 0.999), 1e-8, WEIGHT_DECAY)
    found, seen, spent = [], 0, 0.0
    for mark in marks:
        while spent < mark:
            start = time.perf_counter()
            step(theirs, features, source.batch(seen, BATCH).clean, optimizer)
            seen, spent = seen + BATCH, spent + time.perf_counter() - start
        found.append((quality(theirs, validation_images(pictures, CHECKED, device)), seen))
    return found


def step(theirs: AutoencoderKL, features: nn.Module, real: Images, optimizer: torch.optim.Optimizer) -> None:
    posterior = theirs.encode(real).latent_dist
    fake = theirs.decode(posterior.sample()).sample
    with torch.no_grad():
        distance = perceptual_distance(features, fake, real)[:, None, None, None]
    loss = ((fake - real).square() + PERCEPTUAL * distance).sum() / len(real) + KL * posterior.kl().sum() / len(real)
    loss.backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), CLIP)
    optimizer.step()
    optimizer.zero_grad()


def compare(pictures: Pictures, machine: Machine, size: int, marks: list[float], rates: list[float]) -> None:
    held_out = validation_images(pictures, CHECKED, machine.device)
    for seconds in marks:
        proposal, _ = propose(pictures, machine, seconds, {"size": size, "stages": [size]})
        recipe = parse_recipe(proposal)
        vae, seen = ours(recipe, pictures, machine.device, seconds)
        print(f"ours, {seconds:.0f} s: {quality(vae, held_out):.2f} dB, {seen:,} pictures", flush=True)
    wanted = operations(vae, size)
    for rate in rates:
        theirs = comparable(recipe, size, wanted)
        about = f"widths {theirs.config.block_out_channels}, {operations(theirs, size) / wanted:.2f} x the operations"
        found = follow_their_script(theirs, recipe, pictures, machine.device, rate, marks)
        for seconds, (decibels, seen) in zip(marks, found, strict=True):
            print(f"theirs at {rate:g}, {seconds:.0f} s: {decibels:.2f} dB, {seen:,} pictures ({about})", flush=True)


def main() -> None:
    tune_process()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="of pictures; none: the embedded portraits")
    parser.add_argument("--count", type=int, help="of portraits; all where it is left out")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--seconds", type=float, nargs="+", default=[120.0, 600.0])
    parser.add_argument("--rates", type=float, nargs="+", default=[4.5e-6, 1e-4])
    arguments = parser.parse_args()
    size, machine = arguments.size, examine()
    pictures = read_folder(arguments.folder, size) if arguments.folder else read_portraits(size, arguments.count)
    what = f"{len(pictures.train_indices):,} pictures of {size} px, {len(pictures.validation_indices)} held out"
    print(f"{machine}; {what}, of which {min(CHECKED, len(pictures.validation_indices))} are looked at", flush=True)
    compare(pictures, machine, size, sorted(arguments.seconds), arguments.rates)


if __name__ == "__main__":
    main()
