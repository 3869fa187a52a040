"""The interface of a prior: a denoiser in closed form, fitted to the data and never trained.

Its tensors are constants. Copies of a network share them (the average of the weights has the same ones), a training
step does not copy them, and a checkpoint leaves them out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from calotype.types import Condition, Latents, Sigmas

MOST_VALUES = 2**26
"""Values of all images, or latents, to which a prior is fitted at most."""


class Prior(nn.Module):
    """A distribution of clean latents with a closed-form posterior mean.

    Its tensors must not change while a network has it: whoever fits it again makes a new one.
    """

    @property
    @abstractmethod
    def shape(self) -> dict[str, int]:
        """The arguments with which `priors.stored.PRIORS` makes an empty prior with room for the same tensors."""

    @abstractmethod
    def mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """`E[clean | noisy, condition]` for `noisy = clean + sigma * noise`, shaped as `noisy`; differentiable."""

    def side(self, channels: int) -> int:
        """Side of the smallest latents, of so many channels, that it can denoise."""
        return 1

    def __deepcopy__(self, memo: dict[int, Any]) -> Prior:
        return self


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the network without that of its priors."""
    fitted = prefixes(network)
    return {name: value for name, value in network.state_dict().items() if not name.startswith(fitted)}


def load_trained(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Loads a trained state; priors keep their constants, also where `tensors` of an earlier version hold some."""
    fitted = prefixes(network)
    trained = {name: value for name, value in tensors.items() if not name.startswith(fitted)}
    constants = {name: value for name, value in network.state_dict().items() if name.startswith(fitted)}
    network.load_state_dict({**trained, **constants})


def constant_count(network: nn.Module) -> int:
    """How many numbers the priors of a network hold."""
    fitted = prefixes(network)
    return sum(value.numel() for name, value in network.state_dict().items() if name.startswith(fitted))


def prefixes(network: nn.Module) -> tuple[str, ...]:
    return tuple(f"{name}." for name, part in network.named_modules() if isinstance(part, Prior))
