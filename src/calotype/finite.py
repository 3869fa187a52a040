"""Tensors with NaN or infinity, which stop training and never reach a file."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

CHECKED_AT_ONCE = 2**22
"""Values of a tensor."""


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with NaN or infinity."""
    return next((name for name, value in tensors.items() if not is_finite(value)), None)


def is_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite; a part at a time, since the comparison makes a copy."""
    return all(bool(part.isfinite().all()) for part in values.detach().reshape(-1).split(CHECKED_AT_ONCE))
