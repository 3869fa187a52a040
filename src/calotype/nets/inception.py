"""Inception v3 (arXiv 1512.00567) as FID uses it (arXiv 1706.08500): pictures to 2,048 features.

Names are those of torchvision and pytorch-fid. It differs from torchvision's network in the pooling of its blocks, as
the network of 2015 does whose weights FID is defined by: averages leave out the border, and the last block takes the
maximum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from calotype.nets.blocks import Resized
from calotype.types import OtherImages

FID_CLASSES = 1008
"""Of the weights that FID is defined by; torchvision's have 1,000."""
FID_SIDE = 299
Kernel = int | tuple[int, int]
Branch = Sequence[tuple[int, Kernel]]  # channels and kernel of one convolution after the other
Pool = Callable[[Tensor], Tensor]

average: Pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
maximum: Pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halved: Pool = partial(F.max_pool2d, kernel_size=3, stride=2)
ROW_KERNEL, COLUMN_KERNEL = (1, 7), (7, 1)


class NormedConv(nn.Module):
    """Convolution, batch normalisation, ReLU; `padded` keeps the size."""

    def __init__(self, channels: int, out: int, kernel: Kernel, stride: int = 1, padded: bool = True) -> None:
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=1e-3)

    def forward(self, image: Resized) -> Resized:
        return F.relu(self.bn(self.conv(image)))


class Mixed(nn.Module):
    """Branches side by side, whose outputs are joined: figures 5 to 7, and 10.

    `halving`: the last convolution of each branch has stride 2 and no padding. `split`: the last convolution of the
    branches of several is two, 1 x 3 and 3 x 1, side by side.
    """

    def __init__(
        self, channels: int, branches: Mapping[str, Branch], pool: Pool, pooled: int = 0, halving: bool = False,
        split: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.pool, self.chains = pool, list[list[list[str]]]()
        for name, convs in branches.items():
            chain, count = list[list[str]](), channels
            for number, (out, kernel) in enumerate(convs, 1):
                last, several = number == len(convs), len(convs) > 1
                ends = {"a": (1, 3), "b": (3, 1)} if split and last and several else {"": kernel}
                names = [f"{name}_{number}{end}" if several else f"{name}{end}" for end in ends]
                for part, side in zip(names, ends.values(), strict=True):
                    stride = 2 if halving and last else 1
                    self.add_module(part, NormedConv(count, out, side, stride, padded=stride == 1))
                chain.append(names)
                count = out
            self.chains.append(chain)
        self.branch_pool = NormedConv(channels, pooled, 1) if pooled else nn.Identity()

    def forward(self, image: Resized) -> Resized:
        outputs = [self._branch(chain, image) for chain in self.chains]
        return torch.cat([*outputs, self.branch_pool(self.pool(image))], 1)

    def _branch(self, chain: list[list[str]], image: Tensor) -> Tensor:
        for names in chain:
            image = torch.cat([self.get_submodule(name)(image) for name in names], 1)
        return image


def block_35(channels: int, pooled: int) -> Mixed:
    branches = {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return Mixed(channels, branches, average, pooled)


def block_17(inner: int) -> Mixed:
    branches: dict[str, Branch] = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(inner, 1), (inner, ROW_KERNEL), (192, COLUMN_KERNEL)],
        "branch7x7dbl": [
            (inner, 1),
            (inner, COLUMN_KERNEL),
            (inner, ROW_KERNEL),
            (inner, COLUMN_KERNEL),
            (192, ROW_KERNEL),
        ],
    }
    return Mixed(768, branches, average, 192)


def block_8(channels: int, pool: Pool) -> Mixed:
    branches: dict[str, Branch] = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), (384, 3)],
        "branch3x3dbl": [(448, 1), (384, 3), (384, 3)],
    }
    return Mixed(channels, branches, pool, 192, split=True)


class Inception(nn.Module):
    """Pictures of 299 px to features."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = NormedConv(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = NormedConv(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = NormedConv(32, 64, 3)
        self.Conv2d_3b_1x1 = NormedConv(64, 80, 1)
        self.Conv2d_4a_3x3 = NormedConv(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = block_35(192, 32), block_35(256, 64), block_35(288, 64)
        self.Mixed_6a = Mixed(
            288, {"branch3x3": [(384, 3)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}, halved, halving=True
        )
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(block_17, (128, 160, 160, 192))
        thin: dict[str, Branch] = {
            "branch3x3": [(192, 1), (320, 3)],
            "branch7x7x3": [(192, 1), (192, ROW_KERNEL), (192, COLUMN_KERNEL), (192, 3)],
        }
        self.Mixed_7a = Mixed(768, thin, halved, halving=True)
        self.Mixed_7b, self.Mixed_7c = block_8(1280, average), block_8(2048, maximum)
        self.fc = nn.Linear(2048, FID_CLASSES)

    def pooled(self, images: OtherImages) -> Float[Tensor, "_ 2048"]:
        """The features before the classifier, averaged over the picture; images in [-1, 1]."""
        image = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(images))))
        image = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(image)))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                image = block(image)
        return image.mean((2, 3))
