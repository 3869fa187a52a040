"""Memory that is too small: refused by the plan before any is taken, or met by smaller parts of the same batch."""

import time
from dataclasses import replace

import pytest
import torch
from small import CASCADE, HYBRID, SETTINGS, be_quick, first_leg, machine, noise_pictures, second_leg

from calotype.bounds import LARGEST_SIDE
from calotype.build import build_space
from calotype.data.caches import cached_pixels
from calotype.data.latents import cache_latents, encoded_at_once
from calotype.machine import out_of_memory, peak_memory
from calotype.nets.weights import ShapesOnly
from calotype.planning import make_plan
from calotype.planning.costs import build_stages
from calotype.planning.memory import (
    FILLED,
    PATCH_OVERHEAD,
    fit_memory,
    latent_bytes,
    patch_fit_memory,
    predicted_memory,
    rounds_of,
    validation_bytes,
)
from calotype.priors.patches import chosen_patches, windows_of
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.tables import merge
from calotype.training.fitting import PATCHES
from calotype.training.loop import Division
from calotype.types import UserError, no_progress

TEXTS = ("CUDA out of memory. Tried", "alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory")


def scarce(leg, most, patch, error=None):
    """There is memory for so many images at once."""
    slices = leg.objective.slices

    def few(batch, fraction, rng, at_once, rounds):
        parts = slices(batch, fraction, rng, at_once, rounds)

        def part(index):
            if len(batch) > most * len(parts):
                raise error or RuntimeError(TEXTS[1])
            return parts[index]()

        return [lambda index=index: part(index) for index in range(len(parts))]

    patch.setattr(leg.objective, "slices", few)
    return leg


def trained(leg, steps=3):
    notes = []
    for _ in zip(range(steps), leg.steps(note=notes.append), strict=False):
        pass
    return torch.cat([weight.detach().flatten() for weight in leg.states["denoiser"].parameters]), notes


@pytest.mark.parametrize(("most", "parts"), [(2, 2), (1, 4)])
@pytest.mark.parametrize("error", [MemoryError(), *map(RuntimeError, TEXTS)])
def test_where_memory_is_scarce_the_same_batch_is_worked_on_in_parts(monkeypatch, most, parts, error):
    whole, notes = trained(second_leg())
    assert not notes
    weights, notes = trained(scarce(second_leg(), most, monkeypatch, error))
    assert [note.rsplit(maxsplit=2)[1] for note in notes] == [str(count) for count in (2, 4) if count <= parts]
    assert (weights - whole).norm() <= 1e-4 * whole.norm()


def test_where_one_image_is_too_much_the_run_stops_with_advice(monkeypatch):
    with pytest.raises(UserError, match=r"memory is too small for a training step .* smaller batch"):
        trained(scarce(second_leg(), 0, monkeypatch))
    with pytest.raises(UserError, match="memory is too small"):
        trained(scarce(first_leg(), 1, monkeypatch))


def test_other_errors_are_no_lack_of_memory(monkeypatch):
    assert not out_of_memory(RuntimeError("shapes do not match")) and not out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        trained(scarce(second_leg(), 0, monkeypatch, RuntimeError("shapes do not match")))


TOO_LARGE = {
    "weights": {"denoiser": {"backbone": {"width": 16384, "depth": 256, "heads": 64}}},
    "batch": {"autoencoder": {"batch": 65536}},
    "latents": {"autoencoder": {"network": {"channels": 16384}}},
    "size": {"size": LARGEST_SIDE, "autoencoder": {"crop": 0}},
    "stage": merge(CASCADE, {"enlarge": {"16": {"backbone": {"width": 4096, "blocks": 32}}}}),
}


@pytest.mark.parametrize("name", TOO_LARGE)
def test_what_does_not_fit_is_refused_before_memory_is_taken(name):
    with pytest.raises(
        UserError, match=r"needs about [\d,.]+ GB of memory .* but only 1.0 GB are free on cpu; lower"
    ) as error:
        rounds_of(parse_recipe(TOO_LARGE[name]), machine())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("settings", [SETTINGS, CASCADE, HYBRID, {}])
def test_what_fits_is_not_refused(settings):
    recipe = parse_recipe(settings)
    assert rounds_of(recipe, machine()) == dict.fromkeys(recipe.legs, 1)
    assert torch.empty(1).device.type == "cpu"


@pytest.mark.parametrize("batch", [256, 1024, 4096])
def test_a_batch_that_does_not_fit_is_planned_in_parts_that_do(batch):
    recipe = parse_recipe({"denoiser": {"batch": batch, "backbone": {"width": 256, "depth": 8, "heads": 4}}})
    parts, small = rounds_of(recipe, machine())["denoiser"], machine().memory
    assert parts > 1 and (batch == 256 or parts > rounds_of(recipe, replace(machine(), memory=4 * small))["denoiser"])
    needed = predicted_memory(recipe, machine(), {"autoencoder": 1, "denoiser": parts})
    assert (
        0.3 * small
        < needed
        <= FILLED * small
        < predicted_memory(recipe, machine(), {"autoencoder": 1, "denoiser": parts // 2})
    )


def test_a_leg_begins_with_the_parts_of_its_plan(monkeypatch):
    """And ends with the weights that it has in one part."""
    whole, _ = trained(second_leg())
    leg, counts = second_leg(), []
    slices = leg.objective.slices
    monkeypatch.setattr(
        leg.objective,
        "slices",
        lambda batch, fraction, rng, *count: counts.append(count) or slices(batch, fraction, rng, *count),
    )
    for _ in zip(range(3), leg.steps(Division(rounds=4)), strict=False):
        pass
    weights = torch.cat([weight.detach().flatten() for weight in leg.states["denoiser"].parameters])
    assert counts == 3 * [(1, 4)] and (weights - whole).norm() <= 1e-4 * whole.norm()


def test_pictures_that_do_not_fit_into_memory_are_refused_before_they_are_read():
    with pytest.raises(UserError, match=r"take [\d.]+ GB .* smaller size"):
        cached_pixels(None, (10**6, 3, LARGEST_SIDE, LARGEST_SIDE), lambda pixels: pytest.fail("they are read"))


# -- What the fits between the legs hold -------------------------------------------------------------------------------


def fits(count, **settings):
    recipe = parse_recipe(merge({"size": 64, "flip": False}, settings))
    with ShapesOnly():
        space = build_space(recipe) if recipe.kind == "latent" else PixelSpace()
        return fit_memory(recipe, build_stages(recipe, space, count, 6, None)[0], count, 100)


def test_fits_hold_more_of_more_pictures_and_mirror_images_and_captions_up_to_a_bound():
    plain = fits(8000)["fit"]
    mirrored, captioned = fits(8000, flip=True)["fit"], fits(8000, denoiser={"text": {"kind": "bytes"}})["fit"]
    assert fits(4000)["fit"] < plain < mirrored < 2 * plain and plain < captioned
    assert fits(10**6, flip=True)["fit"] == fits(10**7)["fit"]
    assert fits(8000, denoiser={"prior": "none"}) == {}


def test_a_prior_of_patches_holds_the_windows_and_residuals_of_half_its_pixels():
    low_res, factor = torch.rand(4, 3, 16, 16), 4
    contrast = windows_of(low_res)[1]
    held = chosen_patches([(low_res, torch.rand(4, 3, 64, 64))], factor, contrast)
    bytes_of_a_pixel = sum(part.nbytes for part in held) / len(contrast)
    assert (patch_fit_memory(factor) - PATCH_OVERHEAD) / PATCHES == pytest.approx(bytes_of_a_pixel, rel=0.01)
    assert list(fits(100, kind="cascade", stages=[16, 64])) == ["fit", "prepare-64"]


@pytest.mark.parametrize("flip", [False, True])
def test_the_bytes_of_all_latents_are_those_of_their_cache(tmp_path, flip):
    recipe = parse_recipe(merge(SETTINGS, {"flip": flip}))
    pixels = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    cache = cache_latents(build_space(recipe), pixels, "", flip, tmp_path, torch.device("cpu"), no_progress)
    assert latent_bytes(recipe, len(pixels)) == cache.moments.nbytes
    assert latent_bytes(parse_recipe(CASCADE), 5) == 0


def test_a_leg_holds_two_batches_of_validation_pictures():
    assert validation_bytes(parse_recipe(CASCADE)) == 2 * torch.empty(128, 3, 8, 8).nbytes
    assert validation_bytes(parse_recipe({"size": 1024})) == 2 * torch.empty(4, 3, 1024, 1024).nbytes


def test_large_pictures_are_encoded_a_few_at_a_time():
    assert [encoded_at_once(3 * side**2) for side in (64, 128, 256, 1024)] == [32, 32, 10, 1]


def test_no_plan_promises_less_than_is_held_already(monkeypatch):
    be_quick(monkeypatch)
    plan = make_plan(noise_pictures(), machine(), 60.0, time.time(), SETTINGS)
    assert plan.predicted["peak_memory_bytes"] >= peak_memory(torch.device("cpu")) * 0.999
