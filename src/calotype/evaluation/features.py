"""What a network that was trained to name things sees in pictures: one row of numbers a picture."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
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
from calotype.nets.perceptual import LITE0_SHA256, efficientnet_lite0

AnyImages = Float[Tensor, "_ 3 _ _"]  # in [-1, 1]; each batch may have a size of its own
CHANNELS = 1280
SIZE = 128
"""Side in pixels at which every picture is looked at. One size for all, because features change with the scale: so a
model of 64 px can be held against one of 256 px, and both cost the same: a third of what the 224 px cost that the
network was trained at."""
INCEPTION = "Inception"


@runtime_checkable
class FeatureNetwork(Protocol):
    """Looks at pictures. An object of one's own with these four takes its place, whatever it is read from."""

    name: str
    """Short; it stands in the name of the distance."""
    weights: str
    """Hash of the weights, so that numbers of different weights are not held against each other."""
    preparation: str
    """How a picture is brought to the network: size and resize filter."""

    def look(self, images: AnyImages) -> Float[Tensor, "_ _"]:
        """One row of features a picture."""
        ...


class Lite0:
    """EfficientNet-Lite0's features before its classifier, averaged over the picture; computed where the network is.

    Shrinking is antialiased: without that, sets that differ only in how they were shrunk are apart (arXiv 2104.11222).
    """

    name = "Lite0"
    weights = LITE0_SHA256
    preparation = f"{SIZE} px, bilinear, antialiased"

    def look(self, images: AnyImages) -> Float[Tensor, "_ 1280"]:
        network = efficientnet_lite0()
        device = next(network.parameters()).device
        return network.pooled(_at_size(images.to(device)))


LITE0 = Lite0()


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
    """Features of the chosen pictures; what the file at `path` has of them is not looked at again.

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
    told = f"{content} {size} px, {network.name} {network.weights} {network.preparation}"
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Nothing where there is no file, or a damaged one."""
    try:
        found = load_file(path)
        return found["chosen"], found["features"]
    except (FileNotFoundError, SafetensorError, KeyError):
        return torch.empty(0, dtype=torch.long), torch.empty(0, 0)


def _at_size(images: AnyImages) -> AnyImages:
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
