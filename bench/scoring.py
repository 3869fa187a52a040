"""What the track measures of a set of pictures: distances by two networks, faces, and the same of real pictures."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import portrait_split
import torch
import vgg16
from jaxtyping import Float

from calotype.data.images import images_from_pixels
from calotype.demo.faces import FaceJudges, Share, learn_face_judges
from calotype.evaluation.features import FeatureNetwork, Lite0, features, features_key, kept_features
from calotype.evaluation.measures import as_measure, measure
from calotype.types import Images

MEASURES = ("frechet", "kernel_distance", "precision", "recall", "density", "coverage")
AT_ONCE = 16
Found = dict[str, Any]


class Track:
    """The split at one size in a cache folder, and judges that have learned from its training portraits.

    `against` is the part that pictures are held against: `test` for what is reported, `validation` for choices.
    """

    def __init__(self, cache: Path, size: int = 64, against: str = "test") -> None:
        self.cache, self.size, self.against = cache, size, against
        self.folder = portrait_split.prepare(cache, size)
        self.networks: list[FeatureNetwork] = [Lite0(), *([vgg16.Vgg16()] if vgg16.is_installed() else [])]

    @cached_property
    def judges(self) -> FaceJudges:
        pixels, drawn = portrait_split.read_part(self.folder, "train")
        return learn_face_judges(torch.from_numpy(pixels), drawn)

    def score(self, images: Images, styles: Sequence[str]) -> Found:
        """Measures of pictures in [-1, 1], rounded to 8 bits, one style each."""
        made = {network.name: looked_at(network, images) for network in self.networks}
        return {"distances": self.distances(made), "faces": self.faces(images, styles)}

    def floor(self, count: int) -> Found:
        """The same of `count` other real pictures."""
        real = {network.name: self.real_features(network, "floor")[:count] for network in self.networks}
        return {"distances": self.distances(real), "faces": self.faces(*self.real("floor", count))}

    def distances(self, made: dict[str, Float[np.ndarray, "count channel"]]) -> Found:
        """By network and measure; all pictures of the part stand on the other side, however few are held against it."""
        return {
            network.name: {
                name: measure(name, made[network.name], self.real_features(network, self.against), seed=0).stored()
                for name in MEASURES
            }
            for network in self.networks
        }

    def real_features(self, network: FeatureNetwork, part: str) -> Float[np.ndarray, "count channel"]:
        """Kept in the cache."""
        images, _ = self.real(part)
        key = features_key(network, f"{self.folder.name} {part}", self.size)

        def look(rows: torch.Tensor) -> Float[np.ndarray, "count channel"]:
            return looked_at(network, images[rows])

        return kept_features(self.cache / f"features-{key}.safetensors", torch.arange(len(images)), look)

    def faces(self, images: Images, styles: Sequence[str]) -> Found:
        """Shares of the pictures beside those of the real ones, and whether the two agree."""
        found = {}
        for name, one in self.judges.shares(images, styles).items():
            real = self.real_shares[name]
            found[name] = as_share(one) | {"real": as_share(real), "within_interval": one.agrees(real)}
        return found

    @cached_property
    def real_shares(self) -> dict[str, Share]:
        return self.judges.shares(*self.real(self.against))

    def real(self, part: str, count: int | None = None) -> tuple[Images, list[str]]:
        """The first pictures of a part, and their styles."""
        pixels, drawn = portrait_split.read_part(self.folder, part, count)
        return images_from_pixels(torch.from_numpy(pixels)), [str(facts["style"]) for facts in drawn]


def looked_at(network: FeatureNetwork, images: Images) -> Float[np.ndarray, "count channel"]:
    return features(images.split(AT_ONCE), network)


def as_share(share: Share) -> Found:
    return as_measure(share.estimate).stored() | {"n": share.total}
