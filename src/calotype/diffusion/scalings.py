"""Scalings: what a network predicts, as the coefficients that make its output an estimate of the clean image.

`denoised = skip * noisy + out * network(input * noisy)` (EDM, arXiv 2206.00364, eq. 7), for `noisy = clean + sigma *
noise` and data of standard deviation 1; `for_sigma_data` is for others. All take sigma of any shape, above 0.

Where the denoiser has a prior, its posterior mean stands in place of `skip * noisy`, and the network predicts `(clean -
mean) / out`: what each function says of the network's target holds without one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Scaling(NamedTuple):
    """`c_skip`, `c_out` and `c_in` of EDM, of the shape of sigma."""

    skip: Tensor
    out: Tensor
    input: Tensor


def epsilon(sigma: Tensor) -> Scaling:
    """The network predicts the noise (DDPM, arXiv 2006.11239, eq. 14)."""
    return Scaling(torch.ones_like(sigma), -sigma, (1 + sigma**2) ** -0.5)


def x0(sigma: Tensor) -> Scaling:
    """The network predicts the clean image."""
    return Scaling(torch.zeros_like(sigma), torch.ones_like(sigma), (1 + sigma**2) ** -0.5)


def velocity(sigma: Tensor) -> Scaling:
    """The network predicts `v = (noise - sigma * clean) / sqrt(1 + sigma ** 2)` (arXiv 2202.00512, section 4)."""
    return Scaling(1 / (1 + sigma**2), -sigma * (1 + sigma**2) ** -0.5, (1 + sigma**2) ** -0.5)


def flow(sigma: Tensor) -> Scaling:
    """The network predicts `noise - clean` at `t = sigma / (1 + sigma)` (rectified flow, arXiv 2209.03003, eq. 1)."""
    return Scaling(1 / (1 + sigma), -sigma / (1 + sigma), 1 / (1 + sigma))


def edm(sigma: Tensor) -> Scaling:
    """Inputs and targets have unit variance (EDM, arXiv 2206.00364, table 1)."""
    variance = 1 + sigma**2
    return Scaling(1 / variance, sigma * variance**-0.5, variance**-0.5)


def for_sigma_data(scaling: Callable[[Tensor], Scaling], sigma: Tensor, sigma_data: Tensor) -> Scaling:
    """The scaling of data with the standard deviation `sigma_data`, in units of which sigma is measured."""
    unit = scaling(sigma / sigma_data)
    return Scaling(unit.skip, sigma_data * unit.out, unit.input / sigma_data)


ScalingName = Literal["epsilon", "x0", "velocity", "flow", "edm"]
SCALINGS: dict[ScalingName, Callable[[Tensor], Scaling]] = {
    "epsilon": epsilon, "x0": x0, "velocity": velocity, "flow": flow, "edm": edm,
}  # fmt: skip
