"""The recipe that suits these pictures, this machine and this budget, where the user has not set it."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import accumulate, islice, pairwise, takewhile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from calotype.build import build_backbone
from calotype.data.captions import Captions
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import shrunk
from calotype.evaluation.counting import counted
from calotype.interop import diffusers
from calotype.machine import Machine
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import Lapping, VaeConfig, principal_axes
from calotype.planning.mirroring import choose_flip
from calotype.planning.sizes import check_tokens, choose_patch, fits
from calotype.priors.patches import LEAST_DEVIATION, PatchPrior, enlarged
from calotype.recipe import AutoencoderRecipe, Backbone, DenoiserRecipe, PriorName, leg_above
from calotype.settings import parse_recipe
from calotype.types import Images, OtherImages, UserError

DITS = ((768, 12), (512, 12), (384, 12), (384, 8), (256, 8), (192, 6), (128, 4))
"""Width and depth, the largest first."""
ENOUGH_IMAGES = 40_000
"""A smaller DiT that sees this many pictures is better than a larger one that sees fewer."""
ENOUGH_CROPS = 12_000
"""The same for the UNet of a stage that enlarges: most of what it needs is in its input."""
UTILIZATION = 0.4
"""Fraction of the FLOP/s of a single convolution that a whole training step reaches."""
FEW_PICTURES = 1000
"""Denoisers of fewer pictures are trained with dropout."""
PRIOR_PATCHES = 2**17
"""Patches to which the prior of a stage that enlarges is fitted for the plan."""
FINETUNE_RATE = 1e-4
"""Learning rate of an imported autoencoder."""
LARGEST_LATENT = 256
"""Larger pictures are made in latents of this size, then enlarged in pixels."""
SMALL_BASE, LEAST_ENLARGED = 64, 192
"""Pictures of at least `LEAST_ENLARGED` px are made at about `SMALL_BASE`, then enlarged, where the time is too short
for the largest DiT in latents of their own: composition first (dev/LOG.md, 2026-11-28)."""
STEPS = 12
"""Steps of the sampler in latents: with 24, portraits were no nearer to real ones (dev/LOG.md)."""
PRIOR_GUIDANCE = {"guide": "prior", "guidance": 3.0, "guidance_slope": 0.75}
"""Guidance away from the prior, the best guide in a sweep over portraits (dev/LOG.md, 2026-11-28)."""
FEW_GUIDANCE = 1.5
"""Its scale for fewer than `FEW_PICTURES`, whose prior is crude: 3 exaggerates (dev/LOG.md, 2026-11-28)."""
CAPTION_PRIOR_GUIDANCE = 0.5
"""Of the prior itself where there are captions: without it, guidance by the prior loses attributes of the prompts."""
LABEL_GUIDANCE, CAPTION_GUIDANCE = 2.0, 1.3
"""Scales of classifier-free guidance, for models without a prior."""
CODED_SIDE, CODED_STEP = 8, 0.03
"""Side of the patches whose code length is compared, at most, and the step to which values in [-1, 1] are rounded."""
ONE_STEP = {"objective": "one_step", "sampling": {"steps": 1}}
"""Of stages that enlarge pictures made in latents: sharper in minutes than several steps (dev/LOG.md, 2026-11-28)."""
LARGEST_CROP = 256
"""Side of the crops of the autoencoder and of stages that enlarge, at most: their networks are local."""
TIME_WEIGHTS = {"autoencoder": 0.3, "denoiser": 0.7, "enlarge": 0.35}
"""How the training time is divided among the legs of a run, relative to one another."""
MEDIAN_SIGMA, SMALLEST_SIGMA, LARGEST_SIGMA = 0.6, 0.01, 15
"""Of a stage that enlarges, in units of the residual's standard deviation: the median in training (0.6 in arXiv
2206.00364, table 1), and the range in sampling. It starts at the prior mean, so noise need only cover the residual."""
LARGEST_NOISED = 128
"""Low-resolution pictures up to this size are augmented with noise, larger ones with blur."""
REASON = "the time allows about {:,.0f} pictures of training with it"


def propose(
    pictures: Pictures, machine: Machine, budget: float, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings to lay below those of the user, and the reason for the backbone of each leg.

    `budget` is in seconds. Raises `UserError` for a size that no network fits.
    """
    kind, size, imported = settings.get("kind", "latent"), settings["size"], imported_autoencoder(settings)
    own = imported or {"network", "backbone"} & {*settings.get("autoencoder", {}), *settings.get("denoiser", {})}
    training = math.inf if own else UTILIZATION * machine.flops * budget * TIME_WEIGHTS["denoiser"]
    stages = settings.get("stages") or choose_chain(kind, size, training / machine.batch_factor)
    outline = parse_recipe({"kind": kind, "size": size, "stages": stages, **imported})
    shares = time_shares(outline.legs)
    flops = {leg: UTILIZATION * machine.flops * budget * share for leg, share in shares.items()}
    proposal: dict[str, Any] = {
        "kind": kind,
        "size": size,
        "stages": list(outline.chain),
        "precision": "bfloat16" if machine.fast_bfloat16 else "float32",
        "sampling": choose_guidance(pictures, settings) | ({"steps": STEPS} if kind == "latent" else {}),
        "enlarge": {},
        **imported,
    }
    reasons: dict[str, str] = {}
    proposal["flip"], reasons["flip"] = choose_flip(pictures)
    base, reduction, channels, sigma_data = outline.chain[0], 1, 3, 1.0
    if kind == "latent":
        network = outline.autoencoder.network
        if not imported:
            network, reasons["patches"] = choose_vae(pictures, base)
        reduction, channels = network.reduction, network.channels
        proposal["autoencoder"] = {
            "batch": AutoencoderRecipe().batch * machine.batch_factor,
            "network": network.model_dump(mode="json"),
            "crop": min(base, LARGEST_CROP),
            **({"learn": {"learning_rate": FINETUNE_RATE}} if imported else {}),
        }
    else:
        sigma_data = measure_sigma_data(pictures, base)
    if "backbone" not in settings.get("denoiser", {}):
        check_tokens(outline.chain, reduction)
    proposal["denoiser"], reasons["denoiser"] = choose_denoiser(
        pictures, max(1, base // reduction), channels, sigma_data, flops["denoiser"], machine.batch_factor
    )
    for low_res, larger in pairwise(outline.chain):
        leg, set_by_user = leg_above(larger), settings.get("enlarge", {}).get(str(larger), {})
        proposal["enlarge"][str(larger)], reasons[leg] = choose_enlarger(
            pictures, low_res, larger, flops[leg], machine.batch_factor, set_by_user.get("prior", "gaussian")
        )
        if kind == "latent" and takes_one_step(set_by_user):
            proposal["enlarge"][str(larger)] |= ONE_STEP
    return proposal, reasons


def time_shares(legs: Iterable[str]) -> dict[str, float]:
    """Fraction of the training time of each leg."""
    weights = {leg: TIME_WEIGHTS[leg.partition("-")[0]] for leg in legs}
    return {leg: weight / sum(weights.values()) for leg, weight in weights.items()}


# -- Stages ------------------------------------------------------------------------------------------------------------


def choose_chain(kind: str, size: int, flops: float = math.inf) -> tuple[int, ...]:
    """Sides of the pictures after each stage; `flops` are those of the denoiser's training.

    A cascade grows by 4, or by 2 where it would begin below 64. Latents beyond 256 px have more tokens than a short
    training masters, so larger pictures are enlarged in pixels. Raises `UserError` for an odd size of a cascade.
    """
    if kind == "latent":
        large = (LARGEST_LATENT, size) if size > LARGEST_LATENT and size % LARGEST_LATENT == 0 else (size,)
        return large if affords_largest_dit(large[0], flops) else (small_chain(size) or large)
    if size % 2:
        below, above = range(size - 1, 0, -2), range(size + 1, 4 * size, 2)  # the next that a cascade can make
        even = [next((even for even in sizes if fits(choose_chain(kind, even)[0], 1)), 0) for sizes in (below, above)]
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


def affords_largest_dit(base: int, flops: float) -> bool:
    """Whether the largest DiT sees enough pictures in latents of pictures of `base` px."""
    side = max(1, base // own_latents(base)[0])
    tokens = (side // choose_patch(side)) ** 2
    return bool(flops / training_flops(*DITS[0], tokens) >= ENOUGH_IMAGES)


def takes_one_step(set_by_user: dict[str, Any]) -> bool:
    """Unless the user wants another objective, or steps or guidance, of which one step has none."""
    sampling = set_by_user.get("sampling", {})
    return set_by_user.get("objective", "one_step") == "one_step" and all(
        sampling.get(name, 1) == 1 for name in ("steps", "guidance")
    )


def choose_guidance(pictures: Pictures, settings: dict[str, Any]) -> dict[str, Any]:
    """Away from the prior where there is one, else classifier-free where there are conditions."""
    denoiser = settings.get("denoiser", {})
    captioned = (denoiser.get("text") or choose_text(pictures.captions, 64, 1)).get("kind") != "none"
    if denoiser.get("prior") != "none":
        few = {"guidance": FEW_GUIDANCE} if len(pictures.train_indices) < FEW_PICTURES else {}
        return PRIOR_GUIDANCE | few | ({"prior_guidance": CAPTION_PRIOR_GUIDANCE} if captioned else {})
    return {"guidance": CAPTION_GUIDANCE if captioned else LABEL_GUIDANCE if pictures.classes else 1.0}


# -- Autoencoder -------------------------------------------------------------------------------------------------------


def imported_autoencoder(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an imported autoencoder, whose network is described in its folder; empty for one of our own."""
    space = settings.get("space", {})
    if space.get("kind") != "diffusers":
        return {}
    network = diffusers.read_kl_config(Path(space["path"])).model_dump(mode="json")
    return {"space": space, "autoencoder": {"network": network}}


def choose_vae(pictures: Pictures, size: int) -> tuple[VaeConfig, str]:
    """64 to 256 latent positions up to 256 px; channels grow with the reduction.

    Patches overlap where that is the shorter code of the pictures. So it is for photographs; flat areas with sharp
    edges, as drawings have them, are simpler in squares, and their denoiser learns sooner (dev/LOG.md, 2026-11-28).
    """
    reduction, channels = own_latents(size)
    side = min(reduction, CODED_SIDE)
    crop = min(size, LARGEST_CROP) // side * side
    if not crop:
        return VaeConfig(
            reduction=reduction, channels=channels, **vae_widths(reduction)
        ), "pictures smaller than a patch"
    images = torch.cat([middle(image, crop) for image in some_images(pictures, size)])
    squares, overlapping = code_length(images, side), code_length(Lapping(side)(images), side)
    network = VaeConfig(reduction=reduction, channels=channels, lapped=overlapping < squares, **vae_widths(reduction))
    return (
        network,
        f"the code of these pictures has {overlapping:.2f} bits a value if they overlap, {squares:.2f} if not",
    )


def own_latents(size: int) -> tuple[int, int]:
    """Reduction and channels of the autoencoder for pictures of this size."""
    spaces = ((192, 16, 64), (48, 8, 32), (0, 4, 8))
    return next((reduction, channels) for smallest, reduction, channels in spaces if size >= smallest)


def middle(images: Images, side: int) -> OtherImages:
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., max(0, top) :, max(0, left) :][..., :side, :side]


def code_length(images: Images, side: int) -> float:
    """Bits a value, about: mean logarithm of the principal components of square patches, in steps of `CODED_STEP`."""
    patches = F.pixel_unshuffle(images, side).double().transpose(0, 1).flatten(1)
    mean, _, axes = principal_axes(patches)
    return float((1 + (axes.T @ (patches - mean)).abs() / CODED_STEP).log2().mean())


def vae_widths(reduction: int) -> dict[str, Any]:
    """Widths of each level of the autoencoder: the cheap, small levels are wide."""
    return {"stem": 4, "widths": {4: [96], 8: [96, 192], 16: [64, 128, 256], 32: [64, 128, 256, 256]}[reduction]}


# -- The denoiser of the first stage -----------------------------------------------------------------------------------


def choose_denoiser(
    pictures: Pictures, side: int, channels: int, sigma_data: float, flops: float, batch_factor: int
) -> tuple[dict[str, Any], str]:
    """For latents or pixels of `side`; the schedule is shifted to more noise where they are larger (arXiv 2403.03206,
    eq. 23)."""
    backbone, why = choose_dit(side, flops, batch_factor)
    shift = sigma_data * max(1.0, math.sqrt(channels * side**2 / 4096))
    few = len(pictures.train_indices) < FEW_PICTURES
    denoiser = {
        "batch": DenoiserRecipe().batch * batch_factor,
        "backbone": {**backbone, "dropout": 0.1 if few else 0.0},
        "schedule": {"kind": "flow", "shift": three_digits(shift)},
        "sigma_data": sigma_data,
        "text": choose_text(pictures.captions, backbone["width"], backbone["depth"]),
    }
    return denoiser, why


def choose_dit(side: int, flops: float, batch_factor: int) -> tuple[dict[str, Any], str]:
    """The largest DiT that sees enough pictures within `flops`, in batches `batch_factor` times as large."""
    patch = choose_patch(side)
    tokens = (side // patch) ** 2
    for width, depth in DITS:
        images = flops / training_flops(width, depth, tokens)
        if images >= ENOUGH_IMAGES * batch_factor:
            break
    backbone = {"kind": "dit", "width": width, "depth": depth, "heads": width // 64, "patch": patch}
    return backbone, REASON.format(images)


def training_flops(width: int, depth: int, tokens: int) -> int:
    """Of one picture: a block has 12 width^2 weights, and each takes 6 operations a token."""
    return 6 * 12 * width**2 * depth * tokens


def choose_text(captions: Captions | None, width: int, depth: int) -> dict[str, Any]:
    """Half as wide as the denoiser and a quarter as deep: about a tenth of its cost."""
    if captions is None or captions.optional:
        return {"kind": "none"}
    return {"kind": "bytes", "width": width // 2, "heads": max(1, width // 64), "depth": max(1, depth // 4)}


def learning_rate(backbone: Backbone) -> float:
    """Inversely proportional to the width; ten times smaller for a UNet, whose convolutions have 9 times the inputs."""
    return three_digits((0.4 if backbone.kind == "dit" else 0.04) / backbone.width)


# -- Stages that enlarge -----------------------------------------------------------------------------------------------


def choose_enlarger(
    pictures: Pictures, low_res: int, size: int, flops: float, batch_factor: int, prior: PriorName = "gaussian"
) -> tuple[dict[str, Any], str]:
    """The widest local UNet that sees enough crops within `flops`."""
    factor = size // low_res
    patch = math.gcd(min(4, factor), size)
    multiples = (1, 2, 2) if size % (4 * patch) == 0 else (1,)
    unit = math.lcm(patch * 2 ** (len(multiples) - 1), factor)
    crop = min(size, 128 if size <= LARGEST_CROP else LARGEST_CROP) // unit * unit
    networks = [
        UnetConfig(patch=patch, width=width, multiples=multiples, blocks=blocks, attention_levels=())
        for width, blocks in ((32, 2), (48, 2), (64, 2), (96, 2), (128, 2), (128, 3))
    ]

    def crops_seen(network: UnetConfig) -> float:
        return flops / (3 * forward_flops(network, 9, 3, crop))

    enough = takewhile(lambda network: crops_seen(network) >= ENOUGH_CROPS * batch_factor, networks)
    backbone = [networks[0], *enough][-1]
    plain, residual = measure_residuals(pictures, size, factor, prior)
    settings = {
        "batch": 8 * batch_factor,
        "backbone": backbone.model_dump(mode="json"),
        "schedule": {
            "kind": "karras",
            "mean": three_digits(math.log(MEDIAN_SIGMA * residual)),
            "smallest": three_digits(max(0.1 * plain, SMALLEST_SIGMA * residual)),
            "largest": three_digits(LARGEST_SIGMA * residual),
        },
        "sigma_data": residual if prior == "none" else 0.0,
        "augmentation": {"kind": "noise" if low_res <= LARGEST_NOISED else "blur"},
        "crop": crop,
    }
    return settings, REASON.format(crops_seen(backbone))


@cache
def forward_flops(config: Backbone, in_channels: int, out_channels: int, side: int) -> int:
    """FLOPs of one picture through a network, counted on the meta device."""
    with torch.device("meta"), torch.no_grad():
        network = build_backbone(config, in_channels, out_channels)
        return counted(lambda: network(torch.empty(1, in_channels, side, side), torch.empty(1, config.width)))


def measure_residuals(pictures: Pictures, size: int, factor: int, prior: PriorName = "gaussian") -> tuple[float, float]:
    """Standard deviation of pictures about the prior mean: in flat patches, and overall.

    Without a prior, the overall one is about the low-resolution picture, enlarged.
    """
    enough = max(2, PRIOR_PATCHES // (size // factor) ** 2)
    pairs = [(shrunk(images, factor), images) for images in islice(some_images(pictures, size), enough)]
    fitted = PatchPrior(factor)
    fitted.fit(pairs)
    if prior == "none":
        residuals = (images - enlarged(low_res, factor) for low_res, images in pairs)
    else:
        residuals = (fitted.posterior(low_res, torch.zeros(1)).deviation for low_res, _ in pairs)
    overall = max(LEAST_DEVIATION, math.sqrt(mean_of(residual.square() for residual in residuals)))
    return three_digits(float(fitted.plain)), three_digits(overall)


# -- Measured on pictures ----------------------------------------------------------------------------------------------


def measure_sigma_data(pictures: Pictures, size: int) -> float:
    """Root mean square of the pixels, in [-1, 1], of pictures of this size."""
    return three_digits(max(1e-3, math.sqrt(mean_of(image.square() for image in some_images(pictures, size)))))


def some_images(pictures: Pictures, size: int) -> Iterator[Images]:
    """At most 64 training pictures, evenly spaced, one at a time."""
    for index in pictures.train_indices[:: max(1, len(pictures.train_indices) // 64)][:64]:
        yield shrunk(images_from_pixels(pictures.pixels[index][None]), max(1, pictures.pixels.shape[-1] // size))


def mean_of(values: Iterable[Tensor]) -> float:
    return float(torch.stack([value.mean() for value in values]).mean())


def three_digits(value: float) -> float:
    """Rounded to them, since recipes are read by people."""
    return float(f"{value:.3g}")
