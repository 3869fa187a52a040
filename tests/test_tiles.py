import pytest
import torch
from analytic import perturbed
from torch import nn

from calotype.nets.kl import Kl, KlConfig
from calotype.nets.vae import Vae, VaeConfig
from calotype.spaces import tiles
from calotype.spaces.latent import LatentSpace, about_tiles
from calotype.spaces.tiles import CellScale, Reach, measure_reach, tile_windows, tiled
from calotype.types import Rng

SIZES = {4: (8,), 8: (8, 16), 16: (8, 16, 16), 32: (8, 16, 8, 32)}
SEEN = {
    "one convolution": (nn.Conv2d(2, 3, 5, padding=2), CellScale(1, 1), 2),
    "nothing beside it": (nn.Conv2d(2, 3, 1), CellScale(1, 1), 0),
    "three of them": (nn.Sequential(*(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))), CellScale(1, 1), 3),
    "one axis": (nn.Conv2d(2, 2, (9, 1), padding=(4, 0)), CellScale(1, 1), 4),
    "far apart": (nn.Conv2d(2, 2, 3, padding=30, dilation=30), CellScale(1, 1), 30),
    # 3 pixels of a cell of 4 are 1 cell; with the convolution before it 2
    "enlarged": (
        nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.PixelShuffle(4), nn.Conv2d(1, 3, 7, padding=3)),
        CellScale(1, 4),
        2,
    ),
    "shrunk": (
        nn.Sequential(nn.Conv2d(2, 1, 7, padding=3), nn.PixelUnshuffle(4), nn.Conv2d(16, 3, 3, padding=1)),
        CellScale(4, 1),
        2,
    ),
}


@pytest.mark.parametrize(("network", "scale", "cells"), SEEN.values(), ids=SEEN)
def test_the_reach_is_the_one_worked_out_by_hand(network, scale, cells):
    assert measure_reach(network, torch.zeros(1, 2, 4, 4), scale) == Reach(cells, exact=True)


@pytest.mark.parametrize("network", [nn.GroupNorm(1, 2), nn.Conv2d(2, 2, 3, padding=64, dilation=64)])
def test_what_sees_the_whole_picture_has_no_exact_tiles(network):
    assert not measure_reach(network, torch.zeros(1, 2, 4, 4), CellScale(1, 1)).exact


def new_vae(reduction, lapped=False):
    return perturbed(Vae(VaeConfig(reduction=reduction, channels=5, widths=SIZES[reduction], lapped=lapped))).eval()


@torch.no_grad()
@pytest.mark.parametrize("side", [3, 12])
@pytest.mark.parametrize("reduction", SIZES)
@pytest.mark.parametrize("lapped", [False, True])
def test_tiles_are_the_whole(reduction, side, lapped):
    """Of odd sizes, with one tile and with many, two pictures at once."""
    vae = new_vae(reduction, lapped)
    latents = Rng(("latents",)).normal(2, 5, 13, 17)
    images = Rng(("images",)).uniform(2, 3, 13 * reduction, 17 * reduction) * 2 - 1
    space = LatentSpace(vae)
    for network, image, scale, channels in (
        (vae.decode, latents, CellScale(1, reduction), 3),
        (space._moments, images, CellScale(reduction, 1), 10),
    ):
        reach = measure_reach(network, image, scale)
        whole, made = network(image), tiled(network, image, scale, channels, reach, 2 * reach.cells + side)
        assert reach.exact and torch.allclose(made, whole, atol=1e-5 * float(whole.abs().max()))
        if side == 3:  # with less overlap they are not
            less = tiled(network, image, scale, channels, Reach(reach.cells // 2, True), reach.cells + side)
            assert not torch.allclose(less, whole, atol=1e-5 * float(whole.abs().max()))


def test_fading_tiles_sum_to_one_and_none_ends_in_a_step():
    """Of odd sizes, cut into tiles that are larger, smaller and as large as the picture."""
    for cells, side in ((1, 4), (5, 4), (17, 8), (33, 16), (16, 16)):
        windows, total = (
            tile_windows(cells, side, side // 4, CellScale(1, 2), exact=False),
            torch.zeros(2 * cells),
        )
        for read, write, weight in windows:
            total[write] += weight
            assert write.start == 2 * read.start and (read.start == 0 or weight[0] < 0.5)
        assert torch.allclose(total, torch.ones(2 * cells))


@torch.no_grad()
def test_a_space_decodes_small_pictures_whole_and_large_ones_in_tiles(monkeypatch):
    space = LatentSpace(new_vae(8))
    latents, seen = Rng(("latents",)).normal(1, 5, 24, 40), []
    monkeypatch.setattr(space.vae.decoder, "forward", watched(space.vae.decoder.forward, seen))
    images = space.decode(latents)
    assert seen == [(24, 40)] and torch.equal(images, space.vae.decode(latents).clamp(-1, 1))
    moments = space.moments(images)
    monkeypatch.setattr(tiles, "LARGE", 24 * 40 * 64 - 1)
    monkeypatch.setattr(tiles, "TILE", 30 * 8)
    seen.clear()
    assert torch.allclose(space.decode(latents), images, atol=1e-5) and len(seen) > 3
    assert max(max(shape) for shape in seen if 1 not in shape) <= 30  # those with a side of 1 measure the reach
    assert torch.allclose(space.moments(images), moments, atol=1e-4)


def watched(forward, seen):
    def watch(latents):
        seen.append(tuple(latents.shape[-2:]))
        return forward(latents)

    return watch


@torch.no_grad()
def test_a_decoder_that_sees_everything_is_reported_to_have_no_exact_tiles():
    space = LatentSpace(Kl(KlConfig(widths=(8, 16), groups=4)))
    images = Rng(("images",)).uniform(1, 3, 32, 32) * 2 - 1
    printed = about_tiles(space, images)
    assert "cannot be decoded in exact tiles" in printed and "16 px" in printed
    vae = LatentSpace(new_vae(4))
    assert "equals" in about_tiles(vae, images)
