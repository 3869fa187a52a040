"""What a network that was trained to name things sees in pictures: one row of 1,280 numbers a picture."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.nets.perceptual import efficientnet_lite0

AnyImages = Float[Tensor, "_ 3 _ _"]  # in [-1, 1]; each batch may have a size of its own
CHANNELS = 1280
SIZE = 128
"""Side in pixels at which every picture is looked at. One size for all, because features change with the scale: so a
model of 64 px can be held against one of 256 px, and both cost the same: a third of what the 224 px cost that the
network was trained at."""


@torch.inference_mode()
def features(images_batches: Iterable[AnyImages]) -> Float[np.ndarray, "count 1280"]:
    """EfficientNet-Lite0's features before its classifier, averaged over the picture; computed where the network is.

    Shrinking is antialiased: without that, sets that differ only in how they were shrunk are apart (arXiv 2104.11222).
    """
    network = efficientnet_lite0()
    device = next(network.parameters()).device
    rows = [network.pooled(_at_size(images.to(device))).cpu().double().numpy() for images in images_batches]
    return np.concatenate([np.empty((0, CHANNELS)), *rows])


def _at_size(images: AnyImages) -> AnyImages:
    return F.interpolate(images.float(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
