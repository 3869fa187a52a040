"""What an autoencoder does to pictures it has not seen, in numbers; `diagnosis.py` says what they mean.

Latents are meant as a denoiser sees them, brought to mean 0 and spread 1 by the space's statistics, but for what is
called raw.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.diffusion.stage import shrunk
from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import features
from calotype.evaluation.reconstruction import EQUAL, WINDOW, perceptual, psnr, ssim
from calotype.nets.blocks import Resized
from calotype.nets.vae import Moments
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Latents, OtherImages, Rng

AT_ONCE = 16
TOUCH = 0.05
"""How far each pixel is moved, in [-1, 1], to see which latents move with it; and a latent that moves by less than
`STILL` of its spread does not."""
STILL = 1e-4
MISTAKE = 0.1
"""An error of a denoiser, as a multiple of the latents' spread: that of a good one at the end of sampling."""
SIGMAS = (0.0, 0.2, 0.5, 1.0)
"""Noise that is put on latents and taken away again: with more, nothing is left of the picture in any space."""
BARS = 8
"""In a spectrum."""
SHARE = 4
"""One in so many pictures is looked at where it costs most: with the perceptual distance."""
TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "half the size": lambda images: F.avg_pool2d(images, 2),
    "a quarter turn": lambda images: images.rot90(1, (2, 3)),
    "mirrored": lambda images: images.flip(3),
}


@dataclass(frozen=True)
class Channel:
    mean: float  # 0 where the space's statistics are right
    std: float  # 1 where they are
    raw_mean: float
    raw_std: float
    kl: float  # of the posterior from N(0, 1), in nats a value
    signal: float  # the share of its variance that comes from the picture; the rest is the posterior's own noise
    stuck: float  # the share of its values that stay where they are when the picture changes


@dataclass(frozen=True)
class Spectrum:
    """Power by frequency, in cycles a place: of the latents, and of the pictures shrunk to as many places.

    The mean is 1, and noise has 1 everywhere.
    """

    frequencies: list[float]
    latents: list[float]
    pictures: list[float]


@dataclass(frozen=True)
class Reconstruction:
    psnr: float  # dB
    ssim: float | None  # None for pictures smaller than its window
    perceptual: float
    blocks: float  # PSNR of a mean colour for each latent place: what no autoencoder should be worse than
    frechet: float | None = None  # FD-Lite0 of originals and reconstructions, as many as `Measures.pictures`


@dataclass(frozen=True)
class ReceptiveField:
    """How far around a latent place the decoded picture changes, in pixels to each side."""

    radius: int  # nine tenths of the change
    reach: int  # all that is above a thousandth of the largest change
    whole: bool  # the reach is as far as this picture goes


@dataclass(frozen=True)
class CriticHealth:
    """What the log of a run says."""

    right: float  # share of its verdicts that are right; 0.5 is guessing
    gap: float  # of its logits, between real and reconstructed
    best: float  # held-out PSNR in dB, the best there was
    last: float
    taken_back: int = 0  # how often the weights of before came back
    trust: float = 1.0  # what is left of its weight


@dataclass(frozen=True)
class Measures:
    pictures: int
    held_out: int  # of these; the others have been trained on
    size: int
    contrast: float  # standard deviation of the pictures about their mean picture
    channels: list[Channel]
    spectrum: Spectrum
    equivariance: dict[str, float]  # squared difference, relative to the latents' variance
    colour: list[float]  # what is added to a picture of one colour on the way: red, green, blue in [-1, 1]
    reconstruction: Reconstruction
    mistaken: float  # PSNR in dB between pictures whose latents are `MISTAKE` apart
    developed: dict[str, float]  # by sigma, how far the picture is from what is left of it: see `developed`
    finite: bool
    receptive_field: ReceptiveField | None = None
    critic: CriticHealth | None = None


@torch.no_grad()
def measure_autoencoder(
    space: LatentSpace, images: Images, held_out: int, thorough: bool = True, critic: CriticHealth | None = None
) -> Measures:
    """All of it on `images`, the first `held_out` of which were never trained on; not `thorough`: the cheap part."""
    rng = Rng(("first stage",))
    moments = batched(space.moments, images)
    clean = space.sample(moments, rng.at("posterior"))
    mean = (moments.chunk(2, 1)[0] - space.mean) / space.spread
    fake = batched(space.decode, mean)
    finite = bool(moments.isfinite().all() and fake.isfinite().all())
    return Measures(
        pictures=len(images),
        held_out=held_out,
        size=images.shape[-1],
        contrast=float((images - images.mean(0)).std(correction=0)),
        channels=channels(space, images, moments, rng),
        spectrum=spectrum(mean, shrunk(images, space.reduction)),
        equivariance=equivariance(space, images, mean),
        colour=colour_bias(space, images),
        reconstruction=reconstruction_of(images, fake, space, thorough and finite),
        mistaken=mistaken(space, mean, fake, rng),
        developed=developed(space, clean, images, rng),
        finite=finite,
        receptive_field=receptive_field(space, mean[:4]) if thorough else None,
        critic=critic,
    )


def batched(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return torch.cat([work(part) for part in batch.split(AT_ONCE)])


# -- The latents -------------------------------------------------------------------------------------------------------


def channels(space: LatentSpace, images: Images, moments: Latents, rng: Rng) -> list[Channel]:
    raw = Moments(*(one.cpu().double() for one in moments.chunk(2, 1)))
    signal, noise = over_channel(raw.mean).var(1, correction=0), over_channel(raw.log_variance.exp()).mean(1)
    kl = (raw.mean.square() + raw.log_variance.exp() - 1 - raw.log_variance) / 2
    mean, std = over_channel(raw.mean).mean(1), (signal + noise).sqrt()
    touched = batched(space.moments, images + TOUCH * rng.at("touch").noise_like(images)).chunk(2, 1)[0].cpu()
    moved = over_channel((touched - raw.mean).abs()) / std.clamp(min=1e-12)[:, None]
    centre, spread = space.mean.flatten().cpu(), space.spread.flatten().cpu()
    columns = (
        (mean - centre) / spread, std / spread, mean, std,
        over_channel(kl).mean(1), signal / (signal + noise).clamp(min=1e-12), (moved < STILL).double().mean(1),
    )  # fmt: skip
    return [Channel(*row) for row in torch.stack([one.double() for one in columns], 1).tolist()]


def over_channel(values: Latents) -> Float[Tensor, "channel values"]:
    return values.transpose(0, 1).flatten(1)


def spectrum(latents: Latents, pictures: OtherImages) -> Spectrum:
    """Both about their mean over all pictures; each channel of the latents counts as much as it varies."""
    shape = latents.shape[-2:]
    frequency = torch.hypot(*torch.meshgrid(*(torch.arange(side) / (2 * side) for side in shape), indexing="ij"))
    bins = (frequency * 2 * BARS).long().clamp(max=BARS - 1).flatten()
    count = torch.bincount(bins, minlength=BARS)
    frequencies = [(bar + 0.5) / (2 * BARS) for bar in range(BARS) if count[bar]]
    powers = []
    for values in (latents, pictures):
        power = cosines(values - values.mean(0)).square().mean(0).sum(0).flatten().cpu().double()
        summed = torch.zeros(BARS, dtype=torch.float64).index_add(0, bins, power / power.mean().clamp(min=1e-12))
        powers.append((summed / count)[count > 0].tolist())
    return Spectrum(frequencies, *powers)


def cosines(values: Latents, back: bool = False) -> Latents:
    """The cosine transform (DCT-II) of both sides, which keeps lengths; or the way back."""
    rows, columns = (basis(side, values) for side in values.shape[-2:])
    return rows.T @ values @ columns if back else rows @ values @ columns.T


def basis(side: int, like: Tensor) -> Float[Tensor, "side side"]:
    places = torch.arange(side, dtype=like.dtype, device=like.device)
    waves = torch.cos(math.pi / side * places[:, None] * (places + 0.5)) * math.sqrt(2 / side)
    return torch.cat([waves[:1] / math.sqrt(2), waves[1:]])


def equivariance(space: LatentSpace, images: Images, latents: Latents) -> dict[str, float]:
    """Latents of changed pictures against latents changed so (arXiv 2502.09509, section 3): 0 is equal, 2 unrelated."""
    sides = latents.shape[-2:]
    even = not any(side % 2 for side in sides)
    result = {}
    for name, change in TRANSFORMS.items() if even else list(TRANSFORMS.items())[1:]:
        expected = change(latents)
        wrong = batched(space.encode, change(images)) - expected
        result[name] = float(wrong.square().mean() / expected.var(correction=0).clamp(min=1e-12))
    return result


# -- The pictures ------------------------------------------------------------------------------------------------------


def reconstruction_of(images: Images, fake: Images, space: LatentSpace, thorough: bool) -> Reconstruction:
    few = slice(0, None) if thorough else fraction(images)
    side = space.reduction if space.channels >= 3 else images.shape[-1]
    blocks = F.interpolate(F.avg_pool2d(images, side), scale_factor=side)
    frechet = None
    if thorough and len(images) > 1:
        frechet = frechet_distance(*(features(one.split(AT_ONCE)) for one in (images, fake)))
    return Reconstruction(
        psnr=mean_psnr(images, fake),
        ssim=float(ssim(images, fake).mean()) if images.shape[-1] >= WINDOW else None,
        perceptual=float(perceptual(images[few], fake[few]).mean()),
        blocks=mean_psnr(images, blocks),
        frechet=frechet,
    )


def fraction(batch: Tensor) -> slice:
    return slice(0, max(2, len(batch) // SHARE))


def mean_psnr(images: Images, others: Images) -> float:
    return float(psnr(images, others).clamp(max=EQUAL).mean())


def colour_bias(space: LatentSpace, images: Images) -> list[float]:
    """Of pictures of one colour, each the mean colour of a picture."""
    few = images[fraction(images)]
    flat = few.mean((2, 3), keepdim=True).expand_as(few).contiguous()
    return (space.decode(space.encode(flat)) - flat).mean((0, 2, 3)).tolist()


def mistaken(space: LatentSpace, latents: Latents, fake: Images, rng: Rng) -> float:
    few = fraction(latents)
    wrong = latents[few] + MISTAKE * rng.at("mistake").noise_like(latents[few])
    return mean_psnr(fake[few], batched(space.decode, wrong))


def developed(space: LatentSpace, clean: Latents, images: Images, rng: Rng) -> dict[str, float]:
    """Latents made noisy, denoised in closed form, decoded: the perceptual distance from the picture, by sigma.

    1 is that of another picture. The denoiser is Wiener's, which knows the power of each frequency in each channel, and
    believes what the space's statistics say: mean 0 and spread 1. Where they are wrong, so is what it makes.
    """
    few = fraction(images)
    offset, spread = clean.mean((0, 2, 3), keepdim=True), clean.std((0, 2, 3), correction=0, keepdim=True)
    known = (clean - offset).mean(0, keepdim=True) / spread.clamp(min=1e-8)
    power = cosines((clean - offset) / spread.clamp(min=1e-8) - known).square().mean(0)
    other = perceptual(images[few], images[few].roll(1, 0)).mean().clamp(min=1e-8)
    result = {}
    for sigma in SIGMAS:
        noise = rng.at("noise", str(sigma)).noise_like(clean[few])
        wave = cosines(clean[few] + sigma * noise - known) * power / (power + sigma**2).clamp(min=1e-8)
        distance = perceptual(images[few], batched(space.decode, cosines(wave, back=True) + known)).mean()
        result[f"{sigma:g}"] = float(distance / other)
    return result


def receptive_field(space: LatentSpace, latents: Latents) -> ReceptiveField:
    """Measured where the middle latent is moved by its spread (as arXiv 1701.04128 does, the other way round)."""
    height, width = (side // 2 for side in latents.shape[-2:])
    moved = latents.clone()
    moved[:, :, height, width] += 1.0
    plain, other = (space.vae.decode(one * space.spread + space.mean) for one in (latents, moved))
    change = (other - plain).abs().mean((0, 1)).cpu().double()
    rows, columns = (torch.arange(side) for side in change.shape)
    side = space.reduction
    away = torch.maximum(beyond(rows, height * side, side)[:, None], beyond(columns, width * side, side))
    rings = torch.zeros(int(away.max()) + 1, dtype=torch.float64).index_add(0, away.flatten(), change.flatten())
    radius = int((rings.cumsum(0) < 0.9 * rings.sum()).sum())
    reach = int(away[change > 1e-3 * change.max()].max()) if bool(change.max() > 0) else 0
    return ReceptiveField(radius, reach, reach >= int(away.max()) - 1)


def beyond(places: Tensor, start: int, side: int) -> Tensor:
    """How far pixels lie outside of the patch that begins at `start`."""
    return torch.maximum(start - places, places - (start + side - 1)).clamp(min=0)


def error_map(images: Images, fake: Images) -> Resized:
    """Where reconstructions are wrong: from black to white, at a difference of a fifth of the range."""
    wrong = (fake - images).abs().mean(1, keepdim=True) / 0.2 - 1
    return wrong.clamp(-1, 1).expand_as(images)
