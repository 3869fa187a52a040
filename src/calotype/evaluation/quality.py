"""How good the pictures of every stage are, held against real ones of the same size, classes and number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from calotype.data.images import rounded
from calotype.diffusion.stage import Sampling, Stage, generate, in_turn
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.distances import Features
from calotype.evaluation.features import features
from calotype.evaluation.measures import measured
from calotype.evaluation.memorisation import evenly, nearness
from calotype.evaluation.references import ReferenceSet
from calotype.evaluation.results import Json
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Labels, Progress, Rng, Text

GRID_SAMPLES = 12
TRAIN_TIMES, FEWEST_TRAIN = 10, 250
"""A sample's nearest training picture is sought among so many times as many as there are samples, at least so many."""


@dataclass
class Generated:
    """Of one run: features of each stage's pictures by their size, and a few of the pictures."""

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


def generated(one: Candidate, reference: ReferenceSet, seed: int, keep: int, progress: Progress) -> Generated:
    """Samples with the classes and captions of the real pictures; picture i depends on (seed, i, these two) only."""
    model, made = one.model, Generated()
    labels, all_rngs = one.labels(reference.pictures, reference.chosen), model.rngs(len(reference), seed)
    for part in in_turn(len(reference), one.size, one.size):
        chosen, rngs = reference.chosen[part], all_rngs[part]
        text = one.text(reference.pictures, chosen)
        pictures = chain(model.stages, model.samplings, labels[part], rngs, text)
        for stage, images in zip(model.stages, pictures, strict=True):
            made.sampled.setdefault(stage.image_size, []).append(features([rounded(images)], reference.network))
        from_real(one, reference, chosen, labels[part], rngs, made)
        if part.start < max(keep, GRID_SAMPLES):
            made.shown.append(pictures[-1].cpu())
            made.small.append(pictures[0])
        progress(min(part.stop, len(reference)), len(reference))
    return made


def chain(
    stages: Sequence[Stage], samplings: Sequence[Sampling], labels: Labels, rngs: Sequence[Rng], text: Text | None
) -> list[Images]:
    """The finished pictures of every stage: the last are those of `generate`."""
    made: list[Images] = []
    for place, (stage, sampling) in enumerate(zip(stages, samplings, strict=True)):
        if place and sampling.conditioning == "truncated":  # it goes on from what the stage before leaves unfinished
            made.append(generate(stages[: place + 1], labels, samplings[: place + 1], rngs, text=text))
        else:
            made.append(generate([stage], labels, [sampling], rngs, made[-1] if made else None, text=text))
    return made


def from_real(
    one: Candidate, reference: ReferenceSet, chosen: Tensor, labels: Labels, rngs: Sequence[Rng], made: Generated
) -> None:
    """What each later stage, or the autoencoder, makes of real pictures: its own part in what is wrong."""
    device, base = one.model.device, one.model.stages[0]
    if isinstance(base.space, LatentSpace):
        real = reference.images(chosen, base.image_size).to(device)
        made.reconstructed.append(features([rounded(base.space.decode(base.space.encode(real)))], reference.network))
    for stage, sampling in zip(one.model.stages[1:], one.model.samplings[1:], strict=True):
        assert stage.low_res_size is not None
        low_res = reference.images(chosen, stage.low_res_size).to(device)
        whole = sampling.model_copy(update={"conditioning": "whole"})
        images = generate([stage], labels, [whole], rngs, low_res, text=one.text(reference.pictures, chosen))
        made.given_real.setdefault(stage.image_size, []).append(features([rounded(images)], reference.network))


def quality(one: Candidate, made: Generated, reference: ReferenceSet, seed: int) -> Json:
    """The whole chain, and every stage: `sampled` on what the stages before made, `given_real` on real pictures."""
    stages = []
    for size in one.recipe.chain:
        ways = {"sampled": made.sampled[size], "given_real": made.given_real.get(size, [])}
        against_real = {
            name: against(np.concatenate(rows), reference, size, seed) for name, rows in ways.items() if rows
        }
        stages.append({"size": size, **against_real})
    result = {"whole": stages[-1]["sampled"], "stages": stages}
    if not made.reconstructed:
        return result
    return {**result, "autoencoder": against(np.concatenate(made.reconstructed), reference, one.recipe.chain[0], seed)}


def floor(reference: ReferenceSet, size: int, seed: int) -> Json:
    """Other real pictures in the place of samples: nothing can be expected to be better."""
    return {"size": size, **against(reference.floor(size), reference, size, seed)}


def against(made: Features, reference: ReferenceSet, size: int, seed: int) -> Json:
    return measured(made, reference.features(size), seed, reference.network, any_count=True).stored()


def nearest_to_training(made: Generated, size: int, reference: ReferenceSet, trained: Features) -> Json:
    held_out = reference.features(size)[~reference.pictures.split.train[reference.chosen].numpy()]
    return nearness(np.concatenate(made.sampled[size]), held_out, trained).stored()


def train_features(reference: ReferenceSet, size: int) -> Features:
    """Of training pictures, evenly spaced; none of them is compared with samples where that can be helped."""
    train = reference.pictures.train_indices
    train = train[~torch.isin(train, torch.cat([reference.chosen, reference.rows.others]))]
    rows = evenly(train, max(FEWEST_TRAIN, TRAIN_TIMES * len(reference)))
    return reference.store.features(rows, size) if len(rows) else reference.features(size)[:0]
