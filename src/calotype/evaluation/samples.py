"""Samples of a model as they are evaluated, and noise as their ceiling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from calotype.data.images import rounded
from calotype.diffusion.stage import generate, in_turn
from calotype.evaluation.distances import Features
from calotype.evaluation.features import FeatureNetwork, features
from calotype.evaluation.memorisation import Compared, concatenated, small_pixels
from calotype.model import Model
from calotype.types import Labels, Rng, Text


@dataclass(frozen=True)
class EvaluatedSamples:
    compared: Compared
    labels: Labels


def make_samples(
    model: Model, labels: Labels, text: Text | None, seed: int, network: FeatureNetwork,
    progress: Callable[[int, int, str], None],
) -> EvaluatedSamples:  # fmt: skip
    """Picture i depends on (seed, i, its label and text) only, so it is the one that `calotype sample` makes."""
    size, parts = model.stages[-1].image_size, []
    all_rngs = model.rngs(len(labels), seed)
    for part in in_turn(len(labels), size, size):
        prompts = text and text.at(range(len(labels))[part])
        images = rounded(generate(model.stages, labels[part], model.samplings, all_rngs[part], text=prompts))
        parts.append(Compared(features([images], network), small_pixels(images), features([images.flip(-1)], network)))
        progress(min(part.stop, len(labels)), len(labels), "")
    return EvaluatedSamples(concatenated(parts), labels.cpu())


def noise_features(count: int, size: int, seed: int, network: FeatureNetwork) -> Features:
    """The ceiling of distances: no model that has learned anything should be farther from real pictures than noise."""
    rngs = [Rng((seed, "ceiling", index)) for index in range(count)]
    return features((rounded(0.5 * rng.normal(1, 3, size, size)) for rng in rngs), network)
