"""How close a reconstruction is to its original, picture by picture. All images are in [-1, 1], so the peak is 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.nets.blocks import Resized
from calotype.types import Images

PEAK = 2.0
WINDOW, SPREAD = 11, 1.5


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
