import numpy as np
import pytest
import torch
from small import noise_pictures
from test_stage import CLASSES, stage

from calotype.data.images import images_from_pixels
from calotype.diffusion.stage import Sampling, generate, generate_in_turn, shrunk
from calotype.evaluation.distances import kernel_distance, kernel_of_rows
from calotype.evaluation.features import Lite0, features
from calotype.evaluation.intervals import on_resamples, resamples
from calotype.evaluation.search import Distance, Search, level_distance, search_level
from calotype.settings import parse_recipe
from calotype.training.levels import judged_side
from calotype.types import Rng

CURVES = {
    "convex": lambda level: (level - 0.37) ** 2,
    "convex, best at 0": lambda level: level,
    "convex, best at the most": lambda level: -level,
    "best just beside 0": lambda level: (level - 0.05) ** 2,
    "best just before the most": lambda level: (level - 0.95) ** 2,
    "flat": lambda level: 1.0,
    "rugged": lambda level: np.sin(40 * level),
    "concave": lambda level: -((level - 0.5) ** 2),
}
curves = pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)


def sure(value):
    """A distance that is the same on all drawn sets."""
    return Distance(float(value), np.full(50, float(value)))


def asked(curve, most, steps):
    """What was asked, in order, and what was found."""
    levels, progress = [], []
    search = search_level(
        lambda level: levels.append(level) or sure(curve(level / most)), most, steps, lambda *at: progress.append(at)
    )
    assert progress == [(number + 1, steps) for number in range(len(levels))]
    return levels, search


@curves
@pytest.mark.parametrize("most", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("steps", [4, 6, 9])
def test_the_level_found_is_as_good_as_the_best_of_an_even_grid(curve, most, steps):
    """And of its neighbours halfway to the next ones; no level is tried twice or beyond the ends."""
    levels, search = asked(curve, most, steps)
    grid = np.linspace(0, most, steps - 2)
    best = min(grid, key=lambda level: curve(level / most))
    halfway = [level for level in (best - grid[1] / 2, best + grid[1] / 2) if -1e-9 <= level <= most + 1e-9]
    near = [curve(level / most) for level in (*grid, *halfway)]
    assert curve(search.best / most) <= min(near) + 1e-9
    assert np.allclose(levels[: steps - 2], grid) and len({*levels}) == len(levels) <= steps
    assert all(0 <= level <= most for level in levels) and set(search.tried) == set(levels)


@pytest.mark.parametrize("place", np.linspace(0, 1, 21))
def test_of_a_valley_the_bottom_is_found_to_a_quarter_of_the_grid(place):
    _, search = asked(lambda level: abs(level - place), 1.0, 6)
    assert abs(search.best - place) <= 1 / 12 + 1e-9


def test_of_equals_the_smallest_level_is_the_best():
    assert Search({0.3: sure(1.0), 0.1: sure(1.0), 0.2: sure(2.0)}).best == 0.1


@pytest.mark.parametrize(("error", "best"), [(0.5, 0.2), (2.0, 0.0)])
def test_a_level_must_be_better_by_more_than_a_standard_error(error, best):
    """Of the difference to the nearest, on the same drawn sets; not of the distances, which may be far less sure."""
    common, own = 100 * np.random.default_rng(0).standard_normal(50), np.random.default_rng(1).standard_normal(50)
    own *= error / own.std(ddof=1)
    search = Search({0.0: Distance(1.0, 1 + common + own), 0.2: Distance(0.0, common)})
    assert search.nearest == 0.2 and search.best == best
    assert search.as_json()["standard_errors"] == pytest.approx([error, 0.0])


def searched(seed, shifts, count=48, channels=24):
    """Samples that change more and more with the level, and lie `shifts(level)` off the real ones."""
    rng = np.random.default_rng(seed)
    one, other, real = rng.standard_normal((3, count, channels))
    same = resamples(count, count, np.random.default_rng(0))

    def distance(level):
        made = np.cos(level) * one + np.sin(level) * other + shifts(level) / np.sqrt(channels)
        return Distance(kernel_distance(made, real), on_resamples(kernel_of_rows(made, real), same))

    return search_level(distance, 1.0, 6, lambda *at: None)


def test_of_equally_good_levels_none_is_nearly_always_taken():
    """The nearest is any of them: that is noise."""
    found = [searched(seed, lambda level: 0.0) for seed in range(40)]
    assert np.mean([one.best == 0 for one in found]) >= 0.85
    assert np.mean([one.nearest == 0 for one in found]) < 0.7


@pytest.mark.parametrize("good", [0.0, 1 / 3, 1.0])
def test_a_level_that_is_clearly_better_is_taken(good):
    for seed in range(10):
        assert searched(seed, lambda level: 2.5 * (abs(level - good) > 0.01)).best == pytest.approx(good)


# -- What a level is worth ---------------------------------------------------------------------------------------------


@pytest.fixture
def crops():
    return images_from_pixels(noise_pictures(12).pixels)


def test_in_parts_is_as_at_once(monkeypatch):
    chain, labels = [stage(4), stage(8, 4)], torch.arange(5) % CLASSES
    samplings = [Sampling(steps=2), Sampling(steps=2, augmentation=0.2)]
    rngs = [Rng((index,)) for index in range(5)]
    whole = generate(chain, labels, samplings, rngs)
    small = torch.rand(5, 3, 4, 4)
    monkeypatch.setattr("calotype.diffusion.stage.THREAD_IMAGES", 1)
    assert torch.allclose(torch.cat([*generate_in_turn(chain, labels, samplings, rngs)]), whole, atol=1e-4)
    above = generate(chain[1:], labels, samplings[1:], rngs, small)
    in_parts = torch.cat([*generate_in_turn(chain[1:], labels, samplings[1:], rngs, small)])
    assert torch.allclose(in_parts, above, atol=1e-4)


def test_equal_levels_are_as_far_and_the_level_is_what_is_sampled_with(crops, monkeypatch):
    """Whatever the stage's own sampling says, a truncated one too; each time with the same noise."""
    one, labels = stage(16, 8), torch.arange(12) % CLASSES
    seen = []
    one.denoiser.register_forward_pre_hook(lambda denoiser, inputs: seen.append(inputs[2].augmentation))
    own = Sampling(steps=2, guidance=1.0, augmentation=0.7, conditioning="truncated")
    distance = level_distance(one, own, shrunk(crops, 2), labels, features([crops], Lite0()), Lite0())
    far = [distance(level) for level in (0.1, 0.3, 0.1)]
    assert far[0].value == far[2].value != far[1].value and np.array_equal(far[0].resampled, far[2].resampled)
    assert all(np.isfinite(one.value) and np.isfinite(one.resampled).all() for one in far)
    assert {round(float(level), 4) for levels in seen for level in levels} == {0.1, 0.3}


def test_levels_are_judged_on_whole_pictures_up_to_256_px_and_above_on_crops():
    crops = {"256": {"crop": 128}, "512": {"crop": 128}}
    recipe = parse_recipe({"kind": "cascade", "size": 512, "stages": [64, 256, 512], "enlarge": crops})
    assert [judged_side(recipe, size) for size in (256, 512)] == [256, 128]
