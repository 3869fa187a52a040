"""FD-Lite0 of a run's samples against held-out portraits, beside that of two disjoint halves of the real set.

    python bench/quality.py RUN [--count 900]

The same number of pictures on every side, since the distance of finite sets depends on it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import calotype
from calotype.data.images import images_from_pixels
from calotype.data.portraits import read_portraits
from calotype.evaluate.distances import frechet_distance, kernel_distance
from calotype.evaluate.features import features
from calotype.vocabulary import Images


def batches(pixels: torch.Tensor) -> Iterator[Images]:
    for some in pixels.split(50):
        yield images_from_pixels(some)


def as_pixels(pictures: list[Image.Image]) -> torch.Tensor:
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=900)
    arguments = parser.parse_args()
    model = calotype.load(arguments.run)
    real = read_portraits(model.stages[-1].image_size)
    count = min(arguments.count, len(real.held_out_indices))
    held_out = features(batches(real.pixels[real.held_out_indices[:count]]))
    train = features(batches(real.pixels[real.train_indices[:count]]))
    samples = features(batches(as_pixels(model.sample(count, seed=1))))
    for name, one in (("samples", samples), ("real training pictures", train)):
        distance, kernel = frechet_distance(one, held_out), kernel_distance(one, held_out)
        numbers = f"FD-Lite0 {distance:.2f}, kernel distance {kernel:.4f}"
        print(f"{name} against held-out pictures: {numbers} (n = {count} each)")


if __name__ == "__main__":
    main()
