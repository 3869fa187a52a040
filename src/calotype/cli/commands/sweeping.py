"""Steps and guidance of a model, tried against real pictures, and the best stored with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from calotype.cli.commands.reading import read_as_run
from calotype.cli.console import Console
from calotype.data.folder import Pictures
from calotype.data.images import rounded
from calotype.diffusion.stage import Sampling, Stage, generate, in_turn
from calotype.evaluation.distances import Features
from calotype.evaluation.features import features
from calotype.evaluation.measures import as_json
from calotype.evaluation.quality import Reals, choose_reals, floor
from calotype.evaluation.sweep import Cell, Grid, pick, sweep
from calotype.files import write_json
from calotype.model import load, store_sampling
from calotype.nets.perceptual import efficientnet_lite0
from calotype.report import write_report
from calotype.report.format import guidance as guidance_text
from calotype.run import Run
from calotype.training.lock import locked
from calotype.training.reporter import counting
from calotype.types import NULL_LABEL, Labels, Rng, Text, UserError

FORMAT = 1
FEWEST, FEWEST_TO_CHOOSE = 4, 50
"""Samples in a cell: to say anything, and to change what is stored with the model."""
UNGUIDED = "without labels, captions and a closed form there is nothing to guide away from; only steps are tried"


def sweep_run(folder: Path, data: Path | None, count: int, seed: int, grid: Grid, device: str, console: Console) -> str:
    """Writes `RUN/sweep.json` and the report, and makes the best cell the model's own sampling. Returns what it says.

    Raises `UserError` for a run without a model, and for data that cannot be read.
    """
    if count < FEWEST:
        raise UserError(f"--count is {count}, but must be at least {FEWEST}; try 200")
    run, model = Run.open(folder), load(folder, device)
    where = str(data or run.state.data)
    pictures = read_as_run(run, data, model.stages[-1].image_size, folder / "cache", console)
    pictures = pictures if model.reader else replace(pictures, captions=None)
    known = model.classes == pictures.classes
    for note in (said := notes(run, pictures, known, model.stages[0].denoiser.has_prior)):
        console.say(note)
    with locked(folder), console.bar("sweep") as bar:
        found = try_all(model.stages[0], model.samplings[0], pictures, known, count, seed, grid, counting(bar))
        write_json(folder / "sweep.json", {**found, "data": where, "notes": [*found["notes"], *said]})
        if found["n"] >= FEWEST_TO_CHOOSE:
            store_sampling(folder / "model", Sampling(**found["best"]["sampling"]))
    write_report(folder)
    return str(found["why"])


def notes(run: Run, pictures: Pictures, known: bool, has_prior: bool) -> list[str]:
    said = [] if pictures.content == run.state.content else ["the model was trained on other pictures"]
    said += [] if known else ["its classes are not those of the pictures, so it is sampled without"]
    return said if has_prior or conditional(pictures, known) else [*said, UNGUIDED]


def conditional(pictures: Pictures, known: bool) -> bool:
    """Whether samples have labels or captions."""
    return pictures.captions is not None or (known and bool(pictures.classes))


def try_all(
    stage: Stage, sampling: Sampling, pictures: Pictures, known: bool, count: int, seed: int, grid: Grid,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:  # fmt: skip
    """The first stage at every cell, held against validation pictures, as JSON. Samples have the captions of these,
    and their classes where these are `known`.
    """
    device = next(stage.denoiser.parameters()).device
    efficientnet_lite0().to(device)
    reals = choose_reals(pictures.shrunk(stage.image_size), count, by_validation=True)
    labels = reals.pictures.labels[reals.chosen] if known else torch.full((len(reals),), NULL_LABEL)
    text = reals.pictures.captions.first(reals.chosen.tolist()) if reals.pictures.captions else None
    samplings = grid.samplings(sampling, conditional(pictures, known), stage.denoiser.has_prior)
    made = maker(stage, labels.to(device), text, seed)
    cells = sweep(samplings, made, reals.features(stage.image_size), progress, seed)
    return as_found(cells, reals, stage.image_size, seed, sampling)


def maker(stage: Stage, labels: Labels, text: Text | None, seed: int) -> Callable[[Sampling], Features]:
    """Features of one picture a label; picture i has the same seed in every cell, and `calotype sample` another."""
    rngs = [Rng((seed, "sweep", index)) for index in range(len(labels))]
    parts = in_turn(len(labels), stage.image_size, stage.image_size)
    told = [text and text.at(range(len(labels))[part]) for part in parts]
    return lambda sampling: features(
        rounded(generate([stage], labels[part], [sampling], rngs[part], text=some)).cpu()
        for part, some in zip(parts, told, strict=True)
    )


def as_found(cells: Sequence[Cell], reals: Reals, size: int, seed: int, before: Sampling) -> dict[str, Any]:
    best = pick(cells)
    rest = floor(reals, size, seed)
    return {
        "format": FORMAT,
        "size": size,
        "n": len(reals),
        "seed": seed,
        "content": reals.pictures.content,
        "rows": reals.chosen.tolist(),
        "cells": [cell_json(cell) for cell in cells],
        "best": cell_json(best),
        "stored": len(reals) >= FEWEST_TO_CHOOSE,
        "before": before.model_dump(mode="json"),
        "floor": {name: rest[name] for name in ("fd_lite0", "kernel_distance", "n")},
        "why": why(cells, best, len(reals)),
        "notes": list(reals.notes),
    }


def cell_json(cell: Cell) -> dict[str, Any]:
    return {
        "steps": cell.sampling.steps,
        "guidance": cell.sampling.guidance,
        "guide": cell.sampling.guide,
        "calls": cell.calls,
        "fd_lite0": as_json(cell.fd_lite0),
        "kernel_distance": as_json(cell.kernel_distance),
        "behind": as_json(cell.behind),
        "sampling": cell.sampling.model_dump(mode="json"),
    }


def why(cells: Sequence[Cell], best: Cell, count: int) -> str:
    smallest = min(cells, key=lambda cell: cell.fd_lite0.value)
    stored = (
        "now stored with the model" if count >= FEWEST_TO_CHOOSE else f"not stored, as {count} pictures are too few"
    )
    said = f"Best are {in_words(best)}, {stored}: "
    if best is smallest:
        return said + "no cell is nearer to real pictures, and no cheaper one is as near within the noise."
    cheaper = smallest.calls / best.calls
    return said + f"{cheaper:.1f} times cheaper than the nearest, {in_words(smallest)}, and as near within the noise."


def in_words(cell: Cell) -> str:
    one = cell.sampling
    return f"{one.steps} steps, {guidance_text(one.model_dump())} (FD-Lite0 {cell.fd_lite0.value:.0f})"
