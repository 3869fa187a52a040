"""All measures of one run, in `evaluation.json`, and the samples that are most like copies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from calotype.build import MOST_TO_START, build_space, start_linear
from calotype.data.folder import Pictures
from calotype.data.images import grid, pils_from_images, rounded
from calotype.diffusion.stage import generate, generate_in_turn, in_turn, shrunk
from calotype.evaluation.alignment import Judged, PromptJudge, alignment
from calotype.evaluation.autoencoder import EQUAL_PSNR, SSIM_WINDOW, psnr, ssim
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.distances import Features
from calotype.evaluation.features import FeatureNetwork, Lite0, distance_name, features
from calotype.evaluation.history import generalisation_gaps
from calotype.evaluation.intervals import mean_estimate
from calotype.evaluation.measures import as_measure, distance_key, measure_sets
from calotype.evaluation.memorisation import (
    TOO_FEW,
    Compared,
    MemorisationResult,
    Rows,
    concatenated,
    memorisation,
    mirrored_to_match,
    small_pixels,
)
from calotype.evaluation.references import FeatureStore, OpenBar, ReferenceSet, reference_set
from calotype.evaluation.results import (
    EVALUATION_FILE,
    PAIRS_FILE,
    PROMPTED_FILE,
    SWEEP_FILE,
    Alignment,
    ClassMeasures,
    Columns,
    EvaluationResult,
    FeatureInfo,
    Memorisation,
    SetMeasures,
    measured_with,
    write_result,
)
from calotype.files import write_png
from calotype.model import Model
from calotype.nets.vae import Vae
from calotype.ranks import ALONE, Ranks
from calotype.run import read_mapping
from calotype.spaces.latent import LatentSpace
from calotype.types import Labels, Progress, Rng, Text, UserError, no_progress

PAIR_SIDE = 256
"""Pairs are shown in about so many pixels."""


@dataclass(frozen=True)
class EvaluationRequest:
    """One run, the `pictures` that its samples are compared with, and those that it was trained on, if readable."""

    candidate: Candidate
    pictures: Pictures
    trained: Pictures | None
    cache: Path
    count: int
    seed: int
    network: FeatureNetwork
    bar: OpenBar
    judge: PromptJudge | None = None
    """Of what samples of prompts show."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Of the sampling that is stored with the model."""
    seen: Sequence[str] = ()
    """Notes on those of `pictures` that the run has seen."""
    ranks: Ranks = ALONE
    """Of several the others make their shares of the samples: see `assist`."""

    def store(self, pictures: Pictures, name: str) -> FeatureStore:
        return FeatureStore(pictures, self.network, self.cache, self.bar, name)

    @cached_property
    def reference(self) -> ReferenceSet:
        return reference_set(self.store(self.pictures, "real"), self.count)

    @property
    def sources(self) -> Rows:
        """Of each sample the row of the picture whose class and caption it has."""
        return self.reference.chosen[torch.arange(self.count) % len(self.reference)]


def evaluate_run(request: EvaluationRequest, out: Path) -> EvaluationResult:
    """Writes `evaluation.json` and the plates beside it into `out`; returns what the first holds.

    Raises `UserError` for fewer than two pictures, and for no samples.
    """
    if request.count < 1:
        raise UserError(f"count is {request.count}, but must be at least 1; try 200")
    candidate, reference, pictures, network = request.candidate, request.reference, request.pictures, request.network
    labels, text = candidate.labels(pictures, request.sources), candidate.text(pictures, request.sources)
    with request.bar("samples") as progress:
        request.ranks.say(lambda: [labels.tolist(), text and [text.prompts, text.negatives]])
        samples = make_samples(candidate.model, labels, text, request.seed, network, progress, request.ranks)
    copies, (aligned, judged) = memorisation_of(request, samples), alignment_of(request)
    result = EvaluationResult(
        format=2,
        **measured_with(candidate.model.device),
        content=pictures.content,
        unseen=None if request.trained is None else not pictures.split.train[reference.chosen].any(),
        pictures=pictures.split.counts,
        size=candidate.size,
        kind=candidate.kind,
        count=request.count,
        seed=request.seed,
        sampling=[sampling.model_dump(mode="json") for sampling in candidate.model.samplings],
        features=FeatureInfo(
            network=network.name, distance=distance_name(network), key=distance_key(network),
            weights_sha256=network.weights, preparation=network.preparation,
        ),
        notes=[*reference.notes, *request.seen, *sampling_notes(request)],
        measures=distance_columns(request, samples.features),
        classes=class_columns(request, samples.features, labels),
        autoencoder=autoencoder_columns(request),
        memorisation=copies.measures,
        alignment=aligned,
        overfitting=generalisation_gaps(candidate.run),
        shares=judged.shares,
    )  # fmt: skip
    for plate in (PAIRS_FILE, PROMPTED_FILE):  # of an earlier evaluation
        (out / plate).unlink(missing_ok=True)
    write_result(out / EVALUATION_FILE, result)
    if copies.pairs:
        write_png(out / PAIRS_FILE, copy_pairs(request, labels, text, copies))
    if judged.plate:
        write_png(out / PROMPTED_FILE, judged.plate)
    return result


def sampling_notes(request: EvaluationRequest) -> Iterator[str]:
    """Whether a sweep chose by the pictures that samples are compared with, and what differs from the stored model."""
    candidate, pictures, chosen = request.candidate, request.pictures, request.reference.chosen
    sweep = read_mapping(candidate.run.folder / SWEEP_FILE)
    if sweep.get("stored") and sweep.get("content") == pictures.content:
        both = len(set(sweep["rows"]) & set(chosen.tolist()))
        seen = (
            f"that saw {both} of the {len(chosen)} real pictures" if both else "on other real pictures and other seeds"
        )
        yield f"steps and guidance were chosen by a sweep {seen}"
    if changed := ", ".join(f"{name} {value}" for name, value in request.changes.items() if value is not None):
        yield f"samples are made with {changed}, as asked, not as is stored with the model"
    if candidate.model.classes != pictures.classes:
        yield "the run was trained with other classes than the pictures have: its samples are of no class"


def assist(model: Model, seed: int, network: FeatureNetwork, ranks: Ranks) -> None:
    """What ranks other than the first do for `evaluate_run`: they make their shares of the samples."""
    labels, prompts = ranks.say(lambda: None)  # from the pictures, which the first alone reads
    text = prompts and Text(*map(tuple, prompts))
    make_samples(model, torch.tensor(labels, device=model.device), text, seed, network, no_progress, ranks)


# -- Parts of the result -----------------------------------------------------------------------------------------------


def make_samples(
    model: Model, labels: Labels, text: Text | None, seed: int, network: FeatureNetwork,
    progress: Progress, ranks: Ranks = ALONE,
) -> Compared:  # fmt: skip
    """Picture i depends on (seed, i, its label and text) only, so it is the one that `calotype sample` makes.

    Of several ranks each makes its share, and the first gets all.
    """
    count, done, parts = len(labels), 0, []
    share = ranks.share(count)
    labels, text, rngs = labels[share], text and text.at(share), model.rngs(count, seed)[share]
    for images in map(rounded, generate_in_turn(model.stages, labels, model.samplings, rngs, text=text)):
        parts.append(Compared(features([images], network), small_pixels(images), features([images.flip(-1)], network)))
        progress(done := done + len(images), len(rngs))
    own = concatenated(parts) if parts else Compared(*[np.empty((0, 0))] * 3)  # more ranks than samples
    return Compared(*(ranks.collect(torch.from_numpy(each), count).numpy() for each in own))


def distance_columns(request: EvaluationRequest, samples: Features) -> Columns:
    """Of as many samples as there are real pictures; beside other real pictures (floor) and noise (ceiling).

    No model that has learned anything should be farther from real pictures than noise.
    """
    reference, size, network = request.reference, request.candidate.size, request.network
    rngs = [Rng((request.seed, "ceiling", index)) for index in range(len(reference))]
    noise = features((rounded(0.5 * rng.normal(1, 3, size, size)) for rng in rngs), network)
    against_real = partial(measure_sets, real=reference.features(size), seed=request.seed, network=network)
    return Columns(
        samples=against_real(samples[: len(reference)]),
        floor=against_real(reference.floor(size)),
        ceiling=against_real(noise),
    )


def class_columns(request: EvaluationRequest, samples: Features, labels: Labels) -> list[ClassMeasures]:
    """The same, one class at a time, so of fewer pictures."""
    candidate, reference, of_pictures = request.candidate, request.reference, request.pictures.labels
    classes = candidate.model.classes if candidate.model.classes == request.pictures.classes else ()
    number, result = len(reference), []
    for index, name in enumerate(classes):
        both = (reference.chosen, reference.others)
        real, others = (reference.store.features(rows[of_pictures[rows] == index], candidate.size) for rows in both)
        own = samples[:number][(labels[:number].cpu() == index).numpy()]
        sampled, floor = (measure_sets(rows, real, request.seed, request.network) for rows in (own, others))
        result.append(ClassMeasures.model_validate({"class": name, "samples": sampled, "floor": floor}))
    return result


def memorisation_of(request: EvaluationRequest, samples: Compared) -> MemorisationResult:
    if request.trained is None:
        reason = "the pictures that the run was trained on cannot be read, or have changed"
        return MemorisationResult(Memorisation(verdict=TOO_FEW, sentence=reason))
    store, size = request.store(request.trained, "trained"), request.candidate.size
    prompted = request.candidate.text(request.pictures, request.sources) is not None
    by_own_captions = prompted and request.pictures.content == request.trained.content
    return memorisation(
        samples,
        lambda rows, mirrored: store.compared(rows, size, mirrored),
        lambda rows: store.small(rows, size),
        request.trained.train_indices,
        request.trained.test_indices,
        request.trained.labels,
        request.sources if by_own_captions else torch.full((request.count,), -1),
    )


def autoencoder_columns(request: EvaluationRequest) -> Columns | None:
    """Of reconstructions; None for a model without an autoencoder.

    The floor is other real pictures in their place; the ceiling, the autoencoder's closed form before any training.
    """
    candidate, reference, network = request.candidate, request.reference, request.network
    space, size = candidate.model.stages[0].space, candidate.recipe.chain[0]
    if not isinstance(space, LatentSpace):
        return None
    floor = measure_sets(reference.floor(size), reference.features(size), request.seed, network)
    key = distance_key(network)
    lite0 = Lite0(candidate.model.device)
    before = untrained_space(candidate, request.trained or request.pictures)
    samples, ceiling = (reconstruction_measures(each, size, request, lite0) for each in (space, before))
    return Columns(samples=samples, floor=SetMeasures.of(floor.n, {key: floor.get(key)}), ceiling=ceiling)


def untrained_space(candidate: Candidate, pictures: Pictures) -> LatentSpace:
    """As the run had it at its start, but for the pictures that the closed form is made from; random if imported."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(candidate.recipe.seed)
        space = build_space(candidate.recipe).to(candidate.model.device)
    if isinstance(space.vae, Vae):
        few = pictures.first(MOST_TO_START, pictures.pixels.shape[-1] // candidate.recipe.chain[0])
        if not few.split.train.any():  # other pictures, as those of the run cannot be read
            few = replace(few, split=replace(few.split, train=~few.split.train))
        start_linear(space.vae, few, candidate.model.device)
    return space.eval()


def reconstruction_measures(space: LatentSpace, size: int, request: EvaluationRequest, lite0: Lite0) -> SetMeasures:
    """The distance of reconstructions from their originals, and means over pairs; SSIM only where its window fits."""
    reference, network = request.reference, request.network
    rows, pairs = list[Features](), dict[str, list[torch.Tensor]]()
    for part in in_turn(len(reference), size, size):
        images = reference.store.images(reference.chosen[part], size).to(space.mean.device)
        fake = rounded(space.decode(space.encode(images)))
        rows.append(features([fake], network))
        pairs.setdefault("psnr", []).append(psnr(images, fake).clamp(max=EQUAL_PSNR))
        if size >= SSIM_WINDOW:
            pairs.setdefault("ssim", []).append(ssim(images, fake))
        pairs.setdefault("perceptual", []).append(lite0.perceptual_distance(images, fake))
    key = distance_key(network)
    distances = measure_sets(np.concatenate(rows), reference.features(size), request.seed, network)
    means = {
        name: as_measure(mean_estimate(torch.cat(values).double().cpu().numpy())) for name, values in pairs.items()
    }
    return SetMeasures.of(distances.n, {key: distances.get(key), **means})


def alignment_of(request: EvaluationRequest) -> tuple[Alignment, Judged]:
    """The judge knows the pictures that the run was trained on, so without these there is none."""
    judge, pictures = request.judge, request.trained
    if judge is None or pictures is None:
        judge, pictures = None, request.pictures
    return alignment(request.candidate, request.store(pictures, "real"), judge, request.count, request.seed)


def copy_pairs(
    request: EvaluationRequest, labels: Labels, text: Text | None, copies: MemorisationResult
) -> Image.Image:
    """The samples most like copies, each with its nearest training picture to the right."""
    assert request.trained is not None
    model, size, shown = request.candidate.model, request.candidate.size, []
    store, rngs = request.store(request.trained, "trained"), model.rngs(len(labels), request.seed)
    for place, row in copies.pairs:
        one = slice(place, place + 1)
        sample = generate(model.stages, labels[one], model.samplings, rngs[one], text=text and text.at(one)).cpu()
        trained = mirrored_to_match(store.images(torch.tensor([row]), size), sample)
        shown += [shrunk(each, max(1, size // PAIR_SIDE)) for each in (sample, trained)]
    return grid(pils_from_images(torch.cat(shown)), 6)
