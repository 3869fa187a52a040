"""Muon: momentum whose update of a matrix is made orthogonal, so that all its directions are learned at equal speed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from calotype.nets.dit import Dit
from calotype.nets.weights import local
from calotype.training.pieces import gather_rows, piece_of

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration, which takes singular values from (0, 1] to about 0.7 to 1.2 in five rounds."""
NEWTON_SCHULZ_ROUNDS = 5
ADAMW_RMS = 0.2
"""Root mean square of an update of AdamW at learning rate 1, to which that of Muon is scaled."""


class Muon(torch.optim.Optimizer):
    """For the matrices of hidden layers (Jordan et al., Muon, 2024), with the learning rates of AdamW (arXiv
    2502.16982, eq. 4).

    `torch.optim.Muon` computes in bfloat16 alone, which takes twenty times as long on processors without it, and takes
    matrices one by one; here `dtype` is that of the run, and matrices of equal shape are one batch.
    """

    def __init__(
        self, matrices: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            same_shape: dict[torch.Size, list[Tensor]] = {}
            for matrix in group["params"]:
                if matrix.grad is not None:
                    same_shape.setdefault(matrix.shape, []).append(matrix)
            for shape, matrices in same_shape.items():
                scale = group["lr"] * ADAMW_RMS * max(shape) ** 0.5
                for some in gathered_at_once(matrices):
                    whole = [gather_rows(self._nesterov(matrix), matrix) for matrix in some]
                    updates = orthogonal(torch.stack(whole).to(self.dtype))[:, piece_of(some).rows(shape[0])]
                    own = [*map(local, some)]
                    torch._foreach_mul_(own, 1 - group["lr"] * group["weight_decay"])
                    torch._foreach_add_(own, [*updates.to(own[0])], alpha=-scale)

    def _nesterov(self, matrix: Tensor) -> Tensor:
        assert matrix.grad is not None
        if "momentum" not in self.state[matrix]:
            self.state[matrix]["momentum"] = torch.zeros_like(matrix)
        gradient, momentum = local(matrix.grad), local(self.state[matrix]["momentum"])
        return gradient.lerp(momentum.lerp_(gradient, 1 - MOMENTUM), MOMENTUM)


def gathered_at_once(matrices: list[Tensor]) -> list[list[Tensor]]:
    """All of a shape; of those that are sharded one, which is whole on every rank for its update alone."""
    return [[matrix] for matrix in matrices] if piece_of(matrices).count > 1 else [matrices]


def hidden_matrices(network: nn.Module) -> list[nn.Parameter]:
    """Those in the blocks of its DiTs that are trained."""
    dits = [module for module in network.modules() if isinstance(module, Dit)]
    return [matrix for dit in dits for matrix in dit.hidden_matrices() if matrix.requires_grad]


def orthogonal(matrices: Float[Tensor, "matrix row column"]) -> Float[Tensor, "matrix row column"]:
    """About the nearest matrix with orthonormal rows or columns to each, by the iteration of Newton and Schulz."""
    if matrices.shape[1] > matrices.shape[2]:
        return orthogonal(matrices.mT).mT
    linear, cubic, quintic = NEWTON_SCHULZ
    norms = torch.linalg.matrix_norm(matrices, keepdim=True)
    matrices = matrices / norms.clamp(min=1e-7)  # so that no singular value is above 1
    for _ in range(NEWTON_SCHULZ_ROUNDS):
        gram = matrices @ matrices.mT
        factor = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        matrices = torch.baddbmm(matrices, factor, matrices, beta=linear)
    return matrices
