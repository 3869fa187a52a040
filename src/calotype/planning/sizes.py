"""Which sizes go into whole latents, patches and crops, and what to say where they do not."""

from __future__ import annotations

import math
from itertools import count

from calotype.recipe import Recipe
from calotype.types import UserError

TOKENS = 16
"""Along a side, that a denoiser has at least, where its places divide so."""
MOST_TOKENS = 64
"""Along a side: attention over more takes minutes a step on a CPU."""


def choose_patch(side: int) -> int:
    """Side of the patches of a DiT, a divisor of `side`: 16 to 31 tokens along it, or as near to 16 as there is."""
    if side % (patch := max(1, side // TOKENS)) == 0:
        return patch
    divisors = (divisor for divisor in range(1, side + 1) if side % divisor == 0)
    return min(divisors, key=lambda patch: abs(math.log(TOKENS * patch / side)))


def largest_divisor(number: int, most: int) -> int:
    return max(divisor for divisor in range(1, most + 1) if number % divisor == 0)


def fits(base: int, reduction: int) -> bool:
    """Whether a first stage of `base` px has whole latents, and few enough tokens of them.

    A large prime number of latents along a side has no patches but those of one latent.
    """
    side, rest = divmod(base, reduction)
    return side > 0 and not rest and side // choose_patch(side) <= MOST_TOKENS


def check_tokens(chain: tuple[int, ...], reduction: int) -> None:
    """Raises `UserError` where the first stage, or one of the next whole latents, has too many tokens.

    Where the sizes beside it would do, `check_multiple` raises.
    """
    base, factor = chain[0], chain[-1] // chain[0]
    below = max(reduction, base // reduction * reduction)
    if fits(below, reduction) and (below >= base or fits(below + reduction, reduction)):
        return
    near = [next(side for side in count(base + step, step) if fits(side, reduction)) * factor for step in (-1, 1)]
    raise UserError(
        f"the first stage is {base} px, but a denoiser takes at most {MOST_TOKENS} tokens along a side, patches that "
        f"divide its places; try a size of {near[0]} or {near[1]}, or set denoiser.backbone"
    )


def check_sizes(recipe: Recipe) -> None:
    """Pictures and crops must divide into what the networks need. Raises `UserError` with sizes that would fit."""
    base, units = recipe.chain[0], recipe.units
    latent = recipe.kind == "latent"
    who = "autoencoder and denoiser" if latent else "denoiser"
    check_multiple("size" if len(recipe.chain) == 1 else "the first stage", base, units[0], who)
    if recipe.trains_space:
        check_crop("autoencoder.crop", recipe.autoencoder.crop, base, recipe.autoencoder.network.reduction)
        seen, halvings = recipe.autoencoder.crop or base, recipe.autoencoder.critic.depth
        if seen < 2**halvings:
            raise UserError(
                f"the autoencoder sees {seen} px, but its critic halves them {halvings} times; take pictures and crops "
                f"of at least {2**halvings} px, or set autoencoder.critic.depth={int(math.log2(seen))}"
            )
    for low_res, size, unit in zip(recipe.chain, recipe.chain[1:], units[1:], strict=False):
        config = recipe.enlarging(size)
        check_multiple(f"the stage of {size} px", size, unit, "network")
        check_crop(f"enlarge.{size}.crop", config.crop, size, unit)
        check_stop(recipe, size)
        if config.sampling.conditioning == "truncated" and (
            config.augmentation.kind == "blur" or (latent and low_res == base)
        ):
            raise UserError(
                f"enlarge.{size}.sampling.conditioning is truncated, but that needs a stage in pixels before it and "
                f"augmentation with noise; set it to whole"
            )


def check_stop(recipe: Recipe, size: int) -> None:
    """A stage can be stopped only at less noise than it starts from."""
    below = recipe.chain.index(size) - 1
    schedule = (recipe.enlarging(recipe.chain[below]) if below else recipe.denoiser).schedule
    most, level = schedule.grid(recipe.samplings[below].steps)[0], recipe.enlarging(size).sampling.augmentation
    trained = recipe.enlarging(size).augmentation.most
    if level > trained:
        raise UserError(
            f"enlarge.{size}.sampling.augmentation is {level:g}, but must be at most what is trained, {trained:g}; "
            f"lower it, or raise enlarge.{size}.augmentation.most"
        )
    if level >= most:
        raise UserError(f"enlarge.{size}.sampling.augmentation is {level:g}, but must be below {most:.3g}")


def check_multiple(what: str, size: int, unit: int, who: str) -> None:
    if size % unit:
        near = sorted({max(unit, size // unit * unit), -(-size // unit) * unit})
        raise UserError(
            f"{what} is {size}, but this {who} need{'' if 'and' in who else 's'} a multiple of {unit}; "
            f"try {' or '.join(map(str, near))}"
        )


def check_crop(what: str, crop: int, size: int, unit: int) -> None:
    if crop % unit or crop > size:
        raise UserError(
            f"{what} is {crop}, but must be at most {size} and a multiple of {unit}; 0 takes whole pictures"
        )
