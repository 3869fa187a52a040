"""Steps and guidance of a model, tried against real pictures, and the best stored with it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from calotype.cli.commands.reading import read_as_run
from calotype.cli.console import Console
from calotype.cli.options import SweepOptions
from calotype.data.images import shown
from calotype.diffusion.stage import Guide, Sampling
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.features import Lite0
from calotype.evaluation.quality import floor_measures
from calotype.evaluation.references import FeatureStore, ReferenceSet, reference_set
from calotype.evaluation.results import SWEEP_FILE, Cell, SetMeasures, SweepResult, write_result
from calotype.evaluation.search import Grid, cheapest, sampled_features, sweep
from calotype.model import load
from calotype.report import write_report
from calotype.report.format import guidance
from calotype.run import Run
from calotype.store import store_sampling
from calotype.training.process import locked
from calotype.types import UserError

FEWEST_SAMPLES, FEWEST_TO_CHOOSE = 4, 50
"""Samples in a cell: to say anything, and to change what is stored with the model."""
UNGUIDED = "without labels, captions and a closed form there is nothing to guide away from; only steps are tried"


def sweep_run(options: SweepOptions, console: Console) -> str:
    """Writes `RUN/sweep.json` and the report, and makes the best cell the model's own sampling. Returns why it is best.

    The first stage is sampled in every cell with the captions of validation pictures, and with their classes where the
    model knows them. Raises `UserError` for a run without a model, and for data that cannot be read.
    """
    folder, data, count, seed, grid = options.run, options.data, options.count, options.seed, read_grid(options)
    if count < FEWEST_SAMPLES:
        raise UserError(f"--count is {count}, but must be at least {FEWEST_SAMPLES}; try 200")
    run, model = Run.open(folder), load(folder, options.device)
    candidate = Candidate("A", run, model)
    stage, before = model.stages[0], model.samplings[0]
    pictures = read_as_run(run, data, model.stages[-1].image_size, folder / "cache", console)
    pictures = pictures if model.text_encoder else replace(pictures, captions=None)
    known = model.classes == pictures.classes
    conditional = pictures.captions is not None or (known and bool(pictures.classes))
    has_prior = stage.denoiser.prior is not None
    samplings = grid.samplings(before, conditional, has_prior)
    notes = [] if candidate.run.state.is_of(pictures) else ["the model was trained on other pictures"]
    notes += [] if known else ["its classes are not those of the pictures, so it is sampled without"]
    notes += [] if conditional or has_prior else [UNGUIDED]
    for note in notes:
        console.say(note)
    store = FeatureStore(pictures.shrunk(stage.image_size), Lite0(model.device), folder / "cache", console.bar, "real")
    reference = reference_set(store, count, by_validation=True, fewest=2)
    labels, text = candidate.labels(pictures, reference.chosen), candidate.text(pictures, reference.chosen)
    with locked(folder), console.bar("sweep") as bar:
        sampled = sampled_features(stage, labels, text, seed, store.network)
        cells = sweep(samplings, sampled, reference.features(stage.image_size), bar, seed)
        result = sweep_result(cells, reference, stage.image_size, seed, before, shown(data or run.state.data), notes)
        write_result(folder / SWEEP_FILE, result)
        if result.stored_with_model:
            store_sampling(folder / "model", Sampling(**result.best.sampling))
    write_report(folder)
    console.say(result.why)
    return result.why


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
    pattern = r"\d{1,4}" if name == "steps" else r"\d{1,3}(\.\d{1,9})?"
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(pattern, part) and float(part) >= least for part in parts):
        raise UserError(
            f"--{name} is {text!r}, but must be numbers of at least {least} between commas, such as 8,16,32"
        )
    return sorted({float(part) for part in parts})


def sweep_result(
    cells: Sequence[Cell], reference: ReferenceSet, size: int, seed: int, before: Sampling, data: str,
    notes: Sequence[str],
) -> SweepResult:  # fmt: skip
    best, floor = cheapest(cells), floor_measures(reference, size, seed)
    return SweepResult(
        format=1,
        size=size,
        n=len(reference),
        seed=seed,
        content=reference.pictures.content,
        rows=reference.chosen.tolist(),
        cells=list(cells),
        best=best,
        stored=len(reference) >= FEWEST_TO_CHOOSE,
        before=before.model_dump(mode="json"),
        floor=SetMeasures.of(floor.n, {name: floor.get(name) for name in ("fd_lite0", "kernel_distance")}),
        why=reason_for(best, cells, len(reference)),
        notes=[*reference.notes, *notes],
        data=data,
    )


def reason_for(best: Cell, cells: Sequence[Cell], count: int) -> str:
    stored = (
        "now stored with the model" if count >= FEWEST_TO_CHOOSE else f"not stored, as {count} pictures are too few"
    )
    text = f"Best are {in_words(best)}, {stored}: "
    nearest = min(cells, key=lambda cell: cell.fd_lite0.estimate.value)
    if best is nearest:
        return text + "no cell is nearer to real pictures, and no cheaper one is as near within the noise."
    cheaper = nearest.calls / best.calls
    return text + f"{cheaper:.1f} times cheaper than the nearest, {in_words(nearest)}, and as near within the noise."


def in_words(cell: Cell) -> str:
    return f"{cell.steps} steps, {guidance(cell.sampling)} (FD-Lite0 {cell.fd_lite0.value:.0f})"
