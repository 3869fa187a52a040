"""Features of a classifier of ImageNet: one row of numbers a picture."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from calotype.files import write_tensors
from calotype.nets.perceptual import LITE0_SHA256, EfficientNetLite0, efficientnet_lite0

AnyImages = Float[Tensor, "_ 3 _ _"]  # in [-1, 1]; each batch may have a size of its own
CHANNELS = 1280
SIZE = 128
"""Side in pixels at which every picture is looked at. One size for all, because features change with the scale: so a
model of 64 px can be held against one of 256 px, and both cost the same: a third of what the 224 px cost that the
network was trained at."""
INCEPTION = "Inception"


@runtime_checkable
class FeatureNetwork(Protocol):
    """Features of pictures. Any object with these four members can take the place of `Lite0`."""

    name: str
    """Short; part of the name of the distance."""
    weights: str
    """Hash of the weights: numbers of different weights cannot be compared."""
    preparation: str
    """How a picture is brought to the network: size and resize filter."""

    def look(self, images: AnyImages) -> Float[Tensor, "_ _"]:
        """One row of features a picture."""
        ...


class Lite0:
    """EfficientNet-Lite0's features before its classifier, averaged over the picture.

    Shrinking is antialiased: without that, sets that differ only in how they were shrunk are apart (arXiv 2104.11222).
    """

    name = "Lite0"
    weights = LITE0_SHA256
    preparation = f"{SIZE} px, bilinear, antialiased"

    def __init__(self, device: torch.device | None = None) -> None:
        """On `device`, or, if None, wherever the pictures are."""
        self.device = device

    def look(self, images: AnyImages) -> Float[Tensor, "_ 1280"]:
        device = self.device or images.device
        return lite0_on(device).pooled(_at_size(images.to(device)))


LITE0 = Lite0()


@cache
def lite0_on(device: torch.device) -> EfficientNetLite0:
    """A frozen copy for evaluation, also of perceptual distances; nobody else moves it."""
    return copy.deepcopy(efficientnet_lite0()).to(device)


def distance_name(network: FeatureNetwork) -> str:
    """Only the Fréchet distance of Inception's features may be called FID; every other bears its network's name."""
    return "FID" if network.name == INCEPTION else f"FD-{network.name}"


@torch.no_grad()
def features(
    images_batches: Iterable[AnyImages], network: FeatureNetwork = LITE0
) -> Float[np.ndarray, "count channel"]:
    rows = [network.look(images).cpu().double().numpy() for images in images_batches]
    return np.concatenate(rows) if rows else np.empty((0, CHANNELS))


def kept_features(
    path: Path, chosen: Int[Tensor, " count"], look: Callable[[Tensor], Float[np.ndarray, "count channel"]]
) -> Float[np.ndarray, "count channel"]:
    """Features of the chosen pictures; those in the file at `path` are not computed again.

    `path` must be named by all that features depend on: see `features_key`.
    """
    known, rows = _read(path)
    if len(missing := chosen[~torch.isin(chosen, known)].unique()):
        new = torch.from_numpy(look(missing)).float()
        known, rows = torch.cat([known, missing]), torch.cat([rows, new]) if len(rows) else new
        write_tensors(path, {"chosen": known, "features": rows})
    places = torch.empty(int(known.max()) + 1 if len(known) else 0, dtype=torch.long)
    places[known] = torch.arange(len(known))
    return rows[places[chosen]].double().numpy()


def features_key(network: FeatureNetwork, content: str, size: int) -> str:
    """Changes with the pictures, the network's weights and the preparation, and with nothing else."""
    identity = f"{content} {size} px, {network.name} {network.weights} {network.preparation}"
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Nothing where there is no file, or a damaged one."""
    try:
        stored = load_file(path)
        return stored["chosen"], stored["features"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return torch.empty(0, dtype=torch.long), torch.empty(0, 0)


def _at_size(images: AnyImages) -> AnyImages:
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
