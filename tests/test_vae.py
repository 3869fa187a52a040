import math

import numpy as np
import pytest
import torch
from analytic import perturbed, silent_parameters
from pydantic import ValidationError
from small import noise_pixels

from calotype.data.images import images_from_pixels
from calotype.nets.vae import (
    START_LOG_VARIANCE,
    ChannelToSpace,
    Lapping,
    SpaceToChannel,
    Vae,
    VaeConfig,
    border_transform,
    match_channels,
)
from calotype.planning.laws import vae_widths

SMALL = {4: (8,), 8: (8, 16), 16: (8, 16, 16), 32: (8, 16, 8, 32)}


def small_vae(reduction=4, channels=3, blocks=1):
    widths = SMALL[reduction]
    return Vae(VaeConfig(reduction=reduction, channels=channels, widths=widths, decoder_blocks=blocks))


def images(count=40, size=16):
    return images_from_pixels(noise_pixels(count, size))


def patches(images, side):
    """(patch, 3 * side * side), cut out one by one."""
    height, width = images.shape[-2:]
    cuts = [
        image[:, top : top + side, left : left + side].flatten()
        for image in images
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]
    return torch.stack(cuts).detach().double().numpy()


@pytest.mark.parametrize("channels", [1, 3, 20])
def test_the_linear_start_is_the_principal_components_of_the_patches(channels):
    vae, pictures = small_vae(channels=channels).double(), images().double()
    vae.start_linear([pictures])
    centred = patches(pictures, 4)
    centred -= centred.mean(0)
    variances = np.linalg.svd(centred, compute_uv=False) ** 2 / (len(centred) - 1)
    wrong = patches(vae.decode(vae.encode(pictures).mean) - pictures, 4)
    assert np.square(wrong).sum() / (len(wrong) - 1) == pytest.approx(variances[channels:].sum(), rel=1e-6)


def test_the_linear_start_makes_latents_of_mean_0_and_spread_1_that_know_nothing_of_each_other():
    vae, pictures = small_vae(channels=6).double(), images().double()
    vae.start_linear([pictures])
    latents = vae.encode(pictures).mean.transpose(0, 1).flatten(1)
    assert torch.allclose(latents.mean(1), torch.zeros(6).double(), atol=1e-6)
    assert torch.allclose(latents.cov(), torch.eye(6).double(), atol=1e-4)


@pytest.mark.parametrize("reduction", [4, 8, 16])
def test_a_new_autoencoder_is_its_linear_path(reduction):
    vae, pictures = small_vae(reduction), images(8, 32)
    vae.start_linear([pictures])
    mean, log_variance = vae.encode(pictures)
    linear = vae.linear_in(torch.nn.functional.pixel_unshuffle(pictures, reduction))
    assert torch.equal(mean, linear) and (log_variance == START_LOG_VARIANCE).all()
    assert torch.equal(vae.decode(mean), torch.nn.functional.pixel_shuffle(vae.linear_out(linear), reduction))


# -- Patches that overlap ----------------------------------------------------------------------------------------------


def lapped_vae(reduction=8, channels=32):
    config = VaeConfig(reduction=reduction, channels=channels, widths=SMALL[reduction], decoder_blocks=1, lapped=True)
    return Vae(config).double()


@pytest.mark.parametrize("patch", [2, 4, 8, 16, 32])
def test_the_lapped_transform_loses_nothing(patch):
    lapping, pictures = Lapping(patch).double(), torch.randn(2, 3, 2 * patch, 3 * patch).double()
    assert torch.allclose(lapping.inverse(lapping(pictures)), pictures, atol=1e-5)
    assert lapping(pictures).norm() == pytest.approx(float(pictures.norm()), rel=1e-5)
    one = torch.ones(1, 3, 2 * patch, 2 * patch).double()
    assert torch.allclose(lapping(one), one, atol=1e-5)  # plain areas stay plain


def test_its_coding_gain_is_that_of_the_literature():
    """On an autoregressive signal of correlation 0.95 with 8 channels: 8.83 dB for the DCT, 9.22 dB for the LOT
    (Tran, Liang and Tu, IEEE Transactions on Signal Processing 51, 2003)."""
    size, length = 8, 72
    place = torch.arange(length)
    covariance = 0.95 ** (place[:, None] - place).abs().double()
    wave = torch.arange(size).double()
    cosines = torch.cos(math.pi / size * (wave + 0.5) * wave[:, None]) * math.sqrt(2 / size)
    cosines[0] /= math.sqrt(2)
    blocks, borders = torch.block_diag(*[cosines] * (length // size)), torch.eye(length).double()
    for border in range(size, length, size):
        around = slice(border - size // 2, border + size // 2)
        borders[around, around] = border_transform(size).double()
    gains = []
    for transform in (blocks, blocks @ borders):
        variances = (transform @ covariance @ transform.T).diag()[4 * size : 5 * size]
        gains.append(-10 * variances.log10().mean().item())
    assert gains == [pytest.approx(8.83, abs=0.01), pytest.approx(9.22, abs=0.01)]


def border_contrast(pictures, side=8):
    steps = pictures.diff(dim=3).abs().mean((0, 1, 2))
    across = torch.arange(1, len(steps) + 1) % side == 0
    return (steps[across].mean() / steps[~across].mean()).item()


def test_wrong_latents_show_no_borders_of_patches():
    """Of smooth pictures, with a third of their deviation as noise on the latents."""
    pictures = torch.nn.functional.interpolate(torch.randn(60, 3, 9, 9).double(), 64, mode="bicubic")
    contrasts = {}
    for vae in (small_vae(8, 32).double(), lapped_vae()):
        vae.start_linear([pictures])
        latents = vae.encode(pictures).mean
        contrasts[vae.config.lapped] = border_contrast(vae.decode(latents + 0.3 * torch.randn_like(latents)))
    assert contrasts[False] > 1.5 * border_contrast(pictures) and contrasts[True] < 1.1 * border_contrast(pictures)


def test_with_as_many_channels_as_a_patch_has_values_the_linear_path_is_the_identity():
    vae, pictures = lapped_vae(4, 48), images(200, 16).double()
    vae.start_linear([pictures])
    assert torch.allclose(vae.decode(vae.encode(pictures).mean), pictures, atol=1e-4)


def test_overlapping_needs_an_even_side():
    with pytest.raises(ValidationError, match="patches overlap by half of it; set lapped to false"):
        VaeConfig(reduction=3, stem=3, widths=(8,), lapped=True)


FEW = {
    "one picture": lambda: images(1),
    "one patch": lambda: images(1, 4),
    "one patch, again and again": lambda: images(1, 4).expand(5, -1, -1, -1),
    "white": lambda: torch.ones(3, 3, 8, 8),
    "one colour each": lambda: images(3, 4)[..., :1, :1].expand(-1, -1, 8, 8),
}


@pytest.mark.parametrize("pictures", FEW.values(), ids=FEW)
def test_few_and_flat_pictures_come_back_finite(pictures):
    """With at least as many channels as there are kinds of patches, they come back whole."""
    vae, pictures = small_vae(channels=20), pictures()
    vae.start_linear([pictures])
    mean, log_variance = vae.encode(pictures)
    assert mean.isfinite().all() and mean.abs().max() < 100 and log_variance.isfinite().all()
    assert torch.allclose(vae.decode(mean), pictures, atol=0.01)


@pytest.mark.parametrize("reduction", [4, 8, 16, 32])
def test_shapes(reduction):
    """Of the networks that the plan takes, on pictures that are not square."""
    vae = Vae(VaeConfig(reduction=reduction, channels=5, widths=tuple(vae_widths(reduction))))
    moments = vae.encode(torch.zeros(2, 3, 2 * reduction, 3 * reduction))
    assert moments.mean.shape == moments.log_variance.shape == (2, 5, 2, 3)
    assert vae.decode(moments.mean).shape == (2, 3, 2 * reduction, 3 * reduction)


@pytest.mark.parametrize("reduction", SMALL)
def test_the_gradient_reaches_all_but_the_linear_path(reduction):
    vae, pictures = perturbed(small_vae(reduction, blocks=2)), images(4, 64)
    mean, log_variance = vae.encode(pictures)
    loss = (vae.decode(mean) * torch.randn_like(pictures)).sum() + (log_variance * torch.randn_like(mean)).sum()
    linear = [f"linear_{way}.{kind}" for way in ("in", "out") for kind in ("weight", "bias")]
    assert silent_parameters(vae, loss) == linear


def box(changed):
    """First and last row and column where something changed."""
    rows, columns = changed.flatten(0, 1).any(2).any(0).nonzero(), changed.flatten(0, 1).any(1).any(0).nonzero()
    return rows.min().item(), rows.max().item(), columns.min().item(), columns.max().item()


def reach(reduction, blocks):
    """Pixels beyond its own square that one latent is heard in: 3 x 3 convolutions at each level, two a block."""
    pixels = reduction  # the first convolution, in latents
    for level, _ in enumerate(SMALL[reduction]):
        pixels += 2 * blocks * 4 * 2**level
    return pixels + 4  # the last one, in squares of `stem`


@pytest.mark.parametrize(("reduction", "blocks"), [(4, 1), (4, 3), (8, 1), (16, 1)])
def test_decoding_is_local(reduction, blocks):
    """No statistics across the picture: far away, not one bit changes; so tiles agree."""
    vae, side, middle = perturbed(small_vae(reduction, blocks=blocks)), 25, 12
    latents = torch.randn(1, 3, side, side)
    other = latents.clone()
    other[..., middle, middle] += 100
    first, last, left, right = box(vae.decode(latents) != vae.decode(other))
    far, own = reach(reduction, blocks), (middle * reduction, (middle + 1) * reduction - 1)
    assert own[0] - far <= first < own[0] and own[1] < last <= own[1] + far
    assert (left, right) == (first, last)


def test_encoding_is_local():
    """A pixel is heard within its square of `stem` and 1 (first) + 2 (block) + 1 (last) squares around it."""
    vae, pictures = perturbed(small_vae()), torch.rand(1, 3, 48, 48)
    other = pictures.clone()
    other[..., 22, 25] = -1
    for before, after in zip(vae.encode(pictures), vae.encode(other), strict=True):
        assert box(before != after) == (5 - 4, 5 + 4, 6 - 4, 6 + 4)


def test_samples_have_the_moments_of_the_encoder():
    vae, pictures = perturbed(small_vae()), images(1)
    moments = vae.encode(pictures)
    draws = torch.stack([moments.sample(torch.randn_like(moments.mean)) for _ in range(4000)])
    spread = (moments.log_variance / 2).exp()
    assert ((draws.mean(0) - moments.mean) / spread).abs().max() < 5 / math.sqrt(4000)
    assert torch.allclose(draws.std(0), spread, rtol=0.1)


@pytest.mark.parametrize("wrong", [{"reduction": 6}, {"reduction": 16}, {"widths": (8,)}, {"stem": 2}])
def test_a_ladder_that_does_not_end_at_the_reduction_is_refused(wrong):
    given = VaeConfig.model_construct(**{**VaeConfig().model_dump(), **wrong})
    ends = given.stem * 2 ** (len(given.widths) - 1)
    message = f"reduction is {given.reduction}, but stem {given.stem} with {len(given.widths)} widths gives {ends}"
    with pytest.raises(ValidationError, match=message):
        VaeConfig(**wrong)


@pytest.mark.parametrize(("wide", "narrow"), [(8, 8), (8, 16), (16, 8), (8, 32), (4, 64), (8, 12), (96, 160), (7, 8)])
def test_widths_are_refused_or_work(wide, narrow):
    """Folding without weights needs channels that divide one another."""
    fits = max(4 * wide, narrow) % min(4 * wide, narrow) == 0
    if not fits:
        with pytest.raises(ValidationError, match=f"try {wide} and {2 * wide}"):
            VaeConfig(widths=(wide, narrow))
        narrow = 2 * wide
    vae = Vae(VaeConfig(channels=2, widths=(wide, narrow)))
    assert vae.decode(vae.encode(images(1)).mean).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("channels", [4, 8, 32, 64])
def test_folding_without_weights_keeps_the_mean(channels):
    """The path beside the convolution: neighbours averaged or repeated, so nothing is lost on average."""
    image = torch.randn(2, 8, 6, 4)
    fold, unfold = SpaceToChannel(8, channels), ChannelToSpace(channels, 8)
    for conv in (fold.conv, unfold.conv):
        torch.nn.init.zeros_(conv.weight), torch.nn.init.zeros_(conv.bias)
    folded = fold(image)
    assert folded.shape == (2, channels, 3, 2)
    assert torch.allclose(folded.mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-6)
    assert torch.allclose(unfold(folded).mean((1, 2, 3)), image.mean((1, 2, 3)), atol=1e-6)
    if channels == 32:
        assert torch.equal(unfold(folded), image)


def test_matched_channels_are_means_of_neighbours_or_copies():
    image = torch.tensor([1.0, 2, 3, 6]).reshape(1, 4, 1, 1)
    assert match_channels(image, 2).flatten().tolist() == [1.5, 4.5]
    assert match_channels(image, 8).flatten().tolist() == [1, 1, 2, 2, 3, 3, 6, 6]
    assert torch.equal(match_channels(image, 4), image)
