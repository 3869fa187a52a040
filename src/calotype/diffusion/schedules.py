"""Noise schedules: the distribution of sigma in training (`sample`), and its grid in sampling (`grid`): `steps + 1`
falling sigmas, of which the last is 0.

A variance-preserving process `x_t = a x + b n` is the noisy picture `x + sigma n` times `a`, with `sigma = b / a`;
a flow `(1 - t) x + t n` has `sigma = t / (1 - t)`. So every schedule of the field is a choice of sigmas.
"""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from calotype.bounds import (
    MAX_SAMPLING_STEPS,
    LogDeviation,
    LogSigma,
    OpenFraction,
    Sigma,
    SigmaShift,
)
from calotype.types import Config, Rng, Sigmas, UserError


class DdpmTable(Config):
    """The table of `T` variances of DDPM (arXiv 2006.11239, section 4; `scaled_linear`: arXiv 2112.10752)."""

    kind: Literal["ddpm"] = "ddpm"
    spacing: Literal["linear", "scaled_linear"] = "scaled_linear"
    """Linear in the betas, or in their square roots (LDM)."""
    first: OpenFraction = Field(default=0.00085, description="The first beta.")
    last: OpenFraction = Field(default=0.012, description="The last beta.")
    length: int = Field(default=1000, strict=True, ge=1, le=MAX_SAMPLING_STEPS)
    """Number of timesteps."""

    @property
    def most_steps(self) -> int:
        return self.length

    def table(self) -> Tensor:
        """All `length` sigmas, rising: `sqrt((1 - a) / a)` with `a` the running product of `1 - beta` (eq. 4)."""
        power = 1.0 if self.spacing == "linear" else 0.5
        betas = torch.linspace(self.first**power, self.last**power, self.length, dtype=torch.float64) ** (1 / power)
        kept = torch.cumprod(1 - betas, 0)
        return ((1 - kept) / kept).sqrt()

    def sample(self, count: int, rng: Rng) -> Sigmas:
        return self.table()[rng.integers(self.length, count)].float()

    def grid(self, steps: int) -> list[float]:
        """Spaced evenly in time from the noisiest entry ("trailing": arXiv 2305.08891, table 2)."""
        if steps > self.most_steps:
            raise UserError(f"steps is {steps}, but this model's noise table has {self.length}; take at most that many")
        times = (torch.arange(steps, 0, -1, dtype=torch.float64) * self.length / steps).round().long() - 1
        return [*self.table()[times].tolist(), 0.0]


class SigmaRange(Config):
    """The range of sigmas in training; sampling starts at the largest."""

    smallest: Sigma
    largest: Sigma
    most_steps: ClassVar[int] = MAX_SAMPLING_STEPS

    @model_validator(mode="after")
    def _order(self) -> SigmaRange:
        if self.smallest >= self.largest:
            raise ValueError(f"smallest is {self.smallest:g}, but must be below largest, which is {self.largest:g}")
        return self


class Cosine(SigmaRange):
    """`sigma = tan` of a uniform angle (arXiv 2102.09672, eq. 17), times `shift` (arXiv 2301.11093, eq. 9).

    A `shift` above 1 is for larger images, whose neighbouring pixels are redundant.
    """

    kind: Literal["cosine"] = "cosine"
    shift: SigmaShift = Field(default=1.0, description="Multiplies sigma; above 1 for larger images.")
    smallest: Sigma = Field(default=0.01, description="Smallest sigma in training.")
    largest: Sigma = Field(default=160.0, description="Largest sigma, in training and sampling.")

    def _sigma(self, time: Tensor) -> Tensor:
        low, high = (math.atan(limit / self.shift) for limit in (self.smallest, self.largest))
        return self.shift * torch.tan(low + (high - low) * time)

    def sample(self, count: int, rng: Rng) -> Sigmas:
        return self._sigma(rng.uniform(count).double()).float()

    def grid(self, steps: int) -> list[float]:
        return [*self._sigma(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:-1]).tolist(), 0.0]


class Karras(SigmaRange):
    """Log-normal in training, evenly spaced in `sigma ** (1 / rho)` in sampling (arXiv 2206.00364, table 1, eq. 5)."""

    kind: Literal["karras"] = "karras"
    mean: LogSigma = Field(default=-1.2, description="Mean of log sigma in training.")
    std: LogDeviation = Field(default=1.2, description="Standard deviation of log sigma in training.")
    smallest: Sigma = Field(default=0.002, description="Sigma of the last step of sampling.")
    largest: Sigma = Field(default=80.0, description="Sigma of the first step of sampling.")
    rho: float = Field(default=7.0, strict=True, ge=0.1, le=100)
    """Exponent of the sampling grid: the larger, the more steps at small sigmas."""

    def sample(self, count: int, rng: Rng) -> Sigmas:
        return (self.mean + self.std * rng.normal(count)).exp()

    def grid(self, steps: int) -> list[float]:
        high, low = self.largest ** (1 / self.rho), self.smallest ** (1 / self.rho)
        return [*(torch.linspace(high, low, steps, dtype=torch.float64) ** self.rho).tolist(), 0.0]


class Flow(Config):
    """Rectified flow: logit-normal time in training, even time in sampling (arXiv 2403.03206, section 3.1).

    Logit-normal time is log-normal sigma, and the paper's resolution shift (eq. 23) multiplies sigma.
    Sampling starts at `t = start` before the shift: at t = 1, pure noise, sigma is infinite.
    """

    kind: Literal["flow"] = "flow"
    most_steps: ClassVar[int] = MAX_SAMPLING_STEPS
    shift: SigmaShift = Field(default=1.0, description="Resolution shift: multiplies sigma.")
    mean: LogSigma = Field(default=0.0, description="Mean of log sigma in training, before the shift.")
    std: LogDeviation = Field(default=1.0, description="Standard deviation of log sigma in training.")
    start: OpenFraction = Field(default=0.996, description="Time at which sampling starts; 1 would be pure noise.")
    first_step: float = Field(
        default=1.0, strict=True, ge=0.05, le=1,
        description="Length of the first step of sampling in time, as a fraction of that of the others.",
    )  # fmt: skip

    def sample(self, count: int, rng: Rng) -> Sigmas:
        return self.shift * (self.mean + self.std * rng.normal(count)).exp()

    def grid(self, steps: int) -> list[float]:
        """Even in time but for the first step, which may be smaller.

        In 12 even steps the first one falls from a sigma of 249 to 10.5, where large shapes are decided already.
        """
        left = torch.tensor([steps - 1 + self.first_step, *range(steps - 1, -1, -1)], dtype=torch.float64)
        times = self.start * left / left[0]
        return (self.shift * times / (1 - times)).tolist()


Schedule = Annotated[DdpmTable | Cosine | Karras | Flow, Field(discriminator="kind")]
