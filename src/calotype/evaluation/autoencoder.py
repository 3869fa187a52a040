"""What an autoencoder does to pictures that it has not seen, in numbers; `diagnosis.py` says what they mean.

Images are in [-1, 1]. Latents are meant as a denoiser sees them, brought to mean 0 and standard deviation 1 by the
space's statistics, but for what is called raw.
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
from calotype.evaluation.features import Lite0, features
from calotype.nets.blocks import Resized
from calotype.nets.vae import Moments, kl_to_normal
from calotype.spaces.latent import LatentSpace
from calotype.types import Images, Latents, OtherImages, Rng

PEAK = 2.0
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
EQUAL_PSNR = 120.0
"""dB of two equal pictures."""
MEASURED_AT_ONCE = 16
TOUCH, STILL = 0.05, 1e-4
"""How far each pixel is moved, in [-1, 1], to see which latents move with it; and a latent that moves by less than
this share of its standard deviation does not."""
LATENT_ERROR = 0.1
"""An error of a denoiser, as a multiple of the latents' standard deviation: a good one's at the end of sampling."""
SIGMAS = (0.0, 0.2, 0.5, 1.0)
"""Noise that is put on latents and taken away again: with more, nothing is left of the picture in any space."""
BANDS = 8
"""In a spectrum."""
SHARE = 4
"""One in so many pictures is measured where that costs most: with the perceptual distance."""
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
    stuck: float  # the share of its values that do not change when the picture does


@dataclass(frozen=True)
class Spectrum:
    """Power by frequency, in cycles a latent: of the latents, and of the pictures shrunk to their size.

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
    blocks: float  # PSNR of the mean colour of each latent's patch: what no autoencoder should be worse than
    frechet: float | None = None  # FD-Lite0 of originals and reconstructions, `pictures` of each


@dataclass(frozen=True)
class ReceptiveField:
    """How far around a latent the decoded picture changes, in pixels to each side."""

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
class AutoencoderMeasures:
    pictures: int
    held_out: int  # of these; the others have been trained on
    size: int
    contrast: float  # standard deviation of the pictures about their mean picture
    channels: list[Channel]
    spectrum: Spectrum
    equivariance: dict[str, float]  # squared difference, relative to the latents' variance
    colour: list[float]  # what is added to a picture of one colour on the way: red, green, blue in [-1, 1]
    reconstruction: Reconstruction
    mistaken: float  # PSNR in dB between pictures whose latents are `LATENT_ERROR` apart
    developed: dict[str, float]  # by sigma, how far the picture is from what is left of it: see `after_noise`
    finite: bool
    receptive_field: ReceptiveField | None = None
    critic: CriticHealth | None = None


@torch.no_grad()
def measure_autoencoder(
    space: LatentSpace, images: Images, held_out: int, lite0: Lite0, thorough: bool = True,
    critic: CriticHealth | None = None,
) -> AutoencoderMeasures:  # fmt: skip
    """All of it on `images`, the first `held_out` of which were never trained on; not `thorough`: the cheap part."""
    rng = Rng(("first stage",))
    moments = batched(space.moments, images)
    clean = space.sample(moments, rng.at("posterior"))
    mean = (moments.chunk(2, 1)[0] - space.mean) / space.spread
    fake = batched(space.decode, mean)
    finite = bool(moments.isfinite().all() and fake.isfinite().all())
    few = images[: max(2, len(images) // SHARE)]
    wrong = mean[: len(few)] + LATENT_ERROR * rng.at("mistake").noise_like(mean[: len(few)])
    flat = few.mean((2, 3), keepdim=True).expand_as(few).contiguous()
    return AutoencoderMeasures(
        pictures=len(images),
        held_out=held_out,
        size=images.shape[-1],
        contrast=float((images - images.mean(0)).std(correction=0)),
        channels=channel_statistics(space, images, moments, rng),
        spectrum=power_spectrum(mean, shrunk(images, space.reduction)),
        equivariance=equivariance(space, images, mean),
        colour=(space.decode(space.encode(flat)) - flat).mean((0, 2, 3)).tolist(),
        reconstruction=reconstruction_quality(images, fake, space, lite0, thorough and finite),
        mistaken=mean_psnr(fake[: len(few)], batched(space.decode, wrong)),
        developed=after_noise(space, clean, few, rng, lite0),
        finite=finite,
        receptive_field=receptive_field_of(space, mean[:4]) if thorough else None,
        critic=critic,
    )


def batched(work: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    return torch.cat([work(part) for part in batch.split(MEASURED_AT_ONCE)])


# -- The latents -------------------------------------------------------------------------------------------------------


def channel_statistics(space: LatentSpace, images: Images, moments: Latents, rng: Rng) -> list[Channel]:
    raw = Moments(*(half.cpu().double() for half in moments.chunk(2, 1)))
    signal, noise = by_channel(raw.mean).var(1, correction=0), by_channel(raw.log_variance.exp()).mean(1)
    mean, std = by_channel(raw.mean).mean(1), (signal + noise).sqrt()
    touched = batched(space.moments, images + TOUCH * rng.at("touch").noise_like(images)).chunk(2, 1)[0].cpu()
    moved = by_channel((touched - raw.mean).abs()) / std.clamp(min=1e-12)[:, None]
    centre, spread = space.mean.flatten().cpu(), space.spread.flatten().cpu()
    columns = (
        (mean - centre) / spread, std / spread, mean, std,
        by_channel(kl_to_normal(raw)).mean(1), signal / (signal + noise).clamp(min=1e-12),
        (moved < STILL).double().mean(1),
    )  # fmt: skip
    return [Channel(*row) for row in torch.stack([column.double() for column in columns], 1).tolist()]


def by_channel(values: Latents) -> Float[Tensor, "channel values"]:
    return values.transpose(0, 1).flatten(1)


def power_spectrum(latents: Latents, pictures: OtherImages) -> Spectrum:
    """Both about their mean over all pictures; each channel of the latents counts as much as it varies."""
    shape = latents.shape[-2:]
    frequency = torch.hypot(*torch.meshgrid(*(torch.arange(side) / (2 * side) for side in shape), indexing="ij"))
    bins = (frequency * 2 * BANDS).long().clamp(max=BANDS - 1).flatten()
    count = torch.bincount(bins, minlength=BANDS)
    frequencies = [(band + 0.5) / (2 * BANDS) for band in range(BANDS) if count[band]]
    powers = []
    for values in (latents, pictures):
        power = cosine_transform(values - values.mean(0)).square().mean(0).sum(0).flatten().cpu().double()
        summed = torch.zeros(BANDS, dtype=torch.float64).index_add(0, bins, power / power.mean().clamp(min=1e-12))
        powers.append((summed / count)[count > 0].tolist())
    return Spectrum(frequencies, *powers)


def cosine_transform(values: Latents, inverse: bool = False) -> Latents:
    """The orthonormal cosine transform (DCT-II) of both sides, or its inverse."""
    bases = []
    for side in values.shape[-2:]:
        places = torch.arange(side, dtype=values.dtype, device=values.device)
        waves = torch.cos(math.pi / side * places[:, None] * (places + 0.5)) * math.sqrt(2 / side)
        bases.append(torch.cat([waves[:1] / math.sqrt(2), waves[1:]]))
    rows, columns = bases
    return rows.T @ values @ columns if inverse else rows @ values @ columns.T


def equivariance(space: LatentSpace, images: Images, latents: Latents) -> dict[str, float]:
    """Latents of changed pictures against latents changed so (arXiv 2502.09509, section 3): 0 is equal, 2 unrelated."""
    odd = any(side % 2 for side in latents.shape[-2:]) or space.image_side is not None
    result = {}
    for name, change in TRANSFORMS.items():
        if odd and name == "half the size":
            continue
        expected = change(latents)
        wrong = batched(space.encode, change(images)) - expected
        result[name] = float(wrong.square().mean() / expected.var(correction=0).clamp(min=1e-12))
    return result


# -- The pictures ------------------------------------------------------------------------------------------------------


def psnr(real: Images, fake: Images) -> Float[Tensor, " batch"]:
    """Peak signal to noise ratio in dB, `10 log10(peak^2 / mean squared error)`; infinite for equal pictures."""
    return 10 * torch.log10(PEAK**2 / (fake - real).square().mean((1, 2, 3)))


def mean_psnr(images: Images, others: Images, most: float = EQUAL_PSNR) -> float:
    """In dB, where that of a picture counts as `most` at most."""
    return float(psnr(images, others).clamp(max=most).mean())


def ssim(real: Images, fake: Images) -> Float[Tensor, " batch"]:
    """Structural similarity, at most 1, averaged over places and colours (Wang et al., IEEE TIP 13(4), 2004, eq. 13).

    The paper's constants and 11 x 11 Gaussian window, which stays inside the picture: sides of 11 px and more.
    """
    steady_mean, steady_contrast = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_real, mean_fake = window_means(real), window_means(fake)
    variances = window_means(real.square() + fake.square()) - mean_real.square() - mean_fake.square()
    covariance = window_means(real * fake) - mean_real * mean_fake
    luminance = (2 * mean_real * mean_fake + steady_mean) / (mean_real.square() + mean_fake.square() + steady_mean)
    structure = (2 * covariance + steady_contrast) / (variances + steady_contrast)
    return (luminance * structure).mean((1, 2, 3))


def window_means(images: Images) -> Resized:
    """The Gaussian average around each place whose window fits: `SSIM_WINDOW - 1` rows and columns fewer."""
    places = torch.arange(SSIM_WINDOW, dtype=images.dtype, device=images.device) - SSIM_WINDOW // 2
    weights = torch.softmax(-places.square() / (2 * SSIM_SIGMA**2), 0)
    for kernel in (weights.reshape(1, 1, -1, 1), weights.reshape(1, 1, 1, -1)):
        images = F.conv2d(images, kernel.expand(3, 1, -1, -1), groups=3)
    return images


def reconstruction_quality(
    images: Images, fake: Images, space: LatentSpace, lite0: Lite0, thorough: bool
) -> Reconstruction:
    count = len(images) if thorough else max(2, len(images) // SHARE)
    side = space.reduction if space.channels >= 3 else images.shape[-1]
    blocks = F.interpolate(F.avg_pool2d(images, side), scale_factor=side)
    frechet = None
    if thorough and len(images) > 1:
        frechet = frechet_distance(*(features(each.split(MEASURED_AT_ONCE), lite0) for each in (images, fake)))
    return Reconstruction(
        psnr=mean_psnr(images, fake),
        ssim=float(ssim(images, fake).mean()) if images.shape[-1] >= SSIM_WINDOW else None,
        perceptual=float(lite0.perceptual_distance(images[:count], fake[:count]).mean()),
        blocks=mean_psnr(images, blocks),
        frechet=frechet,
    )


def after_noise(space: LatentSpace, clean: Latents, images: OtherImages, rng: Rng, lite0: Lite0) -> dict[str, float]:
    """Latents made noisy, denoised in closed form, decoded: the perceptual distance from `images`, by sigma.

    `images` are the first of those of the latents. 1 is the distance of another picture. The denoiser is Wiener's,
    which knows the power of each frequency in each channel, and believes what the space's statistics say: mean 0 and
    standard deviation 1. Where they are wrong, so is what it makes.
    """
    offset, spread = clean.mean((0, 2, 3), keepdim=True), clean.std((0, 2, 3), correction=0, keepdim=True)
    known = (clean - offset).mean(0, keepdim=True) / spread.clamp(min=1e-8)
    power = cosine_transform((clean - offset) / spread.clamp(min=1e-8) - known).square().mean(0)
    other = lite0.perceptual_distance(images, images.roll(1, 0)).mean().clamp(min=1e-8)
    few = clean[: len(images)]
    result = {}
    for sigma in SIGMAS:
        noise = rng.at("noise", str(sigma)).noise_like(few)
        denoised = cosine_transform(few + sigma * noise - known) * power / (power + sigma**2).clamp(min=1e-8)
        decoded = batched(space.decode, cosine_transform(denoised, inverse=True) + known)
        result[f"{sigma:g}"] = float(lite0.perceptual_distance(images, decoded).mean() / other)
    return result


def receptive_field_of(space: LatentSpace, latents: Latents) -> ReceptiveField:
    """Where the picture changes if the middle latent moves by its standard deviation (arXiv 1701.04128, inverted)."""
    height, width = (side // 2 for side in latents.shape[-2:])
    moved = latents.clone()
    moved[:, :, height, width] += 1.0
    plain, other = (space.vae.decode(each * space.spread + space.mean) for each in (latents, moved))
    change = (other - plain).abs().mean((0, 1)).cpu().double()
    side, outside = space.reduction, []
    for count, start in zip(change.shape, (height * space.reduction, width * space.reduction), strict=True):
        places = torch.arange(count)
        outside.append(torch.maximum(start - places, places - (start + side - 1)).clamp(min=0))
    away = torch.maximum(outside[0][:, None], outside[1])
    rings = torch.zeros(int(away.max()) + 1, dtype=torch.float64).index_add(0, away.flatten(), change.flatten())
    radius = int((rings.cumsum(0) < 0.9 * rings.sum()).sum())
    reach = int(away[change > 1e-3 * change.max()].max()) if bool(change.max() > 0) else 0
    return ReceptiveField(radius, reach, reach >= int(away.max()) - 1)


def error_map(images: Images, fake: Images) -> Resized:
    """Where reconstructions are wrong: from black to white, at a difference of a fifth of the range."""
    wrong = (fake - images).abs().mean(1, keepdim=True) / 0.2 - 1
    return wrong.clamp(-1, 1).expand_as(images)
