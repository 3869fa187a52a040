"""What a model makes, as evaluation looks at it; and what stands beside it: noise, and other pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from calotype.comparison.quality import CHUNK_VALUES
from calotype.data.images import rounded
from calotype.evaluate.distances import Features
from calotype.evaluate.features import FeatureNetwork, features
from calotype.evaluate.memorisation import Seen, small_pixels
from calotype.model import Model
from calotype.stage import generate
from calotype.vocabulary import Labels, Rng, Text

Told = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Samples:
    seen: Seen
    labels: Labels


def make_samples(
    model: Model, labels: Labels, text: Text | None, seed: int, network: FeatureNetwork, told: Told
) -> Samples:
    """Picture i depends on (seed, i, its label and text) only, so it is the one that `calotype sample` makes."""
    size, rows, mirrored, pixels = model.stages[-1].image_size, [], [], []
    for part in torch.arange(len(labels)).split(max(1, min(16, CHUNK_VALUES // (3 * size**2)))):
        rngs = [Rng((seed, "sample", int(index))) for index in part]
        some = text and text.at(part.tolist())
        images = rounded(generate(model.stages, labels[part.to(labels.device)], model.samplings, rngs, text=some))
        rows.append(features([images], network))
        mirrored.append(features([images.flip(-1)], network))
        pixels.append(small_pixels(images))
        told(int(part[-1]) + 1, len(labels), "")
    return Samples(Seen(np.concatenate(rows), np.concatenate(pixels), np.concatenate(mirrored)), labels.cpu())


def noise_features(count: int, size: int, seed: int, network: FeatureNetwork) -> Features:
    """Of pictures of nothing but noise: no model that has learned anything should be farther from real ones."""
    rngs = [Rng((seed, "ceiling", index)) for index in range(count)]
    return features((rounded(0.5 * rng.normal(1, 3, size, size)) for rng in rngs), network)
