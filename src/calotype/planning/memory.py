"""What a run needs in memory: training steps by networks on the meta device, which have shapes and no numbers, and the
fits between the legs by laws, whose constants `bench/memory.py` checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calotype.build import build_autoencoder, build_backbone
from calotype.data.caches import fit_into
from calotype.data.folder import Pictures
from calotype.data.latents import is_mapped
from calotype.data.views import DECODED_TIMES
from calotype.diffusion.stage import Stage
from calotype.machine import Machine, ranks_here
from calotype.nets.text import BytesConfig, BytesEncoder
from calotype.nets.weights import ShapesOnly
from calotype.planning.costs import count_parameters
from calotype.planning.laws import STATE_BYTES
from calotype.priors.captions import MOST_WORDS, CaptionedMixture
from calotype.priors.patches import FLATTEST, PATCH_CLUSTERS, WINDOW_SIDE
from calotype.priors.prior import MOST_VALUES
from calotype.recipe import Recipe, Sharding, leg_above
from calotype.training.examples import reads_larger
from calotype.training.fitting import PATCHES, VALIDATION_IMAGES, fitted_sides
from calotype.training.previews import VALIDATED
from calotype.types import UserError

FILLED = 0.8
"""Fraction of the free memory that a step fills at most, where smaller parts of its batch are all that it takes."""
INPUTS = 2
"""The noisy image and the prior mean; a stage that enlarges also gets the low-resolution image."""


DRAWN_LATENTS, DRAWN_PIXELS = 5.5, 4.0
"""Copies of the images to which a prior is fitted, while they are drawn: moments are twice as large, and as many values
again are their noise, its product and the sum; of pixels, the bytes, both mirror images and what is chosen of them."""
COMPONENTS = 3
"""Copies of a mixture: the best so far (or, with captions, that without them), the next one, and its components."""
DECOMPOSED = 2
"""Copies of the coordinates of a class while its axes are found."""
JOINED = 2
"""Copies of the latents of a group and of their bags of words, while it is put together from its parts."""
BAGS = 1.5
"""Copies of the bags of words, one a caption and level, while the gate is fitted."""
EVALUATED = 8
"""Copies of the validation images while a prior is judged by them."""
FIT_OVERHEAD, PATCH_OVERHEAD = 2**24, 2**28
"""Bytes of what is computed a few images, or windows, at a time."""


class Outline(NamedTuple):
    """A leg without values."""

    leg: str
    network: nn.Module
    side: int
    """Of the images that it works on."""
    forward: Callable[[], object]
    """Computes one image."""


class LegMemory(NamedTuple):
    """Bytes that a leg holds in a training step."""

    states: int
    image: int
    """For each image that is worked on at once."""

    def step(self, images: int) -> int:
        return self.states + images * self.image


def rounds_of(recipe: Recipe, machine: Machine) -> dict[str, int]:
    """In how many parts, one after the other, each leg works on a batch: as few as the memory that is free allows.

    Raises `UserError` where a step of a leg surely needs more, before any of it is taken. An autoencoder, and a stage
    that enlarges in one step, work on whole batches.
    """
    rounds = {}
    with ShapesOnly():
        for outline in legs_in_outline(recipe):
            batch = math.ceil(recipe.legs[outline.leg].batch / machine.ranks)  # what one rank works on
            memory = least_memory(outline, batch, recipe, machine)
            most = batch if is_divisible(recipe, outline.leg) else 1
            if memory.step(math.ceil(batch / most)) > machine.memory:
                raise UserError(too_large(outline, memory, batch, machine))
            halvings = (2**power for power in range(most.bit_length()))
            fitting = (parts for parts in halvings if memory.step(math.ceil(batch / parts)) <= FILLED * machine.memory)
            rounds[outline.leg] = next(fitting, most)
    return {leg: rounds.get(leg.replace("exposure", "enlarge"), 1) for leg in recipe.legs}


def choose_sharding(recipe: Recipe, machine: Machine) -> tuple[Sharding, str]:
    """Full where a replica of a denoiser, with its gradients, moments and average, is too large for a device."""
    with ShapesOnly():
        outlines = (outline for outline in legs_in_outline(recipe) if is_divisible(recipe, outline.leg))
        largest = max(STATE_BYTES * count_parameters(outline.network) for outline in outlines)
    fits = largest <= FILLED * machine.memory
    replica = f"a replica with its gradients, moments and average takes {gigabytes(largest)}"
    if fits:
        return "none", f"{replica}, and a rank has {gigabytes(machine.memory)}"
    return "full", f"{replica}, and a rank has only {gigabytes(machine.memory)}; each of {machine.ranks} has a share"


def state_bytes(outline: Outline, recipe: Recipe, machine: Machine) -> int:
    """What a rank holds between steps. Of what is sharded that is a share, and what it gathers for a block counts as
    much as the whole average, which the first gathers for previews."""
    count = count_parameters(outline.network)
    if recipe.sharding == "none" or machine.ranks == 1 or not is_divisible(recipe, outline.leg):
        return STATE_BYTES * count
    shares = machine.ranks if recipe.sharding == "full" else ranks_here()
    return STATE_BYTES * count // shares + 4 * count


def is_divisible(recipe: Recipe, leg: str) -> bool:
    """Whether the objective of a leg has slices: see `training.objectives`."""
    name, _, size = leg.partition("-")
    return name == "denoiser" or (name == "enlarge" and recipe.enlarging(int(size)).objective == "denoising")


def least_memory(outline: Outline, batch: int, recipe: Recipe, machine: Machine) -> LegMemory:
    """What a leg holds, or an upper bound of it where the machine has enough: to compute in outline, torch imports its
    compiler, which takes a second."""
    states, enough = state_bytes(outline, recipe, machine), machine.memory
    bound = 4 * outline.side**2 * sum(len(weight) for weight in outline.network.parameters())
    if states > enough or states + batch * bound <= FILLED * enough:
        return LegMemory(states, bound if states <= enough else 0)
    return leg_memory(outline, recipe, machine)


def leg_memory(outline: Outline, recipe: Recipe, machine: Machine) -> LegMemory:
    half = 2 if recipe.precision == "bfloat16" else 1
    return LegMemory(state_bytes(outline, recipe, machine), 4 * kept_values(outline.forward) // half)


def too_large(outline: Outline, memory: LegMemory, batch: int, machine: Machine) -> str:
    weights = count_parameters(outline.network) / 1e6
    return (
        f"a training step of the {outline.leg} needs about {gigabytes(memory.step(batch))} of memory ({weights:,.1f} M "
        f"parameters, batches of {batch:,}), but only {gigabytes(machine.memory)} are free on {machine.device}; lower "
        f"{outline.leg.replace('-', '.')}.batch, or take a smaller network or size"
    )


def predicted_memory(recipe: Recipe, machine: Machine, rounds: Mapping[str, int]) -> int:
    """The most bytes that a run holds on a device that is not here: those of the leg that needs most."""
    with ShapesOnly():
        return max(
            leg_memory(outline, recipe, machine).step(
                math.ceil(recipe.legs[outline.leg].batch / machine.ranks / rounds[outline.leg])
            )
            for outline in legs_in_outline(recipe)
        )


def fit_memory(recipe: Recipe, base: Stage, count: int, held_out: int) -> dict[str, int]:
    """Bytes that the fits of the priors hold, by the step of the run, for so many training and validation pictures."""
    sides, values, prior = fitted_sides(recipe), math.prod(base.shape), base.denoiser.prior
    parts = {}
    if prior is not None:
        images = min(MOST_VALUES // values, count * sides)
        fitted, held = 4 * values * images, sum(tensor.nbytes for tensor in prior.state_dict().values())
        drawing = DRAWN_LATENTS if recipe.kind == "latent" else DRAWN_PIXELS
        judged = EVALUATED * 4 * values * min(VALIDATION_IMAGES, held_out)
        components, along = prior.shape["components"], fitted * prior.shape["rank"] // values
        # latents, those of a class once more, coordinates along the axes, and what finds the axes of a class
        own = fitted + (fitted + DECOMPOSED * along) // components + along
        phases = [int(drawing * fitted), own + COMPONENTS * held + judged]
        if isinstance(prior, CaptionedMixture):  # whose groups are twice as many, since each class has two levels
            again = fitted // sides  # drawn once more with other captions, without mirror images
            bags = 4 * MOST_WORDS * 2 * (images + images // sides)
            gate, drawn = held // 2 + int(BAGS * bags), fitted + int(drawing * again)
            group = JOINED * (2 * (fitted + again) + bags) // len(prior.gate_bias)
            phases = [phases[0], drawn, fitted + again + max(COMPONENTS * held + group, gate) + judged]
        parts["fit"] = FIT_OVERHEAD + max(phases)
    for below, size in pairwise(recipe.chain):
        if recipe.enlarging(size).prior != "none":
            parts[f"prepare-{size}"] = patch_fit_memory(size // below)
    return parts


def patch_fit_memory(factor: int) -> int:
    """Of fitting a patch prior that enlarges by `factor`: windows and residuals of the half with more contrast; then
    the flattest residuals, or what is common to all clusters, which is as large as all residuals; and two priors, that
    of the stage and the fitted one, whose axes are most of it where a stage enlarges 16 times."""
    neighbours, values = 3 * WINDOW_SIDE**2, 3 * factor**2
    half, prior = 4 * PATCHES // 2, 4 * PATCH_CLUSTERS * values * (values + neighbours)
    return PATCH_OVERHEAD + half * (neighbours + values) + max(half, 4 * PATCHES // FLATTEST) * values + 2 * prior


def validation_bytes(recipe: Recipe) -> int:
    """Of the validation pictures of a leg, as many training pictures, and what a network makes of one of these sets, in
    float32: at most."""
    sides = recipe.chain[0], *(recipe.enlarging(size).crop or size for size in recipe.chain[1:])
    return max(3 * 4 * VALIDATED.count(3 * side**2) * 3 * side**2 for side in sides)


class LatentBytes(NamedTuple):
    memory: int
    disk: int


def latent_bytes(recipe: Recipe, sets: Sequence[int]) -> LatentBytes:
    """Of the latents of sets of so many pictures (one set, or one an aspect bucket) in float16; zeros in pixels.

    Small sets have their moments in memory and on the disk, large ones their means on the disk alone.
    """
    if recipe.kind != "latent":
        return LatentBytes(0, 0)
    network = recipe.autoencoder.network
    sides = 1 + recipe.flip + recipe.denoiser.views
    means = 2 * network.channels * (recipe.chain[0] // network.reduction) ** 2 * sides
    in_memory = 2 * means * sum(count for count in sets if not is_mapped(count))
    return LatentBytes(in_memory, in_memory + means * sum(count for count in sets if is_mapped(count)))


def pixel_bytes(pictures: Pictures, free: int) -> int:
    """Of the pixels of all pictures, where `free` bytes of memory are enough for them; else they are mapped."""
    needed = pictures.total * pictures.pixels[0].nbytes
    return needed if fit_into(needed, free) else 0


def unread_pixel_bytes(pictures: Pictures, free: int) -> int:
    """Of the file that a run maps pixels from, where only a sample was read; one that was read whole has its file."""
    whole = pictures.sampled_from is None or pixel_bytes(pictures, free)
    return 0 if whole else pictures.total * pictures.pixels[0].nbytes


def derived_bytes(recipe: Recipe, sets: Sequence[int], free: int) -> int:
    """Of what is made of all pixels and held in memory: those of aspect buckets, larger ones from which views are cut,
    smaller copies, and latents."""
    buckets = 0 if recipe.aspect_buckets == 1 else 3 * recipe.size**2
    larger = 3 * (DECODED_TIMES * recipe.chain[0]) ** 2 if reads_larger(recipe) else 0
    read = sum(count * values for values in (buckets, larger) for count in sets if fit_into(count * values, free))
    copies = max((3 * side**2 for side in recipe.chain[:-1]), default=0) * sum(sets)
    return read + copies + latent_bytes(recipe, sets).memory


def legs_in_outline(recipe: Recipe) -> Iterator[Outline]:
    """Each leg that trains a network of its own; to be called within `ShapesOnly`."""
    base, channels, text = recipe.chain[0], 3, recipe.denoiser.text
    if recipe.kind == "latent":
        network = recipe.autoencoder.network
        if recipe.trains_space:
            vae, side = build_autoencoder(network, "float32"), recipe.autoencoder.crop or base
            seen = torch.empty(1, 3, side, side)
            yield Outline("autoencoder", vae, side, lambda: vae.decode(vae.encode(seen).mean))
        base, channels = base // network.reduction, network.channels
    encoder = BytesEncoder(text) if isinstance(text, BytesConfig) else nn.Identity()
    legs = {"denoiser": (recipe.denoiser.backbone, base, INPUTS * channels, channels)}
    for size in recipe.chain[1:]:
        stage = recipe.enlarging(size)
        legs[leg_above(size)] = stage.backbone, stage.crop or size, (INPUTS + 1) * 3, 3
    for leg, (config, side, inputs, outputs) in legs.items():
        backbone = build_backbone(config, inputs, outputs)
        image, vector = torch.empty(1, inputs, side, side), torch.empty(1, config.width)
        yield Outline(leg, nn.ModuleList([backbone, encoder]), side, partial(backbone, image, vector))


def kept_values(forward: Callable[[], object]) -> int:
    """Values that a forward pass keeps for the backward pass; the weights, which it does not copy, are left out."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter) and not isinstance(tensor._base, nn.Parameter):
            kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(tensor.untyped_storage().nbytes() // 4 for tensor in kept.values())


def gigabytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GB"
