"""What suits these pictures, this machine and this much time, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from calotype.build import build_backbone
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import shrunk
from calotype.interop import diffusers
from calotype.machine import Machine
from calotype.nets.dit import DitConfig
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import VaeConfig
from calotype.planning.reading import choose_text, describe_text, reason_of_text
from calotype.planning.sizes import check_tokens, choose_patch, fits
from calotype.priors.patches import LEAST_DEVIATION, PatchPrior, enlarged
from calotype.recipe import AutoencoderRecipe, Backbone, DenoiserRecipe, ImportedSpace, PriorName, Recipe
from calotype.settings import parse_recipe
from calotype.types import Images, UserError

ENOUGH_IMAGES = 40_000
"""A smaller network that sees this many pictures is better than a larger one that sees fewer."""
ENOUGH_CROPS = 12_000
"""The same of a stage that enlarges: most of what it needs lies in front of it."""
REACHED = 0.4
"""Of the speed of a single convolution, what a whole training step reaches."""
FEW_PICTURES = 1000
LOCAL_PLACES = 2**17
"""From as many places it is measured what is known of a large picture from its smaller one."""
FINETUNE_RATE = 1e-4
"""Of an autoencoder that has learned already."""
LARGEST_LATENT = 256
STEPS = 12
"""Of a sampler in latents: a sweep over portraits found 24 no nearer to real ones (dev/LOG.md),"""
PRIOR_GUIDED = {"guide": "prior", "guidance": 3.0, "guidance_slope": 0.75}
"""and the closed form the best guide (dev/LOG.md, 2026-11-28)."""
LABELLED, CAPTIONED = 2.0, 1.3
"""Classifier-free guidance, where there is no closed form: labels nearest at 2, captions as well followed at 1.3."""
LARGEST_CROP = 256
"""The autoencoder sees nothing that is larger than this; its networks are local."""
WEIGHTS = {"autoencoder": 0.3, "denoiser": 0.7, "enlarge": 0.35}
"""How the training time is shared by the legs of a run, relative to one another."""
MIDDLE_SIGMA, SMALLEST_SIGMA, LARGEST_SIGMA = 0.6, 0.01, 15
"""Of a stage that enlarges, by the deviation: the median in training (0.6 in arXiv 2206.00364, table 1) and the ends of
sampling. It starts at the prior mean, so the largest need only bury the deviation; more would cost steps."""
WIDEST_NOISE = 128
"""Smaller pictures up to this size are augmented with noise, larger ones with blur."""


@dataclass(frozen=True)
class Choice:
    what: str
    value: str
    why: str
    by_user: bool = False


def shares(legs: Iterable[str]) -> dict[str, float]:
    """Of the training time."""
    weights = {leg: WEIGHTS[leg.partition("-")[0]] for leg in legs}
    return {leg: weight / sum(weights.values()) for leg, weight in weights.items()}


def propose(
    pictures: Pictures, machine: Machine, budget: float, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings below those that the user has made, and why each leg has its backbone."""
    kind, size = settings.get("kind", "latent"), settings["size"]
    stages, space = settings.get("stages") or choose_chain(kind, size), from_elsewhere(settings)
    asked = parse_recipe({"kind": kind, "size": size, "stages": stages, **space})
    chain = asked.chain
    legs = ["autoencoder"] * asked.trains_space + ["denoiser"] + [f"enlarge-{size}" for size in chain[1:]]
    operations = {leg: REACHED * machine.flops * budget * part for leg, part in shares(legs).items()}
    few = len(pictures.train_indices) < FEW_PICTURES
    made: dict[str, Any] = {
        "kind": kind,
        "size": size,
        "stages": list(chain),
        "precision": "bfloat16" if machine.fast_bfloat16 else "float32",
        "flip": False,
        "sampling": choose_guidance(pictures, settings) | ({"steps": STEPS} if kind == "latent" else {}),
        **space,
    }
    if kind == "latent":
        network = asked.autoencoder.network if space else choose_network(chain[0])
        reduction, channels = network.reduction, network.channels
        batch = AutoencoderRecipe().batch * machine.width
        shape = network.model_dump(mode="json")
        made["autoencoder"] = {"batch": batch, "network": shape, "crop": min(chain[0], LARGEST_CROP)}
        if space:
            made["autoencoder"]["learn"] = {"learning_rate": FINETUNE_RATE}
        sigma_data = 1.0
    else:
        reduction, channels = 1, 3
        sigma_data = spread_of(pictures, chain[0])
    side = max(1, chain[0] // reduction)
    if "backbone" not in settings.get("denoiser", {}):
        check_tokens(chain, reduction)
    backbone, why = choose_backbone(side, operations["denoiser"], machine.width)
    shift = sigma_data * max(1.0, math.sqrt(channels * side**2 / 4096))
    made["denoiser"] = {
        "batch": DenoiserRecipe().batch * machine.width,
        "backbone": {**backbone, "dropout": 0.1 if few else 0.0},
        "schedule": {"kind": "flow", "shift": rounded(shift)},
        "sigma_data": sigma_data,
        "text": choose_text(pictures.captions, backbone["width"], backbone["depth"]),
    }
    reasons = {"denoiser": why}
    made["enlarge"] = {}
    for low_res, larger in pairwise(chain):
        leg = f"enlarge-{larger}"
        prior = settings.get("enlarge", {}).get(str(larger), {}).get("prior", "gaussian")
        made["enlarge"][str(larger)], reasons[leg] = enlarger(
            pictures, low_res, larger, operations[leg], machine.width, prior
        )
    return made, reasons


def choose_chain(kind: str, size: int) -> tuple[int, ...]:
    """A cascade grows by 4, or by 2 where that would begin below 64; small pictures are made from half their size.

    Latents of large pictures have more places than a short training masters: up to 256 px in latents, then in pixels.
    """
    if kind == "latent" and size > LARGEST_LATENT and size % LARGEST_LATENT == 0:
        return LARGEST_LATENT, size
    if kind == "cascade" and size % 2:
        near = [one for step in (-1, 1) if (one := next_even(size, step))]
        raise UserError(f"size is {size}, but a cascade needs an even one; try {' or '.join(map(str, near))}")
    chain = [size]
    while kind == "cascade" and (len(chain) == 1 or chain[0] > 64):
        factor = next((factor for factor in (4, 2) if chain[0] % factor == 0 and chain[0] // factor >= 64), 0)
        if not factor and len(chain) > 1:
            break
        chain.insert(0, chain[0] // (factor or 2))
    return tuple(chain)


def next_even(size: int, step: int) -> int:
    """From an odd size, the next one below or above that makes a cascade; 0 where there is none."""
    sizes = range(size + step, 4 * size if step > 0 else 0, 2 * step)
    return next((one for one in sizes if fits(choose_chain("cascade", one)[0], 1)), 0)


def from_elsewhere(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of an imported autoencoder, whose shape is in its folder; none for one of our own."""
    space = settings.get("space", {})
    if space.get("kind") != "diffusers":
        return {}
    network = diffusers.read_config(Path(space["path"])).model_dump(mode="json")
    return {"space": space, "autoencoder": {"network": network}}


def choose_guidance(pictures: Pictures, settings: dict[str, Any]) -> dict[str, Any]:
    """The closed form is the guide where there is one; else the model without its condition, where it has any."""
    denoiser = settings.get("denoiser", {})
    if denoiser.get("prior") != "none":
        return PRIOR_GUIDED
    text = denoiser.get("text") or choose_text(pictures.captions, 64, 1)
    return {"guidance": CAPTIONED if text.get("kind") != "none" else LABELLED if pictures.classes else 1.0}


def choose_network(size: int) -> VaeConfig:
    """Of our own autoencoder."""
    reduction, channels = choose_space(size)
    return VaeConfig(reduction=reduction, channels=channels, **ladder(reduction))


def choose_space(size: int) -> tuple[int, int]:
    """Reduction and channels of the autoencoder: 64 to 256 places up to 256 px; channels grow with the reduction."""
    for smallest, reduction, channels in ((192, 16, 64), (48, 8, 32), (24, 4, 8)):
        if size >= smallest:
            return reduction, channels
    return 4, 8


def ladder(reduction: int) -> dict[str, Any]:
    """Widths of the autoencoder: the cheap levels are wide."""
    return {"stem": 4, "widths": {4: [96], 8: [96, 192], 16: [64, 128, 256], 32: [64, 128, 256, 256]}[reduction]}


def choose_backbone(side: int, operations: float, width: int) -> tuple[dict[str, Any], str]:
    """The largest DiT that can still see enough pictures with so many operations, in batches `width` times as large."""
    patch = choose_patch(side)
    tokens = (side // patch) ** 2
    for features, depth in ((768, 12), (512, 12), (384, 12), (384, 8), (256, 8), (192, 6), (128, 4)):
        images = operations / (6 * 12 * features**2 * depth * tokens)  # 12 features ** 2 weights, 6 operations each
        if images >= ENOUGH_IMAGES * width:
            break
    return {"kind": "dit", "width": features, "depth": depth, "heads": features // 64, "patch": patch}, reason(images)


def reason(images: float) -> str:
    return f"the time allows about {images:,.0f} pictures of training with it"


def enlarger(
    pictures: Pictures, low_res: int, size: int, operations: float, width: int, prior: PriorName = "gaussian"
) -> tuple[dict[str, Any], str]:
    """A stage in pixels whose network is local, so that crops are enough: the widest UNet that sees enough of them."""
    factor = size // low_res
    patch = math.gcd(min(4, factor), size)
    multiples = (1, 2, 2) if size % (4 * patch) == 0 else (1,)
    unit = math.lcm(patch * 2 ** (len(multiples) - 1), factor)
    crop = min(size, 128 if size <= LARGEST_CROP else LARGEST_CROP) // unit * unit

    def seen_by(features: int, blocks: int) -> tuple[UnetConfig, float]:
        network = UnetConfig(patch=patch, width=features, multiples=multiples, blocks=blocks, attention_levels=())
        return network, operations / (3 * forward_operations(network, 9, 3, crop))

    backbone, crops = seen_by(32, 2)
    for features, blocks in ((48, 2), (64, 2), (96, 2), (128, 2), (128, 3)):
        wider, fewer = seen_by(features, blocks)
        if fewer < ENOUGH_CROPS * width:
            break
        backbone, crops = wider, fewer
    plain, deviation = deviations_of(pictures, size, factor, prior)
    settings = {
        "batch": 8 * width,
        "backbone": backbone.model_dump(mode="json"),
        "schedule": {
            "kind": "karras",
            "mean": rounded(math.log(MIDDLE_SIGMA * deviation)),
            "smallest": rounded(max(0.1 * plain, SMALLEST_SIGMA * deviation)),
            "largest": rounded(LARGEST_SIGMA * deviation),
        },
        "sigma_data": deviation if prior == "none" else 0.0,
        "augmentation": {"kind": "noise" if low_res <= WIDEST_NOISE else "blur"},
        "crop": crop,
    }
    return settings, reason(crops)


@cache
def forward_operations(config: Backbone, in_channels: int, out_channels: int, side: int) -> int:
    """Of one picture through a network, counted and not run."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = build_backbone(config, in_channels, out_channels)
        network(torch.empty(1, in_channels, side, side), torch.empty(1, config.width))
    return counter.get_total_flops()


def spread_of(pictures: Pictures, size: int) -> float:
    """Standard deviation of pictures of this size about 0."""
    return rounded(max(1e-3, math.sqrt(mean_of(one.square() for one in some_images(pictures, size)))))


def deviations_of(pictures: Pictures, size: int, factor: int, prior: PriorName = "gaussian") -> tuple[float, float]:
    """Standard deviation of pictures about what is known of them from their smaller ones: in plain areas, everywhere.

    Known is the mean of the closed form, or, where it starts from nothing, the smaller picture enlarged.
    """
    few = max(2, LOCAL_PLACES // (size // factor) ** 2)
    pairs = [(shrunk(images, factor), images) for images in islice(some_images(pictures, size), few)]
    local = PatchPrior(factor)
    local.fit(pairs)
    if prior == "none":
        left = (images - enlarged(low_res, factor) for low_res, images in pairs)
    else:
        left = (local.posterior(low_res, torch.zeros(1)).deviation for low_res, _ in pairs)
    everywhere = max(LEAST_DEVIATION, math.sqrt(mean_of(one.square() for one in left)))
    return rounded(float(local.plain)), rounded(everywhere)


def some_images(pictures: Pictures, size: int) -> Iterator[Images]:
    """At most 64 training pictures, one at a time."""
    for one in pictures.train_indices[:: max(1, len(pictures.train_indices) // 64)][:64]:
        yield shrunk(images_from_pixels(pictures.pixels[one][None]), pictures.pixels.shape[-1] // size)


def mean_of(values: Iterable[Tensor]) -> float:
    return float(torch.stack([one.mean() for one in values]).mean())


def rounded(value: float) -> float:
    """To three digits: a recipe is read by people."""
    return float(f"{value:.3g}")


def learning_rate(backbone: Backbone) -> float:
    """Wider layers take smaller steps; a UNet's convolutions, with nine times the inputs, smaller ones."""
    return rounded((0.4 if backbone.kind == "dit" else 0.04) / backbone.width)


def describe(backbone: Backbone) -> str:
    if isinstance(backbone, DitConfig):
        return f"DiT of {backbone.depth} layers, width {backbone.width}, patches of {backbone.patch}"
    levels = f"{len(backbone.multiples)} levels of {backbone.blocks} blocks"
    return f"UNet of width {backbone.width}, {levels}, patches of {backbone.patch}"


def explain(recipe: Recipe, proposed: Recipe, pictures: Pictures, reasons: dict[str, str]) -> list[Choice]:
    """What was chosen, by the plan with its reason or by the user."""

    def choice(what: str, value: str, of: Callable[[Recipe], object], why: str) -> Choice:
        if of(recipe) == of(proposed):
            return Choice(what, value, why)
        return Choice(what, value, "as you set it", by_user=True)

    network, count = recipe.autoencoder.network, len(pictures.train_indices)
    side = recipe.chain[0] // network.reduction
    latents = choice(
        "latents", f"{side} x {side} x {network.channels} (f{network.reduction})",
        lambda one: one.autoencoder.network, "few places, so that the denoiser is cheap",
    )  # fmt: skip
    if isinstance(recipe.space, ImportedSpace):
        latents = replace(latents, why="as imported; mean and spread of each channel are measured on these pictures")
    chain = choice(
        "stages", " -> ".join(f"{size} px" for size in recipe.chain), lambda one: one.chain,
        "each looks at the picture of the one before; the first is small enough to get the whole right",
    )  # fmt: skip
    return [
        *imported(recipe),
        *([latents] if recipe.kind == "latent" else []),
        *([chain] if len(recipe.chain) > 1 else []),
        choice(
            "denoiser", describe(recipe.denoiser.backbone), lambda one: one.denoiser.backbone, reasons["denoiser"]
        ),
        *(
            choice(
                f"enlarge to {size}", describe(recipe.enlarger(size).backbone),
                partial(backbone_above, size),
                f"no attention, so crops of {recipe.enlarger(size).crop or size} px are enough; "
                f"{reasons[f'enlarge-{size}']}",
            )
            for size in recipe.chain[1:]
        ),
        choice(
            "prior", recipe.denoiser.prior, lambda one: one.denoiser.prior,
            "closed-form Gaussians are the best denoiser that needs no training; the network learns what is left",
        ),
        choice("schedule", recipe.denoiser.schedule.kind, lambda one: one.denoiser.schedule, "straight paths"),
        choice("precision", recipe.precision, lambda one: one.precision, "both were timed here; this is faster"),
        Choice("labels", ", ".join(pictures.classes) or "none", f"class subfolders; {count:,} pictures to train on"),
        *(
            [choice("text", describe_text(recipe), lambda one: one.denoiser.text, reason_of_text(pictures.captions))]
            if pictures.captions
            else []
        ),
        choice(
            "dropout", f"{recipe.denoiser.backbone.dropout:g}", lambda one: one.denoiser.backbone.dropout,
            f"{FEW_PICTURES:,} pictures and more need none",
        ),
    ]  # fmt: skip


def imported(recipe: Recipe) -> Iterator[Choice]:
    """Whether the autoencoder is trained, where it comes from elsewhere."""
    if isinstance(recipe.space, ImportedSpace):
        value = f"imported from {recipe.space.path}"
        if recipe.space.finetune:
            yield Choice("autoencoder", f"{value}, and fine-tuned", "as you set it")
        else:
            why = "it has learned already, so its leg is left out; --set space.finetune=true trains it further"
            yield Choice("autoencoder", value, why)


def backbone_above(size: int, recipe: Recipe) -> Backbone:
    return recipe.enlarger(size).backbone
