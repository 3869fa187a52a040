"""How much of a picture its autoencoder keeps, beside what it kept before it was trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from calotype.build import build_space, start_linear
from calotype.data.folder import Pictures
from calotype.data.images import rounded
from calotype.diffusion.stage import in_turn
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.features import features
from calotype.evaluation.intervals import mean_estimate
from calotype.evaluation.measures import as_json, distance_key, measured
from calotype.evaluation.reconstruction import WINDOW, at_least_64, psnr, ssim
from calotype.evaluation.references import Halves, Library
from calotype.machine import deterministic
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.nets.vae import Vae
from calotype.spaces.latent import LatentSpace
from calotype.types import Images

ENOUGH = 2000
"""Pictures that the closed-form start of an autoencoder is made from."""
EQUAL = 120.0
"""dB of two pictures that are equal."""


def reconstructions(
    one: Candidate, library: Library, trained: Pictures, pair: Halves, seed: int
) -> dict[str, Any] | None:
    """Of real pictures; None for a model without an autoencoder.

    The floor is other real pictures in their place; the ceiling, the autoencoder's closed form before any training.
    """
    space, size = one.model.stages[0].space, one.recipe.chain[0]
    if not isinstance(space, LatentSpace):
        return None
    real, key = library.features(pair.chosen, size), distance_key(library.network)
    floor = measured(library.features(pair.others, size), real, seed, library.network)
    before = untrained(one, trained)
    return {
        "samples": through(space, size, library, pair.chosen, seed),
        "floor": {key: floor[key], "n": floor["n"]},
        "ceiling": through(before, size, library, pair.chosen, seed),
    }


def untrained(one: Candidate, pictures: Pictures) -> LatentSpace:
    """As the run had it at its start, but for the pictures that the closed form is made from; random if imported."""
    deterministic(one.recipe.seed)
    space = build_space(one.recipe).to(one.model.device)
    if isinstance(space.vae, Vae):
        few = pictures.first(ENOUGH).shrunk(one.recipe.chain[0])
        if not few.split.train.any():  # other pictures, as those of the run cannot be read
            few = replace(few, split=replace(few.split, train=~few.split.train))
        start_linear(space.vae, few, one.model.device)
    return space.eval()


def through(space: LatentSpace, size: int, library: Library, chosen: Tensor, seed: int) -> dict[str, Any]:
    rows, close = [], []
    for part in in_turn(len(chosen), size, size):
        images = library.images(chosen[part], size).to(space.mean.device)
        fake = rounded(space.decode(space.encode(images)))
        rows.append(features([fake], library.network))
        close.append(closeness(images, fake))
    key = distance_key(library.network)
    apart = measured(np.concatenate(rows), library.features(chosen, size), seed, library.network)
    pairs = {name: as_json(mean_estimate(np.concatenate([one[name] for one in close]))) for name in close[0]}
    return {**pairs, key: apart[key], "n": apart["n"]}


def closeness(images: Images, fake: Images) -> dict[str, Float[np.ndarray, " batch"]]:
    """One number a picture; SSIM only where its window fits."""
    network = efficientnet_lite0().to(images.device)
    found = {
        "psnr": psnr(images, fake).clamp(max=EQUAL),
        "perceptual": perceptual_distance(network, at_least_64(images), at_least_64(fake)),
    }
    if images.shape[-1] >= WINDOW:
        found["ssim"] = ssim(images, fake)
    return {name: values.double().cpu().numpy() for name, values in found.items()}
