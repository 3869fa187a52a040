"""The words of this code. Read this page first; every other page uses these names and no others.

A picture is made *noisy* by adding `sigma` times Gaussian noise. `sigma` is the only measure of noise here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Images = Float[Tensor, "batch 3 rows columns"]  # in [-1, 1]
OtherImages = Float[Tensor, "_ 3 _ _"]  # images of another size
Latents = Float[Tensor, "batch channel height width"]  # images or their latents, spread about 1
Sigmas = Float[Tensor, " batch"]
Labels = Int[Tensor, " batch"]  # 0 ... classes - 1, or NOT_TOLD
Folds = Int[Tensor, " batch"]
Denoise = Callable[[Latents, float], Latents]  # (noisy, sigma) -> estimate of clean: all that a sampler sees
Fresh = Callable[[], Latents]  # new Gaussian noise of the sampler's shape
Sampler = Callable[[Denoise, Latents, list[float], Fresh], Iterator[Latents]]

NULL_LABEL = -1


class UserError(ValueError):
    """A mistake that the user can mend: one line that says what, got, expected, and what to do."""


class Config(BaseModel):
    """Settings live beside the class they configure; they are data, frozen, and know every one of their keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class Text:
    """What the pictures of a batch show, in words, one entry a picture; "" is not told."""

    prompts: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    """What guidance leads away from, instead of from "not told"."""

    def at(self, chosen: Sequence[int]) -> Text:
        negatives = tuple(self.negatives[index] for index in chosen) if self.negatives else ()
        return Text(tuple(self.prompts[index] for index in chosen), negatives)

    def unconditional(self) -> Text:
        return Text(self.negatives or ("",) * len(self.prompts))


@dataclass(frozen=True)
class Condition:
    """What a denoiser is told besides the noisy picture and its sigma."""

    labels: Labels
    low_res: Latents | None = None  # the smaller picture, augmented, enlarged and brought into the stage's space
    augmentation: Sigmas | None = None  # how much the smaller picture was spoilt on purpose
    deviation: Float[Tensor, "batch 1 _ _"] | None = None  # how far off `low_res` may be, here and there: a deviation
    known: Callable[[Latents, Sigmas], Latents] | None = None  # in training: a closed form that has not seen it
    text: Text | None = None  # for a denoiser that reads

    def unconditional(self) -> Condition:
        return replace(
            self, labels=torch.full_like(self.labels, NULL_LABEL), text=self.text and self.text.unconditional()
        )


@dataclass(frozen=True)
class Batch:
    """What the data hands to an objective. `clean` are images, or moments of their latents where those are cached."""

    clean: Latents
    labels: Labels
    low_res: Images | None = None  # the same pictures, shrunk, for a stage that looks at them
    fold: Folds | None = None  # which part of the training pictures each belongs to
    text: Text | None = None  # one of each picture's captions, where there are any

    def __len__(self) -> int:
        return len(self.clean)


@runtime_checkable
class NoiseSchedule(Protocol):
    """Which sigmas to train on, and which to step through when sampling."""

    def draw(self, count: int, rng: Rng) -> Sigmas: ...

    def grid(self, steps: int) -> list[float]:
        """Falling sigmas, `steps + 1` of them; the last is 0."""
        ...


@runtime_checkable
class Randomness(Protocol):
    """What sampling draws its noise from: an `Rng`, or what lies between two of them."""

    def at(self, *where: int | str) -> Randomness: ...

    def normal(self, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class Rng:
    """Randomness as a function of the place, not of the past: equal paths draw equal numbers.

    So a resumed run needs no generator state, and a picture does not depend on the batch it was made in.
    Numbers are drawn on the CPU, so that every device makes the same pictures; in training each draws its own.
    """

    path: tuple[int | str, ...]

    def at(self, *where: int | str) -> Rng:
        return Rng(self.path + where)

    def generator(self) -> np.random.Generator:
        """Counter-based and keyed by the whole path (Philox: Salmon et al., SC 2011)."""
        digest = hashlib.blake2b(repr(self.path).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().standard_normal(shape, dtype=np.float32))

    def noise_like(self, images: Latents) -> Latents:
        """For training: normal numbers drawn where `images` are; a GPU draws its own, a hundred times faster."""
        if images.device.type == "cpu":
            return self.normal(*images.shape)
        seed = int(self.generator().integers(2**62))
        return torch.empty_like(images).normal_(generator=torch.Generator(images.device).manual_seed(seed))

    @contextmanager
    def seeding(self, device: torch.device) -> Iterator[None]:
        """Within it, torch's own generator of a device (dropout has no other) draws from this place.

        The caller's numbers go on behind it as if nothing had been drawn; no other device's generator is touched.
        """
        generator = own_generator(device)
        before = generator.get_state()
        generator.manual_seed(int(self.generator().integers(2**62)))
        try:
            yield
        finally:
            generator.set_state(before)

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().random(shape, dtype=np.float32))

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().integers(below, size=shape))

    def permutation(self, count: int) -> Tensor:
        return torch.from_numpy(self.generator().permutation(count))


def own_generator(device: torch.device) -> torch.Generator:
    """What torch draws from on a device where nobody hands it a generator."""
    match device.type:
        case "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            return torch.cuda.default_generators[index]
        case "mps":
            return torch.mps._get_default_mps_generator()
    return torch.default_generator


def per_image(values: Sigmas) -> Float[Tensor, "batch 1 1 1"]:
    return values.reshape(-1, 1, 1, 1)
