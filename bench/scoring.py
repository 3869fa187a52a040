"""What the track measures of pictures, and of real ones: distances by two networks, borders of blocks, faces."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sets
import torch
import vgg16
from jaxtyping import Float

from calotype.data.images import images_from_pixels
from calotype.demo.faces import FaceJudges, Share, learn_face_judges
from calotype.evaluation.features import FeatureNetwork, Lite0, features, features_key, kept_features
from calotype.evaluation.measures import as_measure, measure
from calotype.types import Images

MEASURES = ("frechet", "kernel_distance", "precision", "recall", "density", "coverage")
BATCH = 16
BLOCK = 8
Measures = dict[str, Any]


class Track:
    """One picture set at one size in a cache folder.

    `against` is the part that pictures are held against: `test` for what is reported, `validation` for choices.
    """

    def __init__(self, cache: Path, pictures: str = "portraits", size: int = 64, against: str = "test") -> None:
        self.cache, self.pictures, self.size, self.against = cache, sets.SETS[pictures], size, against
        self.folder = self.pictures.prepare(cache, size)
        self.networks: list[FeatureNetwork] = [Lite0(), *([vgg16.Vgg16()] if vgg16.is_installed() else [])]

    @cached_property
    def judges(self) -> FaceJudges | None:
        """Of the portraits' faces, learned from the training portraits; None for other sets."""
        if self.pictures.name != "portraits":
            return None
        pixels, _, facts = sets.read_part(self.folder, "train")
        return learn_face_judges(torch.from_numpy(pixels), facts)

    def labels(self, count: int) -> list[str]:
        """Classes of `count` samples: those of the first real pictures of the part, again and again."""
        _, classes = self.real(self.against)
        return [classes[index % len(classes)] for index in range(count)]

    def score(self, images: Images, classes: Sequence[str]) -> Measures:
        """Measures of pictures in [-1, 1], rounded to 8 bits, one class each."""
        return self._score({network.name: extract(network, images) for network in self.networks}, images, classes)

    def floor(self, count: int) -> Measures:
        """The same of at most `count` other real pictures."""
        real = {network.name: self.real_features(network, "floor")[:count] for network in self.networks}
        return self._score(real, *self.real("floor", count))

    def _score(
        self, vectors: dict[str, Float[np.ndarray, "count channel"]], images: Images, classes: Sequence[str]
    ) -> Measures:
        real, _ = self.real(self.against)
        borders = border_contrast(images) / border_contrast(real)
        return {"distances": self.distances(vectors), "faces": self.faces(images, classes), "borders": borders}

    def distances(self, vectors: dict[str, Float[np.ndarray, "count channel"]]) -> Measures:
        """By network and measure; all pictures of the part stand on the other side, however few are held against it."""
        return {
            network.name: {
                name: measure(name, vectors[network.name], self.real_features(network, self.against), seed=0).stored()
                for name in MEASURES
            }
            for network in self.networks
        }

    def real_features(self, network: FeatureNetwork, part: str) -> Float[np.ndarray, "count channel"]:
        """Kept in the cache."""
        images, _ = self.real(part)
        key = features_key(network, f"{self.folder.name} {sets.fingerprint(self.folder)} {part}", self.size)

        def extract_rows(rows: torch.Tensor) -> Float[np.ndarray, "count channel"]:
            return extract(network, images[rows])

        return kept_features(self.cache / f"features-{key}.safetensors", torch.arange(len(images)), extract_rows)

    def faces(self, images: Images, classes: Sequence[str]) -> Measures:
        """Shares of the pictures beside those of the real ones, and whether the two agree."""
        if self.judges is None:
            return {}
        real = self.judges.shares(*self.real(self.against))
        return {
            name: as_share(share) | {"real": as_share(real[name]), "within_interval": share.agrees(real[name])}
            for name, share in self.judges.shares(images, classes).items()
        }

    def real(self, part: str, count: int | None = None) -> tuple[Images, list[str]]:
        """The first pictures of a part, and their classes."""
        pixels, classes, _ = sets.read_part(self.folder, part, count)
        return images_from_pixels(torch.from_numpy(pixels)), classes


def border_contrast(images: Images) -> float:
    """Mean absolute difference across the borders of squares of 8 px, by that of neighbours within them.

    Above that of real pictures it shows the grid of an autoencoder that reduces by 8.
    """
    ratios = []
    for dim in (2, 3):
        steps = images.diff(dim=dim).abs().transpose(2, dim).flatten(3).mean((0, 1, 3))
        across = torch.arange(1, len(steps) + 1) % BLOCK == 0
        ratios.append(steps[across].mean() / steps[~across].mean())
    return float(sum(ratios) / 2)


def extract(network: FeatureNetwork, images: Images) -> Float[np.ndarray, "count channel"]:
    return features(images.split(BATCH), network)


def as_share(share: Share) -> Measures:
    return as_measure(share.estimate).stored() | {"n": share.total}
