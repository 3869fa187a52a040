"""Which stages make pictures of a size: latents of their own, or smaller pictures that are enlarged."""

from __future__ import annotations

import math
import operator
from itertools import accumulate

from calotype.planning.laws import WHOLE_IMAGES, images_afforded, time_shares
from calotype.planning.sizes import MOST_TOKENS, choose_patch, fits, largest_divisor
from calotype.types import UserError

MIDDLE_LATENT = 256
"""Larger pictures are made in latents of this size, then enlarged in pixels, where the time is too short for latents of
their own."""
SMALL_BASE, LEAST_ENLARGED = 64, 192
"""Pictures of at least `LEAST_ENLARGED` px are made at about `SMALL_BASE`, then enlarged, where the time is too short
for these as well: composition first (dev/LOG.md, 2026-11-28)."""
LARGEST_TOKEN = 32
"""Side in pixels of the patch of a picture that is a token, at most, where latents are those of large pictures (as
arXiv 2410.10629 has them)."""


def choose_chain(kind: str, size: int, operations: float = math.inf, own: bool = False) -> tuple[int, ...]:
    """Sides of the pictures after each stage; `operations` are those of the whole run.

    A cascade grows by 4, or by 2 where it would begin below 64. Latents are those of the pictures themselves, or of the
    largest smaller ones that a denoiser can be trained on in the time; with networks of the user's `own`, of pictures
    up to `MIDDLE_LATENT`. Raises `UserError` for an odd size of a cascade.
    """
    if kind == "cascade":
        return choose_cascade(size)
    middle = (MIDDLE_LATENT, size) if size > MIDDLE_LATENT and size % MIDDLE_LATENT == 0 else ()
    if own:
        return middle or (size,)
    chains = list(filter(None, [(size,), middle, small_chain(size)]))
    denoising = operations * time_shares(("autoencoder", "denoiser"), operations)["denoiser"]
    return next((chain for chain in chains if affords_latents(chain[0], denoising)), chains[-1])


def choose_cascade(size: int) -> tuple[int, ...]:
    """Raises `UserError` for an odd size."""
    if size % 2:
        below, above = range(size - 1, 0, -2), range(size + 1, 4 * size, 2)  # the next that a cascade can make
        even = [next((even for even in sizes if fits(choose_cascade(even)[0], 1)), 0) for sizes in (below, above)]
        raise UserError(
            f"size is {size}, but a cascade needs an even one; try {' or '.join(map(str, filter(None, even)))}"
        )
    chain = [size]
    while len(chain) == 1 or chain[0] > 64:
        factor = next((factor for factor in (4, 2) if chain[0] % factor == 0 and chain[0] // factor >= 64), 0)
        if not factor and len(chain) > 1:
            break
        chain.insert(0, chain[0] // (factor or 2))
    return tuple(chain)


def small_chain(size: int) -> tuple[int, ...]:
    """From about `SMALL_BASE` to `size` in steps of at most 4; empty where no such base divides it."""
    factors = {2: (2,), 3: (3,), 4: (4,), 6: (3, 2), 8: (4, 2), 9: (3, 3), 12: (4, 3), 16: (4, 4)}
    whole = [factor for factor in factors if size >= LEAST_ENLARGED and size % (8 * factor) == 0]
    near = [factor for factor in whole if 0.75 <= size / factor / SMALL_BASE <= 1.5]
    if not near:
        return ()
    factor = min(near, key=lambda factor: abs(math.log(size / factor / SMALL_BASE)))
    return tuple(accumulate(factors[factor], operator.mul, initial=size // factor))


def affords_latents(base: int, operations: float) -> bool:
    """Whether pictures of `base` px have whole latents, in which the denoiser sees enough of them by tokens of at most
    32 px."""
    reduction, _ = own_latents(base)
    side = max(1, base // reduction)
    patch = min(choose_patch(side), largest_divisor(side, max(1, LARGEST_TOKEN // reduction)))
    tokens = (side // patch) ** 2
    return (
        fits(base, reduction) and tokens <= MOST_TOKENS**2 and bool(images_afforded(operations, tokens) >= WHOLE_IMAGES)
    )


def own_latents(size: int) -> tuple[int, int]:
    """Reduction and channels of the autoencoder for pictures of this size."""
    spaces = ((192, 16, 64), (48, 8, 32), (0, 4, 8))
    return next((reduction, channels) for smallest, reduction, channels in spaces if size >= smallest)
