"""Prompts that say less than captions do: is what they say to be seen, and is what they leave open varied?

    python bench/short_prompts.py RUN [--count 84]

RUN is trained on the embedded portraits with captions. Of each kind of prompt `count` samples are made in either
language; beside the shares stands how many styles and backgrounds there are in effect (e to the entropy).
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

import calotype
from calotype.data.images import images_from_pil, images_from_pixels
from calotype.demo.classifier import AttributeClassifier, background, fit_classifier, palette
from calotype.demo.describing import BACKGROUNDS, LANGUAGES
from calotype.demo.portraits import read_drawn, read_portraits
from calotype.types import Images

LEARNED = 1200
"""Training portraits from which the judge of styles learns."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=84)
    arguments = parser.parse_args()
    model = calotype.load(arguments.run)
    pictures, drawn = read_portraits(model.image_size), read_drawn(model.image_size)
    rows, held_out = pictures.train_indices[:LEARNED].tolist(), pictures.test_indices
    judge = fit_classifier(images_from_pixels(pictures.pixels[rows]), [{"style": drawn[row]["style"]} for row in rows])
    real = images_from_pixels(pictures.pixels[held_out])
    print(f"real portraits: {in_effect(styles(judge, real)):.1f} styles, {in_effect(grounds(real)):.1f} backgrounds")
    named = [(style, ground) for ground in BACKGROUNDS.values() for style in pictures.classes]
    pairs = [named[place % len(named)] for place in range(arguments.count)]
    for place, language in enumerate(LANGUAGES):
        around = ("on a {} background", "trên nền {}")[place]
        whole = ("a {} portrait", "chân dung kiểu {}")[place]
        prompts = {
            "style": [whole.format(style.replace("-", " ")) for style, _ in pairs],
            "background": [around.format(ground[place]) for _, ground in pairs],
        }
        prompts["both"] = [", ".join(one) for one in zip(*prompts.values(), strict=True)]
        for kind, some in prompts.items():
            images = torch.cat([images_from_pil(one) for one in model.draw(len(some), prompt=some)])
            found = styles(judge, images), grounds(images)
            right = [share(one, [pair[k] for pair in pairs]) for k, one in enumerate(found)]
            print(
                f"{language}, {kind}: style right {right[0]:.0%}, background {right[1]:.0%}; "
                f"{in_effect(found[0]):.1f} styles, {in_effect(found[1]):.1f} backgrounds (n = {len(some)})"
            )


def styles(judge: AttributeClassifier, images: Images) -> list[object]:
    return [one["style"] for one in judge(images)]


def grounds(images: Images) -> list[object]:
    colours = list(BACKGROUNDS.values())
    return [colours[int(one)] for one in background(images, palette(list(BACKGROUNDS)))]


def share(found: Sequence[object], pairs: Sequence[object]) -> float:
    return sum(one == other for one, other in zip(found, pairs, strict=True)) / len(found)


def in_effect(found: Sequence[object]) -> float:
    shares = [count / len(found) for count in Counter(found).values()]
    return math.exp(-sum(one * math.log(one) for one in shares))


if __name__ == "__main__":
    main()
