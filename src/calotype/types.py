"""The types that all modules share: read this first.

`noisy = clean + sigma * noise` with Gaussian noise; `sigma` is the only measure of noise in this code (EDM,
arXiv 2206.00364). `alpha_bar` of DDPM is `1 / (1 + sigma ** 2)`, the time of a flow is `sigma / (1 + sigma)`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Images = Float[Tensor, "batch 3 rows columns"]  # in [-1, 1]
ByteImages = UInt8[Tensor, "count 3 rows columns"]  # 8 bits
OtherImages = Float[Tensor, "_ 3 _ _"]  # images of another size
Latents = Float[Tensor, "batch channel height width"]  # images or their latents, of standard deviation about 1
Sigmas = Float[Tensor, " batch"]
Labels = Int[Tensor, " batch"]  # 0 ... classes - 1, or NULL_LABEL
Folds = Int[Tensor, " batch"]  # which half of the training images, for cross-fitting
Denoise = Callable[[Latents, float], Latents]  # (noisy, sigma) -> estimate of clean: all that a sampler sees
Fresh = Callable[[], Latents]  # new Gaussian noise of the sampler's shape
Sampler = Callable[[Denoise, Latents, list[float], Fresh], Iterator[Latents]]
Progress = Callable[[int, int], None]  # (done, total)

NULL_LABEL = -1


class UserError(ValueError):
    """An error that the user can correct. Its message is one line: what, got, expected, and what to do."""


class NotFiniteError(ArithmeticError):
    """A picture, a loss, a gradient, a weight or an average is NaN or infinite; `rows` are those of pictures."""

    def __init__(self, message: str, rows: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.rows = rows


def no_progress(done: int, total: int) -> None:
    """Ignores progress."""


class Config(BaseModel):
    """Base of all settings, which stand beside the class that they configure: frozen.

    Unknown keys, and numbers that are not finite, are errors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Text:
    """Prompts and negative prompts, one an image; "" is the null prompt."""

    prompts: tuple[str, ...]
    negatives: tuple[str, ...] = ()
    """Take the place of the null prompt in guidance; none, or one an image."""

    def at(self, chosen: Sequence[int] | slice) -> Text:
        rows = range(len(self.prompts))[chosen] if isinstance(chosen, slice) else chosen
        negatives = tuple(self.negatives[row] for row in rows) if self.negatives else ()
        return Text(tuple(self.prompts[row] for row in rows), negatives)

    def unconditional(self) -> Text:
        return Text(self.negatives or ("",) * len(self.prompts))


@dataclass(frozen=True)
class Condition:
    """What a denoiser is given besides the noisy image and its sigma."""

    labels: Labels
    low_res: Latents | None = None  # the low-resolution image: augmented, enlarged, encoded
    augmentation: Sigmas | None = None  # level of that augmentation
    deviation: Float[Tensor, "batch 1 _ _"] | None = None  # conditional standard deviation about `low_res`
    posterior_mean: Callable[[Latents, Sigmas], Latents] | None = None
    """(noisy, sigma) -> mean of clean, in place of the prior's: of a patch prior, or cross-fitted in training."""
    text: Text | None = None  # for text-conditioned backbones
    view: Float[Tensor, "batch 4"] | None = None  # where in its picture it lies, see `data.views`; None: all of it

    def unconditional(self) -> Condition:
        return replace(
            self, labels=torch.full_like(self.labels, NULL_LABEL), text=self.text and self.text.unconditional()
        )


@dataclass(frozen=True)
class Batch:
    """Training examples. `clean` are images, or moments of their latents where those are cached.

    Labels and folds are on the host, which decides by them what is computed.
    """

    clean: Latents
    labels: Labels
    low_res: Images | None = None  # the same images, downsampled, for a stage that enlarges
    fold: Folds | None = None  # which half of the training images each is in
    text: Text | None = None  # one of each image's captions, where there are any
    files: tuple[str, ...] = ()  # the names of the images' files, for error messages
    view: Float[Tensor, "batch 4"] | None = None  # where in their pictures they lie, if some are not whole

    def __len__(self) -> int:
        return len(self.clean)

    def at(self, rows: slice) -> Batch:
        low_res, fold, view = (None if each is None else each[rows] for each in (self.low_res, self.fold, self.view))
        text = self.text and self.text.at(rows)
        return Batch(self.clean[rows], self.labels[rows], low_res, fold, text, self.files[rows], view)


@runtime_checkable
class Randomness(Protocol):
    """A source of sampling noise: an `Rng`, or the interpolation of two."""

    def at(self, *where: int | str) -> Randomness: ...

    def normal(self, *shape: int) -> Tensor: ...


@dataclass(frozen=True)
class Rng:
    """A counter-based generator keyed by a path, without state: equal paths draw equal numbers.

    So a resumed run has no generator state to restore, and a sample does not depend on its batch. Numbers are drawn on
    the CPU, so that all devices make the same samples; only `noise_like` draws on the device, in training.
    """

    path: tuple[int | str, ...]

    def at(self, *where: int | str) -> Rng:
        return Rng(self.path + where)

    def generator(self) -> np.random.Generator:
        """Keyed by a hash of the path (Philox: Salmon et al., SC 2011)."""
        digest = hashlib.blake2b(repr(self.path).encode(), digest_size=16).digest()
        return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().standard_normal(shape, dtype=np.float32))

    def noise_like(self, images: Latents) -> Latents:
        """For training: Gaussian noise drawn on the device of `images`, on a GPU a hundred times faster."""
        if images.device.type == "cpu":
            return self.normal(*images.shape)
        seed = int(self.generator().integers(2**62))
        return torch.empty_like(images).normal_(generator=torch.Generator(images.device).manual_seed(seed))

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().random(shape, dtype=np.float32))

    def integers(self, below: int, *shape: int) -> Tensor:
        return torch.from_numpy(self.generator().integers(below, size=shape))

    def permutation(self, count: int) -> Tensor:
        return torch.from_numpy(self.generator().permutation(count))


def per_image(values: Sigmas) -> Float[Tensor, "batch 1 1 1"]:
    return values.reshape(-1, 1, 1, 1)
