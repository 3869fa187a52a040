"""A train state: a network with its optimizer and the average of its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from calotype.devices import is_host
from calotype.finite import not_finite
from calotype.nets.blocks import Precision
from calotype.nets.weights import check_tensors, check_weights, local
from calotype.priors.prior import load_trained, trained_state, with_constants
from calotype.ranks import Ranks
from calotype.recipe import OptimizerConfig
from calotype.threads import shared_out
from calotype.training.muon import Muon, hidden_matrices
from calotype.types import NotFiniteError

ADAMW_GROUPS = 8
"""Into which the weights of AdamW are divided on a CPU, for threads that update them at once."""
Gradients = Sequence[Tensor | None]
"""One for each weight that is trained; None for one that the loss does not depend on."""


class StepNorms(NamedTuple):
    """Of a step, on the device: neither has been read yet."""

    gradient: Tensor
    averages: Tensor
    """The sum of the norms of all averages, each of which the weights are part of."""


class TrainState:
    """A network with its optimizers, and a power-function average of its weights (arXiv 2312.02696, eq. 121 and 123).

    Muon, where `config` has it, computes in `precision`.
    """

    def __init__(self, network: nn.Module, config: OptimizerConfig, precision: Precision = "float32") -> None:
        self.network, self.config = network, config
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.averages = self._averages_of(network)
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self.groups = self._groups(precision)
        self.steps = 0
        self.shared: SharedLoss | None = None
        """Where several ranks train the network."""

    def _averages_of(self, network: nn.Module) -> dict[str, Tensor]:
        """The average of each weight, by its name."""
        return dict(self.average.named_parameters())

    def share(self, ranks: Ranks) -> None:
        """From now on the gradients of the next step are sums over all ranks: see `backward`."""
        self.shared = None if ranks.alone else SharedLoss(self.parameters, ranks.count)

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradients of a loss to those of the next step; those of the `last` one, too, for all ranks."""
        assert self.shared is not None
        with nullcontext() if last else self.shared.parallel.no_sync():
            self.shared(loss).backward(inputs=self.parameters)

    def _groups(self, precision: Precision) -> list[ParameterGroup]:
        """Those of Muon first, whose updates take longest; which group a weight is in does not change its update."""
        config, matrices = self.config, hidden_matrices(self.network) if self.config.optimizer == "muon" else []
        rate, decay = config.learning_rate, config.weight_decay
        averages = {id(weight): self.averages[name] for name, weight in self.network.named_parameters()}
        hidden = {id(matrix) for matrix in matrices}
        others = [parameter for parameter in self.parameters if id(parameter) not in hidden]
        optimizers: list[torch.optim.Optimizer] = [
            Muon(alike, rate, decay, getattr(torch, precision)) for alike in of_one_shape(matrices)
        ]
        for group in divided(others, ADAMW_GROUPS if others and others[0].device.type == "cpu" else 1):
            optimizers.append(torch.optim.AdamW(group, rate, config.betas, weight_decay=decay, fused=True))
        return [ParameterGroup(one, [averages[id(weight)] for weight in parameters_of(one)]) for one in optimizers]

    def gradients(self, loss: Tensor) -> Gradients:
        """Of the weights of this network alone; nothing is kept here, so several threads may ask at once."""
        return torch.autograd.grad(loss, self.parameters, allow_unused=True)

    def add(self, gradients: Gradients) -> None:
        """Adds gradients to those of the next step."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)  # one tensor may be that of two weights
            else:
                parameter.grad += gradient

    def step(self, fraction: float, threads: int = 1) -> StepNorms:
        """One update, on so many threads at once; `fraction` in [0, 1) is how much of the run is over.

        On a CPU, where reading a norm costs nothing, raises `NotFiniteError` as `require_finite` does, and before any
        weight is touched if it is the gradient that is not finite.
        """
        norm = self._norm(threads)
        if is_host(norm.device) and not math.isfinite(norm):
            self.zero_grad()
            raise gradient_not_finite(norm)
        self.steps += 1
        rate = self.learning_rate(fraction)
        new = 1 - (1 - 1 / self.steps) ** (average_power(self.config.average) + 1)
        scale = (self.config.clip / (norm + 1e-6)).clamp(max=1)
        sizes = shared_out([partial(group.step, rate, scale, new) for group in self.groups], threads)
        self.zero_grad()
        self._follow_buffers()
        norms = StepNorms(norm, self._over_ranks(torch.stack(sizes).sum()))
        if is_host(norm.device):
            self.require_finite(norms)
        return norms

    def require_finite(self, norms: StepNorms) -> None:
        """Raises `NotFiniteError` if the gradient, a weight or an average of the step is not finite, by reading its
        norms: from a GPU, which is to be done late."""
        gradient, averages = torch.stack(norms).tolist()
        if not math.isfinite(gradient):
            raise gradient_not_finite(gradient)
        if not math.isfinite(averages):
            named = {f"weight {name}": local(weight) for name, weight in self.network.named_parameters()}
            named |= {f"average {name}": local(average) for name, average in self.averages.items()}
            raise NotFiniteError(f"the {not_finite(named) or 'norm of the weights'} is not finite")

    def learning_rate(self, fraction: float) -> float:
        """At this fraction of the run."""
        return self.config.learning_rate * learning_rate_factor(fraction, self.config)

    def _norm(self, threads: int) -> Tensor:
        norms = dict[int, Tensor]()
        for of_group in shared_out([group.norms for group in self.groups], threads):
            norms |= of_group
        if not norms:
            return torch.zeros((), device=self.parameters[0].device)
        of_all = torch.stack([norms[id(weight)] for weight in self.parameters if id(weight) in norms])
        return self._over_ranks(of_all.norm())

    def _over_ranks(self, norm: Tensor) -> Tensor:
        """The norm of a vector whose part on this rank has this norm: here it is whole."""
        return norm

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def _follow_buffers(self) -> None:
        for kept, buffer in zip(self.average.buffers(), self.network.buffers(), strict=True):
            if kept is not buffer:  # what is fitted is shared, and never changes
                kept.copy_(buffer)

    def tensors(self) -> dict[str, Tensor]:
        """All that training changes, as named tensors."""
        named = {f"network.{name}": value for name, value in trained_state(self.network).items()}
        averages = trained_state(self.average) | self.averages
        named |= {f"average.{name}": value for name, value in averages.items()}
        for index, slots in sorted(self._slots().items()):
            named |= {f"optimizer.{index}.{name}": value for name, value in slots.items()}
        return named

    def _slots(self) -> dict[int, dict[str, Tensor]]:
        """What the optimizers keep, by the place of its weight."""
        places = {id(parameter): place for place, parameter in enumerate(self.parameters)}
        return {places[id(weight)]: slots for group in self.groups for weight, slots in group.optimizer.state.items()}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Raises `UserError` as `check` does."""
        self.check(tensors)
        self._load(tensors)
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in under("optimizer.", tensors.items()).items():
            index, slot = name.split(".")
            state.setdefault(int(index), {})[slot] = _laid_out_as(self.parameters[int(index)], value)
        for optimizer in (group.optimizer for group in self.groups):
            own = {id(weight): place for place, weight in enumerate(parameters_of(optimizer))}
            slots = {own[id(self.parameters[index])]: value for index, value in state.items()
                     if id(self.parameters[index]) in own}  # fmt: skip
            optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
        self.steps = steps

    def _load(self, tensors: dict[str, Tensor]) -> None:
        load_trained(self.network, under("network.", tensors.items()))
        load_trained(self.average, under("average.", tensors.items()))

    def check(self, tensors: dict[str, Tensor]) -> None:
        """Raises `UserError` for tensors that are not those of this network and its optimizer."""
        for prefix in ("network.", "average."):  # whose tensors have equal names and shapes
            given = with_constants(self.network, under(prefix, tensors.items()))
            check_weights(self.network, given, prefix.rstrip("."))
        others = {name: value for name, value in tensors.items() if not name.startswith(("network.", "average."))}
        stepped = {name.split(".")[1] for name in others if name.count(".") == 2}  # weights that have had a gradient
        expected: dict[str, Tensor] = {}
        by_muon = {id(weight) for group in self.groups if isinstance(group.optimizer, Muon) for weight in group.weights}
        for index, weight in enumerate(self.parameters):
            if str(index) in stepped:
                own = local(weight)
                moments = {"step": torch.zeros(()), "exp_avg": own, "exp_avg_sq": own}
                slots = {"momentum": own} if id(weight) in by_muon else moments
                expected |= {f"optimizer.{index}.{slot}": value for slot, value in slots.items()}
        check_tensors(others, expected, "the optimizer")


@dataclass(frozen=True)
class ParameterGroup:
    """Weights that one optimizer updates, and their averages."""

    optimizer: torch.optim.Optimizer
    averages: list[Tensor]

    @property
    def weights(self) -> list[nn.Parameter]:
        return parameters_of(self.optimizer)

    def norms(self) -> dict[int, Tensor]:
        """Of the gradients, by the identity of the weight; none where there is no gradient."""
        given = {id(weight): local(weight.grad) for weight in self.weights if weight.grad is not None}
        return dict(zip(given, torch._foreach_norm([*given.values()]), strict=True)) if given else {}

    @torch.no_grad()
    def step(self, rate: float, scale: Tensor, new: float) -> Tensor:
        """Updates the weights by their gradients times `scale`, and moves the averages to them: `new` is their share in
        it. Returns the sum of the averages' norms."""
        gradients = [local(weight.grad) for weight in self.weights if weight.grad is not None]
        if gradients and not (is_host(scale.device) and scale == 1):
            torch._foreach_mul_(gradients, scale)
        self.optimizer.param_groups[0]["lr"] = rate
        self.optimizer.step()
        averages = [*map(local, self.averages)]
        torch._foreach_lerp_(averages, [*map(local, self.weights)], new)
        return torch.stack(torch._foreach_norm(averages)).sum()


def gradient_not_finite(norm: Tensor | float) -> NotFiniteError:
    return NotFiniteError(f"the norm of the gradient is {float(norm)}")


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    weights: list[nn.Parameter] = optimizer.param_groups[0]["params"]
    return weights


def of_one_shape(matrices: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Matrices in groups of equal shape; those that take longest first."""
    groups: dict[torch.Size, list[nn.Parameter]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.shape, []).append(matrix)
    return sorted(groups.values(), key=lambda group: -sum(len(matrix) * matrix.numel() for matrix in group))


def divided(weights: Sequence[nn.Parameter], count: int) -> list[list[nn.Parameter]]:
    """At most so many groups of weights, none of them empty and all about equally large."""
    groups: list[list[nn.Parameter]] = [[] for _ in range(min(count, len(weights)))]
    sizes = [0] * len(groups)
    for weight in sorted(weights, key=lambda weight: -weight.numel()):
        smallest = sizes.index(min(sizes))
        groups[smallest].append(weight)
        sizes[smallest] += weight.numel()
    return groups


class SharedLoss:
    """A loss whose `backward` leaves the sum over all ranks in the gradients of these weights.

    That is the work of DistributedDataParallel, while the gradients are still computed. It sees the graph of the loss,
    so the network need not be called through it. It leaves means, so the loss counts `count` times.
    """

    def __init__(self, weights: Sequence[nn.Parameter], count: int) -> None:
        self.count = count
        self.parallel = DistributedDataParallel(Unchanged(weights), find_unused_parameters=True)

    def __call__(self, loss: Tensor) -> Tensor:
        return self.parallel(self.count * loss)


class Unchanged(nn.Module):
    """Returns what it is given; the weights are those that it is about."""

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, loss: Tensor) -> Tensor:
        return loss


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """The fused optimizer walks along the memory: gradients and moments must lie as the weights do (channels last)."""
    if value.shape != local(parameter).shape:
        return value
    local(laid_out := torch.empty_like(parameter)).copy_(value)
    return laid_out


def under(prefix: str, named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in named if name.startswith(prefix)}


def learning_rate_factor(fraction: float, config: OptimizerConfig) -> float:
    """Rises over the warm-up, stays at 1, falls along a line to 0."""
    rising = fraction / config.warmup if config.warmup else 1.0
    falling = (1 - fraction) / config.decay if config.decay else 1.0
    return min(1.0, rising, falling)


def average_power(width: float) -> float:
    """The exponent of an average whose standard deviation is `width` of the run (arXiv 2312.02696, algorithm 2)."""
    roots = np.roots([1, 7, 16 - width**-2, 12 - width**-2])
    return float(roots.real.max())
