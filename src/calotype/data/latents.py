"""Stored latents of all pictures, so that the autoencoder runs once a picture and not at every step.

Up to `LARGE_SET` pictures their moments are in memory and in one file. Larger sets are in parts that are mapped: means
alone, as the log-variances, which would take as much again, are replaced by one value of each channel.
"""

from __future__ import annotations

import hashlib
import math
import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import BaseModel
from torch import Tensor, nn

from calotype.data.caches import cached_tensors
from calotype.data.formats import require_reachable
from calotype.data.images import images_from_pixels
from calotype.data.permutation import LARGE_SET
from calotype.data.views import Boxes, Views, cut_views
from calotype.files import make_folder, read_as, remove, require_regular, sha256, whole_file, write_json
from calotype.spaces.latent import LatentSpace
from calotype.threads import in_slices
from calotype.types import ByteImages, NotFiniteError, Progress, UserError

ENCODED_VALUES = 2**21
"""Of the pictures that are encoded together: fewer than 32 from 148 px on."""
PART_PICTURES = 2**12
"""Of a part of mapped latents: what a process that is killed has to encode again."""

StoredMoments = Float[Tensor, "batch moments height width"]
Means = np.ndarray[tuple[int, ...], np.dtype[np.float16]]  # (sides, pictures, channels, height, width)


@dataclass(frozen=True)
class Sides:
    """What is encoded of each picture: itself, its mirror image, and views of it."""

    flip: bool = False
    views: Views | None = None

    @property
    def boxes(self) -> Boxes | None:
        return None if self.views is None else self.views.boxes

    @property
    def count(self) -> int:
        return 1 + self.flip + (0 if self.views is None else len(self.views.boxes))


@dataclass(frozen=True)
class LatentCache:
    """Moments of the latents of all pictures in memory: on the first side, and of mirror images or views on others."""

    moments: Float[Tensor, "sides pictures moments height width"]  # float16; 2 * channels moments
    boxes: Float[Tensor, "views pictures 4"] | None = None
    """Of the views, which are the last sides."""

    @property
    def sides(self) -> int:
        return len(self.moments)

    def at(self, sides: Int[Tensor, " batch"], rows: Int[Tensor, " batch"]) -> StoredMoments:
        return self.moments[sides, rows]

    def of(self, chosen: Int[Tensor, " _"], batch: int = 256) -> Iterator[StoredMoments]:
        """The moments of these pictures as wholes, a batch at a time, first of one side, then of the other."""
        for side in self.moments[: whole_sides(self)]:
            yield from side[chosen].split(batch)


@dataclass(frozen=True)
class MappedLatents:
    """The same as means, mapped from files; a channel has the log-variance of the mean variance of all pictures."""

    parts: Sequence[Means]
    log_variances: Float[Tensor, " channels"]
    boxes: Float[Tensor, "views pictures 4"] | None = None

    @property
    def sides(self) -> int:
        return int(self.parts[0].shape[0])

    def at(self, sides: Int[Tensor, " batch"], rows: Int[Tensor, " batch"]) -> StoredMoments:
        places = zip(sides.tolist(), rows.tolist(), strict=True)
        means = [self.parts[row // PART_PICTURES][side, row % PART_PICTURES] for side, row in places]
        mean = torch.from_numpy(np.stack(means))
        return torch.cat([mean, self.log_variances.half()[:, None, None].expand_as(mean)], 1)

    def of(self, chosen: Int[Tensor, " _"], batch: int = 256) -> Iterator[StoredMoments]:
        for side in range(whole_sides(self)):
            for rows in chosen.split(batch):
                yield self.at(torch.full_like(rows, side), rows)


StoredLatents = LatentCache | MappedLatents


def whole_sides(latents: StoredLatents) -> int:
    """Sides that are not views."""
    return latents.sides - (0 if latents.boxes is None else len(latents.boxes))


def cache_latents(
    space: LatentSpace,
    pixels: ByteImages,
    content: str,
    sides: Sides,
    folder: Path,
    device: torch.device,
    progress: Progress,
    batch: int = 0,
) -> StoredLatents:
    """The moments of all `sides` of all pictures.

    `content` is the hash of the pictures: the key, with the weights and the sides. Raises `NotFiniteError` with the
    rows of pictures whose latents are not finite.
    """
    shape, batch = f"{pixels.shape[-1]}x{pixels.shape[-2]}", batch or encoded_at_once(pixels[0].numel())
    latents = 2 * space.channels, *(side // space.reduction for side in pixels.shape[-2:])
    name, outdated = f"latents-{shape}-{cache_key(space.vae, content, sides)}", f"latents-{shape}-*"

    def encoded(rows: slice, side: int) -> Iterator[StoredMoments]:
        parts: Iterator[ByteImages] = iter(pixels[rows].split(batch))
        if sides.views is not None and side > sides.flip:
            boxes, size = sides.views.boxes[side - 1 - sides.flip, rows], (pixels.shape[-2], pixels.shape[-1])
            pairs = zip(sides.views.pixels[rows].split(batch), boxes.split(batch), strict=True)
            parts = (cut_views(part, own, size) for part, own in pairs)
        return (encode(space, part, sides.flip and side == 1, device) for part in parts)

    if is_mapped(len(pixels)):
        for other in folder.glob(outdated):
            if other.name != name:
                remove(other)
        means = latents[0] // 2, *latents[1:]
        mapped = cache_mapped(folder / name, (sides.count, len(pixels), *means), encoded, progress)
        return replace(mapped, boxes=sides.boxes)

    def make() -> dict[str, Tensor]:
        moments = torch.empty(sides.count, len(pixels), *latents, dtype=torch.half)
        wrong = torch.zeros(len(pixels), dtype=torch.bool)
        for side, into in enumerate(moments):
            done = 0
            for part in encoded(slice(None), side):
                into[done : done + len(part)] = part
                progress(side * len(pixels) + (done := done + len(part)), sides.count * len(pixels))
            wrong |= ~into.flatten(1).isfinite().all(1)
        if wrong.any():
            raise NotFiniteError("latents are not finite", wrong.nonzero().flatten().tolist())
        return {"moments": moments}

    def fits(moments: Tensor) -> bool:
        return moments.shape == (sides.count, len(pixels), *latents) and moments.dtype == torch.half

    path = folder / f"{name}.safetensors"
    return LatentCache(cached_tensors(path, make, fits, f"{outdated}.safetensors")["moments"], sides.boxes)


def is_mapped(count: int) -> bool:
    """Whether the latents of so many pictures are means, mapped from files; else their moments are in memory."""
    return count > LARGE_SET


def encoded_at_once(values: int) -> int:
    """Pictures of so many values that are encoded together: with more, encoding would need the most memory of a run."""
    return max(1, min(32, ENCODED_VALUES // values))


def encode(space: LatentSpace, pixels: ByteImages, mirrored: bool, device: torch.device) -> StoredMoments:
    """The moments of pictures, or of their mirror images, in half precision on the host."""
    images = images_from_pixels(pixels).to(device).contiguous(memory_format=torch.channels_last)
    return in_slices(space.moments, images.flip(-1) if mirrored else images).half().cpu()


def cache_key(network: nn.Module, content: str, sides: Sides) -> str:
    """A hash of the weights, the pictures and their preprocessing."""
    digest = hashlib.sha256(f"{content} flip={sides.flip}".encode())
    if sides.boxes is not None:
        digest.update(sides.boxes.contiguous().numpy().tobytes())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


# -- Mapped ------------------------------------------------------------------------------------------------------------


class PartFacts(BaseModel):
    """The JSON beside a part, which is written last and vouches for it."""

    sha256: str
    variances: list[float]
    """Mean variance of each channel."""


Encoded = Callable[[slice, int], Iterator[StoredMoments]]
"""The moments of one side of some pictures, a batch at a time."""


def cache_mapped(folder: Path, shape: tuple[int, ...], encoded: Encoded, progress: Progress) -> MappedLatents:
    """The latents in a folder of parts; those that are missing or damaged are made.

    `shape` is that of all means: sides, pictures, channels, height, width. Raises `NotFiniteError` as `cache_latents`
    does.
    """
    make_folder(folder)
    parts, facts, (sides, count, *latent) = list[Means](), list[PartFacts](), shape
    allow_open_files(math.ceil(count / PART_PICTURES))
    for start in range(0, count, PART_PICTURES):
        rows = slice(start, min(count, start + PART_PICTURES))
        path, own = folder / f"part-{start // PART_PICTURES:06}.npy", (sides, rows.stop - start, *latent)
        if (stored := _open_part(path, own)) is None:
            _write_part(path, rows, own, encoded)
            stored = _open_part(path, own)
            assert stored is not None, f"{path} changed while it was written"
        parts.append(stored[0])
        facts.append(stored[1])
        progress(rows.stop, count)
    weights = [part.shape[1] / count for part in parts]
    channels = zip(*(own.variances for own in facts), strict=True)
    mean = [sum(weight * value for weight, value in zip(weights, of, strict=True)) for of in channels]
    return MappedLatents(parts, torch.tensor([math.log(value) for value in mean]))


def _write_part(path: Path, rows: slice, shape: tuple[int, ...], encoded: Encoded) -> None:
    """Writes means of `shape`, of which a batch at a time is in memory."""
    sums, wrong = torch.zeros(shape[2], dtype=torch.double), set[int]()
    with whole_file(path) as temporary:
        with temporary.open("wb") as file:
            about = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.half)), "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, about)
            for side in range(shape[0]):
                row = rows.start
                for moments in encoded(rows, side):
                    wrong.update((row + (~moments.isfinite()).flatten(1).any(1).nonzero().flatten()).tolist())
                    mean, log_variance = moments.chunk(2, 1)
                    file.write(mean.contiguous().numpy().data)
                    sums += log_variance.double().exp().sum((0, 2, 3))
                    row += len(moments)
        if wrong:
            raise NotFiniteError("latents are not finite", sorted(wrong))
        digest = sha256(temporary)
    variances = (sums / (math.prod(shape) // shape[2])).tolist()
    write_json(path.with_suffix(".json"), PartFacts(sha256=digest, variances=variances).model_dump())


def _open_part(path: Path, shape: tuple[int, ...]) -> tuple[Means, PartFacts] | None:
    """None where it is missing or damaged."""
    try:
        require_regular(path)
        digest = sha256(path)
        facts: PartFacts = read_as(path.with_suffix(".json"), PartFacts)
        if facts.sha256 == digest:
            means = np.lib.format.open_memmap(path, mode="r")
            if hasattr(mmap, "MADV_RANDOM"):  # batches are random: what lies beside a latent is not needed
                vars(means)["_mmap"].madvise(mmap.MADV_RANDOM)
            if means.shape == shape and means.dtype == np.half and len(facts.variances) == shape[2]:
                return means, facts
    except (UserError, OSError, ValueError) as error:
        require_reachable(path, error)
    return None


def allow_open_files(more: int) -> None:
    """Raises the process's own limit of open files by so many, as far as the system lets it: a file that is mapped
    counts, and macOS allows 256."""
    with suppress(ImportError, OSError, ValueError):  # on Windows there is no such module, and no such limit
        import resource

        now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = now + more if most == resource.RLIM_INFINITY else min(now + more, most)
        if now not in (resource.RLIM_INFINITY, wanted):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
