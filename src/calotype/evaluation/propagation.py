"""What becomes of an error: a small picture is corrupted, the model goes on, and what is left at its end is measured.

In a cascade the picture of the first stage is corrupted. In latent diffusion it is the clean picture as the denoiser
sees it at some sigma, decoded and shrunk to the same size; the difference goes back into the latents. With and without
the corruption everything else is equal, the noise too, so what differs at the end comes from the corruption alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from calotype.diffusion.augmentation import gaussian_blur
from calotype.diffusion.samplers import SAMPLERS
from calotype.diffusion.stage import Sampling, Stage, generate, shrunk
from calotype.evaluation.reconstruction import psnr
from calotype.nets.blocks import Resized
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.types import Images, Labels, Rng, Text, per_image

Corrupt = Callable[[Images, Rng], Images]
Finish = Callable[[Images | None], Resized]
"""From a corruption of the small pictures (None: none) to the final ones."""
STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
MIDDLE = 0.2
MOST_STEPS = 8
"""What enlarges is sampled with at most so many steps here: what survives is measured hundreds of times."""
Values = Float[np.ndarray, " count"]


def noised(images: Images, rng: Rng) -> Images:
    return images + rng.normal(*images.shape).to(images)


def smeared(images: Images, rng: Rng) -> Images:
    """Under a Gaussian of a twentieth of the side."""
    spread = images.shape[-1] / 20
    return gaussian_blur(images, torch.full_like(images[:, 0, 0, 0], spread), max(1, min(round(3 * spread), 64)))


def compressed(images: Images, rng: Rng) -> Images:
    """JPEG of quality 10."""

    def one(image: Float[Tensor, "3 rows columns"]) -> Tensor:
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=10)
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 127.5 - 1

    return torch.stack([one(image) for image in images]).to(images)


def blocked(images: Images, rng: Rng) -> Images:
    """A square of one colour over a sixteenth of the picture."""
    count, _, side, _ = images.shape
    width, spoilt = max(1, side // 4), images.clone()
    corners = rng.at("corner").integers(side - width + 1, count, 2).tolist()
    colours = (2 * rng.at("colour").uniform(count, 3, 1, 1) - 1).to(images)
    for image, colour, (top, left) in zip(spoilt, colours, corners, strict=True):
        image[:, top : top + width, left : left + width] = colour
    return spoilt


def tinted(images: Images, rng: Rng) -> Images:
    """Another colour over all."""
    return images + rng.normal(len(images), 3, 1, 1).to(images)


CORRUPTIONS: dict[str, Corrupt] = {
    "noise": noised, "blur": smeared, "JPEG": compressed, "block": blocked, "colour": tinted,
}  # fmt: skip


def damage(images: Images, corruption: str, strength: float, rng: Rng) -> Images:
    """What to add to each picture: as long as `strength` times the picture's own distance from its mean colour."""
    delta = CORRUPTIONS[corruption](images, rng) - images
    wanted = strength * length(images - images.mean((2, 3), keepdim=True))
    return per_image(wanted / length(delta).clamp(min=1e-8)) * delta


def length(images: Images) -> Float[Tensor, " batch"]:
    return images.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Survival:
    """Of one corruption at one strength, one number a picture."""

    corruption: str
    strength: float
    survival: Values  # length of what is left at the small size, by the length of what was added
    psnr: Values  # of the final pictures with and without it, in dB
    perceptual: Values


@dataclass(frozen=True)
class Case:
    """Small pictures that can be corrupted, and how the model goes on from them."""

    small: Images
    finish: Finish

    def survivals(self, wanted: Sequence[tuple[str, float]], rng: Rng) -> Iterator[Survival]:
        plain = self.finish(None)
        for corruption, strength in wanted:
            delta = damage(self.small, corruption, strength, rng.at(corruption))
            yield survival(corruption, strength, delta, plain, self.finish(delta))


def survival(corruption: str, strength: float, delta: Images, plain: Tensor, spoilt: Tensor) -> Survival:
    """0 where nothing was added."""
    factor = plain.shape[-1] // delta.shape[-1]
    left = length(shrunk(spoilt, factor) - shrunk(plain, factor)) / length(delta).clamp(min=1e-8)
    network = efficientnet_lite0().to(plain.device)
    apart = perceptual_distance(network, seen(plain), seen(spoilt))
    closeness = psnr(plain, spoilt).clamp(max=120.0)
    return Survival(corruption, strength, *(one.double().cpu().numpy() for one in (left, closeness, apart)))


def seen(images: Tensor) -> Tensor:
    """At 64 pixels a side or more: below that the perceptual network has few places left to look at."""
    return images if images.shape[-1] >= 64 else F.interpolate(images, size=(64, 64), mode="bilinear")


def cascade_case(
    stages: Sequence[Stage],
    samplings: Sequence[Sampling],
    labels: Labels,
    rngs: Sequence[Rng],
    small: Images,
    text: Text | None = None,
) -> Case:
    """`stages` are those above the first, which has made `small`."""

    def finish(delta: Images | None) -> Resized:
        return generate(stages, labels, samplings, rngs, small if delta is None else small + delta, text=text)

    return Case(small, finish)


def at_level(stages: Sequence[Stage], samplings: Sequence[Sampling], share: float | None) -> tuple[Sampling, ...]:
    """Augmentation by this share of the most that each stage was trained with; None: as the model has it."""

    def one(stage: Stage, sampling: Sampling) -> Sampling:
        level = sampling.augmentation if share is None else share * stage.augmentation.most
        changes = {"augmentation": level, "conditioning": "whole", "steps": min(MOST_STEPS, sampling.steps)}
        return sampling.model_copy(update=changes)

    return tuple(map(one, stages, samplings))


def repeated(images: Images, factor: int) -> Resized:
    """Each pixel as a square of `factor`: shrunk again, it is the same picture, so that nothing is lost on the way."""
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@torch.no_grad()
def latent_case(
    stage: Stage,
    sampling: Sampling,
    labels: Labels,
    rngs: Sequence[Rng],
    sigma: float,
    small_size: int,
    text: Text | None = None,
) -> Case:
    """Corrupts what the denoiser sees at `sigma`."""
    own = [rng.at(stage.image_size) for rng in rngs]
    *_, state = stage.steps(labels, None, sampling, own, until=sigma, text=text)
    condition = stage.condition(labels, None, torch.zeros(len(labels)), torch.zeros(()), text)
    denoise = stage.denoise(condition, sampling)
    image = stage.space.decode(denoise(state, sigma))
    below = [sigma, *(one for one in stage.schedule.grid(sampling.steps) if one < sigma)]
    factor, known = stage.image_size // small_size, stage.space.encode(image)

    @torch.no_grad()
    def finish(delta: Images | None) -> Resized:
        spoilt = image if delta is None else image + repeated(delta, factor)
        start = state + stage.space.encode(spoilt) - known
        *_, latents = stage.develop(start, below, denoise, SAMPLERS[sampling.sampler], own)
        return stage.space.decode(latents)

    return Case(shrunk(image, factor), finish)
