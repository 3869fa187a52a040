"""Time and memory of sampling, measured in a process of its own that holds nothing but the model.

`python -m calotype.evaluation.footprint MODEL DEVICE THREADS` prints one line of JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from calotype.diffusion.stage import generate
from calotype.evaluation.candidate import Candidate, usual_text
from calotype.evaluation.counting import most_memory
from calotype.machine import free_memory, timed
from calotype.model import Model, load
from calotype.types import NULL_LABEL, Rng

COUNTS = (1, 4, 16)
"""Pictures at once. They rise, so the most memory so far is that of the last one."""
MOST_SECONDS = 60.0
"""Seconds: what is predicted to take longer is left out."""


def footprint(one: Candidate) -> dict[str, Any]:
    """Seconds a picture and peak bytes for each of `COUNTS`, or the reason why there are none."""
    model, threads = (one.run.folder / "model").resolve(), str(torch.get_num_threads())
    command = [sys.executable, "-m", "calotype.evaluation.footprint", str(model), str(one.model.device), threads]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError):
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        reason = f"the process that samples ended with code {done.returncode}: {last}"
        return {"loaded_bytes": None, "counts": [not_measured(count, reason) for count in COUNTS], "reason": reason}


def not_measured(count: int, reason: str) -> dict[str, Any]:
    return {"count": count, "seconds_a_picture": None, "bytes": None, "reason": reason}


def sampling_costs(model: Model) -> Iterator[dict[str, Any]]:
    sample_batch(model, 1, steps=1)  # to warm up
    loaded, seconds, rise = most_memory(model.device), 0.0, 0
    for count in COUNTS:
        if reason := too_much(count, seconds, rise, free_memory(model.device)):
            yield not_measured(count, reason)
            continue
        spent, most = timed(partial(sample_batch, model, count), model.device), most_memory(model.device)
        if count == COUNTS[0]:
            seconds, rise = spent / count, most - loaded
        yield {"count": count, "seconds_a_picture": spent / count, "bytes": most}


def too_much(count: int, seconds: float, rise: int, free: int) -> str:
    """Why so many are not tried; empty if they are. `seconds` and `rise` (in bytes) are those of one picture."""
    if count * seconds > MOST_SECONDS:
        return f"left out: {count} pictures would take about {count * seconds:,.0f} s at {seconds:,.1f} s for one"
    if count * rise > 0.8 * free:
        return f"left out: {count} pictures would need about {count * rise / 1e9:,.1f} GB, {free / 1e9:,.1f} are free"
    return ""


def sample_batch(model: Model, count: int, steps: int | None = None) -> None:
    """All at once."""
    samplings = [one if steps is None else one.model_copy(update={"steps": steps}) for one in model.samplings]
    labels = torch.arange(count, device=model.device) % max(1, len(model.classes))
    labels = labels if model.classes else torch.full_like(labels, NULL_LABEL)
    rngs = [Rng(("cost", index)) for index in range(count)]
    generate(model.stages, labels, samplings, rngs, text=usual_text(model, count))


def main(folder: str, device: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model = load(Path(folder), device)
    loaded = most_memory(model.device)
    print(json.dumps({"loaded_bytes": loaded, "counts": list(sampling_costs(model))}))


if __name__ == "__main__":
    main(*sys.argv[1:])
