"""What is looked at while a leg trains: pictures from seeds that stay, and measures on held-out pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from calotype.data.folder import Pictures
from calotype.data.images import grid, images_from_pixels, pils_from_images
from calotype.data.sources import drawn
from calotype.diffusion.stage import Sampling, Stage, generate
from calotype.evaluation.reconstruction import psnr
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import efficientnet_lite0, perceptual_distance
from calotype.priors.patches import enlarged
from calotype.training.objectives import DenoisingObjective
from calotype.types import NULL_LABEL, Batch, Images, Labels, OtherImages, Rng, Text

PREVIEW_COUNT = 12
PREVIEW_VALUES = 2**20
"""Previews show fewer pictures where they are large: so many pixels in all, and 4 pictures at least."""
CHECK_COUNT = 128
CHECK_VALUES = 2**23
"""A check looks at fewer pictures where they are large: at so many values in all, and at 4 pictures at least."""
LOOK_COUNT, LOOK_VALUES = 64, 2**20


@dataclass
class Reconstructions:
    """Held-out pictures through an autoencoder."""

    images: Images
    vae: nn.Module

    @torch.no_grad()
    def reconstruct(self, images: Images) -> Images:
        assert isinstance(self.vae, Autoencoder)
        parts = [self.vae.decode(self.vae.encode(some).mean) for some in images.split(16)]
        return torch.cat(parts).clamp(-1, 1)

    def draw(self, path: Path) -> None:
        """Originals, each with its reconstruction to the right."""
        some = self.images[: max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.images[0, 0].numel()))]
        pairs = torch.stack([some, self.reconstruct(some)], 1).flatten(0, 1)
        grid(pils_from_images(pairs), 6).save(path)

    def psnr(self) -> float:
        """Mean, in dB; what is above 40 is equal to the eye, and must not count for more."""
        return float(psnr(self.images, self.reconstruct(self.images)).clamp(max=40.0).mean())

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        fake = self.reconstruct(self.images)
        few = slice(0, 32)
        features = efficientnet_lite0().to(fake.device)
        distance = perceptual_distance(features, self.images[few], fake[few])
        counts = {"n": float(len(fake)), "n_perceptual": float(len(distance))}
        return {"psnr": float(psnr(self.images, fake).mean()), "perceptual": float(distance.mean()), **counts}


def reconstructions(pictures: Pictures, vae: nn.Module, device: torch.device) -> Reconstructions:
    count = check_count(pictures.pixels[0].numel())
    return Reconstructions(held_out_images(pictures, count, device), vae)


@dataclass
class Samples:
    """Pictures from a stage with seeds that stay the same, and its loss on held-out pictures and on trained ones."""

    stage: Stage
    raw: Stage  # with the weights as they are, which are not averaged
    sampling: Sampling
    held_out: Batch
    train: Batch
    classes: int
    rng: Rng

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        few = self.sampling.model_copy(update={"steps": min(10, self.sampling.steps), "conditioning": "whole"})
        low_res = self.held_out.low_res
        rngs = [Rng(("preview", index)) for index in range(PREVIEW_COUNT)]
        if low_res is None:
            labels, text = self.asked(self.count)
            shown = generate([self.stage], labels, [few], rngs[: len(labels)], text=text)
        else:
            shown = self._enlarged(low_res[: self.count], few, rngs)
        grid(pils_from_images(shown), 6).save(path)

    def draw_raw(self, path: Path) -> None:
        with at_rest(self.raw.denoiser):
            replace(self, stage=self.raw).draw(path)

    @property
    def count(self) -> int:
        """Of pictures in a preview."""
        most = max(4, min(PREVIEW_COUNT, PREVIEW_VALUES // self.stage.image_size**2))
        return most if self.held_out.low_res is None else PREVIEW_COUNT // 2

    @property
    def prompts(self) -> tuple[str, ...]:
        """Of the pictures in a preview."""
        text = self.text(self.count)
        return text.prompts if text else ()

    def asked(self, count: int) -> tuple[Labels, Text | None]:
        """What previews show: held-out captions, alone, as prompts are; else every class in turn."""
        labels = each_class(count, self.classes, self.held_out.labels.device)
        if (text := self.text(count)) is None:
            return labels, None
        return torch.full_like(labels[: len(text.prompts)], NULL_LABEL), text

    def text(self, count: int) -> Text | None:
        return self.held_out.text and Text(self.held_out.text.prompts[:count])

    def _enlarged(self, low_res: Images, sampling: Sampling, rngs: list[Rng]) -> OtherImages:
        """The smaller picture, what the stage makes of it, and what it was: side by side."""
        count = len(low_res)
        labels, text = self.held_out.labels[:count], self.text(count)
        made = generate([self.stage], labels, [sampling], rngs[:count], low_res, text=text)
        before = enlarged(low_res, self.stage.factor).clamp(-1, 1)
        return torch.stack([before, made, self.held_out.clean[:count]], 1).flatten(0, 1)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Losses, each time with the same noise, so that they can be compared; also by thirds of the noise levels."""
        measures = {"n": float(len(self.held_out))}
        for name, batch in (("held_out", self.held_out), ("train", self.train)):
            measures |= losses_of(self.stage, batch, self.rng.at("check"), name)
        with at_rest(self.raw.denoiser):
            return measures | losses_of(self.raw, self.held_out, self.rng.at("check"), "raw_held_out")


def losses_of(stage: Stage, batch: Batch, rng: Rng, name: str) -> dict[str, float]:
    sigma, loss = DenoisingObjective(stage).each(batch, rng)
    thirds = zip(("low", "middle", "high"), loss[sigma.argsort()].tensor_split(3), strict=True)
    by_noise = {f"{name}_loss_{level}_noise": float(third.mean()) for level, third in thirds if len(third)}
    return {f"{name}_loss": float(loss.mean()), **by_noise}


@contextmanager
def at_rest(network: nn.Module) -> Iterator[None]:
    """Without dropout, until it goes on learning."""
    network.eval()
    try:
        yield
    finally:
        network.train()


def held_out_prompts(pictures: Pictures, count: int) -> tuple[str, ...]:
    """Captions of pictures that are not trained on, to sample with; none where there are none."""
    captions = pictures.captions
    told = [index for index in pictures.validation_indices.tolist() if captions and captions.of[index]]
    text = drawn(captions, torch.tensor(told[:count], dtype=torch.long), Rng(("prompts",)))
    return text.prompts if text else ()


def asked(pictures: Pictures, count: int, device: torch.device) -> tuple[Labels, Text | None]:
    """What a stage is judged by: held-out captions in turn, alone, as prompts are; else every class in turn."""
    if not (prompts := held_out_prompts(pictures, count)):
        return each_class(count, len(pictures.classes), device), None
    text = Text(tuple(prompts[index % len(prompts)] for index in range(count)))
    return torch.full((count,), NULL_LABEL, device=device), text


def each_class(count: int, classes: int, device: torch.device) -> Labels:
    """Every class in turn; not told where there is none."""
    indices = torch.arange(count, device=device)
    return indices % classes if classes else torch.full_like(indices, NULL_LABEL)


def check_count(values: int) -> int:
    return max(4, min(CHECK_COUNT, CHECK_VALUES // values))


def look_count(values: int) -> int:
    """How many pictures of so many values the doctor looks at between two legs: a few seconds' worth."""
    return max(4, min(LOOK_COUNT, LOOK_VALUES // values))


def unseen_first(pictures: Pictures, count: int, device: torch.device) -> tuple[Images, int]:
    """Held-out pictures, and trained ones where those are too few; with how many of them are held out."""
    held_out = pictures.validation_indices[:count]
    chosen = torch.cat([held_out, pictures.train_indices[: count - len(held_out)]])
    return images_from_pixels(pictures.pixels[chosen]).to(device), len(held_out)


def held_out_images(pictures: Pictures, count: int, device: torch.device) -> Images:
    chosen = pictures.validation_indices[:count]
    return images_from_pixels(pictures.pixels[chosen]).to(device).contiguous(memory_format=torch.channels_last)
