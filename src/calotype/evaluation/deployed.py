"""Samples as one who has nothing but a model would, in a process of its own, and says how long and how much it took.

`python -m calotype.evaluation.deployed MODEL DEVICE THREADS COUNT ...`: one line of JSON. The counts rise, so the most
memory so far is that of the last one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calotype.diffusion.stage import generate
from calotype.evaluation.candidate import usual_text
from calotype.evaluation.counting import most_memory
from calotype.machine import free_memory, timed
from calotype.model import Model, load
from calotype.types import NULL_LABEL, Rng

LONGEST = 60.0
"""Seconds: what is predicted to take longer is left out."""


def measured(model: Model, counts: Sequence[int]) -> Iterator[dict[str, Any]]:
    sample(model, 1, steps=1)  # to warm up
    loaded, first = most_memory(model.device), (0.0, 0)
    for count in counts:
        seconds, held = first
        if reason := too_much(count, seconds, held - loaded, free_memory(model.device)):
            yield {"count": count, "seconds_a_picture": None, "bytes": None, "reason": reason}
            continue
        spent = timed(partial(sample, model, count), model.device)
        found = most_memory(model.device)
        first = first if first[1] else (spent / count, found)
        yield {"count": count, "seconds_a_picture": spent / count, "bytes": found}


def too_much(count: int, seconds: float, rise: int, free: int) -> str:
    """Why so many are not tried; nothing if they are."""
    if count * seconds > LONGEST:
        return f"left out: {count} pictures would take about {count * seconds:,.0f} s at {seconds:,.1f} s for one"
    if count * rise > 0.8 * free:
        return f"left out: {count} pictures would need about {count * rise / 1e9:,.1f} GB, {free / 1e9:,.1f} are free"
    return ""


def sample(model: Model, count: int, steps: int | None = None) -> None:
    """All at once."""
    samplings = [one if steps is None else one.model_copy(update={"steps": steps}) for one in model.samplings]
    labels = torch.tensor([index % max(1, len(model.classes)) for index in range(count)], device=model.device)
    labels = labels if model.classes else torch.full_like(labels, NULL_LABEL)
    rngs = [Rng(("cost", index)) for index in range(count)]
    generate(model.stages, labels, samplings, rngs, text=usual_text(model, count))


def main(folder: str, device: str, threads: str, *counts: str) -> None:
    torch.set_num_threads(int(threads))
    model = load(Path(folder), device)
    loaded = most_memory(model.device)
    rows = list(measured(model, [int(count) for count in counts]))
    print(json.dumps({"loaded_bytes": loaded, "counts": rows}))


if __name__ == "__main__":
    main(*sys.argv[1:])
