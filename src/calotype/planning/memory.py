"""What a training step needs in memory, by networks on the meta device: they have shapes and no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from calotype.build import build_autoencoder, build_backbone
from calotype.machine import Machine
from calotype.nets.text import BytesConfig, BytesEncoder
from calotype.nets.weights import ShapesOnly
from calotype.planning.measure import count_parameters
from calotype.recipe import Recipe, leg_above
from calotype.types import UserError

STATES = 5
"""Values for each weight: itself, its average, its gradient and two moments."""
INPUTS = 2
"""The noisy image and the prior mean; a stage that enlarges also gets the low-resolution image."""


def check_memory(recipe: Recipe, machine: Machine) -> None:
    """Raises `UserError` where a step of a leg surely needs more memory than is free, before any of it is taken."""
    half = 2 if recipe.precision == "bfloat16" else 1
    with ShapesOnly():
        for leg, network, side, forward in legs_in_outline(recipe):
            batch, weights = recipe.legs[leg].batch, count_parameters(network)
            needed = 4 * STATES * weights
            most = 4 * batch * side**2 * sum(len(weight) for weight in network.parameters())
            if needed <= machine.memory < needed + most:  # to compute in outline, torch imports its compiler: a second
                needed += 4 * batch * kept_values(forward) // half
            if needed > machine.memory:
                raise UserError(
                    f"a training step of the {leg} needs about {gigabytes(needed)} of memory ({weights / 1e6:,.1f} M "
                    f"parameters, batches of {batch:,}), but only {gigabytes(machine.memory)} are free on "
                    f"{machine.device}; lower {leg.replace('-', '.')}.batch, or take a smaller network or size"
                )


def legs_in_outline(recipe: Recipe) -> Iterator[tuple[str, nn.Module, int, Callable[[], object]]]:
    """Of each leg its network, the side of what it works on, and what computes one image."""
    base, channels, text = recipe.chain[0], 3, recipe.denoiser.text
    if recipe.kind == "latent":
        network = recipe.autoencoder.network
        if recipe.trains_space:
            vae, side = build_autoencoder(network, "float32"), recipe.autoencoder.crop or base
            seen = torch.empty(1, 3, side, side)
            yield "autoencoder", vae, side, lambda: vae.decode(vae.encode(seen).mean)
        base, channels = base // network.reduction, network.channels
    encoder = BytesEncoder(text) if isinstance(text, BytesConfig) else nn.Identity()
    legs = {"denoiser": (recipe.denoiser.backbone, base, INPUTS * channels, channels)}
    for size in recipe.chain[1:]:
        stage = recipe.enlarger(size)
        legs[leg_above(size)] = stage.backbone, stage.crop or size, (INPUTS + 1) * 3, 3
    for leg, (config, side, inputs, outputs) in legs.items():
        backbone = build_backbone(config, inputs, outputs)
        image, vector = torch.empty(1, inputs, side, side), torch.empty(1, config.width)
        yield leg, nn.ModuleList([backbone, encoder]), side, partial(backbone, image, vector)


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
