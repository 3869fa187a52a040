"""The blocks of a denoiser, compiled by torch.compile for the steps of training.

A small denoiser spends its time between the matrix products: normalizations, modulations and casts, each of which
reads and writes all tokens. Compiled, a step of a DiT takes half of that time (dev/LOG.md, 2026-11-29). Whoever has no
C++ compiler, or no Triton on CUDA, trains without.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

from calotype.nets.dit import Dit
from calotype.threads import one_thread
from calotype.training.loop import Division, Note, TrainProgress, differentiated
from calotype.training.objectives import DenoisingObjective, Objective
from calotype.training.state import TrainState
from calotype.types import Batch

WORTH = 180.0
"""Seconds of a leg from which its network is compiled, which takes half a minute the first time, and seconds later."""


def compiled(
    objective: Objective, states: Mapping[str, TrainState], batch: Batch, progress: TrainProgress, division: Division,
    note: Note,
) -> bool:  # fmt: skip
    """Whether the denoiser of an objective has blocks that are compiled from now on.

    They are tried on slices of this batch, one after the other: two threads that find a block not compiled yet would
    both wait for a compiler. `note` gets a line where there is none.
    """
    backbone = objective.stage.denoiser.backbone if isinstance(objective, DenoisingObjective) else None
    if not isinstance(backbone, Dit) or batch.clean.device.type == "mps" or not division.ranks.alone:
        return False
    backbone.compile_blocks()
    try:
        with one_thread() if division.slices > 1 else nullcontext():
            parts = objective.slices(batch, progress.fraction, progress.rng(), division.slices, division.rounds)
            for part in (parts[0], parts[-1]):  # of one size, or of two
                differentiated(states, part)
    except (RuntimeError, ImportError, OSError) as error:  # what torch raises for want of a compiler is a RuntimeError
        backbone.compile_blocks(False)
        reason = str(error).strip().partition("\n")[0][:200]
        note(f"the network is not compiled, which would make its training faster; torch.compile says: {reason}")
        return False
    return True
