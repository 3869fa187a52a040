"""Weights, gradients, moments and averages in shards, one a rank: FSDP2 and HSDP, by torch's `fully_shard`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from calotype.machine import ranks_here
from calotype.nets.blocks import ChannelNorm, Precision
from calotype.nets.weights import check_weights, local
from calotype.priors.prior import load_trained, with_constants
from calotype.ranks import Ranks
from calotype.recipe import OptimizerConfig, Sharding
from calotype.training.pieces import gather_rows, piece_of
from calotype.training.state import TrainState, under
from calotype.types import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def sharding_mesh(sharding: Sharding, device: torch.device) -> DeviceMesh | None:
    """The ranks of torch's process group in one dimension, "shard"; with hybrid sharding in two, "replicate" (nodes)
    and "shard" (the ranks of a node). None where each rank has all weights, as where there is only one.

    Raises `UserError` for hybrid sharding where nodes differ in their number of ranks.
    """
    count = dist.get_world_size() if dist.is_initialized() else 1
    of_node = ranks_here() if sharding == "hybrid" else count
    if sharding == "none" or of_node == 1:
        return None
    if count % of_node:
        raise UserError(
            f"sharding is hybrid, but {count} ranks are no multiple of the {of_node} on this node; start as many on "
            f"each node, or set sharding to full"
        )
    from torch.distributed.device_mesh import init_device_mesh  # imported where it is used: it takes a second

    if count == of_node:
        return init_device_mesh(device.type, (count,), mesh_dim_names=("shard",))
    return init_device_mesh(device.type, (count // of_node, of_node), mesh_dim_names=("replicate", "shard"))


def shard(network: nn.Module, mesh: DeviceMesh, precision: Precision) -> None:
    """Shards every block, then the rest with the root, whose `loss` gathers as `forward` does.

    Blocks are gathered in `precision`, unless some of their operations take float32 weights in autocast, and freed
    after each pass. Gradients are summed in float32.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    for part in network.modules():
        if isinstance(part, nn.Conv2d):  # `fully_shard` takes no channels_last, so that of the input must do
            part.weight.data = part.weight.data.contiguous()
            part.register_forward_pre_hook(lambda _, images: images[0].contiguous(memory_format=torch.channels_last))
    mixed = MixedPrecisionPolicy(getattr(torch, precision), torch.float32, cast_forward_inputs=False)
    for block in reversed(blocks_of(network)):  # from the inside out
        takes_float32 = any(isinstance(part, ChannelNorm) for part in block.modules())
        fully_shard(block, mesh=mesh, mp_policy=MixedPrecisionPolicy() if takes_float32 else mixed)
    fully_shard(network, mesh=mesh)
    for part in network.modules():
        if isinstance(part, FSDPModule):  # sums, not means, as losses are shares of the loss of the whole batch
            part.set_gradient_divide_factor(1.0)
            part.set_force_sum_reduction_for_comms(True)
    register_fsdp_forward_method(network, "loss")


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The entries of its lists of modules: the layers of a DiT or text encoder, the levels of a UNet."""
    lists = (part for part in network.modules() if isinstance(part, nn.ModuleList))
    return [block for blocks in lists for block in blocks]


class ShardedState(TrainState):
    """A train state of which each rank has its rows of every weight, gradient, moment and average, on its device.

    `average` is whole, on the CPU, and has the averages of the last `gather`.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig, precision: Precision, mesh: DeviceMesh) -> None:
        self.mesh, self.precision = mesh, precision
        super().__init__(network, config, precision)
        self.move(torch.device("cpu"))

    def _averages_of(self, network: nn.Module) -> dict[str, Tensor]:
        shard(network, self.mesh, self.precision)
        return {name: weight.detach().clone() for name, weight in network.named_parameters()}

    def share(self, ranks: Ranks) -> None:
        """Nothing to do: `fully_shard` sums the gradients."""

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of a loss, summed over all ranks: whole ones are never kept for the next."""
        loss.backward()

    def _over_ranks(self, norm: Tensor) -> Tensor:
        from torch.distributed.tensor import DTensor, Partial, Replicate

        placements = [*[Replicate()] * (self.mesh.ndim - 1), Partial()]
        return DTensor.from_local(norm.square(), self.mesh, placements, run_check=False).full_tensor().sqrt()

    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        weights = dict(self.network.named_parameters())
        for prefix, own in (("network.", weights), ("average.", self.averages)):
            given = with_constants(self.network, under(prefix, tensors.items()))
            given = check_weights(self.network, given, prefix.rstrip("."))
            for name, value in own.items():
                local(value).copy_(given[name])

    def gather(self) -> None:
        """Fills `average` with the rows of all ranks, which must all call this."""
        for name, weight in self.average.named_parameters():
            weight.data.copy_(gather_rows(local(self.averages[name]), self.averages[name]))

    def move(self, device: torch.device) -> None:
        """Moves the weights of `average`; its closed form stays where it is, since the network has it, too."""
        for weight in self.average.parameters():
            weight.data = weight.data.to(device)

    def replace_average(self, tensors: Mapping[str, Tensor]) -> None:
        """By a whole one, as of the best validation."""
        load_trained(self.average, tensors)
        for name, value in self.averages.items():
            local(value).copy_(tensors[name][piece_of(self.averages.values()).rows(len(value))])
