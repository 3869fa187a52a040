"""The latents of all pictures on disk, so that the autoencoder runs once a picture and not once a step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.files import write_tensors
from calotype.spaces.latent import LatentSpace


@dataclass(frozen=True)
class LatentCache:
    """Moments (sides, pictures, 2 * channels, height, width), float16; a second side is of the mirror images."""

    moments: Tensor

    def of(self, chosen: Tensor, batch: int = 256) -> Iterator[Tensor]:
        """The moments of these pictures, a batch at a time."""
        for side in self.moments:
            yield from side[chosen].split(batch)


def cache_latents(
    space: LatentSpace,
    pictures: Pictures,
    flip: bool,
    folder: Path,
    device: torch.device,
    progress: Callable[[int, int], None],
    batch: int = 32,
) -> LatentCache:
    """Encodes all pictures of a shape, or reads what an earlier call with equal weights and pictures has written."""
    rows, columns = pictures.pixels.shape[-2:]
    path = folder / f"latents-{columns}x{rows}-{cache_key(space.vae, pictures.content, flip)}.safetensors"
    if (found := read_cache(path)) is None:
        sides = [
            encode(space, pictures, mirrored, device, progress, batch)
            for mirrored in ([False, True] if flip else [False])
        ]
        found = LatentCache(torch.stack(sides).contiguous())
        write_tensors(path, {"moments": found.moments})
        for old in folder.glob(f"latents-{columns}x{rows}-*.safetensors"):
            if old != path:
                old.unlink()
    return found


def read_cache(path: Path) -> LatentCache | None:
    """None where there is none, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return LatentCache(file.get_tensor("moments"))
    except (FileNotFoundError, SafetensorError):
        return None


def encode(
    space: LatentSpace,
    pictures: Pictures,
    mirrored: bool,
    device: torch.device,
    progress: Callable[[int, int], None],
    batch: int,
) -> Tensor:
    moments = []
    for pixels in pictures.pixels.split(batch):
        images = images_from_pixels(pixels).to(device).contiguous(memory_format=torch.channels_last)
        moments.append(space.moments(images.flip(-1) if mirrored else images).half().cpu())
        progress(sum(map(len, moments)), len(pictures.pixels))
    return torch.cat(moments)


def cache_key(network: nn.Module, content: str, flip: bool) -> str:
    """Changes with the weights, the pictures and the preprocessing, and with nothing else."""
    digest = hashlib.sha256(f"{content} flip={flip}".encode())
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
