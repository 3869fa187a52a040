"""The laws by which networks, batches, rates, dropout and shares follow what there is time for.

Each starts at what was measured on two cores (dev/LOG.md) and ends at what is trained on large machines; docs/plan.md
has the evidence. `operations` are the floating-point operations of one leg, forward and backward, attention included.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache

MEASURED_OPERATIONS = 1e14
"""Operations of the longest legs that were measured, about forty minutes of a core: up to them nothing grows."""
STATE_BYTES = 20
"""A weight in training: itself, its average, its gradient and two moments, in float32."""

# -- Denoisers ---------------------------------------------------------------------------------------------------------

HEAD = 64
"""Width of an attention head."""
SMALLEST_DIT, LARGEST_DIT = (128, 4), (1152, 28)
"""Width and depth. The smallest was the best in minutes (dev/LOG.md, 2026-11-22 and 2026-11-28); the largest is DiT-XL
(arXiv 2212.09748, table 1)."""
DEPTH_EXPONENT = math.log(28 / 4) / math.log(1152 / 128)
"""Depth grows with this power of the width: through both, and DiT-L."""
DIT_GROWTH = 0.4
"""Parameters grow with this power of the operations: from the smallest at `MEASURED_OPERATIONS` through DiT-B
(arXiv 2212.09748: 1.4e19 operations in 400,000 steps) towards the billion that arXiv 2410.08184 has for 1.5e21."""
WHOLE_IMAGES = 4_000_000
"""Pictures that a denoiser sees at least where its tokens are finer than they have to be, or its pictures larger."""


def dit_parameters(width: int, depth: int) -> int:
    """Of the blocks: attention has 4 width^2 weights, the feed-forward part 8, the modulation 6."""
    return 18 * width**2 * depth


@cache
def dit_shapes() -> dict[tuple[int, int], int]:
    """Widths and depths near the law of depth with their parameters, the smallest first."""
    shapes = [SMALLEST_DIT]
    for width in range(SMALLEST_DIT[0], LARGEST_DIT[0] + 1, HEAD):
        depth = round(SMALLEST_DIT[1] * (width / SMALLEST_DIT[0]) ** DEPTH_EXPONENT)
        shapes += [(width, near) for near in range(max(SMALLEST_DIT[1], depth - 2), depth + 3)]
    return {shape: dit_parameters(*shape) for shape in sorted(shapes, key=lambda shape: dit_parameters(*shape))}


def dit_shape(operations: float, memory: float = math.inf) -> tuple[int, int]:
    """Width and depth of the DiT for so many operations, whose states take at most half of the bytes of `memory`."""
    grown = dit_parameters(*SMALLEST_DIT) * max(1.0, operations / MEASURED_OPERATIONS) ** DIT_GROWTH
    most = min(grown, memory / (2 * STATE_BYTES), dit_parameters(*LARGEST_DIT))
    return [SMALLEST_DIT, *(shape for shape, parameters in dit_shapes().items() if parameters <= most)][-1]


def training_flops(width: int, depth: int, tokens: int) -> float:
    """Of one picture: a block takes 6 operations a token for each of 12 width^2 weights, and attention 12 width a pair
    of tokens."""
    return 12.0 * tokens * depth * width * (6 * width + tokens)


@cache
def dit_starts() -> dict[tuple[int, int], float]:
    """The operations from which on the law takes each shape."""
    smallest, largest = dit_parameters(*SMALLEST_DIT), dit_parameters(*LARGEST_DIT)
    return {
        shape: MEASURED_OPERATIONS * (parameters / smallest) ** (1 / DIT_GROWTH)
        for shape, parameters in dit_shapes().items()
        if parameters <= largest
    }


def images_afforded(operations: float, tokens: int) -> float:
    """Pictures that the DiT of the law sees with so many operations, or with more if those are fewer: where the law
    goes to the next larger network, that one sees fewer pictures."""
    larger = [(start, shape) for shape, start in dit_starts().items() if start > operations]
    steps = [(operations, dit_shape(operations)), *larger]
    return min(spent / training_flops(*shape, tokens) for spent, shape in steps)


# -- Local networks: the autoencoder, and stages that enlarge ----------------------------------------------------------

VAE_WIDTHS = {4: (96,), 8: (96, 192), 16: (64, 128, 256), 32: (64, 128, 256, 256)}
"""By reduction, at `MEASURED_OPERATIONS` operations: the cheap, small levels are wide."""
VAE_PARAMETERS = {4: 0.61e6, 8: 2.9e6, 16: 5.6e6, 32: 9.95e6}
LARGEST_VAE, VAE_GROWTH = 100e6, 1 / 6
"""Parameters, about those of Stable Diffusion (84 million; arXiv 2112.10752); and the exponent of the widths."""
UNET_WIDTH, WIDEST_UNET, UNET_GROWTH = 32, 320, DIT_GROWTH / 2
"""Parameters of a UNet are quadratic in its width, which ends at that of Stable Diffusion."""


def vae_widths(reduction: int, operations: float = 0.0, memory: float = math.inf) -> list[int]:
    """Widths of each level of the autoencoder, all in one proportion, the first a multiple of 8."""
    first, *_ = widths = VAE_WIDTHS[reduction]
    most = math.sqrt(min(LARGEST_VAE, memory / (2 * STATE_BYTES)) / VAE_PARAMETERS[reduction])
    scale = max(1.0, min(most, (operations / MEASURED_OPERATIONS) ** VAE_GROWTH))
    wide = int(first * scale) // 8 * 8
    return [wide * width // first for width in widths]


def unet_size(operations: float, memory: float = math.inf) -> tuple[int, int]:
    """Width, a multiple of 16, and blocks a level of the UNet of a stage that enlarges."""
    grown = UNET_WIDTH * max(1.0, operations / MEASURED_OPERATIONS) ** UNET_GROWTH
    most = math.sqrt(memory / (2 * STATE_BYTES) / 2000)  # its parameters are below 2000 width^2
    width = max(UNET_WIDTH, int(min(grown, most, WIDEST_UNET)) // 16 * 16)
    return width, 2 if width < 128 else 3


# -- Training ----------------------------------------------------------------------------------------------------------

TIME_WEIGHTS = {"autoencoder": 0.3, "denoiser": 0.7, "enlarge": 0.35}
"""How the training time is divided among the legs of a run, relative to one another, up to `LONG` operations."""
LONG, SATURATION = 3e14, 0.1
"""Local networks are done sooner than denoisers: beyond so many operations their weight falls with this power."""
MANY_IMAGES = 100_000
"""The batch doubles with each tenfold pictures beyond: from 32 in minutes to the 256 of DiT's 100 million."""
FEWEST_STEPS = 1000
"""A batch that only keeps a device busy leaves a leg at least so many steps."""
WIDE = 192
"""The learning rate falls with the width (arXiv 2203.03466), and beyond this width with its power of 1.5: to the 1e-4
to 2e-4 of DiT-XL (arXiv 2212.09748, 2501.01423)."""
FEW_EPOCHS, MOST_DROPOUT = 40, 0.2
"""Dropout is 0 up to so many epochs, and 0.1 more with each tenfold."""

FEW_PICTURES = 1000
"""Of fewer the prior is crude, so the guidance is weaker; and the denoiser is trained on views, too, which was a gain
with 300 landscapes and none with 1,334 photographs (dev/LOG.md, 2026-11-30)."""
SEEN_BY_VIEW, MOST_VIEWS = 16, 15
"""One view of each picture for so many epochs, so that encoding views takes a small part of the time."""


def time_shares(legs: Iterable[str], operations: float = 0.0) -> dict[str, float]:
    """Fraction of the training time of each leg; `operations` are those of the whole run."""
    local = max(1.0, operations / LONG) ** -SATURATION
    kinds = {leg: leg.partition("-")[0] for leg in legs}
    weights = {leg: TIME_WEIGHTS[kind] * (1 if kind == "denoiser" else local) for leg, kind in kinds.items()}
    return {leg: weight / sum(weights.values()) for leg, weight in weights.items()}


def batch_size(smallest: int, images: float, busy: int = 1) -> int:
    """Batch of a leg that sees so many images, `smallest` in the shortest; a device is kept busy by `busy` times that,
    where it leaves enough steps."""
    lawful = 2 ** max(0, math.floor(math.log10(max(1.0, images) / MANY_IMAGES)))
    affordable = max(1.0, images / (smallest * FEWEST_STEPS))
    return smallest * max(lawful, 2 ** math.floor(math.log2(min(busy, affordable))))


def learning_rate(kind: str, width: int) -> float:
    """Of AdamW. Ten times smaller for a UNet, whose convolutions have 9 times the inputs."""
    return (0.4 if kind == "dit" else 0.04) / width * min(1.0, WIDE / width) ** 0.5


def view_count(epochs: float) -> int:
    """Of each picture, where `epochs` is how often the run sees each training picture."""
    return min(MOST_VIEWS, int(epochs / SEEN_BY_VIEW))


def dropout_rate(epochs: float) -> float:
    """In steps of 0.05; `epochs` is how often the run sees each training picture."""
    rate = 0.1 * math.log10(max(1.0, epochs / FEW_EPOCHS))
    return min(MOST_DROPOUT, round(rate / 0.05) * 0.05)
