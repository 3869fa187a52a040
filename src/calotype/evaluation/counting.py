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

    It changes nothing that is computed. Decompositions as in Golub and Van Loan, Matrix Computations, 4th edition: QR
    with the thin Q in section 5.2.2, thin SVD of either side in figure 8.6.1, eigenvalues and eigenvectors in 8.3.5,
    and the solution of linear equations by LU decomposition in 3.2.
    """
    aten = torch.ops.aten
    missing: dict[Any, Callable[..., int]] = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda query, key, value, *_, **__: sdpa_flop_count(
            query, key, value
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda gradient, query, key, value, *_, **__: (
            sdpa_backward_flop_count(gradient, query, key, value)
        ),
        aten.linalg_qr: of_matrices(lambda most, least: 4 * most * least**2 - 4 * least**3 // 3),
        aten._linalg_svd: of_matrices(lambda most, least: 6 * most * least**2 + 20 * least**3),
        aten._linalg_eigh: of_matrices(lambda most, least: 9 * least**3),
        aten._linalg_solve_ex: lambda matrix, right, *_, **__: (
            prod(matrix[:-1]) * (2 * matrix[-1] ** 2 // 3) + 2 * prod(right) * matrix[-1]
        ),
        aten._euclidean_dist: lambda points, others, *_, **__: 2 * prod(points) * others[-2],
        aten._cdist_forward: lambda points, others, *_, **__: 2 * prod(points) * others[-2],
    }
    return FlopCounterMode(display=False, custom_mapping=missing)


def of_matrices(formula: Callable[[int, int], int]) -> Callable[..., int]:
    """Operations of a decomposition of a batch of matrices, by a formula of their longer and their shorter side."""
    return lambda shape, *_, **__: prod(shape[:-2]) * formula(max(shape[-2:]), min(shape[-2:]))


def most_memory(device: torch.device) -> int:
    """The most bytes that this process has held so far.

    On Linux it is read where it starts at 0 with the program: `getrusage` gives a child at least its parent's peak.
    """
    if device.type != "cuda":
        try:
            match = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        except OSError:
            match = None
        if match:
            return int(match[1]) * 1024
    return peak_memory(device)
