"""Tensors between the host and a device.

A GPU works on what was launched before, so the host can be a step ahead of it. Reading a number from it ends that: the
host waits for all that was launched, and then the GPU waits for the host. So a step of training reads nothing before
the next one has begun, and whatever the host decides by (labels, folds, captions) stays on the host.
"""

from __future__ import annotations

import torch
from torch import Tensor


def is_host(device: torch.device) -> bool:
    """Whether reading a number from this device costs nothing."""
    return device.type == "cpu"


def sent(values: Tensor, device: torch.device) -> Tensor:
    """On the device: a copy that the host does not wait for, if it is a GPU, which takes memory that is pinned."""
    if device.type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)
