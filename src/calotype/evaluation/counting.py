"""What work costs: floating-point operations, and the most memory that a process has held."""

from __future__ import annotations

import re
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from calotype.machine import peak_memory


def counted(work: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products and convolutions that are run; a multiply-add counts two."""
    with counter() as count:
        work()
    return int(count.get_total_flops())


def counter() -> FlopCounterMode:
    """Counts within a `with` block, also decompositions and the fused attention of the CPU: `get_total_flops()`.

    It changes nothing that is computed.
    """
    aten = torch.ops.aten
    missing = {
        aten._scaled_dot_product_flash_attention_for_cpu: attention_flops,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_backward_flops,
        aten.linalg_qr: qr_flops, aten._linalg_svd: svd_flops, aten._linalg_eigh: eigh_flops,
        aten._linalg_solve_ex: solve_flops, aten._euclidean_dist: distance_flops, aten._cdist_forward: distance_flops,
    }  # fmt: skip
    return FlopCounterMode(display=False, custom_mapping=missing)


def attention_flops(query: torch.Size, key: torch.Size, value: torch.Size, *others: Any, **more: Any) -> int:
    """The fused attention of the CPU, which torch's own table does not have."""
    return sdpa_flop_count(query, key, value)


def attention_backward_flops(gradient: torch.Size, query: torch.Size, *others: Any, **more: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, *others[:2])


def qr_flops(shape: torch.Size, *others: Any, **more: Any) -> int:
    """With the thin Q (Golub and Van Loan, Matrix Computations, 4th edition, section 5.2.2)."""
    most, least = max(shape[-2:]), min(shape[-2:])
    return prod(shape[:-2]) * (4 * most * least**2 - 4 * least**3 // 3)


def svd_flops(shape: torch.Size, *others: Any, **more: Any) -> int:
    """Thin, of either side (the same, figure 8.6.1)."""
    most, least = max(shape[-2:]), min(shape[-2:])
    return prod(shape[:-2]) * (6 * most * least**2 + 20 * least**3)


def eigh_flops(shape: torch.Size, *others: Any, **more: Any) -> int:
    """Values and vectors (the same, section 8.3.5)."""
    return prod(shape[:-1]) * 9 * shape[-1] ** 2


def solve_flops(matrix: torch.Size, right: torch.Size, *others: Any, **more: Any) -> int:
    """By LU decomposition (the same, section 3.2)."""
    return prod(matrix[:-1]) * (2 * matrix[-1] ** 2 // 3) + 2 * prod(right) * matrix[-1]


def distance_flops(points: torch.Size, others: torch.Size, *rest: Any, **more: Any) -> int:
    return 2 * prod(points) * others[-2]


def most_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far.

    On Linux it is read where it starts anew with the program: `getrusage` gives a child at least its parent's peak.
    """
    if device.type != "cuda":
        try:
            match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        except OSError:
            match = None
        if match:
            return int(match[1]) * 1024
    return peak_memory(device)
