"""The real pictures that samples are compared with, the floor beside them, and their features."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels, rounded
from calotype.diffusion.stage import in_turn, shrunk
from calotype.evaluation.distances import Features
from calotype.evaluation.features import FeatureNetwork, features, features_key, kept_features
from calotype.evaluation.memorisation import Compared, Rows, SmallPixels, small_pixels
from calotype.types import Images, Progress, UserError

OpenBar = Callable[[str], AbstractContextManager[Progress]]
"""From a name to a progress bar."""
FEWEST_REFERENCES = 2
"""Pictures of a set that samples are compared with; where it has fewer, those of other sets are taken too."""


@dataclass(frozen=True)
class FeatureStore:
    """Pictures whose features are computed once and kept on disk, in the folder `cache`."""

    pictures: Pictures
    network: FeatureNetwork
    cache: Path
    bar: OpenBar
    name: str
    """Of the progress bar."""

    def images(self, rows: Rows, size: int) -> Images:
        images = images_from_pixels(self.pictures.pixels[rows])
        return rounded(shrunk(images, images.shape[-1] // size))

    def parts(self, rows: Rows) -> list[Rows]:
        """Those that are in memory together."""
        return [rows[part] for part in in_turn(len(rows), *self.pictures.pixels.shape[-2:])]

    def features(self, rows: Rows, size: int, mirrored: bool = False) -> Features:
        content = self.pictures.content + (" mirrored" if mirrored else "")

        def look(missing: Rows) -> Features:
            computed: list[Features] = []
            with self.bar(self.name) as progress:
                for part in self.parts(missing):
                    images = self.images(part, size)
                    computed.append(features([images.flip(-1) if mirrored else images], self.network))
                    progress(sum(map(len, computed)), len(missing))
            return np.concatenate(computed)

        path = self.cache / f"features-{features_key(self.network, content, size)}.safetensors"
        return kept_features(path, rows, look)

    def compared(self, rows: Rows, size: int, mirrored: bool) -> Compared:
        pixels = np.concatenate([small_pixels(self.images(part, size)) for part in self.parts(rows)])
        mirror_images = self.features(rows, size, mirrored=True) if mirrored else None
        return Compared(self.features(rows, size), pixels, mirror_images)

    def small(self, rows: Rows, size: int) -> Iterator[SmallPixels]:
        """Pixels as memorisation compares them, of some of the rows at a time, in their order."""
        done = 0
        with self.bar(self.name) as progress:
            for part in self.parts(rows):
                yield small_pixels(self.images(part, size))
                progress(done := done + len(part), len(rows))


@dataclass(frozen=True)
class ReferenceSet:
    """Two sets of real pictures, as many in each and none in both: samples are compared with `chosen`, and `others`
    against these are the floor."""

    store: FeatureStore
    chosen: Rows
    others: Rows
    notes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.chosen)

    @property
    def pictures(self) -> Pictures:
        return self.store.pictures

    def features(self, size: int) -> Features:
        return self.store.features(self.chosen, size)

    def floor(self, size: int) -> Features:
        return self.store.features(self.others, size)


def reference_set(store: FeatureStore, count: int, by_validation: bool = False, fewest: int = 1) -> ReferenceSet:
    """At most `count` pictures in each set, at least `fewest`.

    Those chosen are test pictures alone (or validation pictures, and then no test picture is in either), unless there
    are fewer than two. The others go on with test pictures, then with validation pictures, then with training ones.
    Raises `UserError` where there are too few pictures.
    """
    pictures = store.pictures
    sets = [pictures.validation_indices, pictures.train_indices]
    sets = sets if by_validation else [pictures.test_indices, *sets]
    pools = [distinct_rows(sets[: place + 1]) for place in range(len(sets))]
    pool, every = next((rows for rows in pools if len(rows) >= FEWEST_REFERENCES), pools[-1]), pools[-1]
    number = min(count, len(pool), len(every) // 2)
    if number < fewest:
        available = "1 picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        raise UserError(f"the data have {available}, but a comparison needs at least {2 * fewest}; add some")
    chosen, others = every[:number], every[number : 2 * number]
    few = [f"{count} real pictures were wanted; {number} can be held against as many others"] * (number < count)
    notes = (
        *few,
        *borrowed(pictures, chosen, sets[0], f"of the {number} real pictures"),
        *borrowed(pictures, others, sets[0], f"of the {number} others that they are held against, as the floor"),
    )
    return ReferenceSet(store, chosen, others, notes)


def distinct_rows(sets: Sequence[Rows]) -> Rows:
    """All rows in order, each once: pictures that are too few for three sets are in several."""
    return torch.tensor(list(dict.fromkeys(torch.cat(list(sets)).tolist())), dtype=torch.long)


def borrowed(pictures: Pictures, rows: Rows, own: Rows, which: str) -> list[str]:
    """A note where some are not of the set that they should be of."""
    more = rows[~torch.isin(rows, own)]
    if not len(more):
        return []
    trained = int(pictures.split.train[more].sum())
    sources = {"are validation pictures": len(more) - trained, "were trained on": trained}
    listed = " and ".join(f"{number} {source}" for source, number in sources.items() if number)
    return [f"{which}, {listed}: too few are held out"]
