"""What work costs: floating-point operations, and the most memory that a process has held."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from calotype.machine import peak_memory


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that are run; a multiply-add counts two.

    Attention is taken apart into its products: the counter does not know the fused one of the CPU, and would say 0.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def most_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far.

    On Linux it is read where it starts anew with the program: `getrusage` gives a child at least its parent's peak.
    """
    if device.type != "cuda":
        try:
            found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        except OSError:
            found = None
        if found:
            return int(found[1]) * 1024
    return peak_memory(device)
