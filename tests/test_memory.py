"""Memory that is too small: refused by the plan before any is taken, or met by smaller parts of the same batch."""

import os
import platform
import time
from dataclasses import replace
from itertools import accumulate

import pytest
import torch
from small import CASCADE, HYBRID, SETTINGS, be_quick, first_leg, machine, noise_pictures, second_leg
from test_cli import python
from torch.profiler import ProfilerActivity, profile

from calotype.bounds import LARGEST_SIDE
from calotype.build import build_space
from calotype.data.caches import cached_pixels
from calotype.data.latents import Sides, cache_latents, encoded_at_once
from calotype.data.permutation import LARGE_SET
from calotype.machine import describe_machine, out_of_memory, peak_memory
from calotype.nets.weights import ShapesOnly
from calotype.planning import count, make_plan
from calotype.planning.costs import build_stages
from calotype.planning.count import Counted
from calotype.planning.measure import Measurement
from calotype.planning.memory import (
    DECOMPOSED,
    FILLED,
    PATCH_OVERHEAD,
    derived_bytes,
    fit_memory,
    latent_bytes,
    patch_fit_memory,
    pixel_bytes,
    predicted_memory,
    rounds_of,
    validation_bytes,
)
from calotype.priors.clusters import components_of
from calotype.priors.fit import Observations, regress
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import PatchPrior, chosen_patches, windows_of
from calotype.priors.stored import prior_in
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.tables import merge
from calotype.training.fitting import PATCHES
from calotype.training.loop import Division
from calotype.types import NULL_LABEL, UserError, no_progress

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


HEAP = """
import numpy as np, psutil
from calotype.heap import freed_at_once, keep_freed

def kept():
    held = psutil.Process().memory_info().rss
    block = np.ones(2**21)
    del block
    return psutil.Process().memory_info().rss - held > 2**23

keep_freed()
with freed_at_once():
    print(kept())
print(kept())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep what they like")
def test_freed_memory_is_kept_in_training_and_given_back_within_fits(monkeypatch):
    for name in [name for name in os.environ if name.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    assert python(HEAP).communicate(timeout=120)[0].split() == ["False", "True"]


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


def held_by(function):
    """The most bytes of tensors that it holds at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        function()
    events = profiled.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def test_the_axes_of_a_class_take_what_the_plan_expects_and_the_regression_on_captions_no_copy_of_the_images():
    points, all_of_them = torch.randn(3000, 512), {NULL_LABEL: torch.ones(3000, dtype=torch.bool)}
    components_of(points, all_of_them, 128)  # the first call of linear algebra takes memory of its own
    copies = 1 + (1 + DECOMPOSED) * 128 / 512
    assert held_by(lambda: components_of(points, all_of_them, 128)) == pytest.approx(copies * points.nbytes, rel=0.15)
    bags = torch.rand(3000, 64).round()
    observed, held_out = Observations(bags, points), Observations(bags[:50], points[:50])
    assert held_by(lambda: regress(observed, held_out)) < 0.5 * points.nbytes


def test_sizes_of_a_prior_from_a_stranger_take_no_memory_before_all_shapes_agree():
    """A tensor without values may have any sizes."""
    tensors = {f"prior.{name}": value for name, value in GaussianMixture(1, 0, 4).state_dict().items()}
    tensors["prior.rotations"] = torch.zeros(1, 1, 5000, 0)

    def opened():
        with pytest.raises(UserError, match="rotations is"):
            prior_in(tensors)

    assert held_by(opened) < 2**20


def test_a_prior_of_patches_holds_the_windows_and_residuals_of_half_its_pixels_and_itself_twice():
    """Residuals twice, when what is common to all clusters is subtracted."""
    low_res, factor = torch.rand(4, 3, 16, 16), 4
    contrast = windows_of(low_res)[1]
    windows, residuals, flat = chosen_patches([(low_res, torch.rand(4, 3, 64, 64))], factor, contrast)
    bytes_of_a_pixel = (windows.nbytes + 2 * residuals.nbytes) / len(contrast)
    prior = PatchPrior(factor)
    constants = 2 * (prior.axes.nbytes + prior.weights.nbytes)
    assert flat.nbytes < residuals.nbytes
    assert (patch_fit_memory(factor) - PATCH_OVERHEAD - constants) / PATCHES == pytest.approx(
        bytes_of_a_pixel, rel=0.01
    )
    assert list(fits(100, kind="cascade", stages=[16, 64])) == ["fit", "prepare-64"]


@pytest.mark.parametrize("flip", [False, True])
def test_the_bytes_of_all_latents_are_those_of_their_cache(tmp_path, flip):
    recipe = parse_recipe(merge(SETTINGS, {"flip": flip}))
    pixels = torch.zeros(5, 3, 16, 16, dtype=torch.uint8)
    cache = cache_latents(build_space(recipe), pixels, "", Sides(flip), tmp_path, torch.device("cpu"), no_progress)
    assert latent_bytes(recipe, [len(pixels)]) == (cache.moments.nbytes,) * 2
    assert latent_bytes(parse_recipe(CASCADE), [5]) == (0, 0)


def test_means_of_a_large_set_are_on_the_disk_alone_and_each_aspect_bucket_is_a_set():
    recipe = parse_recipe(merge(SETTINGS, {"flip": False}))
    one = latent_bytes(recipe, [1]).memory
    large = LARGE_SET + 2
    assert latent_bytes(recipe, [large]) == (0, large * one // 2)
    assert latent_bytes(recipe, [large // 2] * 2) == (large * one,) * 2
    assert latent_bytes(recipe, [large, 1]) == (one, large * one // 2 + one)


def test_only_pixels_that_fit_are_counted():
    pictures = replace(noise_pictures(), sampled_from=1000)
    needed = 1000 * pictures.pixels[0].nbytes
    assert pixel_bytes(pictures, 4 * needed) == needed and pixel_bytes(pictures, 4 * needed - 1) == 0
    recipe = parse_recipe(CASCADE)
    assert derived_bytes(recipe, [1000], 10**9) == 1000 * 3 * recipe.chain[0] ** 2
    wide = parse_recipe(merge(SETTINGS, {"aspect_buckets": 5}))
    counts = [600, 400]
    assert derived_bytes(wide, counts, 10**9) == needed + latent_bytes(wide, counts).memory
    assert derived_bytes(wide, counts, 2 * needed) == 0.4 * needed + latent_bytes(wide, counts).memory


@pytest.mark.parametrize("method", [Measurement, Counted])
def test_a_plan_of_a_sample_counts_pictures_that_are_not_read_yet_where_they_will_be_in_memory(method):
    """Neither those that will be mapped nor latents that will be: an endless set needs no more than a large one."""
    recipe, large = parse_recipe(SETTINGS), replace(machine(), memory=2**34)

    def peak(count):
        pictures = replace(noise_pictures(), sampled_from=count)
        return method(recipe, pictures, large, rounds_of(recipe, large)).peak_memory([count])

    noise = 2**26
    assert peak(4 * 10**6) - peak(10**6) == pytest.approx(3 * 10**6 * 3 * 16**2, abs=noise)
    assert peak(10**9) - peak(10**8) == pytest.approx(0, abs=noise)


def test_a_described_gpu_counts_validation_pictures_but_none_in_main_memory(monkeypatch):
    pictures, gpu = noise_pictures(), describe_machine("cuda", 1e13, 2**34)
    recipe = parse_recipe(SETTINGS)
    counted = Counted(recipe, pictures, gpu, rounds_of(recipe, gpu))
    before = counted.peak_memory([20])
    assert counted.peak_memory([10**5]) == before
    monkeypatch.setattr(count, "validation_bytes", lambda recipe: 10**10)
    assert counted.peak_memory([20]) >= 10**10


def test_counted_priors_cost_what_the_components_of_one_label_do():
    """With more classes than have components of their own, there is one for all, as without classes."""
    recipe, gpu = parse_recipe({**SETTINGS, "denoiser": {"prior": "gaussian"}}), describe_machine("cuda", 1e13, 2**34)
    flops = {}
    for classes in (0, 2, 22):
        pictures = replace(noise_pictures(), classes=tuple(map(str, range(classes))))
        flops[classes] = Counted(recipe, pictures, gpu, rounds_of(recipe, gpu)).prior_flops
    assert flops[22] == flops[0] > flops[2] / 2 > 0


def test_a_leg_holds_validation_and_training_pictures_and_what_is_made_of_one_set():
    assert validation_bytes(parse_recipe(CASCADE)) == 3 * torch.empty(128, 3, 8, 8).nbytes
    assert validation_bytes(parse_recipe({"size": 1024})) == 3 * torch.empty(4, 3, 1024, 1024).nbytes


def test_large_pictures_are_encoded_a_few_at_a_time():
    assert [encoded_at_once(3 * side**2) for side in (64, 128, 256, 1024)] == [32, 32, 10, 1]


def test_no_plan_promises_less_than_is_held_already(monkeypatch):
    be_quick(monkeypatch)
    plan = make_plan(noise_pictures(), machine(), 60.0, time.monotonic(), SETTINGS)
    assert plan.predicted["peak_memory_bytes"] >= peak_memory(torch.device("cpu")) * 0.999
