"""Steps and guidance of a model, tried against real pictures, and the best stored with it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from calotype.cli.commands.reading import read_as_run
from calotype.cli.console import Console
from calotype.cli.options import SweepOptions
from calotype.data.folder import Pictures
from calotype.data.images import rounded
from calotype.diffusion.stage import Guide, Sampling, Stage, generate, in_turn
from calotype.evaluation.distances import Features
from calotype.evaluation.features import Lite0, features
from calotype.evaluation.measures import as_json
from calotype.evaluation.quality import floor
from calotype.evaluation.references import FeatureStore, ReferenceSet, reference_rows
from calotype.evaluation.results import SWEEP_FILE, SweepResult, write_result
from calotype.evaluation.sweep import Cell, Grid, pick, sweep
from calotype.model import load
from calotype.report import write_report
from calotype.report.format import guidance as guidance_text
from calotype.run import Run
from calotype.store import store_sampling
from calotype.training.lock import locked
from calotype.training.reporter import counting
from calotype.types import NULL_LABEL, Labels, Rng, Text, UserError

FORMAT = 1
FEWEST, FEWEST_TO_CHOOSE = 4, 50
"""Samples in a cell: to say anything, and to change what is stored with the model."""
UNGUIDED = "without labels, captions and a closed form there is nothing to guide away from; only steps are tried"


def sweep_run(options: SweepOptions, console: Console) -> str:
    """Writes `RUN/sweep.json` and the report, and makes the best cell the model's own sampling. Returns why it is best.

    Raises `UserError` for a run without a model, and for data that cannot be read.
    """
    folder, data, count, seed, grid = options.run, options.data, options.count, options.seed, read_grid(options)
    if count < FEWEST:
        raise UserError(f"--count is {count}, but must be at least {FEWEST}; try 200")
    run, model = Run.open(folder), load(folder, options.device)
    where = str(data or run.state.data)
    pictures = read_as_run(run, data, model.stages[-1].image_size, folder / "cache", console)
    pictures = pictures if model.text_encoder else replace(pictures, captions=None)
    known = model.classes == pictures.classes
    for note in (remarks := notes(run, pictures, known, model.stages[0].denoiser.has_prior)):
        console.say(note)
    stage, sampling = model.stages[0], model.samplings[0]
    store = FeatureStore(pictures.shrunk(stage.image_size), Lite0(model.device), folder / "cache", console.bar, "real")
    reference = ReferenceSet(store, reference_rows(store.pictures, count, by_validation=True, fewest=2))
    with locked(folder), console.bar("sweep") as bar:
        result = try_all(stage, sampling, reference, known, seed, grid, counting(bar))
        result |= {"data": where, "notes": [*result["notes"], *remarks]}
        write_result(folder / SWEEP_FILE, SweepResult.model_validate(result))
        if result["n"] >= FEWEST_TO_CHOOSE:
            store_sampling(folder / "model", Sampling(**result["best"]["sampling"]))
    write_report(folder)
    console.say(result["why"])
    return str(result["why"])


def read_grid(options: SweepOptions) -> Grid:
    """Raises `UserError` for what is no list of numbers or guides."""
    return Grid(
        [int(value) for value in numbers_in("steps", options.steps, 1)],
        numbers_in("guidance", options.guidance, 0) if options.guidance else (),
        guides_in(options.guide),
        numbers_in("slope", options.slope, 0) if options.slope else (),
    )


def guides_in(text: str | None) -> tuple[Guide, ...]:
    """Guides between commas; none stands for all of them."""
    known: dict[str, Guide] = {"prior": "prior", "unconditional": "unconditional"}
    names = [name.strip() for name in (text or "").split(",") if name.strip()]
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--guide is {unknown[0]!r}, but must be prior, unconditional, or both between commas")
    return tuple(known[name] for name in names)


def numbers_in(name: str, text: str, least: int) -> list[float]:
    """Numbers of at least `least` between commas, sorted; steps are integers."""
    pattern, parts = r"\d+" if name == "steps" else r"\d+(\.\d+)?", [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(pattern, part) and float(part) >= least for part in parts):
        raise UserError(
            f"--{name} is {text!r}, but must be numbers of at least {least} between commas, such as 8,16,32"
        )
    return sorted({float(part) for part in parts})


def notes(run: Run, pictures: Pictures, known: bool, has_prior: bool) -> list[str]:
    remarks = [] if pictures.content == run.state.content else ["the model was trained on other pictures"]
    remarks += [] if known else ["its classes are not those of the pictures, so it is sampled without"]
    return remarks if has_prior or conditional(pictures, known) else [*remarks, UNGUIDED]


def conditional(pictures: Pictures, known: bool) -> bool:
    """Whether samples have labels or captions."""
    return pictures.captions is not None or (known and bool(pictures.classes))


def try_all(
    stage: Stage, sampling: Sampling, reference: ReferenceSet, known: bool, seed: int, grid: Grid,
    progress: Callable[[int, int], None],
) -> dict[str, Any]:  # fmt: skip
    """The first stage at every cell, compared with validation pictures. Samples have the captions of these, and their
    classes where these are `known`.
    """
    pictures, rows = reference.pictures, reference.chosen
    labels = pictures.labels[rows] if known else torch.full((len(rows),), NULL_LABEL)
    text = pictures.captions.first(rows.tolist()) if pictures.captions else None
    samplings = grid.samplings(sampling, conditional(pictures, known), stage.denoiser.has_prior)
    made = maker(stage, labels.to(next(stage.denoiser.parameters()).device), text, seed)
    cells = sweep(samplings, made, reference.features(stage.image_size), progress, seed)
    return as_found(cells, reference, stage.image_size, seed, sampling)


def maker(stage: Stage, labels: Labels, text: Text | None, seed: int) -> Callable[[Sampling], Features]:
    """Features of one picture a label; picture i has the same seed in every cell, and `calotype sample` another."""
    rngs = [Rng((seed, "sweep", index)) for index in range(len(labels))]
    parts = in_turn(len(labels), stage.image_size, stage.image_size)
    prompts = [text and text.at(range(len(labels))[part]) for part in parts]
    return lambda sampling: features(
        rounded(generate([stage], labels[part], [sampling], rngs[part], text=prompt))
        for part, prompt in zip(parts, prompts, strict=True)
    )


def as_found(cells: Sequence[Cell], reference: ReferenceSet, size: int, seed: int, before: Sampling) -> dict[str, Any]:
    best = pick(cells)
    rest = floor(reference, size, seed)
    return {
        "format": FORMAT,
        "size": size,
        "n": len(reference),
        "seed": seed,
        "content": reference.pictures.content,
        "rows": reference.chosen.tolist(),
        "cells": [cell_json(cell) for cell in cells],
        "best": cell_json(best),
        "stored": len(reference) >= FEWEST_TO_CHOOSE,
        "before": before.model_dump(mode="json"),
        "floor": {name: rest[name] for name in ("fd_lite0", "kernel_distance", "n")},
        "why": why(cells, best, len(reference)),
        "notes": list(reference.rows.notes),
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
    text = f"Best are {in_words(best)}, {stored}: "
    if best is smallest:
        return text + "no cell is nearer to real pictures, and no cheaper one is as near within the noise."
    cheaper = smallest.calls / best.calls
    return text + f"{cheaper:.1f} times cheaper than the nearest, {in_words(smallest)}, and as near within the noise."


def in_words(cell: Cell) -> str:
    one = cell.sampling
    return f"{one.steps} steps, {guidance_text(one.model_dump())} (FD-Lite0 {cell.fd_lite0.value:.0f})"
