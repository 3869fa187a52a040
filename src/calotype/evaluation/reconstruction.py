"""Reconstructions of an autoencoder compared with their originals. Images are in [-1, 1], so the peak is 2."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.build import build_space, start_linear
from calotype.data.folder import Pictures
from calotype.data.images import rounded
from calotype.diffusion.stage import in_turn
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.distances import Features
from calotype.evaluation.features import features, lite0_on
from calotype.evaluation.intervals import mean_estimate
from calotype.evaluation.measures import as_measure, distance_key, measured
from calotype.evaluation.references import ReferenceSet
from calotype.evaluation.results import Columns, SetMeasures
from calotype.nets.blocks import Resized
from calotype.nets.perceptual import perceptual_distance
from calotype.nets.vae import Vae
from calotype.spaces.latent import LatentSpace
from calotype.types import Images

PEAK = 2.0
WINDOW, SPREAD = 11, 1.5
ENOUGH = 2000
"""Pictures that the closed-form start of an autoencoder is made from."""
EQUAL = 120.0
"""dB of two equal pictures."""


def psnr(real: Images, fake: Images) -> Float[Tensor, " batch"]:
    """Peak signal to noise ratio in dB, `10 log10(peak^2 / mean squared error)`; infinite for equal pictures."""
    return 10 * torch.log10(PEAK**2 / (fake - real).square().mean((1, 2, 3)))


def ssim(real: Images, fake: Images) -> Float[Tensor, " batch"]:
    """Structural similarity, at most 1, averaged over places and colours (Wang et al., IEEE TIP 13(4), 2004, eq. 13).

    The paper's constants and 11 x 11 Gaussian window, which stays inside the picture: sides of 11 px and more.
    """
    steady_mean, steady_contrast = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_real, mean_fake = blurred(real), blurred(fake)
    variances = blurred(real.square() + fake.square()) - mean_real.square() - mean_fake.square()
    covariance = blurred(real * fake) - mean_real * mean_fake
    luminance = (2 * mean_real * mean_fake + steady_mean) / (mean_real.square() + mean_fake.square() + steady_mean)
    structure = (2 * covariance + steady_contrast) / (variances + steady_contrast)
    return (luminance * structure).mean((1, 2, 3))


def blurred(images: Images) -> Resized:
    """The Gaussian average around each place whose window fits: `WINDOW - 1` rows and columns fewer."""
    places = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    weights = torch.softmax(-places.square() / (2 * SPREAD**2), 0)
    for kernel in (weights.reshape(1, 1, -1, 1), weights.reshape(1, 1, 1, -1)):
        images = F.conv2d(images, kernel.expand(3, 1, -1, -1), groups=3)
    return images


def at_least_64(images: Tensor) -> Tensor:
    """Pixels a side: below that the perceptual network has few places left."""
    return images if images.shape[-1] >= 64 else F.interpolate(images, size=(64, 64), mode="bilinear")


def perceptual(images: Images, others: Images) -> Float[Tensor, " batch"]:
    """Perceptual distance, at 64 pixels a side or more."""
    return perceptual_distance(lite0_on(images.device), at_least_64(images), at_least_64(others))


# -- Of a run ----------------------------------------------------------------------------------------------------------


def evaluate_reconstruction(one: Candidate, reference: ReferenceSet, trained: Pictures, seed: int) -> Columns | None:
    """Of the reference pictures; None for a model without an autoencoder.

    The floor is other real pictures in their place; the ceiling, the autoencoder's closed form before any training.
    """
    space, size, network = one.model.stages[0].space, one.recipe.chain[0], reference.network
    if not isinstance(space, LatentSpace):
        return None
    floor = measured(reference.floor(size), reference.features(size), seed, network).stored()
    distance = {name: floor[name] for name in (distance_key(network), "n")}
    samples, ceiling = (through_autoencoder(each, size, reference, seed) for each in (space, untrained(one, trained)))
    return Columns(samples=samples, floor=SetMeasures(**distance), ceiling=ceiling)


def untrained(one: Candidate, pictures: Pictures) -> LatentSpace:
    """As the run had it at its start, but for the pictures that the closed form is made from; random if imported."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(one.recipe.seed)
        space = build_space(one.recipe).to(one.model.device)
    if isinstance(space.vae, Vae):
        few = pictures.first(ENOUGH).shrunk(one.recipe.chain[0])
        if not few.split.train.any():  # other pictures, as those of the run cannot be read
            few = replace(few, split=replace(few.split, train=~few.split.train))
        start_linear(space.vae, few, one.model.device)
    return space.eval()


def through_autoencoder(space: LatentSpace, size: int, reference: ReferenceSet, seed: int) -> SetMeasures:
    network, rows, pairs = reference.network, list[Features](), list[dict[str, Tensor]]()
    for part in in_turn(len(reference), size, size):
        images = reference.images(reference.chosen[part], size).to(space.mean.device)
        fake = rounded(space.decode(space.encode(images)))
        rows.append(features([fake], network))
        pairs.append(similarity(images, fake))
    distances = measured(np.concatenate(rows), reference.features(size), seed, network).stored()
    means = {
        name: as_measure(mean_estimate(torch.cat([one[name] for one in pairs]).double().cpu().numpy()))
        for name in pairs[0]
    }
    return SetMeasures.model_validate({**means, **{name: distances[name] for name in (distance_key(network), "n")}})


def similarity(images: Images, fake: Images) -> dict[str, Float[Tensor, " batch"]]:
    """One number a picture; SSIM only where its window fits."""
    result = {"psnr": psnr(images, fake).clamp(max=EQUAL), "perceptual": perceptual(images, fake)}
    return result if images.shape[-1] < WINDOW else {**result, "ssim": ssim(images, fake)}
