"""How far the pictures of a bundle are from those of the model that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from calotype.diffusion.stage import generate
from calotype.model import Model
from calotype.types import Text, UserError

CHECKED = 4
"""Pictures that are compared."""
CHECK_PROMPT = "a woman with red hair, in a garden"
LEVEL = 1 / 255
MOST_BEYOND = 1e-3
"""Share of the values that may differ by more than a level: where a window lies between two clusters of a
`PatchPrior`, its last digit decides."""


class Difference(NamedTuple):
    """Between pictures, in shares of the range from black to white."""

    largest: float
    beyond: float
    """Share of the values that differ by more than `LEVEL`, or are not numbers."""
    pictures: int

    def checked(self) -> Difference:
        """Raises `UserError` where the pictures are not the same."""
        if self.beyond > MOST_BEYOND:
            raise UserError(
                f"the exported pictures differ from ours by up to {255 * self.largest:.1f} levels of 255 (in "
                f"{100 * self.beyond:.2g} % of their values), expected 1; please report this model's recipe"
            )
        return self

    def __str__(self) -> str:
        beyond = f"; {100 * self.beyond:.2g} % of the values by more than one" if self.beyond else ""
        return f"{self.pictures} pictures differ from ours by {255 * self.largest:.2g} of 255 levels at most{beyond}"


def between(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    """Of images in [-1, 1]."""
    apart = np.abs(ours.astype(np.float64) - theirs) / 2
    return Difference(float(apart.max()), float((~(apart <= LEVEL)).mean()), len(ours))


def picture_differences(model: Model, folder: Path) -> Difference:
    """Of pictures that onnxruntime makes."""
    from calotype.export.standalone.sample import Bundle, seeded

    bundle, (labels, prompts) = Bundle(folder, threads=torch.get_num_threads()), checked_request(model)
    theirs = [
        bundle.images([label], [prompt], [""], [index], seeded(0))
        for index, (label, prompt) in enumerate(zip(labels, prompts, strict=True))
    ]
    return between(our_images(model, labels, prompts), np.concatenate(theirs))


def checked_request(model: Model, count: int = CHECKED) -> tuple[list[int], list[str]]:
    """Classes in turn, and every other one with a prompt, where the model reads any."""
    prompt = CHECK_PROMPT if model.text_encoder is not None else ""
    return model.labels(count), [prompt * (index % 2) for index in range(count)]


def our_images(model: Model, labels: list[int], prompts: list[str]) -> np.ndarray:
    """With seed 0."""
    text = Text(tuple(prompts)) if any(prompts) else None
    images = generate(model.stages, torch.tensor(labels), model.samplings, model.rngs(len(labels), 0), text=text)
    return images.numpy()
