"""Weights that come from a file: checked against the module that will take them, then loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from calotype.files import read_tensors
from calotype.finite import is_finite
from calotype.nets.blocks import Migrated
from calotype.types import UserError

Loaded = TypeVar("Loaded")


class ShapesOnly(TorchFunctionMode):
    """Within it tensors have shapes and no values, and take no memory.

    Attention keeps no matrix of all pairs of tokens, as its kernels do not. Normal numbers are not drawn: for that,
    the meta device would import torch's compiler, which takes a second.
    """

    def __enter__(self) -> ShapesOnly:
        self.device = torch.device("meta").__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch.device("meta").__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        if func is F.scaled_dot_product_attention:
            query, key, value = args[:3]
            return query.sum(-1, keepdim=True) + (key.sum(-1, keepdim=True) * value).sum(-2, keepdim=True)
        return func(*args, **kwargs or {})


def load_file_into(file: Path, make: Callable[[], Loaded], network_of: Callable[[Loaded], nn.Module]) -> Loaded:
    """What `make` makes, with the weights in the file in its network.

    It is made on the meta device first: no memory is taken before names and shapes agree. Raises `UserError`.
    """
    tensors = read_tensors(file)
    with ShapesOnly():
        check_weights(network_of(make()), tensors, str(file))
    made = make()
    load_weights(network_of(made), tensors, str(file))
    return made


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Raises `UserError` as `check_weights` does."""
    network.load_state_dict(check_weights(network, tensors, source))


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The tensors by the names that they have in the network now.

    Raises `UserError` where one is missing, too many, of another shape or type, or not finite; `source` is for its
    message.
    """
    given = dict(tensors)
    for name, part in network.named_modules():
        if isinstance(part, Migrated):
            part.migrate(given, f"{name}." if name else "")
    check_tensors(given, {name: local(value) for name, value in network.state_dict().items()}, source)
    return given


def local(tensor: Tensor) -> Tensor:
    """The rows of a sharded tensor (`DTensor`) that this rank has, in the same memory; of any other all."""
    return getattr(tensor.detach(), "to_local", lambda: tensor)()


def check_tensors(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> None:
    """Raises `UserError` as `check_weights` does."""
    if missing := sorted(expected.keys() - given.keys()):
        raise UserError(f"{source} has no {missing[0]:.80}, which its settings ask for; take both from one place")
    if more := sorted(given.keys() - expected.keys()):
        raise UserError(f"{source} has {more[0]:.80}, which its settings do not ask for; take both from one place")
    for name, value in expected.items():
        if (got := described_tensor(given[name])) != (wanted := described_tensor(value)):
            raise UserError(
                f"{source}: {name:.80} is {got}, but its settings make it {wanted}; take both from one place"
            )
        if given[name].is_floating_point() and not is_finite(given[name]):
            raise UserError(f"{source}: {name:.80} has values that are not numbers; take another copy of the weights")


def described_tensor(value: Tensor) -> str:
    return f"{list(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
