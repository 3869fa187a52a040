"""The real pictures that a run is held against, and those it was trained on, each looked at once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, rounded
from calotype.diffusion.stage import in_turn, shrunk
from calotype.evaluation.distances import Features
from calotype.evaluation.features import FeatureNetwork, features, features_key, kept_features
from calotype.evaluation.memorisation import Seen, small_pixels
from calotype.evaluation.quality import real_sets
from calotype.types import Images, UserError

Bar = Callable[[str], AbstractContextManager[Callable[[int, int, str], None]]]


@dataclass(frozen=True)
class Library:
    """Pictures whose features are kept on disk, in `cache`."""

    pictures: Pictures
    cache: Path
    network: FeatureNetwork
    what: str
    bar: Bar

    def images(self, chosen: Tensor, size: int) -> Images:
        images = images_from_pixels(self.pictures.pixels[chosen])
        return rounded(shrunk(images, images.shape[-1] // size))

    def parts(self, chosen: Tensor) -> list[Tensor]:
        """Which are in memory together."""
        return [chosen[part] for part in in_turn(len(chosen), *self.pictures.pixels.shape[-2:])]

    def features(self, chosen: Tensor, size: int, mirrored: bool = False) -> Features:
        content = self.pictures.content + (" mirrored" if mirrored else "")

        def look(missing: Tensor) -> Features:
            rows: list[Features] = []
            with self.bar(self.what) as told:
                for part in self.parts(missing):
                    images = self.images(part, size)
                    rows.append(features([images.flip(-1) if mirrored else images], self.network))
                    told(sum(map(len, rows)), len(missing), "")
            return np.concatenate(rows)

        path = self.cache / f"features-{features_key(self.network, content, size)}.safetensors"
        return kept_features(path, chosen, look)

    def seen(self, chosen: Tensor, size: int, mirrored: bool) -> Seen:
        """As memorisation compares pictures."""
        pixels: list[Float[np.ndarray, "_ 3 side side"]]
        pixels = [small_pixels(self.images(part, size)) for part in self.parts(chosen)]
        other_way = self.features(chosen, size, mirrored=True) if mirrored else None
        return Seen(self.features(chosen, size), np.concatenate(pixels), other_way)


class Halves(NamedTuple):
    """Two sets of real pictures, as many in each and none in both: the floor is the one held against the other."""

    chosen: Int[Tensor, " count"]
    others: Int[Tensor, " count"]
    notes: tuple[str, ...]


def halves(pictures: Pictures, count: int) -> Halves:
    """At most `count` in each; samples are held against `chosen`, which are test pictures: see `real_sets`.

    Raises `UserError` for fewer than two pictures.
    """
    pair = Halves(*real_sets(pictures, count))
    if not len(pair.chosen):
        raise UserError("the data have 1 picture, but an evaluation needs at least 2; add some")
    return pair
