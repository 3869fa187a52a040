"""Crops on which few pictures are trained, too, and of which the denoiser is told."""

import pytest
import torch
from analytic import conditioned, perturbed
from small import (
    CASCADE,
    CPU,
    HYBRID,
    SETTINGS,
    Keeper,
    be_quick,
    first_leg,
    noise_cache,
    noise_pictures,
    recipe,
    train_small,
    write_pictures,
)
from test_train import interrupted_at, products

from calotype.build import build_stage
from calotype.cli import commands
from calotype.cli.options import ResumeOptions
from calotype.data import latents
from calotype.data.images import images_from_pixels
from calotype.data.latents import Sides, cache_key, cache_latents
from calotype.data.sources import LatentSource
from calotype.data.views import (
    LARGEST_VIEW,
    SMALLEST_VIEW,
    VIEW_SHARE,
    Views,
    cut_views,
    draw_boxes,
    placement,
    whole_boxes,
)
from calotype.diffusion.denoiser import Denoiser
from calotype.export.diffusers_folder import stage_config
from calotype.files import read_json
from calotype.model import load
from calotype.nets.dit import Dit, DitConfig
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace
from calotype.tables import merge
from calotype.training import fitting
from calotype.training.examples import Bucket, latent_examples
from calotype.training.fitting import MOST_FITTED_VIEWS, fitted_sides
from calotype.training.legs import denoiser_leg
from calotype.training.process import Interrupted
from calotype.types import Condition, Rng, UserError, no_progress

RNG = Rng(("views",))
VIEWS = 3


def box(left, top, side, mirrored=0.0):
    return torch.tensor([[left, top, side, mirrored]])


def ramp(side=32):
    """Red grows by 8 a column, green by 4 a row."""
    pixels = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    pixels[:, 0], pixels[:, 1] = 8 * torch.arange(side), 4 * torch.arange(side)[:, None]
    return pixels


# -- Boxes -------------------------------------------------------------------------------------------------------------


def test_boxes_lie_within_the_picture_and_are_of_all_sizes_and_places():
    left, top, side, mirrored = draw_boxes(RNG, 2, 5000).flatten(0, 1).unbind(1)
    for edge in (left, top):
        assert edge.min() >= 0 and (edge + side).max() <= 1
        assert (edge / (1 - side)).histc(4, 0, 1).min() > 2200  # 2,500 expected
    assert SMALLEST_VIEW <= side.min() < SMALLEST_VIEW + 0.01 and LARGEST_VIEW - 0.01 < side.max() <= LARGEST_VIEW
    assert 0.48 < mirrored.mean() < 0.52 and set(mirrored.tolist()) == {0.0, 1.0}


def test_a_whole_picture_is_not_changed_and_its_placement_is_zero():
    pixels = noise_pictures().pixels
    assert torch.equal(cut_views(pixels, whole_boxes(len(pixels)), (16, 16)), pixels)
    assert placement(whole_boxes(3)).abs().max() == 0


def test_a_view_is_the_part_of_the_picture_that_its_box_says():
    view = cut_views(ramp(), box(0.25, 0.125, 0.75), (32, 32))[0].float()
    places = (torch.arange(32) + 0.5) * 0.75 - 0.5
    inside = slice(3, -3)  # Lanczos repeats the edge
    assert (view[0, :, inside] - 8 * (places + 8)[inside]).abs().max() <= 1
    assert (view[1, inside] - 4 * (places + 4)[inside, None]).abs().max() <= 1
    mirrored = cut_views(ramp(), box(0.25, 0.125, 0.75, 1.0), (32, 32))[0].float()
    assert torch.equal(mirrored, view.flip(-1))


def test_a_placement_is_between_minus_one_and_one():
    places = placement(draw_boxes(RNG, 1000))
    assert places.amin(0).tolist() >= [0.0, -1.0, -1.0, 0.0] and places.abs().max() <= 1
    corner = placement(box(0.0, 1 - SMALLEST_VIEW, SMALLEST_VIEW, 1.0))
    assert torch.allclose(corner, torch.tensor([[1.0, -1.0, 1.0, 1.0]]), atol=1e-6)


# -- Batches -----------------------------------------------------------------------------------------------------------


def latent_source(view=None, whole=1):
    """The first channel tells the picture, the second the side."""
    plain = noise_cache(recipe()).moments[:1].expand(whole + VIEWS, -1, -1, -1, -1).clone()
    plain[:, :, 0] = torch.arange(10)[:, None, None]
    plain[:, :, 1] = torch.arange(whole + VIEWS)[:, None, None, None]
    cache = type(noise_cache(recipe()))(plain, draw_boxes(RNG, VIEWS, 10))
    return LatentSource(cache, torch.arange(10), torch.arange(2, 10), RNG, CPU, view=view)


def sides_of(batch):
    return batch.clean[:, 1, 0, 0].long()


@pytest.mark.parametrize("whole", [1, 2])
def test_batches_of_latents_are_of_whole_pictures_and_of_views_with_their_places(whole):
    source = latent_source(whole=whole)
    batch = source.batch(0, 4000)
    sides = sides_of(batch)
    counts = sides.bincount(minlength=whole + VIEWS) / 4000
    assert counts[:whole].sum() == pytest.approx(1 - VIEW_SHARE, abs=0.03)
    assert counts[whole:].tolist() == pytest.approx([VIEW_SHARE / VIEWS] * VIEWS, abs=0.03)
    for index in range(200):
        side, row = int(sides[index]) - whole, int(batch.labels[index])
        expected = whole_boxes(1)[0] if side < 0 else source.cache.boxes[side, row]
        assert torch.equal(batch.view[index], placement(expected[None])[0])
    again = source.batch(0, 4000)
    assert torch.equal(again.clean, batch.clean) and torch.equal(again.view, batch.view)


@pytest.mark.parametrize("view", [0, 1, VIEWS])
def test_batches_of_one_view(view):
    batch = latent_source(view, whole=2).batch(3, 20)
    assert set(sides_of(batch).tolist()) == ({0, 1} if view == 0 else {1 + view})
    assert view or batch.view.abs().max() == 0


def test_a_slice_of_a_batch_keeps_the_places():
    batch = latent_source().batch(0, 10)
    assert torch.equal(batch.at(slice(3, None, 2)).view, batch.view[3::2])


# -- The cache ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("large", [False, True])
def test_latents_of_views_are_those_of_the_cut_pictures(tmp_path, monkeypatch, flip, large):
    space, pictures = LatentSpace(first_leg().trained).requires_grad_(False), noise_pictures()
    monkeypatch.setattr("calotype.data.latents.LARGE_SET", 0 if large else 10**6)
    boxes, source = draw_boxes(RNG, VIEWS, len(pictures)), noise_pictures(size=32).pixels
    sides = Sides(flip, Views(boxes, lambda: source))
    cache = cache_latents(space, pictures.pixels, "content", sides, tmp_path, CPU, no_progress, batch=3)
    assert cache.sides == 1 + flip + VIEWS and torch.equal(cache.boxes, boxes)
    rows = torch.arange(len(pictures))
    for view in range(VIEWS):
        expected = space.moments(images_from_pixels(cut_views(source, boxes[view], (16, 16))))
        found = cache.at(torch.full_like(rows, 1 + flip + view), rows)
        means = slice(None, space.channels)
        assert torch.allclose(found.float()[:, means], expected[:, means], rtol=2**-9, atol=1e-5)
    assert sum(map(len, cache.of(rows))) == (1 + flip) * len(rows)  # statistics are of whole pictures
    again = cache_latents(space, pictures.pixels, "content", sides, tmp_path, CPU, no_progress)
    assert torch.equal(again.at(rows * 0, rows), cache.at(rows * 0, rows))


def test_other_views_have_another_key():
    vae = first_leg().trained
    keys = {
        cache_key(vae, "content", Sides(views=None if boxes is None else Views(boxes, list)))
        for boxes in (None, *draw_boxes(RNG, 2, 1, 10))
    }
    assert len(keys) == 3


# -- The denoiser ------------------------------------------------------------------------------------------------------


def denoiser(views=True):
    return perturbed(Denoiser(Dit(DitConfig(width=16, depth=1, heads=2), 2, 2), 16, 2, "flow", views=views))


def test_the_denoiser_is_conditioned_on_views_and_a_whole_picture_is_the_default():
    network, noisy, sigma = denoiser(), torch.randn(2, 2, 4, 4), torch.tensor([0.5, 2.0])
    labels = conditioned(0, 1).labels
    plain = network(noisy, sigma, Condition(labels))
    assert torch.equal(network(noisy, sigma, Condition(labels, view=torch.zeros(2, 4))), plain)
    for place in range(4):
        other = network(noisy, sigma, Condition(labels, view=torch.eye(4)[[place, place]]))
        assert (other - plain).abs().amax((1, 2, 3)).min() > 1e-4


def test_a_denoiser_without_views_has_no_weights_for_them():
    assert "view.weight" in denoiser().state_dict() and "view.weight" not in denoiser(False).state_dict()


# -- The whole road ----------------------------------------------------------------------------------------------------


def test_views_of_cached_latents_are_not_cut_again(tmp_path):
    space, pictures = LatentSpace(first_leg().trained).requires_grad_(False), noise_pictures()
    boxes = draw_boxes(RNG, VIEWS, len(pictures))
    for read in (lambda: pictures.pixels, lambda: pytest.fail("read again")):
        cache_latents(space, pictures.pixels, "", Sides(False, Views(boxes, read)), tmp_path, CPU, no_progress)


@pytest.mark.parametrize("flip", [False, True])
def test_the_prior_is_fitted_to_whole_pictures_and_to_views_and_chosen_by_whole_ones(monkeypatch, flip):
    own, pictures, fitted = recipe(flip=flip, denoiser={"views": 5}), noise_pictures(), []
    real = fitting.fit_prior
    monkeypatch.setattr(fitting, "fit_prior", lambda *given: fitted.append(given) or real(*given))
    cache = side_cache(1 + flip)
    space = LatentSpace(first_leg().trained)
    fitting.fit_mixture(own, [Bucket(pictures, latent_examples(own, pictures, cache, CPU))], space)
    train, validation = fitted[0][:2]
    found = [round(float(value)) for value in side_values(space, train.latents)]
    expected = [*range(1 + flip + MOST_FITTED_VIEWS)]  # of five views three
    assert sorted(found) == sorted(expected * len(pictures.train_indices)) and fitted_sides(own) == len(expected)
    assert {round(float(value)) for value in side_values(space, validation.examples.latents)} <= {*range(1 + flip)}


def side_cache(whole):
    """Moments whose means are 4 times the number of their side, with hardly any variance."""
    moments = noise_cache(recipe()).moments[:1].expand(whole + 5, -1, -1, -1, -1).clone()
    means, log_variances = moments.chunk(2, 2)
    means[:] = 4 * torch.arange(whole + 5)[:, None, None, None, None]
    log_variances[:] = -20
    return type(noise_cache(recipe()))(moments, draw_boxes(RNG, 5, 10))


def side_values(space, latents):
    return (latents * space.spread.view(-1, 1, 1) + space.mean.view(-1, 1, 1)).mean((1, 2, 3)) / 4


def test_a_leg_with_views_is_validated_on_whole_pictures_and_gives_the_network_the_places():
    own, pictures = recipe(flip=False, denoiser={"views": 5}), noise_pictures()
    space = LatentSpace(first_leg().trained)
    leg = denoiser_leg(own, [Bucket(pictures, latent_examples(own, pictures, side_cache(1), CPU))], space, CPU)
    for batch in (leg.validator.held_out, leg.validator.train):
        assert batch.view.abs().max() == 0 and batch.clean[:, :3].abs().max() == 0
    batch = leg.source.batch(0, 50)
    noised = leg.objective.noised(batch, RNG)
    assert torch.equal(leg.objective.condition(noised).view, batch.view) and batch.view.abs().max() > 0
    rows = slice(3, None, 2)
    assert torch.equal(leg.objective.condition(noised.at(rows)).view, batch.view[rows])


@pytest.mark.parametrize(("stages", "side"), [((), 32), ((8, 16), 16)])
def test_views_are_cut_from_larger_pictures(tmp_path, monkeypatch, stages, side):
    be_quick(monkeypatch)
    seen, real = [], latents.cut_views
    monkeypatch.setattr(
        latents, "cut_views", lambda pixels, *more: seen.append(pixels.shape[-1]) or real(pixels, *more)
    )
    train_small(tmp_path, "denoiser.views=2", settings=HYBRID if stages else SETTINGS)
    assert set(seen) == {side}


def test_a_run_with_views_goes_on_where_it_was_stopped_and_samples(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    whole = train_small(tmp_path / "whole", "denoiser.views=2")
    plain = train_small(tmp_path / "plain", "denoiser.views=0")
    folder = write_pictures(tmp_path / "stopped" / "pictures")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupted_at(patch, [("denoiser", 20)])
        train_small(tmp_path / "stopped", "denoiser.views=2")
    commands.resume(ResumeOptions(folder.parent / "run"), Keeper())
    assert products(folder.parent / "run") == products(whole) != products(plain)
    assert len([*load(whole).draw(2)]) == 2
    choices = {choice["what"]: choice for choice in read_json(whole / "plan.json")["choices"]}
    assert choices["crops"]["value"] == "2 of each picture" and choices["crops"]["why"] == "as you set it"


def test_a_cascade_has_no_views():
    with pytest.raises(UserError, match=r"denoiser\.views is 2, but views are of latents; leave it out"):
        parse_recipe(merge(CASCADE, {"denoiser": {"views": 2}}))


@pytest.mark.parametrize("views", [0, 1])
def test_the_standalone_code_has_the_same_weights(views):
    pytest.importorskip("diffusers")
    from calotype.export.standalone import modeling

    stage = build_stage(recipe(denoiser={"views": views}), PixelSpace(), 2, None)
    about = stage_config(stage, recipe().denoiser, recipe().sampling)
    modeling.denoiser_of(about, 2, None).load_state_dict(stage.denoiser.state_dict())
