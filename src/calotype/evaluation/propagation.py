"""What becomes of an error: a small picture is corrupted, sampling goes on, and what is left at the end is measured.

In a cascade the picture of the first stage is corrupted. In latent diffusion it is the clean picture as the denoiser
estimates it at some sigma, decoded and shrunk to the same size; the difference goes back into the latents. Sampling
with and without the corruption has equal noise, so what differs at the end comes from the corruption alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from calotype.diffusion.augmentation import gaussian_blur
from calotype.diffusion.stage import Sampling, Stage, generate, last, shrunk
from calotype.evaluation.autoencoder import EQUAL_PSNR, psnr
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.comparison_results import ArmSurvival, Propagation, SurvivalPoint
from calotype.evaluation.features import Lite0
from calotype.evaluation.intervals import Estimate, mean_estimate
from calotype.evaluation.measures import as_measure
from calotype.nets.blocks import Resized
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Labels, Latents, Progress, Rng, Text, per_image

Corrupt = Callable[[Images, Rng], Images]
Finish = Callable[[Images | None], Resized]
"""From what is added to the small pictures (None: nothing) to the final ones."""
PerPicture = Float[np.ndarray, " count"]
STRENGTHS, MIDDLE = (0.05, 0.1, 0.2, 0.4, 0.8), 0.2
SHARES = (0.25, 0.5, 1.0)
"""Of the most augmentation that a stage was trained with: levels to try besides the stored one."""
LATENT_SIGMAS = (0.1, 1.0, 3.0)
USUAL = 0.3
"""Sigma for latents where no cascade gives a level to compare with."""
MOST_STEPS = 8
"""Stages that enlarge are sampled with no more steps: each picture is sampled some seventy times."""


# -- Corruptions -------------------------------------------------------------------------------------------------------


def noise(images: Images, rng: Rng) -> Images:
    return images + rng.normal(*images.shape).to(images)


def blur(images: Images, rng: Rng) -> Images:
    """Gaussian, with a standard deviation of a twentieth of the side."""
    deviation = images.shape[-1] / 20
    return gaussian_blur(images, torch.full_like(images[:, 0, 0, 0], deviation), max(1, min(round(3 * deviation), 64)))


def jpeg(images: Images, rng: Rng) -> Images:
    """Of quality 10."""

    def compressed(image: Float[Tensor, "3 rows columns"]) -> Tensor:
        pixels = ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
        buffer = BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=10)
        return torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1) / 127.5 - 1

    return torch.stack([compressed(image) for image in images]).to(images)


def block(images: Images, rng: Rng) -> Images:
    """A square of one colour over a sixteenth of the picture."""
    count, _, side, _ = images.shape
    width, corrupted = max(1, side // 4), images.clone()
    corners = rng.at("corner").integers(side - width + 1, count, 2).tolist()
    colours = (2 * rng.at("colour").uniform(count, 3, 1, 1) - 1).to(images)
    for image, colour, (top, left) in zip(corrupted, colours, corners, strict=True):
        image[:, top : top + width, left : left + width] = colour
    return corrupted


def tint(images: Images, rng: Rng) -> Images:
    """A shift of the colour of the whole picture."""
    return images + rng.normal(len(images), 3, 1, 1).to(images)


CORRUPTIONS: dict[str, Corrupt] = {"noise": noise, "blur": blur, "JPEG": jpeg, "block": block, "colour": tint}


def corruption_of(images: Images, corruption: str, strength: float, rng: Rng) -> Images:
    """What to add to each picture: its norm is `strength` times the picture's contrast."""
    delta = CORRUPTIONS[corruption](images, rng) - images
    return per_image(strength * contrast(images) / norm(delta).clamp(min=1e-8)) * delta


def contrast(images: Images) -> Float[Tensor, " batch"]:
    """The norm of each picture about its mean colour."""
    return norm(images - images.mean((2, 3), keepdim=True))


def norm(images: Images) -> Float[Tensor, " batch"]:
    return images.flatten(1).norm(dim=1)


# -- Survival ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survival:
    """Of one corruption at one strength, one number a picture."""

    corruption: str
    strength: float
    survival: PerPicture
    """Norm of what is left, shrunk to the small size, by that of what was added: 1 is all of it, 0 nothing."""
    psnr: PerPicture
    """Of the final pictures with and without it, in dB."""
    perceptual: PerPicture


@dataclass(frozen=True)
class Arm:
    """Small pictures that can be corrupted, and one way to go on from them."""

    name: str
    level: float
    """Of augmentation in a cascade; sigma in latents."""
    small: Images
    finish: Finish
    thorough: bool = True
    """Every strength, or the middle one alone."""

    @property
    def corruptions(self) -> list[tuple[str, float]]:
        strengths = STRENGTHS if self.thorough else (MIDDLE,)
        return [(corruption, strength) for corruption in CORRUPTIONS for strength in strengths]

    def survivals(self, points: Sequence[tuple[str, float]], rng: Rng, lite0: Lite0) -> Iterator[Survival]:
        plain = self.finish(None)
        for corruption, strength in points:
            delta = corruption_of(self.small, corruption, strength, rng.at(corruption))
            yield survival_of(corruption, strength, delta, plain, self.finish(delta), lite0)


def survival_of(
    corruption: str, strength: float, delta: Images, plain: Tensor, corrupted: Tensor, lite0: Lite0
) -> Survival:
    """0 where nothing was added."""
    factor = plain.shape[-1] // delta.shape[-1]
    left = norm(shrunk(corrupted, factor) - shrunk(plain, factor)) / norm(delta).clamp(min=1e-8)
    distance = lite0.perceptual_distance(plain, corrupted)
    values = (left, psnr(plain, corrupted).clamp(max=EQUAL_PSNR), distance)
    return Survival(corruption, strength, *(value.double().cpu().numpy() for value in values))


# -- Ways to go on -----------------------------------------------------------------------------------------------------


class Subjects(NamedTuple):
    """Pictures whose sampling is corrupted; `small` are those of the first stage."""

    labels: Labels
    rngs: Sequence[Rng]
    small: Images
    text: Text | None = None

    def at(self, stage: Stage) -> list[Rng]:
        """The randomness of a stage, as `generate` has it."""
        return [rng.at(stage.image_size) for rng in self.rngs]


def cascade_arms(stages: Sequence[Stage], samplings: Sequence[Sampling], subjects: Subjects) -> Iterator[Arm]:
    """Without a mechanism, with the one that is used, and with other levels of augmentation."""
    base, *above = stages
    own = [sampling.model_copy(update={"steps": min(MOST_STEPS, sampling.steps)}) for sampling in samplings[1:]]

    def arm(name: str, changed: Sequence[Sampling], start: Images, thorough: bool = True) -> Arm:
        def finish(delta: Images | None) -> Resized:
            low_res = start if delta is None else start + delta
            return generate(above, subjects.labels, changed, subjects.rngs, low_res, text=subjects.text)

        return Arm(name, changed[0].augmentation, subjects.small, finish, thorough)

    yield arm("none", at_level(above, own, 0.0), subjects.small)
    if own[0].conditioning == "truncated":
        yield arm("truncation", own, noisy_at(base, samplings[0], subjects, own[0].augmentation))
    elif own[0].augmentation:
        yield arm("augmentation", own, subjects.small)
    for share in SHARES:
        yield arm(f"{share:g} of the most", at_level(above, own, share), subjects.small, thorough=False)


def at_level(stages: Sequence[Stage], samplings: Sequence[Sampling], share: float) -> list[Sampling]:
    """Augmentation by this share of the most that each stage was trained with."""
    return [
        sampling.model_copy(update={"augmentation": share * stage.augmentation.most, "conditioning": "whole"})
        for stage, sampling in zip(stages, samplings, strict=True)
    ]


@torch.no_grad()
def noisy_at(stage: Stage, sampling: Sampling, subjects: Subjects, sigma: float) -> Latents:
    """The sampler's state at sigma."""
    return last(stage.steps(subjects.labels, None, sampling, subjects.at(stage), until=sigma, text=subjects.text))


@torch.no_grad()
def latent_arm(
    stage: Stage, sampling: Sampling, subjects: Subjects, sigma: float, small_size: int, name: str = "matched"
) -> Arm:
    """Corrupts what the denoiser estimates at `sigma`."""
    state, labels = noisy_at(stage, sampling, subjects, sigma), subjects.labels
    condition = stage.condition(labels, None, torch.zeros(len(labels)), torch.zeros(()), subjects.text)
    denoise = stage.denoise(condition, sampling)
    image = stage.space.decode(denoise(state, sigma))
    below = [sigma, *(level for level in stage.schedule.grid(sampling.steps) if level < sigma)]
    factor, encoded = stage.image_size // small_size, stage.space.encode(image)

    @torch.no_grad()
    def finish(delta: Images | None) -> Resized:
        corrupted = image if delta is None else image + repeated(delta, factor)
        start, rngs = state + stage.space.encode(corrupted) - encoded, subjects.at(stage)
        return stage.space.decode(last(stage.sampler_states(start, below, denoise, sampling.algorithm(), rngs)))

    return Arm(name, sigma, shrunk(image, factor), finish, thorough=name == "matched")


def repeated(images: Images, factor: int) -> Resized:
    """Each pixel as a square of `factor`: shrunk again, it is the same picture."""
    return images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)


@torch.no_grad()
def autoencoder_error(space: LatentSpace, real: Images, factor: int) -> Estimate:
    """Norm of what reconstruction changes in real pictures, shrunk by `factor`, by their contrast there."""
    small, again = (shrunk(images, factor) for images in (real, space.decode(space.encode(real))))
    return mean_estimate((norm(again - small) / contrast(small)).double().cpu().numpy())


# -- Of one run --------------------------------------------------------------------------------------------------------


def pictures_for(count: int) -> int:
    """How many of `count` samples are corrupted."""
    return max(4, min(16, count // 6))


def matched_level(candidate: Candidate, deviation: float) -> float:
    """The sigma at which latents are as noisy as a cascade's second stage sees pictures of this standard deviation."""
    augmentation = candidate.model.stages[1].augmentation
    if augmentation.kind != "noise":  # a blur is no amount of noise
        return USUAL
    return (candidate.model.samplings[1].augmentation or augmentation.most / 2) / deviation


def propagation(
    candidate: Candidate, subjects: Subjects, real: Images, sigma: float, small_size: int, seed: int, lite0: Lite0,
    progress: Progress,
) -> Propagation:  # fmt: skip
    """Survival in each arm, over the pictures: at every point, and of all corruptions at the middle strength.

    `sigma` and `small_size` are where errors are put into latents; `real` pictures show the autoencoder's own error.
    """
    rng = Rng((seed, "corruption"))
    base, *above = candidate.model.stages
    if above:
        arms = list(cascade_arms(candidate.model.stages, candidate.model.samplings, subjects))
        result = measure_arms(arms, rng, lite0, progress)
        result.own = next((arm.name for arm in arms if arm.name in ("augmentation", "truncation")), "none")
        result.exposure = any(candidate.recipe.enlarging(stage.image_size).exposure.images for stage in above)
        return result
    sampling, sigmas = candidate.model.samplings[0], {"matched": sigma, **{f"{each:g}": each for each in LATENT_SIGMAS}}
    high = base.schedule.grid(sampling.steps)[0] / 2
    arms = [latent_arm(base, sampling, subjects, min(each, high), small_size, name) for name, each in sigmas.items()]
    result = measure_arms(arms, rng, lite0, progress)
    result.own = "matched"
    if isinstance(base.space, LatentSpace):
        result.autoencoder_error = as_measure(autoencoder_error(base.space, real, candidate.size // small_size))
    return result


def measure_arms(arms: Sequence[Arm], rng: Rng, lite0: Lite0, progress: Progress) -> Propagation:
    total = sum(len(arm.corruptions) for arm in arms)
    points: list[SurvivalPoint] = []
    means: dict[str, PerPicture] = {}
    for arm in arms:
        survivals = []
        for survival in arm.survivals(arm.corruptions, rng, lite0):
            survivals.append(survival)
            points.append(survival_point(arm, survival))
            progress(len(points), total)
        means[arm.name] = np.mean([each.survival for each in survivals if each.strength == MIDDLE], axis=0)
    others = {name: values for name, values in means.items() if "none" in means and name != "none"}
    return Propagation(
        size=arms[0].small.shape[-1],
        n=len(arms[0].small),
        strength=MIDDLE,
        arms={
            arm.name: ArmSurvival(level=arm.level, **as_measure(mean_estimate(means[arm.name])).stored())
            for arm in arms
        },
        points=points,
        effects={name: as_measure(mean_estimate(values - means["none"])) for name, values in others.items()},
    )


def survival_point(arm: Arm, survival: Survival) -> SurvivalPoint:
    return SurvivalPoint(
        arm=arm.name,
        level=arm.level,
        corruption=survival.corruption,
        strength=survival.strength,
        survival=as_measure(mean_estimate(survival.survival)),
        psnr=float(survival.psnr.mean()),
        perceptual=float(survival.perceptual.mean()),
        n=len(survival.survival),
    )
