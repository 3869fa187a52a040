"""Does a model show what it was told? Colours are measured, classes are recognised, and captions are told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from calotype.evaluate.distances import Features
from calotype.stage import Stage
from calotype.vocabulary import NOT_TOLD, Condition, Images, Latents, Rng, Text

Palette = Float[Tensor, "colour 3"]  # in [-1, 1], as pictures
Choice = Int[Tensor, " batch"]

NEAR = 0.4
"""How far a pixel may be from a colour to count as that colour: about 30 of 255 in each channel."""


def palette(colours: Sequence[str]) -> Palette:
    """From `#rrggbb`."""
    return torch.tensor([[int(one[at : at + 2], 16) / 127.5 - 1 for at in (1, 3, 5)] for one in colours])


def background(images: Images, colours: Palette) -> Choice:
    """Which colour the upper corners have, an eighth of the side each: the nearest to their median."""
    side = max(1, images.shape[-1] // 8)
    corners = torch.cat([images[..., :side, :side], images[..., :side, -side:]], 3)
    return torch.cdist(corners.flatten(2).median(2).values.float(), colours).argmin(1)


def clothing(images: Images, colours: Palette) -> Choice:
    """Which of the colours most pixels have in the middle of the lowest eighth."""
    height, width = images.shape[-2:]
    lower = images[..., -max(1, height // 8) :, width // 4 : -(width // 4)].flatten(2).transpose(1, 2)
    away, nearest = torch.cdist(lower.float(), colours.expand(len(lower), -1, -1)).min(2)
    count = [((nearest == colour) & (away < NEAR)).sum(1) for colour in range(len(colours))]
    return torch.stack(count, 1).argmax(1)


@dataclass(frozen=True)
class Classifier:
    """Ridge regression on features, to one column a class."""

    weights: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    mean: np.ndarray[tuple[int], np.dtype[np.float64]]

    def __call__(self, features: Features) -> Choice:
        return torch.from_numpy(((features - self.mean) @ self.weights).argmax(1))


def learn_classes(features: Features, labels: Choice, ridge: float = 1e-2) -> Classifier:
    """From real pictures; how often it is right on others of them belongs beside whatever it says of samples."""
    mean = features.mean(0, dtype=np.float64)
    centred, targets = features - mean, np.eye(int(labels.max()) + 1)[labels.numpy()]
    gram = centred.T @ centred
    gram[np.diag_indices_from(gram)] += ridge * np.trace(gram) / len(gram)
    return Classifier(np.linalg.solve(gram, centred.T @ (targets - targets.mean(0))), mean)


@torch.no_grad()
def retrieval(stage: Stage, clean: Latents, captions: Sequence[str], rng: Rng, draws: int = 4) -> float:
    """How often a picture is denoised best with its own caption among all n (arXiv 2303.16203); by chance, 1 / n.

    Every caption meets the same noise, `draws` times for each picture.
    """
    count, right = len(captions), 0
    condition = Condition(torch.full((count,), NOT_TOLD, device=clean.device), text=Text(tuple(captions)))
    for index, own in enumerate(captions):
        same = clean[[index]].expand(count, -1, -1, -1)
        error = torch.zeros(count, device=clean.device)
        for draw in range(draws):
            here = rng.at(index, draw)
            sigma = stage.schedule.draw(1, here.at("sigma")).to(clean).expand(count)
            noise = here.noise_like(clean[[index]]).expand_as(same)
            error += stage.denoiser.loss(same, sigma, noise, condition)
        right += captions[int(error.argmin())] == own
    return right / count
