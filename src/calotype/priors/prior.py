"""The interface of a prior: a denoiser in closed form, fitted to the data and never trained.

Its tensors are constants. Copies of a network share them (the average of the weights has the same ones), a training
step does not copy them, and a checkpoint leaves them out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from calotype.nets.blocks import Migrated
from calotype.nets.weights import load_weights
from calotype.types import Condition, Latents, Sigmas

MOST_VALUES = 2**26
"""Values of all images, or latents, to which a prior is fitted at most."""


class Prior(Migrated):
    """A distribution of clean latents with a closed-form posterior mean.

    Its tensors must not change while a network has it: whoever fits it again makes a new one.
    """

    @property
    @abstractmethod
    def shape(self) -> dict[str, int]:
        """The sizes from which `priors.stored.PRIORS` makes an empty prior with room for the same tensors."""

    @abstractmethod
    def mean(self, noisy: Latents, sigma: Sigmas, condition: Condition) -> Latents:
        """`E[clean | noisy, condition]` for `noisy = clean + sigma * noise`, shaped as `noisy`; differentiable."""

    def side(self, channels: int) -> int:
        """Side of the smallest latents, of so many channels, that it can denoise."""
        return 1

    def __copy__(self) -> Prior:
        """Another prior with the same tensors, each of which can be replaced there alone."""
        other = type(self).__new__(type(self))
        other.__dict__ = {**self.__dict__, "_buffers": {**self._buffers}, "_modules": {**self._modules}}
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> Prior:
        return self


def trained_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of the network without that of its priors."""
    return _split(network, network.state_dict())[0]


def load_trained(network: nn.Module, tensors: Mapping[str, Tensor], source: str = "the state") -> None:
    """Loads a trained state; priors keep their constants, also where `tensors` of an earlier version hold some.

    Raises `UserError` for tensors that are not those of the network; `source` is for its message.
    """
    load_weights(network, with_constants(network, tensors), source)


def with_constants(network: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A trained state with the constants of the network, in place of those that it may hold."""
    return {**_split(network, tensors)[0], **_split(network, network.state_dict())[1]}


def constant_count(network: nn.Module) -> int:
    """How many numbers the priors of a network hold, which may be a prior itself."""
    return sum(value.numel() for value in _split(network, network.state_dict())[1].values())


def _split(network: nn.Module, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of the network itself, and those of its priors."""
    prefixes = tuple(f"{name}." if name else "" for name, part in network.named_modules() if isinstance(part, Prior))
    trained = {name: value for name, value in tensors.items() if not name.startswith(prefixes)}
    return trained, {name: value for name, value in tensors.items() if name.startswith(prefixes)}
