"""Gathers the measures of all runs into `compare.json`, with a verdict on each of the lecture's claims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from calotype.data.folder import Pictures
from calotype.data.images import grid, pils_from_images
from calotype.data.remote import remote_address
from calotype.evaluation.candidate import Candidate, ReadOwn, notes_on_split, split_by, unseen_by_all
from calotype.evaluation.comparison_results import ComparisonResult, Overfitting, Propagation, RunMeasures
from calotype.evaluation.cost import deployment_cost, run_cost
from calotype.evaluation.distances import Features
from calotype.evaluation.features import Lite0
from calotype.evaluation.history import generalisation_gaps, log_spreads
from calotype.evaluation.propagation import USUAL, Subjects, matched_level, pictures_for, propagation
from calotype.evaluation.quality import (
    GRID_SAMPLES,
    StageSamples,
    floor_measures,
    nearest_to_training,
    quality,
    sample_stages,
    train_features,
)
from calotype.evaluation.references import FeatureStore, OpenBar, ReferenceSet, reference_set
from calotype.evaluation.results import COMPARISON_FILE, measured_with, write_result
from calotype.evaluation.verdicts import claim_verdicts
from calotype.files import make_folder, write_png
from calotype.types import UserError

Read = Callable[[str, int], Pictures]
"""From the name of the data and the size to the pictures."""


@dataclass(frozen=True)
class Comparison:
    """Finished runs of one size, and the real pictures that their samples are compared with."""

    runs: Sequence[Candidate]
    reference: ReferenceSet
    lite0: Lite0
    seed: int
    bar: OpenBar
    out: Path


def compare(
    runs: Sequence[Candidate], data: Path | None, out: Path, count: int, seed: int, read: Read, read_own: ReadOwn,
    bar: OpenBar,
) -> ComparisonResult:  # fmt: skip
    """Writes `compare.json` and a grid of samples of every run into `out`; returns what the first holds.

    Raises `UserError` for data that cannot be read.
    """
    if count < 2:
        raise UserError(f"count is {count}, but must be at least 2; try 200")
    make_folder(out)
    name = runs[0].run.state.data if data is None else remote_address(data) or str(data)
    pictures = read(name, runs[0].size)
    splits = [split_by(candidate, pictures, read_own) for candidate in runs]
    notes = [
        note
        for candidate, split in zip(runs, splits, strict=True)
        for note in notes_on_split(f"run {candidate.key}", candidate, split, pictures)
    ]
    pictures = replace(pictures, split=unseen_by_all(splits, len(pictures)))
    lite0 = Lite0(runs[0].model.device)
    store = FeatureStore(pictures, lite0, out / "cache", bar, "real")
    reference = reference_set(store, count, fewest=2)
    comparison = Comparison(runs, reference, lite0, seed, bar, out)
    trained, (sigma, small_size) = train_features(reference, runs[0].size), matched_noise(comparison)
    measures = [run_measures(candidate, comparison, trained, sigma, small_size) for candidate in runs]
    sizes = sorted({size for candidate in runs for size in candidate.recipe.chain})
    result = ComparisonResult(
        format=4,
        **measured_with(runs[0].model.device),
        data=name,
        classes=list(pictures.classes),
        size=runs[0].size,
        count=len(reference),
        seed=seed,
        notes=[*reference.notes, *other_classes(runs, pictures), *notes, *equal_seeds(runs)],
        matched_sigma=sigma,
        runs=measures,
        floor=[floor_measures(reference, size, seed) for size in sizes],
        verdicts=claim_verdicts(measures),
    )
    write_result(out / COMPARISON_FILE, result)
    return result


def other_classes(runs: Sequence[Candidate], pictures: Pictures) -> list[str]:
    note = "was trained with other classes than the data have, so its pictures are sampled without a class"
    return [f"run {candidate.key} {note}" for candidate in runs if candidate.model.classes != pictures.classes]


def equal_seeds(runs: Sequence[Candidate]) -> list[str]:
    """Runs of a kind stand for different seeds in the verdicts."""
    kinds = {candidate.key: (candidate.kind, candidate.has_prior, candidate.recipe.seed) for candidate in runs}
    return [
        f"runs {key} and {other} are of one kind and have the same seed, so they are not two seeds of it"
        for key, other in combinations(kinds, 2)
        if kinds[key] == kinds[other]
    ]


def matched_noise(comparison: Comparison) -> tuple[float, int]:
    """Sigma and size at which errors are put into latents: as noisy for them, and as small, as in the first cascade."""
    runs, reference = comparison.runs, comparison.reference
    cascade = next((candidate for candidate in runs if len(candidate.recipe.chain) > 1), None)
    if cascade is None:
        return USUAL, max(1, runs[0].size // 4)
    size = cascade.recipe.chain[0]
    return matched_level(cascade, float(reference.store.images(reference.chosen, size).std())), size


def run_measures(
    candidate: Candidate, comparison: Comparison, trained: Features, sigma: float, small_size: int
) -> RunMeasures:
    reference, seed, bar = comparison.reference, comparison.seed, comparison.bar
    with bar(f"{candidate.key} samples") as progress:
        keep = pictures_for(len(reference))
        samples = sample_stages(candidate, reference, seed, keep, progress)
    file = f"grid-{candidate.key}.png"
    write_png(comparison.out / file, grid(pils_from_images(torch.cat(samples.shown)[class_order(reference)]), 6))
    with bar(f"{candidate.key} costs"):
        deployment, cost = deployment_cost(candidate), run_cost(candidate)
    nearest = nearest_to_training(samples, candidate.size, reference, trained)
    return RunMeasures(
        key=candidate.key,
        name=candidate.run.name,
        folder=str(candidate.run.folder),
        kind=candidate.kind,
        prior=candidate.has_prior,
        chain=list(candidate.recipe.chain),
        seed=candidate.recipe.seed,
        grid=file,
        deployment=deployment,
        cost=cost,
        quality=quality(candidate, samples, reference, seed),
        overfitting=Overfitting(legs=generalisation_gaps(candidate.run), nearest=nearest),
        stability=log_spreads(candidate.run, candidate.recipe),
        propagation=error_propagation(candidate, samples, comparison, sigma, small_size),
    )


def class_order(reference: ReferenceSet) -> torch.Tensor:
    """The first samples of each class, each class in turn, so that equal places of two grids hold equal classes."""
    labels = reference.pictures.labels[reference.chosen][: max(pictures_for(len(reference)), GRID_SAMPLES)].tolist()
    turns = [labels[:place].count(label) for place, label in enumerate(labels)]
    return torch.tensor(sorted(range(len(labels)), key=lambda place: (turns[place], labels[place]))[:GRID_SAMPLES])


def error_propagation(
    candidate: Candidate, samples: StageSamples, comparison: Comparison, sigma: float, small_size: int
) -> Propagation:
    if candidate.size % small_size:
        reason = f"{candidate.size} px cannot be shrunk to the {small_size} px at which errors are compared"
        return Propagation(arms={}, points=[], reason=reason)
    reference, small = comparison.reference, torch.cat(samples.small)[: pictures_for(len(comparison.reference))]
    rows = reference.chosen[: len(small)]
    labels, text = candidate.labels(reference.pictures, rows), candidate.text(reference.pictures, rows)
    subjects = Subjects(labels, candidate.model.rngs(len(small), comparison.seed), small, text)
    real = reference.store.images(rows, candidate.size).to(candidate.model.device)
    with comparison.bar(f"{candidate.key} errors") as progress:
        seed, lite0 = comparison.seed, comparison.lite0
        return propagation(candidate, subjects, real, sigma, small_size, seed, lite0, progress)
