"""Decoding and encoding in tiles: memory and seconds of large pictures, and how far tiles are from the whole.

`python bench/tiles.py`: a fresh process each, with the networks that the plan takes for f8 and f16, all weights random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import torch

from calotype.machine import peak_memory
from calotype.nets.blocks import channels_last
from calotype.nets.vae import Vae, VaeConfig
from calotype.planning.laws import vae_widths
from calotype.spaces.latent import LatentSpace
from calotype.spaces.tiles import TILE, CellScale, measure_reach, tiled
from calotype.types import Rng

CHANNELS = {8: 32, 16: 16}


def random_space(reduction: int) -> LatentSpace:
    """No weight is 0, so that everything that can be seen is seen."""
    torch.manual_seed(0)
    vae = Vae(VaeConfig(reduction=reduction, channels=CHANNELS[reduction], widths=tuple(vae_widths(reduction))))
    for parameter in vae.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    return LatentSpace(channels_last(vae)).eval().requires_grad_(False)


def one(what: str, reduction: int, side: int) -> None:
    """Prints a line; the picture and all that torch takes are in the memory."""
    space, device = random_space(reduction), torch.device("cpu")
    before = peak_memory(device)
    cells = side // reduction
    if what == "difference":
        latents, scale = Rng(("latents",)).normal(1, space.channels, cells, cells), CellScale(1, reduction)
        reach = measure_reach(space.vae.decode, latents, scale)
        whole = space.vae.decode(latents)
        difference = tiled(space.vae.decode, latents, scale, 3, reach, TILE // 2 // reduction) - whole
        printed = f"reach {reach.cells} cells, exact {reach.exact}; tiles of {TILE // 2} px against the whole: "
        print(f"f{reduction} {side} px: {printed}{difference.abs().max():.1e} at a spread of {whole.std():.2f}")
        return
    start = time.perf_counter()
    if what == "decode":
        space.decode(Rng(("latents",)).normal(1, space.channels, cells, cells))
    else:
        space.moments(torch.rand(1, 3, side, side) * 2 - 1)
    seconds, peak = time.perf_counter() - start, peak_memory(device)
    print(f"f{reduction} {what} {side} px: {peak / 1e9:.2f} GB at most ({before / 1e9:.2f} before), {seconds:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--one", nargs=3, metavar=("WHAT", "REDUCTION", "SIZE"))
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one[0], int(arguments.one[1]), int(arguments.one[2]))
        return
    for reduction in CHANNELS:
        for what, side in (("decode", arguments.size), ("encode", arguments.size), ("difference", 1536)):
            command = [sys.executable, __file__, "--one", what, str(reduction), str(side)]
            print(subprocess.run(command, capture_output=True, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    with torch.no_grad():
        main()
