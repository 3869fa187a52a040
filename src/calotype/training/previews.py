"""Previews and validation of a leg: pictures from seeds that stay the same, and measures on validation pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.data.sources import draw_captions
from calotype.data.split import evenly
from calotype.diffusion.stage import Sampling, Stage, generate, generate_in_turn
from calotype.evaluation.autoencoder import batched, mean_psnr, psnr
from calotype.evaluation.diagnosis import INVISIBLE
from calotype.files import write_png
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import EfficientNetLite0, perceptual_distance
from calotype.priors.patches import enlarged
from calotype.recipe import AutoencoderLossConfig
from calotype.training.objectives import DenoisingObjective, edge_distance
from calotype.types import NULL_LABEL, Batch, Images, Labels, OtherImages, Rng, Text


class PictureLimit(NamedTuple):
    """So many pictures are taken, and fewer where they are large: so many values in all, and 4 pictures at least."""

    pictures: int
    values: int

    def count(self, values: int) -> int:
        """Of pictures that have so many values each."""
        return max(4, min(self.pictures, self.values // values))


PREVIEWED = PictureLimit(12, 3 * 2**20)
VALIDATED = PictureLimit(128, 2**23)
INSPECTED = PictureLimit(64, 2**20)
"""Between two legs: a few seconds' worth."""
VALIDATED_AT_ONCE = 8
"""Pictures, so that validation takes less memory than a training step."""


@dataclass(frozen=True)
class AutoencoderValidator:
    """Validation pictures, and as many training pictures, through an autoencoder."""

    images: Images
    train: OtherImages
    vae: Autoencoder
    features: EfficientNetLite0
    losses: AutoencoderLossConfig
    prompts: tuple[str, ...] = ()

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Images:
        return batched(lambda part: self.vae.decode(self.vae.encode(part).mean), images).clamp(-1, 1)

    def write(self, path: Path) -> None:
        """Originals, each with its reconstruction to the right."""
        images = self.images[: PREVIEWED.count(self.images[0].numel())]
        pairs = torch.stack([images, self.reconstruct(images)], 1).flatten(0, 1)
        write_png(path, grid(pils_from_images(pairs), 6))

    def psnr(self) -> float:
        return mean_psnr(self.images, self.reconstruct(self.images), INVISIBLE)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Also the reconstruction loss, without the adversarial term, of both sets; one after the other."""
        held_out_loss, measures = self._measured(self.images)
        return measures | {"held_out_loss": held_out_loss, "train_loss": self._measured(self.train)[0]}

    def _measured(self, real: OtherImages) -> tuple[float, dict[str, float]]:
        fake = self.reconstruct(real)
        measures = psnr_and_perceptual(self.features, real, fake)
        l1, edges = (fake - real).abs().mean(), edge_distance(real, fake)
        return float(l1 + self.losses.edges * edges) + self.losses.perceptual * measures["perceptual"], measures


def autoencoder_validator(
    pictures: Pictures, vae: Autoencoder, features: EfficientNetLite0, losses: AutoencoderLossConfig,
    device: torch.device,
) -> AutoencoderValidator:  # fmt: skip
    images = validation_images(pictures, VALIDATED.count(pictures.pixels[0].numel()), device)
    train = chosen_images(pictures, evenly(pictures.train_indices, len(images)), device)
    return AutoencoderValidator(images, train, vae, features, losses)


@dataclass(frozen=True)
class DenoiserValidator:
    """Pictures from a stage, and its loss on validation pictures and on as many training pictures."""

    stage: Stage
    raw: Stage | None  # with the weights as they are, which are not averaged; None where they are sharded
    sampling: Sampling
    held_out: Batch
    train: Batch
    classes: int
    rng: Rng

    @torch.no_grad()
    def write(self, path: Path) -> None:
        few = self.sampling.model_copy(update={"steps": min(10, self.sampling.steps), "conditioning": "whole"})
        low_res = self.held_out.low_res
        rngs = [Rng(("preview", index)) for index in range(PREVIEWED.pictures)]
        if low_res is None:
            labels, text = self.conditions()
            shown = generate([self.stage], labels, [few], rngs[: len(labels)], text=text)
        else:
            shown = self._enlarged(low_res[: self.count], few, rngs)
        write_png(path, grid(pils_from_images(shown), 6))

    def write_raw(self, path: Path) -> None:
        """As `write`, with the weights as the last step left them instead of their average."""
        assert self.raw is not None
        with evaluating(self.raw.denoiser):
            replace(self, stage=self.raw).write(path)

    @property
    def count(self) -> int:
        """Number of pictures in a preview."""
        first = self.held_out.low_res is None
        return PREVIEWED.count(3 * self.stage.image_size**2) if first else PREVIEWED.pictures // 2

    @property
    def labels(self) -> Labels:
        """Of the validation pictures, on the device."""
        return self.held_out.labels.to(self.held_out.clean.device)

    @property
    def text(self) -> Text | None:
        return self.held_out.text and Text(self.held_out.text.prompts[: self.count])

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.text.prompts if self.text else ()

    def conditions(self) -> tuple[Labels, Text | None]:
        """Validation captions without labels, as prompts are given; else every class in turn."""
        labels = each_class(self.count, self.classes, self.held_out.clean.device)
        if (text := self.text) is None:
            return labels, None
        return torch.full_like(labels[: len(text.prompts)], NULL_LABEL), text

    def _enlarged(self, low_res: Images, sampling: Sampling, rngs: list[Rng]) -> OtherImages:
        """The low-resolution picture, what the stage makes of it, and the original: side by side."""
        count = len(low_res)
        fake = generate([self.stage], self.labels[:count], [sampling], rngs[:count], low_res, text=self.text)
        before = enlarged(low_res, self.stage.factor).clamp(-1, 1)
        return torch.stack([before, fake, self.held_out.clean[:count]], 1).flatten(0, 1)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Losses, each time with the same noise, so that they can be compared; also by thirds of the noise levels."""
        measures = {"n": float(len(self.held_out))}
        for name, batch in (("held_out", self.held_out), ("train", self.train)):
            measures |= validation_losses(self.stage, batch, self.rng.at("check"), name)
        if self.raw is None:
            return measures
        with evaluating(self.raw.denoiser):
            return measures | validation_losses(self.raw, self.held_out, self.rng.at("check"), "raw_held_out")


@dataclass(frozen=True)
class OneStepValidator(DenoiserValidator):
    """Crops from a stage that enlarges in one step, and how near they are to those of validation pictures."""

    features: EfficientNetLite0

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        return psnr_and_perceptual(self.features, self.held_out.clean, self.enlarge())

    def psnr(self) -> float:
        with evaluating(self.stage.denoiser):
            return mean_psnr(self.held_out.clean, self.enlarge(), INVISIBLE)

    def enlarge(self) -> OtherImages:
        """The validation pictures, a few at a time."""
        low_res, labels, text = self.held_out.low_res, self.labels, self.held_out.text
        assert low_res is not None
        rngs = [Rng(("preview", index)) for index in range(len(labels))]
        return torch.cat([*generate_in_turn([self.stage], labels, [self.sampling], rngs, low_res, text=text)])


@torch.no_grad()
def psnr_and_perceptual(features: EfficientNetLite0, real: Images, fake: Images) -> dict[str, float]:
    """How near pictures are to real ones: of all their PSNR, and of 32 their perceptual distance, a few at a time."""
    pairs = zip(real[:32].split(VALIDATED_AT_ONCE), fake[:32].split(VALIDATED_AT_ONCE), strict=True)
    distance = torch.cat([perceptual_distance(features, *pair) for pair in pairs])
    counts = {"n": float(len(fake)), "n_perceptual": float(len(distance))}
    return {"psnr": float(psnr(real, fake).mean()), "perceptual": float(distance.mean()), **counts}


def validation_losses(stage: Stage, batch: Batch, rng: Rng, name: str) -> dict[str, float]:
    objective = DenoisingObjective(stage)
    noised = objective.noised(batch, rng)
    parts = (slice(first, first + VALIDATED_AT_ONCE) for first in range(0, len(batch), VALIDATED_AT_ONCE))
    loss = torch.cat([objective.per_image(noised.at(part)) for part in parts])
    thirds = zip(("low", "middle", "high"), loss[noised.sigma.argsort()].tensor_split(3), strict=True)
    by_noise = {f"{name}_loss_{level}_noise": float(third.mean()) for level, third in thirds if len(third)}
    return {f"{name}_loss": float(loss.mean()), **by_noise}


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in evaluation mode, without dropout."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def held_out_prompts(pictures: Pictures, count: int) -> tuple[str, ...]:
    """Captions of validation pictures, to sample with; empty where there are none."""
    captions = pictures.captions
    captioned = [index for index in pictures.validation_indices.tolist() if captions and captions.of[index]]
    chosen = evenly(torch.tensor(captioned, dtype=torch.long), count)
    text = draw_captions(captions, chosen, Rng(("prompts",)))
    return text.prompts if text else ()


def validation_conditions(pictures: Pictures, count: int, device: torch.device) -> tuple[Labels, Text | None]:
    """Validation captions in turn, without labels, as prompts are given; else every class in turn."""
    if not (prompts := held_out_prompts(pictures, count)):
        return each_class(count, len(pictures.classes), device), None
    text = Text(tuple(prompts[index % len(prompts)] for index in range(count)))
    return torch.full((count,), NULL_LABEL, device=device), text


def each_class(count: int, classes: int, device: torch.device) -> Labels:
    """Every class in turn; the null label where there are no classes."""
    indices = torch.arange(count, device=device)
    return indices % classes if classes else torch.full_like(indices, NULL_LABEL)


def validation_first(pictures: Pictures, count: int, device: torch.device) -> tuple[Images, int]:
    """Validation pictures, filled up with training pictures to `count`, and how many are of the former."""
    held_out = evenly(pictures.validation_indices, count)
    chosen = torch.cat([held_out, pictures.train_indices[: count - len(held_out)]])
    return images_from_pixels(pictures.pixels[chosen]).to(device), len(held_out)


def validation_images(pictures: Pictures, count: int, device: torch.device) -> Images:
    return chosen_images(pictures, evenly(pictures.validation_indices, count), device)


def chosen_images(pictures: Pictures, chosen: Tensor, device: torch.device) -> Images:
    return images_from_pixels(pictures.pixels[chosen]).to(device).contiguous(memory_format=torch.channels_last)
