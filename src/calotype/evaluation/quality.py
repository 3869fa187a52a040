"""How good the pictures of every stage are, held against real ones of the same size, classes and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from calotype.data.images import rounded
from calotype.data.split import evenly
from calotype.diffusion.stage import Sampling, Stage, generate, in_turn
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.comparison_results import Quality, StageQuality
from calotype.evaluation.distances import Features
from calotype.evaluation.features import features
from calotype.evaluation.measures import measure_sets
from calotype.evaluation.memorisation import nearness
from calotype.evaluation.references import ReferenceSet
from calotype.evaluation.results import Nearness, SetMeasures
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Labels, Progress, Rng, Text

GRID_SAMPLES = 12
TRAIN_TIMES, FEWEST_TRAIN = 10, 250
"""Training pictures among which the nearest of each sample is sought: so many a sample, and at least so many in all."""


@dataclass
class StageSamples:
    """Of one run: features of each stage's pictures by their size, and the first pictures themselves."""

    sampled: dict[int, list[Features]] = field(default_factory=dict)
    """Of the chain so far."""
    given_real: dict[int, list[Features]] = field(default_factory=dict)
    """Enlarged from real pictures, shrunk."""
    reconstructed: list[Features] = field(default_factory=list)
    """Real pictures through the autoencoder."""
    shown: list[Images] = field(default_factory=list)
    """The first final pictures."""
    small: list[Images] = field(default_factory=list)
    """The first pictures of the first stage."""


def sample_stages(
    candidate: Candidate, reference: ReferenceSet, seed: int, keep: int, progress: Progress
) -> StageSamples:
    """Samples with the classes and captions of the real pictures; picture i depends on (seed, i, these two) only.

    Beside them, what each later stage, or the autoencoder, makes of real pictures: its own part in what is wrong.
    """

    def look(images: Images) -> Features:
        return features([rounded(images)], reference.store.network)

    model, samples, space = candidate.model, StageSamples(), candidate.model.stages[0].space
    all_labels, all_rngs = candidate.labels(reference.pictures, reference.chosen), model.rngs(len(reference), seed)
    for part in in_turn(len(reference), candidate.size, candidate.size):
        chosen, labels, rngs = reference.chosen[part], all_labels[part], all_rngs[part]
        text = candidate.text(reference.pictures, chosen)
        pictures = sample_chain(model.stages, model.samplings, labels, rngs, text)
        for stage, images in zip(model.stages, pictures, strict=True):
            samples.sampled.setdefault(stage.image_size, []).append(look(images))
        if isinstance(space, LatentSpace):
            real = reference.store.images(chosen, model.stages[0].image_size).to(model.device)
            samples.reconstructed.append(look(space.decode(space.encode(real))))
        for stage, sampling in zip(model.stages[1:], model.samplings[1:], strict=True):
            assert stage.low_res_size is not None
            low_res = reference.store.images(chosen, stage.low_res_size).to(model.device)
            whole = sampling.model_copy(update={"conditioning": "whole"})
            images = generate([stage], labels, [whole], rngs, low_res, text=text)
            samples.given_real.setdefault(stage.image_size, []).append(look(images))
        if part.start < max(keep, GRID_SAMPLES):
            samples.shown.append(pictures[-1].cpu())
            samples.small.append(pictures[0])
        progress(min(part.stop, len(reference)), len(reference))
    return samples


def sample_chain(
    stages: Sequence[Stage], samplings: Sequence[Sampling], labels: Labels, rngs: Sequence[Rng], text: Text | None
) -> list[Images]:
    """The finished pictures of every stage: the last are those of `generate`."""
    pictures: list[Images] = []
    for place, (stage, sampling) in enumerate(zip(stages, samplings, strict=True)):
        if place and sampling.conditioning == "truncated":  # it goes on from what the stage before leaves unfinished
            pictures.append(generate(stages[: place + 1], labels, samplings[: place + 1], rngs, text=text))
        else:
            pictures.append(generate([stage], labels, [sampling], rngs, pictures[-1] if place else None, text=text))
    return pictures


def quality(candidate: Candidate, samples: StageSamples, reference: ReferenceSet, seed: int) -> Quality:
    """The whole chain, and every stage: `sampled` on what the stages before made, `given_real` on real pictures."""

    def measures(parts: Sequence[Features], size: int) -> SetMeasures:
        return against_real(np.concatenate(parts), reference, size, seed)

    sizes = candidate.recipe.chain
    stages = [StageQuality(size=size, sampled=measures(samples.sampled[size], size)) for size in sizes]
    for stage in stages:
        if stage.size in samples.given_real:
            stage.given_real = measures(samples.given_real[stage.size], stage.size)
    result = Quality(whole=stages[-1].sampled, stages=stages)
    if samples.reconstructed:
        result.autoencoder = measures(samples.reconstructed, sizes[0])
    return result


def floor_measures(reference: ReferenceSet, size: int, seed: int) -> SetMeasures:
    """Other real pictures in the place of samples: nothing can be expected to be better."""
    floor = against_real(reference.floor(size), reference, size, seed)
    floor.size = size
    return floor


def against_real(rows: Features, reference: ReferenceSet, size: int, seed: int) -> SetMeasures:
    return measure_sets(rows, reference.features(size), seed, reference.store.network, any_count=True)


def nearest_to_training(samples: StageSamples, size: int, reference: ReferenceSet, trained: Features) -> Nearness:
    held_out = reference.features(size)[~reference.pictures.split.train[reference.chosen].numpy()]
    return nearness(np.concatenate(samples.sampled[size]), held_out, trained)


def train_features(reference: ReferenceSet, size: int) -> Features:
    """Of training pictures, evenly spaced; none of them is compared with samples where that can be helped."""
    train = reference.pictures.train_indices
    train = train[~torch.isin(train, torch.cat([reference.chosen, reference.others]))]
    rows = evenly(train, max(FEWEST_TRAIN, TRAIN_TIMES * len(reference)))
    return reference.store.features(rows, size) if len(rows) else reference.features(size)[:0]
