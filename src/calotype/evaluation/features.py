"""Features of a classifier of ImageNet: one row of numbers a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from calotype.data.caches import open_cache, write_cache
from calotype.nets.perceptual import LITE0_SHA256, perceptual_distance, pretrained_lite0
from calotype.nets.weights import check_tensors
from calotype.threads import in_slices
from calotype.types import Images, OtherImages, UserError

FEATURE_SIZE = 128
"""Side in pixels to which every picture is brought. One size for all, because features change with the scale: so a
model of 64 px can be held against one of 256 px, and both cost the same: a third of what the 224 px cost that the
network was trained at."""
PERCEPTUAL_SIZE = 64
"""Smallest side in pixels for the perceptual distance: below that the network has few places left."""


@runtime_checkable
class FeatureNetwork(Protocol):
    """Features of pictures. Any object with these four members can take the place of `Lite0`."""

    name: str
    """Short; part of the name of the distance."""
    weights: str
    """Hash of the weights: numbers of different weights cannot be compared."""
    preparation: str
    """How a picture is brought to the network: size and resize filter."""

    def look(self, images: OtherImages) -> Float[Tensor, "_ _"]:
        """One row of features a picture."""
        ...


class Lite0:
    """EfficientNet-Lite0's features before its classifier, averaged over the picture; and its perceptual distance.

    Shrinking is antialiased: without that, sets that differ only in how they were shrunk are apart (arXiv 2104.11222).
    Raises `UserError` if its weights are missing.
    """

    name = "Lite0"
    weights = LITE0_SHA256
    preparation = f"{FEATURE_SIZE} px, bilinear, antialiased"

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device, self.network = torch.device(device), pretrained_lite0(device)

    def look(self, images: OtherImages) -> Float[Tensor, "_ 1280"]:
        images = images.to(self.device).float()
        size = (FEATURE_SIZE, FEATURE_SIZE)
        return self.network.pooled(F.interpolate(images, size=size, mode="bilinear", antialias=True))

    def perceptual_distance(self, images: Images, others: Images) -> Float[Tensor, " batch"]:
        """At `PERCEPTUAL_SIZE` or above."""
        if images.shape[-1] < PERCEPTUAL_SIZE:
            size = (PERCEPTUAL_SIZE, PERCEPTUAL_SIZE)
            images, others = (F.interpolate(each, size=size, mode="bilinear") for each in (images, others))
        return perceptual_distance(self.network, images, others)


def distance_name(network: FeatureNetwork) -> str:
    """Only the Fréchet distance of Inception's features may be called FID; every other bears its network's name."""
    return "FID" if network.name == "Inception" else f"FD-{network.name}"


@torch.no_grad()
def features(images_batches: Iterable[OtherImages], network: FeatureNetwork) -> Float[np.ndarray, "count channel"]:
    """Of one batch at least."""
    return np.concatenate([in_slices(network.look, images).cpu().double().numpy() for images in images_batches])


def kept_features(
    path: Path, chosen: Int[Tensor, " count"], look: Callable[[Tensor], Float[np.ndarray, "count channel"]]
) -> Float[np.ndarray, "count channel"]:
    """Features of the chosen pictures; those in the file at `path` are not computed again.

    `path` must be named by all that features depend on: see `features_key`.
    """
    try:
        stored = open_cache(path) or {}
        known, rows = stored["chosen"], stored["features"]
        check_tensors({"chosen": known}, {"chosen": torch.empty(len(rows), dtype=torch.long)}, str(path))
    except (UserError, KeyError, TypeError):  # none yet, or damaged
        known, rows = torch.empty(0, dtype=torch.long), torch.empty(0, 0)
    if len(missing := chosen[~torch.isin(chosen, known)].unique()):
        new = torch.from_numpy(look(missing)).float()
        known, rows = torch.cat([known, missing]), torch.cat([rows, new]) if len(rows) else new
        write_cache(path, {"chosen": known, "features": rows})
    order = known.argsort()
    return rows[order[torch.searchsorted(known[order], chosen)]].double().numpy()


def features_key(network: FeatureNetwork, content: str, size: int) -> str:
    """Changes with the pictures, the network's weights and the preparation, and with nothing else."""
    identity = f"{content} {size} px, {network.name} {network.weights} {network.preparation}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
