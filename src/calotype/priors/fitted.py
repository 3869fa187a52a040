"""Modules that are fitted to the data in closed form and never trained: the constants of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

MOST_VALUES = 2**26
"""Closed forms are fitted to as many pictures, or latents, as have so many values in all."""


class Fitted(nn.Module):
    """Copies of a network share it, and checkpoints leave it out.

    So whoever fits it anew makes a new one: its tensors must not change while a network has it.
    """

    @property
    def shape(self) -> dict[str, int]:
        """The arguments with which an empty one with room for the same tensors is made."""
        raise NotImplementedError

    def __deepcopy__(self, memo: dict[int, Any]) -> Fitted:
        return self


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The network's state, without what is fitted."""
    fitted = prefixes(network)
    return {name: value for name, value in network.state_dict().items() if not name.startswith(fitted)}


def load_trained(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts a trained state back; what is fitted stays, also where `tensors` of an earlier version have it."""
    fitted = prefixes(network)
    trained = {name: value for name, value in tensors.items() if not name.startswith(fitted)}
    kept = {name: value for name, value in network.state_dict().items() if name.startswith(fitted)}
    network.load_state_dict({**trained, **kept})


def fitted_numbers(network: nn.Module) -> int:
    """How many numbers of a network are fitted."""
    fitted = prefixes(network)
    return sum(value.numel() for name, value in network.state_dict().items() if name.startswith(fitted))


def prefixes(network: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, Fitted))
