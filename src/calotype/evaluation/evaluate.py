"""All measures of one run, in `evaluation.json`, and the samples that are most like copies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from calotype.data.folder import Pictures
from calotype.data.images import grid, pils_from_images
from calotype.diffusion.stage import generate, shrunk
from calotype.evaluation.alignment import AlignmentResult, PromptJudge, alignment
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.features import FeatureNetwork, distance_name
from calotype.evaluation.history import generalisation_gaps
from calotype.evaluation.measures import distance_key, measured
from calotype.evaluation.memorisation import MemorisationResult, memorisation, mirrored_to_match, unmeasured
from calotype.evaluation.reconstruction import evaluate_reconstruction
from calotype.evaluation.references import Bar, FeatureStore, ReferenceSet, reference_rows
from calotype.evaluation.results import (
    EVALUATION_FILE,
    PAIRS_FILE,
    PROMPTED_FILE,
    SWEEP_FILE,
    ClassMeasures,
    Columns,
    EvaluationResult,
    FeatureInfo,
    Json,
    measured_with,
    write_result,
)
from calotype.evaluation.samples import EvaluatedSamples, make_samples, noise_features
from calotype.run import read_mapping
from calotype.types import Labels, Rng, Text, UserError

PAIR_SIDE = 256
"""Pairs are shown in about so many pixels."""


@dataclass(frozen=True)
class EvaluationRequest:
    """One run, the `pictures` that its samples are compared with, and those that it was trained on, if readable."""

    one: Candidate
    pictures: Pictures
    trained: Pictures | None
    cache: Path
    count: int
    seed: int
    network: FeatureNetwork
    bar: Bar
    judge: PromptJudge | None = None
    """Of what samples of prompts show; it knows the pictures that the run was trained on."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampling that is stored with the model."""
    seen: Sequence[str] = ()
    """Notes on those of `pictures` that the run has seen."""

    def store(self, pictures: Pictures, name: str) -> FeatureStore:
        return FeatureStore(pictures, self.network, self.cache, self.bar, name)

    @cached_property
    def reference(self) -> ReferenceSet:
        return ReferenceSet(self.store(self.pictures, "real"), reference_rows(self.pictures, self.count))

    @property
    def unseen(self) -> bool | None:
        """Whether none of the real pictures was trained on; None: not known."""
        if self.trained is None:
            return None
        return not self.pictures.split.train[self.reference.chosen].any()


def evaluate_run(request: EvaluationRequest, out: Path) -> EvaluationResult:
    """Writes `evaluation.json` and the plates beside it into `out`; returns what the first holds.

    Raises `UserError` for fewer than two pictures, and for no samples.
    """
    if request.count < 1:
        raise UserError(f"count is {request.count}, but must be at least 1; try 200")
    one, reference = request.one, request.reference
    rows = reference.chosen[torch.arange(request.count) % len(reference)]
    labels, text = one.labels(request.pictures, rows), one.text(request.pictures, rows)
    with request.bar("samples") as progress:
        samples = make_samples(one.model, labels, text, request.seed, request.network, progress)
    copies, aligned = memorisation_of(request, samples), alignment_of(request)
    result = EvaluationResult(
        format=2,
        **evaluation_facts(request),
        measures=distance_columns(request, samples),
        classes=class_columns(request, samples),
        autoencoder=evaluate_reconstruction(one, reference, request.trained or request.pictures, request.seed),
        memorisation=copies.measures,
        alignment=aligned.measures,
        overfitting=generalisation_gaps(one.run),
        shares=aligned.judged.shares,
    )
    for plate in (PAIRS_FILE, PROMPTED_FILE):  # of an earlier evaluation
        (out / plate).unlink(missing_ok=True)
    write_result(out / EVALUATION_FILE, result)
    if copies.pairs:
        pairs(request, labels, text, copies).save(out / PAIRS_FILE)
    if aligned.judged.plate:
        aligned.judged.plate.save(out / PROMPTED_FILE)
    return result


def evaluation_facts(request: EvaluationRequest) -> Json:
    network = request.network
    return {
        **measured_with(request.one.model.device),
        "content": request.pictures.content,
        "unseen": request.unseen,
        "pictures": request.pictures.split.counts,
        "size": request.one.size,
        "kind": request.one.kind,
        "count": request.count,
        "seed": request.seed,
        "sampling": [one.model_dump(mode="json") for one in request.one.model.samplings],
        "features": FeatureInfo(
            network=network.name,
            distance=distance_name(network),
            key=distance_key(network),
            weights_sha256=network.weights,
            preparation=network.preparation,
        ),
        "notes": [*request.reference.rows.notes, *request.seen, *evaluation_notes(request)],
    }


def evaluation_notes(request: EvaluationRequest) -> list[str]:
    collected = [] if (swept := sweep_note(request)) is None else [swept]
    if changed := ", ".join(f"{name} {value}" for name, value in request.changes.items() if value is not None):
        collected.append(f"samples are made with {changed}, as asked, not as is stored with the model")
    if request.one.model.classes != request.pictures.classes:
        collected.append("the run was trained with other classes than the pictures have: its samples are of no class")
    return collected


def sweep_note(request: EvaluationRequest) -> str | None:
    """Whether a sweep chose steps and guidance by the pictures that samples are compared with; None: not by these."""
    sweep = read_mapping(request.one.run.folder / SWEEP_FILE)
    if not sweep.get("stored") or sweep.get("content") != request.pictures.content:
        return None
    if both := len(set(sweep["rows"]) & set(request.reference.chosen.tolist())):
        total = len(request.reference)
        return f"steps and guidance were chosen by a sweep that saw {both} of the {total} real pictures"
    return "steps and guidance were chosen by a sweep on other real pictures and other seeds"


def distance_columns(request: EvaluationRequest, samples: EvaluatedSamples) -> Columns:
    """Of as many samples as there are real pictures; beside other real pictures (floor) and noise (ceiling)."""
    reference, size = request.reference, request.one.size
    noise = noise_features(len(reference), size, request.seed, request.network)
    against_real = partial(measured, real=reference.features(size), seed=request.seed, network=request.network)
    return Columns(
        samples=against_real(samples.compared.features[: len(reference)]),
        floor=against_real(reference.floor(size)),
        ceiling=against_real(noise),
    )


def class_columns(request: EvaluationRequest, samples: EvaluatedSamples) -> list[ClassMeasures]:
    """The same, one class at a time, so of fewer pictures."""
    one, reference, labels = request.one, request.reference, request.pictures.labels
    classes = one.model.classes if one.model.classes == request.pictures.classes else ()
    number, result = len(reference), []
    for index, name in enumerate(classes):
        both = (reference.rows.chosen, reference.rows.others)
        real, others = (reference.store.features(rows[labels[rows] == index], one.size) for rows in both)
        made = samples.compared.features[:number][(samples.labels[:number] == index).numpy()]
        sampled, floor = (measured(rows, real, request.seed, request.network) for rows in (made, others))
        result.append(ClassMeasures.model_validate({"class": name, "samples": sampled, "floor": floor}))
    return result


def memorisation_of(request: EvaluationRequest, samples: EvaluatedSamples) -> MemorisationResult:
    if request.trained is None:
        return unmeasured("the pictures that the run was trained on cannot be read, or have changed")
    store, size = request.store(request.trained, "trained"), request.one.size
    return memorisation(
        samples.compared,
        lambda rows, mirrored: store.compared(rows, size, mirrored),
        request.trained.train_indices,
        request.trained.test_indices[: request.count],
    )


def alignment_of(request: EvaluationRequest) -> AlignmentResult:
    known = request.judge is not None and request.trained is not None
    pictures = request.trained if known and request.trained is not None else request.pictures
    judge = request.judge if known else None
    return alignment(request.one, request.store(pictures, "real"), judge, request.count, request.seed)


def pairs(request: EvaluationRequest, labels: Labels, text: Text | None, copies: MemorisationResult) -> Image.Image:
    """The samples most like copies, each with its nearest training picture to the right."""
    assert request.trained is not None
    model, size, shown = request.one.model, request.one.size, []
    store = request.store(request.trained, "trained")
    for place, row in copies.pairs:
        label, prompt = labels[place : place + 1], text and text.at([place])
        made = generate(model.stages, label, model.samplings, [Rng((request.seed, "sample", place))], text=prompt).cpu()
        trained = mirrored_to_match(store.images(torch.tensor([row]), size), made)
        shown += [shrunk(one, max(1, size // PAIR_SIDE)) for one in (made, trained)]
    return grid(pils_from_images(torch.cat(shown)), 6)
