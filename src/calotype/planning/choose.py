"""The recipe that suits these pictures, this machine and this budget, where the user has not set it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice, pairwise
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
from calotype.interop.autoencoders import read_autoencoder_config
from calotype.machine import UTILIZATION, Machine
from calotype.nets.unet import UnetConfig
from calotype.nets.vae import Lapping, VaeConfig, principal_axes
from calotype.planning.chains import choose_chain, own_latents
from calotype.planning.laws import (
    FEW_PICTURES,
    HEAD,
    VAE_WIDTHS,
    WHOLE_IMAGES,
    batch_size,
    dit_shape,
    dropout_rate,
    images_afforded,
    time_shares,
    training_flops,
    unet_size,
    vae_widths,
    view_count,
)
from calotype.planning.mirroring import choose_flip
from calotype.planning.sizes import MOST_TOKENS, check_tokens, choose_patch
from calotype.planning.views import choose_views
from calotype.priors.patches import LEAST_DEVIATION, deviations, enlarged
from calotype.recipe import AutoencoderNetwork, AutoencoderRecipe, Backbone, DenoiserRecipe, PriorName, leg_above
from calotype.settings import parse_recipe
from calotype.types import Images, OtherImages

PRIOR_PATCHES = 2**17
"""Patches to which the prior of a stage that enlarges is fitted for the plan."""
AUTOENCODER_RATE, FINETUNE_RATE = 2e-3, 1e-4
"""Learning rates of an autoencoder of our own with the widths of minutes, and of an imported one."""
STEPS = 12
"""Steps of the sampler of the first stage. With 24, portraits in latents are nearer to real ones by 10 at most, and
after minutes more of them lose features; in pixels more steps leave more grain (dev/LOG.md, 2026-11-28 to
2026-12-01)."""
PRIOR_GUIDANCE = {"guide": "prior", "guidance": 3.0, "guidance_slope": 0.5, "prior_guidance": 0.5}
"""Guidance away from the prior, the best guide in a sweep over portraits (dev/LOG.md, 2026-11-28 to 2026-11-30)."""
FEW_GUIDANCE_CHANGES = {"guidance": 1.25, "prior_guidance": 0.0}
"""For fewer than `FEW_PICTURES`, whose prior is crude: 1.5 exaggerates (dev/LOG.md, 2026-11-30)."""
CAPTION_GUIDANCE_CHANGES = {"guidance_slope": 0.75, "prior_guidance": 0.5}
"""Where there are captions. Without guidance of the prior itself, guidance by the prior loses attributes of prompts;
smaller slopes were not tried with prompts."""
LABEL_GUIDANCE, CAPTION_GUIDANCE = 2.0, 1.3
"""Scales of classifier-free guidance, for models without a prior."""
CHANNEL_WEIGHTING = 0.5
"""For latents of an own autoencoder, whose channels do as unequal things to the picture as principal components: on the
demo's the effects are from 0.4 to 6 times their mean (dev/LOG.md, 2026-11-29)."""
FIRST_STEP = 0.5
"""Of the sampler in latents, by its other steps: the second sigma is 20 in place of 10.5. In three pairs of six minutes
the kernel distance and FD-VGG16 are lower, and as much lower in an hour as by twice the steps (dev/LOG.md,
2026-12-01)."""
FINAL_DENOISING = 0.06
"""Sigma at which samples in latents are denoised once more. Three pairs of six minutes and an hour are nearer to real
portraits by 4 (dev/LOG.md, 2026-12-01)."""
CODED_SIDE, CODED_STEP = 8, 0.03
"""Side of the patches whose code length is compared, at most, and the step to which values in [-1, 1] are rounded."""
ONE_STEP = {"objective": "one_step", "sampling": {"steps": 1}}
"""Of stages that enlarge pictures made in latents: sharper in minutes than several steps (dev/LOG.md, 2026-11-28)."""
VAE_FLOPS, VAE_BYTES, UNET_BYTES = 480_000, 1100, 30
"""Of a training step of the autoencoder, critic and perceptual distance included, a pixel, with the widths of
minutes; and what it keeps of a pixel, and a UNet for each unit of its width."""
LARGEST_CROP = 256
"""Side of the crops of the autoencoder and of stages that enlarge, at most: their networks are local."""
MEDIAN_SIGMA, SMALLEST_SIGMA, LARGEST_SIGMA = 0.6, 0.01, 15
"""Of a stage that enlarges, in units of the residual's standard deviation: the median in training (0.6 in arXiv
2206.00364, table 1), and the range in sampling. It starts at the prior mean, so noise need only cover the residual."""
LARGEST_NOISED = 128
"""Low-resolution pictures up to this size are augmented with noise, larger ones with blur."""


def propose(
    pictures: Pictures, machine: Machine, budget: float, settings: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Settings to lay below those of the user, and reasons for some of them; `make.reasons_of_legs` has the others.

    `budget` is in seconds. Raises `UserError` for a size that no network fits.
    """
    kind, size, imported = settings.get("kind", "latent"), settings["size"], imported_autoencoder(settings)
    operations = UTILIZATION * machine.all_flops * budget
    stages = settings.get("stages") or choose_chain(kind, size, operations, own_networks(settings))
    outline = parse_recipe({"kind": kind, "size": size, "stages": stages, **imported})
    shares = time_shares(outline.legs, operations)
    resources = {
        leg: Resources(operations * share, float(machine.memory), machine.busy_batch_of_all)
        for leg, share in shares.items()
    }
    proposal: dict[str, Any] = {
        "kind": kind,
        "size": size,
        "stages": list(outline.chain),
        "precision": "bfloat16" if machine.fast_bfloat16 else "float32",
        "sampling": choose_guidance(pictures, settings) | {"steps": STEPS},
        "enlarge": {},
        **imported,
    }
    reasons = {"precision": machine.why_precision}
    captioned = reads_captions(pictures, settings)
    proposal["flip"], reasons["flip"] = choose_flip(pictures, captioned)
    base, reduction, channels, sigma_data = outline.chain[0], 1, 3, 1.0
    if kind == "latent":
        own = resources.get("autoencoder", NO_RESOURCES)
        network = outline.autoencoder.network
        if not imported:
            network, reasons["patches"] = choose_vae(pictures, base, own)
        reduction, channels = network.reduction, network.channels
        proposal["autoencoder"] = choose_autoencoder(network, base, own)
    else:
        sigma_data = measure_sigma_data(pictures, base)
    if "backbone" not in settings.get("denoiser", {}):
        check_tokens(outline.chain, reduction)
    side = max(1, base // reduction)
    proposal["denoiser"] = choose_denoiser(pictures, side, channels, sigma_data, resources["denoiser"])
    allowed, reasons["views"] = choose_views(pictures, kind, base, bool(imported), captioned)
    proposal["denoiser"]["views"] *= allowed
    if kind == "latent" and not imported and inherits_own(settings):
        proposal["denoiser"]["channel_weighting"] = CHANNEL_WEIGHTING
        proposal["denoiser"]["schedule"]["first_step"] = FIRST_STEP
        if pictures.trained >= FEW_PICTURES and not settings.get("sampling", {}).get("epsilon_scaling"):
            proposal["sampling"]["final_denoising"] = FINAL_DENOISING
    for low_res, larger in pairwise(outline.chain):
        leg, set_by_user = leg_above(larger), settings.get("enlarge", {}).get(str(larger), {})
        prior = set_by_user.get("prior", "gaussian")
        proposal["enlarge"][str(larger)] = choose_enlarger(pictures, low_res, larger, resources[leg], prior)
        if kind == "latent" and takes_one_step(set_by_user):
            proposal["enlarge"][str(larger)] |= ONE_STEP
    return proposal, reasons


@dataclass(frozen=True)
class Resources:
    """What a leg has: operations, and the memory of the machine in bytes."""

    operations: float
    memory: float = math.inf
    busy_batch: int = 1
    """How many times larger than on a CPU batches must be to keep the device busy."""

    def batch(self, smallest: int, flops: float, kept: float = 1.0) -> int:
        """Images in a batch where one takes so many operations to train on, and keeps so many bytes; where a batch
        cannot be worked on in parts, it takes at most a quarter of the memory."""
        batch = batch_size(smallest, self.operations / flops, self.busy_batch)
        while batch > 1 and batch * kept > self.memory / 4:
            batch //= 2
        return batch


NO_RESOURCES = Resources(0.0)


# -- Sampling ----------------------------------------------------------------------------------------------------------


def own_networks(settings: dict[str, Any]) -> bool:
    """Whether the user has set an autoencoder, or the network of the autoencoder or of the denoiser."""
    networks = {*settings.get("autoencoder", {}), *settings.get("denoiser", {})} & {"network", "backbone"}
    return bool(imported_autoencoder(settings) or networks)


def inherits_own(settings: dict[str, Any]) -> bool:
    """Whether the autoencoder of the run to start from, if there is one, was trained by Calotype."""
    return bool(settings.get("autoencoder", {}).get("network", {}).get("kind", "vae") == "vae")


def takes_one_step(set_by_user: dict[str, Any]) -> bool:
    """Unless the user wants another objective, or sampling settings that one step does not have."""
    sampling = set_by_user.get("sampling", {})
    return set_by_user.get("objective", "one_step") == "one_step" and all(
        sampling.get(name, only) == only
        for name, only in (("steps", 1), ("guidance", 1), ("epsilon_scaling", 0), ("final_denoising", 0))
    )


def choose_guidance(pictures: Pictures, settings: dict[str, Any]) -> dict[str, Any]:
    """Away from the prior where there is one, else classifier-free where there are conditions."""
    captioned = reads_captions(pictures, settings)
    if settings.get("denoiser", {}).get("prior") != "none":
        few = FEW_GUIDANCE_CHANGES if pictures.trained < FEW_PICTURES else {}
        return PRIOR_GUIDANCE | few | (CAPTION_GUIDANCE_CHANGES if captioned else {})
    return {"guidance": CAPTION_GUIDANCE if captioned else LABEL_GUIDANCE if pictures.classes else 1.0}


# -- Autoencoder -------------------------------------------------------------------------------------------------------


def imported_autoencoder(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of an imported autoencoder, whose network is described in its folder; empty for one of our own."""
    space = settings.get("space", {})
    if space.get("kind") != "diffusers":
        return {}
    network = read_autoencoder_config(Path(space["path"])).model_dump(mode="json")
    return {"space": space, "autoencoder": {"network": network}}


def choose_autoencoder(network: AutoencoderNetwork, base: int, resources: Resources) -> dict[str, Any]:
    """Settings of the leg that trains it, on crops of pictures of `base` px."""
    crop, default = min(base, LARGEST_CROP), AutoencoderRecipe()
    settings = {"network": network.model_dump(mode="json"), "crop": crop, "batch": default.batch}
    if not isinstance(network, VaeConfig):
        return settings | {"learn": {"learning_rate": FINETUNE_RATE}}
    scale = network.widths[0] / VAE_WIDTHS[network.reduction][0]
    flops = VAE_FLOPS * (crop * scale) ** 2
    return settings | {
        "batch": resources.batch(default.batch, flops, VAE_BYTES * scale * crop**2),
        "learn": {"learning_rate": three_digits(AUTOENCODER_RATE / scale**1.5)},
    }


def choose_vae(pictures: Pictures, size: int, resources: Resources = NO_RESOURCES) -> tuple[VaeConfig, str]:
    """64 to 256 latent positions up to 256 px; channels grow with the reduction.

    Patches overlap where that is the shorter code of the pictures. So it is for photographs; flat areas with sharp
    edges, as drawings have them, are simpler in squares, and their denoiser learns sooner (dev/LOG.md, 2026-11-28).
    """
    reduction, channels = own_latents(size)
    side = min(reduction, CODED_SIDE)
    crop = min(size, LARGEST_CROP) // side * side
    widths = tuple(vae_widths(reduction, resources.operations, resources.memory))
    network = VaeConfig(reduction=reduction, channels=channels, widths=widths)
    if not crop:
        return network, "pictures smaller than a patch"
    images = torch.cat([middle(image, crop) for image in some_images(pictures, size)])
    squares, overlapping = code_length(images, side), code_length(Lapping(side)(images), side)
    why = f"these pictures need {overlapping:.2f} bits per value if they overlap, {squares:.2f} if not"
    return network.model_copy(update={"lapped": overlapping < squares}), why


def middle(images: Images, side: int) -> OtherImages:
    top, left = ((length - side) // 2 for length in images.shape[-2:])
    return images[..., max(0, top) :, max(0, left) :][..., :side, :side].clone()  # a view would keep all


def code_length(images: Images, side: int) -> float:
    """Bits a value, about: mean logarithm of the principal components of square patches, in steps of `CODED_STEP`."""
    patches = F.pixel_unshuffle(images, side).double().transpose(0, 1).flatten(1)
    mean, _, axes = principal_axes([patches])
    return float((1 + (axes.T @ (patches - mean)).abs() / CODED_STEP).log2().mean())


# -- The denoiser of the first stage -----------------------------------------------------------------------------------


def choose_denoiser(
    pictures: Pictures, side: int, channels: int, sigma_data: float, resources: Resources
) -> dict[str, Any]:
    """For latents or pixels of `side`; the schedule is shifted to more noise where they are larger (arXiv 2403.03206,
    eq. 23)."""
    backbone, flops = choose_dit(side, resources)
    epochs = resources.operations / flops / max(1, pictures.trained)
    shift = sigma_data * max(1.0, math.sqrt(channels * side**2 / 4096))
    return {
        "batch": resources.batch(DenoiserRecipe().batch, flops),
        "backbone": {**backbone, "dropout": three_digits(dropout_rate(epochs))},
        "schedule": {"kind": "flow", "shift": three_digits(shift)},
        "sigma_data": sigma_data,
        "text": choose_text(pictures.captions, backbone["width"], backbone["depth"]),
        "views": view_count(epochs),
    }


def choose_dit(side: int, resources: Resources) -> tuple[dict[str, Any], float]:
    """The DiT of the law, with the smallest patches by which it sees enough pictures, and its operations a picture."""
    width, depth = dit_shape(resources.operations, resources.memory)
    coarse = choose_patch(side)
    finer = (patch for patch in range(1, coarse) if side % patch == 0 and side // patch <= MOST_TOKENS)
    patch = next(
        (fine for fine in finer if images_afforded(resources.operations, (side // fine) ** 2) >= WHOLE_IMAGES), coarse
    )
    backbone = {"kind": "dit", "width": width, "depth": depth, "heads": width // HEAD, "patch": patch}
    return backbone, training_flops(width, depth, (side // patch) ** 2)


def reads_captions(pictures: Pictures, settings: dict[str, Any]) -> bool:
    """Whether the denoiser gets a text encoder: as the user has set, or by `choose_text`."""
    text = settings.get("denoiser", {}).get("text") or choose_text(pictures.captions, 64, 1)
    return bool(text.get("kind") != "none")


def choose_text(captions: Captions | None, width: int, depth: int) -> dict[str, Any]:
    """Half as wide as the denoiser and a quarter as deep: about a tenth of its cost."""
    if captions is None or captions.optional:
        return {"kind": "none"}
    return {"kind": "bytes", "width": width // 2, "heads": max(1, width // 64), "depth": max(1, depth // 4)}


# -- Stages that enlarge -----------------------------------------------------------------------------------------------


def choose_enlarger(
    pictures: Pictures, low_res: int, size: int, resources: Resources, prior: PriorName = "gaussian"
) -> dict[str, Any]:
    """The local UNet of the law."""
    factor = size // low_res
    patch = math.gcd(min(4, factor), size)
    multiples = (1, 2, 2) if size % (4 * patch) == 0 else (1,)
    unit = math.lcm(patch * 2 ** (len(multiples) - 1), factor)
    crop = min(size, 128 if size <= LARGEST_CROP else LARGEST_CROP) // unit * unit
    width, blocks = unet_size(resources.operations, resources.memory)
    backbone = UnetConfig(patch=patch, width=width, multiples=multiples, blocks=blocks, attention_levels=())
    flops = 3.0 * forward_flops(backbone, 9, 3, crop)
    plain, residual = measure_residuals(pictures, size, factor, prior)
    return {
        "batch": resources.batch(8, flops, float(UNET_BYTES * width * crop**2)),
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
    pairs = ImagePairs(pictures, size, factor)
    plain, residuals = deviations(pairs, factor)
    if prior == "none":
        residuals = (images - enlarged(low_res, factor) for low_res, images in pairs)
    overall = max(LEAST_DEVIATION, math.sqrt(mean_of(residual.square() for residual in residuals)))
    return three_digits(float(plain)), three_digits(overall)


@dataclass(frozen=True)
class ImagePairs:
    """Training pictures of `size`, each with its low-resolution picture; made anew for whoever iterates again."""

    pictures: Pictures
    size: int
    factor: int

    def __iter__(self) -> Iterator[tuple[Images, OtherImages]]:
        enough = max(2, PRIOR_PATCHES // (self.size // self.factor) ** 2)
        for images in islice(some_images(self.pictures, self.size), enough):
            yield shrunk(images, self.factor), images


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
