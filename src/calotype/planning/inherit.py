"""What a run takes over from the one that it starts from: settings, and whether its autoencoder is kept."""

from __future__ import annotations

import math
from typing import Any

import torch

from calotype.build import build_autoencoder, start_linear
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, shown
from calotype.data.listing import plural
from calotype.data.split import evenly
from calotype.nets.kl import Autoencoder
from calotype.nets.vae import Vae, VaeConfig
from calotype.recipe import Recipe, RunSpace
from calotype.spaces.latent import LatentSpace
from calotype.tables import without
from calotype.training.warm_start import WarmStart
from calotype.types import Images, UserError

MOST_COMPARED = 64
"""Validation pictures, at most, whose reconstructions decide whether an autoencoder is kept."""
MOST_WORSE = 1.0
"""dB. The closed form of some pictures is about as good for others of their kind; for another kind it loses more."""


def inherit(
    start: WarmStart | None, pictures: Pictures, wanted: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings to lay over what is proposed and below those that the user has `wanted`, and the plan's reasons.

    An autoencoder is kept unless a new one begins much better.
    """
    if start is None:
        if wanted.get("space", {}).get("kind") == "run":
            raise UserError("space.kind is run, but there is no run to start from; add --from RUN, or leave it out")
        return {}, {}
    settings = start.settings(wanted, any(pictures.captions.of) if pictures.captions else False)
    if start.again is not None:
        return settings, {"autoencoder": "the run goes on"}
    if "space" not in settings or "space" in wanted:
        return settings, {}
    kept, why = compare_autoencoders(start, pictures.shrunk(start.recipe.chain[0]), device)
    return settings if kept else without(settings, "space"), {"autoencoder": why}


def compare_autoencoders(start: WarmStart, pictures: Pictures, device: torch.device) -> tuple[bool, str]:
    """Whether that of the run reconstructs validation pictures about as well as the closed form of a new one, or
    better; with a sentence that says so."""
    space, network = start.stages[0].space, start.recipe.autoencoder.network
    assert isinstance(space, LatentSpace)
    images = images_from_pixels(pictures.pixels[evenly(pictures.validation_indices, MOST_COMPARED)]).to(device)
    before = reconstruction_psnr(space.vae, images)
    about = f"its reconstructions of {plural(len(images), 'validation picture')} have {before:.1f} dB"
    if not isinstance(network, VaeConfig):
        return True, f"{about}; it was imported"
    new = build_autoencoder(network, "float32").to(device)
    assert isinstance(new, Vae)
    start_linear(new, pictures, device)
    closed_form = reconstruction_psnr(new, images)
    return before >= closed_form - MOST_WORSE, f"{about}, and a new one would begin with {closed_form:.1f} dB"


@torch.no_grad()
def reconstruction_psnr(vae: Autoencoder, images: Images) -> float:
    """Of all images together, in dB."""
    pairs = ((part, vae.decode(vae.encode(part).mean).clamp(-1, 1)) for part in images.split(16))
    errors = torch.cat([(decoded - part).square().flatten(1).mean(1) for part, decoded in pairs])
    return 10 * math.log10(4 / max(float(errors.mean()), 1e-12))


def explain_start(start: WarmStart, recipe: Recipe, classes: tuple[str, ...], reasons: dict[str, str]) -> list[str]:
    """Notes on what goes on, and on what does not."""
    notes = start.notes(recipe, classes)
    if (why := reasons.get("autoencoder")) and not isinstance(recipe.space, RunSpace):
        notes.append(f"the autoencoder of {shown(start.name)} is not kept: {why}")
    return notes
