"""Does a run that was trained on the portraits' captions show what it is told?

    python bench/obedience.py RUN [--count 300]

Prompts are combinations of attributes that no portrait has. First stands what the same measures say of real portraits:
they cannot be expected to be right more often about samples.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import calotype
from calotype.data.describing import BACKGROUNDS, CLOTHES, CLOTHING_KEYS, Facts, describe
from calotype.data.images import grid, images_from_pixels
from calotype.data.portraits import STYLES, read_drawn, read_portraits
from calotype.evaluate.features import features
from calotype.evaluate.obedience import Classifier, background, clothing, learn_classes, palette, retrieval
from calotype.vocabulary import Images, Rng


def as_images(pictures: Sequence[Image.Image]) -> Images:
    return images_from_pixels(torch.from_numpy(np.stack([np.asarray(one) for one in pictures])).permute(0, 3, 1, 2))


def unseen(drawn: Sequence[Facts], count: int) -> list[Facts]:
    """What is drawn on portraits, with other backgrounds and clothes, so that the caption is nobody's."""
    known, made, dice = {describe(one)[0] for one in drawn}, [], random.Random(0)
    while len(made) < count:
        style = STYLES[len(made) % len(STYLES)]
        changed = {**dice.choice([one for one in drawn if one["style"] == style])}
        changed["primaryBackgroundColor"] = dice.choice(list(BACKGROUNDS))
        if style in CLOTHES:
            changed[CLOTHING_KEYS[style]] = dice.choice(list(CLOTHES[style]))
        if describe(changed)[0] not in known:
            made.append(changed)
    return made


def score(images: Images, facts: Sequence[Facts], classify: Classifier) -> dict[str, float]:
    """Shares of the pictures that are as they should be."""
    grounds = list(BACKGROUNDS)
    around = torch.tensor([grounds.index(one["primaryBackgroundColor"]) for one in facts])
    drawn_as = torch.tensor([STYLES.index(one["style"]) for one in facts])
    found = {
        "background": float((background(images, palette(grounds)) == around).float().mean()),
        "style": float((classify(features(images.split(50))) == drawn_as).float().mean()),
    }
    dressed: list[bool] = []
    for style, colours in CLOTHES.items():
        which = [place for place, one in enumerate(facts) if one["style"] == style]
        truth = [list(colours).index(facts[place][CLOTHING_KEYS[style]]) for place in which]
        dressed += (clothing(images[which], palette(list(colours))) == torch.tensor(truth)).tolist()
    return {**found, "clothing": sum(dressed) / len(dressed)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--out", type=Path, help="where to write a grid of the first 24 pictures of each language")
    arguments = parser.parse_args()
    model = calotype.load(arguments.run)
    real = read_portraits(model.stages[-1].image_size)
    drawn = read_drawn(real.pixels.shape[-1])
    train, others = real.train_indices[:1500], real.held_out_indices[: arguments.count]
    classify = learn_classes(features(images_from_pixels(real.pixels[train]).split(50)), real.labels[train])
    facts = [drawn[index] for index in others]
    print("real held-out", score(images_from_pixels(real.pixels[others]), facts, classify))
    wanted = unseen(drawn, arguments.count)
    for language, name in enumerate(("English", "Vietnamese")):
        prompts = [describe(one)[language] for one in wanted]
        made = model.sample(len(prompts), prompt=prompts, guidance=arguments.guidance, steps=arguments.steps)
        print(f"{name:<13}", score(as_images(made), wanted, classify), f"(n = {len(made)})")
        if arguments.out:
            grid(made[:24], 6).save(arguments.out / f"prompts-{name}.png")
            (arguments.out / f"prompts-{name}.txt").write_text("\n".join(prompts[:24]), encoding="utf-8")
    stage, few = model.stages[0], others[:32]
    clean = stage.space.encode(images_from_pixels(real.shrunk(stage.image_size).pixels[few]))
    for language, name in enumerate(("English", "Vietnamese")):
        captions = [describe(drawn[index])[language] for index in few]
        found = retrieval(stage, clean, captions, Rng(("retrieval",)))
        print(f"{name}: R@1 {found:.2f} among {len(few)}, by chance {1 / len(few):.2f}")


if __name__ == "__main__":
    main()
