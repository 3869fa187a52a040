"""Copies are told from pictures that are only alike, in features and pixels, mirrored or not."""

import numpy as np
import pytest
import torch
from small import CPU, noise_pictures

from calotype.data.images import images_from_pixels, rounded
from calotype.data.split import evenly
from calotype.diffusion.stage import generate
from calotype.evaluation import memorisation as of_memorisation
from calotype.evaluation.features import Lite0, features
from calotype.evaluation.memorisation import (
    COMPARED_SIDE,
    COPIES,
    DOES_NOT_COPY,
    TOO_FEW,
    Compared,
    Found,
    Nearest,
    Origins,
    copy_verdict,
    found_among,
    memorisation,
    nearest_trained,
    small_pixels,
)
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.training.examples import Bucket, picture_examples
from calotype.training.legs import denoiser_leg
from calotype.types import NULL_LABEL, Rng


def kind(count, seed):
    """Pictures, and features that follow them."""
    rng = np.random.default_rng(seed)
    pixels, times = rng.uniform(-1, 1, (count, 3, 4, 4)), COMPARED_SIDE // 4
    return seen(pixels.repeat(times, 2).repeat(times, 3).astype(np.float32))


def seen(pixels):
    def of(some):
        return some.reshape(len(some), -1).astype(np.float64)[:, ::16]

    return Compared(of(pixels), pixels, of(pixels[..., ::-1]))


def nearly(some, amount=0.05):
    noise = np.random.default_rng(9).standard_normal(some.pixels.shape).astype(np.float32)
    return seen(some.pixels + amount * noise)


@pytest.fixture(scope="module")
def trained():
    return kind(60, 0)


@pytest.fixture(scope="module")
def others(trained):
    return nearest_trained(kind(100, 1), trained)


def test_the_nearest_is_the_nearest_by_brute_force(trained):
    some = kind(20, 2)
    found = nearest_trained(some, trained)
    for row, picture in enumerate(some.pixels):
        both = np.stack([picture, picture[..., ::-1]])[:, None] - trained.pixels
        apart = np.sqrt(np.square(both).mean((2, 3, 4))).min(0)
        assert found.apart[row] == pytest.approx(apart[found.place[row]], abs=1e-5)
        assert found.apart[row] <= np.sort(apart)[11]  # by features first, so one of the nearest dozen


@pytest.mark.parametrize("mirrored", [False, True])
def test_copies_are_found_where_they_come_from(trained, others, mirrored):
    source = seen(trained.pixels[..., ::-1]) if mirrored else trained
    found = nearest_trained(nearly(source), trained)
    assert found.place.tolist() == list(range(60))
    assert copy_verdict(found, others)[0] == COPIES


def test_pictures_of_the_same_kind_are_no_copies(trained, others):
    found = nearest_trained(kind(100, 3), trained)
    assert copy_verdict(found, others)[0] == DOES_NOT_COPY


def test_blurred_and_average_pictures_are_no_copies(trained, others):
    """They are nearer to trained ones than real pictures are, but to many of them."""
    average = seen(0.2 * kind(100, 4).pixels)
    found = nearest_trained(average, trained)
    assert np.median(found.apart) < np.median(others.apart)
    assert copy_verdict(found, others)[0] == DOES_NOT_COPY


def test_a_tenth_of_copies_among_enough_samples_is_found(trained, others):
    mixed = np.concatenate([kind(90, 5).pixels, nearly(trained).pixels[:10]])
    found = nearest_trained(seen(mixed), trained)
    assert found.share_of_copies.value == pytest.approx(0.1)
    assert copy_verdict(found, others)[0] == COPIES


def test_of_few_samples_no_verdict_is_given(trained, others):
    few = nearest_trained(kind(10, 6), trained)
    assert copy_verdict(few, others)[0] == TOO_FEW


def test_real_pictures_that_look_like_copies_excuse_samples_that_do(trained):
    """A folder of near doubles: then held-out pictures are as near as samples."""
    near = nearest_trained(nearly(trained), trained)
    assert copy_verdict(near, near)[0] != COPIES


def test_samples_that_look_like_copies_of_unseen_pictures_as_often_are_no_copies():
    """Guided samples of pictures that are much alike: typical of them, and so like one or another by chance."""
    shown = kind(100, 8)
    real = nearest_trained(kind(100, 9), shown)
    trained, tested = (seen(shown.pixels[rows]) for rows in (slice(0, 80), slice(80, 100)))
    found = found_among(nearly(shown), trained, tested, of_one_class(80, 20, 100))
    assert found == pytest.approx(Found(80, 20, nearest_is_training=80, samples=100, chance=0.2, chance_of_nearest=0.2))
    assert found.memorised.value == pytest.approx(0)
    nearest = nearest_trained(nearly(shown), trained)
    assert copy_verdict(nearest, real)[0] == COPIES and copy_verdict(nearest, real, found)[0] == TOO_FEW
    assert "20 of them of a test picture, where chance alone gives 20.0" in copy_verdict(nearest, real, found)[1]
    many = found._replace(of_training=80 * 100, of_test=20 * 100, samples=100 * 100)
    assert copy_verdict(nearest, real, many)[0] == DOES_NOT_COPY
    memorised = found_among(nearly(trained), trained, tested, of_one_class(80, 20, 80))
    assert memorised.memorised.value == 1 and memorised.memorised.low > 0.6
    assert copy_verdict(nearest_trained(nearly(trained), trained), real, memorised)[0] == COPIES
    a_quarter = found._replace(of_training=850, of_test=150, samples=1000)
    assert a_quarter.memorised.value == pytest.approx(0.25) and copy_verdict(nearest, real, a_quarter)[0] == COPIES


def of_one_class(train, test, samples):
    return Origins(*(np.zeros(count, np.int64) for count in (train, test, train)), np.full(samples, -1))


def test_a_prompt_is_no_chance_to_look_like_the_picture_that_it_describes():
    """Half of the samples are like what their prompts say, and so like test pictures; the others are memorised."""
    trained, test = kind(80, 8), kind(20, 9)
    prompts, memorised = torch.arange(50) % 20, nearly(trained).pixels[:50]
    samples = seen(np.concatenate([nearly(seen(test.pixels[prompts])).pixels, memorised]))
    found = of_many(samples, trained, test, sources=80 + torch.arange(100) % 20).measures
    assert found.verdict == COPIES
    assert (found.among_test.of_training, found.among_test.of_test) == (50, 0)
    unprompted = of_many(samples, trained, test).measures
    assert unprompted.verdict != COPIES and unprompted.among_test.of_test == 50


def test_chance_is_that_of_the_classes_of_samples():
    """Of 60 classes of five, 20 have a test picture: their samples meet it three times as often as those of all."""
    trained, tested = kind(280, 8), kind(20, 9)
    of_trained, of_tested = np.concatenate([np.arange(20).repeat(4), 20 + np.arange(200) // 5]), np.arange(20)
    samples = seen(np.concatenate([nearly(trained).pixels[:80], nearly(tested).pixels]))
    origins = Origins(of_trained, of_tested, of_trained, np.full(100, -1))
    found = found_among(samples, trained, tested, origins)
    assert (found.of_training, found.of_test) == (80, 20)
    assert found.chance == found.chance_of_nearest == pytest.approx(0.2)
    assert found.memorised.value == pytest.approx(0)


def test_of_one_test_picture_a_class_nothing_is_left_to_compare_a_prompt_with():
    trained, test = kind(80, 8), kind(20, 9)
    labels = torch.cat([torch.arange(80) % 20, torch.arange(20)])
    found = of_many(nearly(trained), trained, test, labels, 80 + torch.arange(80) % 20).measures
    assert found.verdict == COPIES and found.among_test is None


def test_a_model_that_memorises_is_not_excused_by_real_pictures_that_look_like_copies(trained):
    """Of many samples, and of test pictures, a fifth look like copies: but the samples of training pictures alone."""
    real = nearest_trained(seen(np.concatenate([kind(800, 5).pixels, *[nearly(trained).pixels[:50]] * 4])), trained)
    memorised = Found(200, 0, nearest_is_training=950, samples=1000, chance=0.1, chance_of_nearest=0.1)
    assert copy_verdict(real, real)[0] == DOES_NOT_COPY
    assert memorised.memorised.low > 0.1 and copy_verdict(real, real, memorised)[0] == COPIES
    assert "0 of them of a test picture, where chance alone gives 20.0" in copy_verdict(real, real, memorised)[1]
    by_chance = memorised._replace(of_training=180, of_test=20)
    assert copy_verdict(real, real, by_chance)[0] == DOES_NOT_COPY


def test_no_share_is_below_0_and_a_single_test_picture_excuses_nobody(trained, others):
    """One test picture of 91 where chance gives 0.2 is little to go by."""
    few = Found(90, 1, nearest_is_training=170, samples=180, chance=0.002, chance_of_nearest=0.002)
    assert few.memorised.value == few.memorised.low == 0
    assert copy_verdict(nearest_trained(nearly(trained), trained), others, few)[0] == TOO_FEW


def test_where_no_sample_looks_like_a_copy_nothing_is_memorised():
    none = Found(0, 0, nearest_is_training=80, samples=100, chance=0.2, chance_of_nearest=0.2)
    assert none.memorised.value == 0 and none.memorised.high < 0.04


def test_near_duplicates_are_counted_and_a_picture_is_not_its_own(trained):
    twins = seen(np.concatenate([trained.pixels, nearly(trained, 0.01).pixels[:15]]))
    assert nearest_trained(trained, trained, themselves=True).share_of_duplicates.value == 0
    assert nearest_trained(twins, twins, themselves=True).share_of_duplicates.value == pytest.approx(30 / 75)


def test_order_does_not_matter(trained):
    turned = np.random.default_rng(0).permutation(60)
    some = kind(20, 7)
    there, back = nearest_trained(some, trained), nearest_trained(some, seen(trained.pixels[turned]))
    assert turned[back.place].tolist() == there.place.tolist()
    assert back.ratio == pytest.approx(there.ratio, abs=1e-6)


def of_many(samples, trained, test, labels=None, sources=None):
    """The measures with 20 of the training pictures searched by features, the others by thumbnails."""
    every = Compared(*(np.concatenate(parts) for parts in zip(trained, test, strict=True)))

    def compared(rows, mirrored):
        features, pixels, mirror_images = (part[rows.numpy()] for part in every)
        return Compared(features, pixels, mirror_images if mirrored else None)

    def small(rows):
        return (every.pixels[part.numpy()] for part in rows.split(7))

    count = len(trained.pixels)
    rows = torch.arange(count + len(test.pixels))
    labels = torch.zeros(len(rows), dtype=torch.long) if labels is None else labels
    sources = torch.full((len(samples.pixels),), -1) if sources is None else sources
    return memorisation(samples, compared, small, rows[:count], rows[count:], labels, sources)


@pytest.mark.parametrize("mirrored", [False, True])
def test_a_copy_of_any_of_many_pictures_is_found(monkeypatch, mirrored):
    """Also of one that is not among the few that are compared by features."""
    monkeypatch.setattr(of_memorisation, "MOST_SEARCHED", 20)
    trained, test = kind(300, 0), kind(60, 1)
    copied = [row for row in range(300) if row not in evenly(torch.arange(300), 20)][:60]
    source = trained.pixels[copied]
    found = of_many(nearly(seen(source[..., ::-1] if mirrored else source)), trained, test)
    assert found.measures.verdict == COPIES and found.measures.samples.copies.value == 1
    assert {row for _, row in found.pairs} <= {*copied} and "all 300" in found.measures.note
    assert of_many(kind(100, 3), trained, test).measures.verdict == DOES_NOT_COPY


def test_without_enough_test_pictures_the_few_are_compared_with_each_other(monkeypatch):
    monkeypatch.setattr(of_memorisation, "MOST_SEARCHED", 20)
    found = of_many(kind(100, 3), kind(300, 0), kind(5, 1)).measures
    assert found.n == (100, 20, 20) and found.note == "20 of 300 training pictures were searched"


def test_a_model_overfitted_to_four_pictures_is_flagged_and_one_of_many_is_not():
    assert judged(5, 300)[0] == COPIES
    assert judged(300, 60)[0] == DOES_NOT_COPY


def judged(count, steps):
    """A denoiser in pixels of 16 px, on `count` pictures of which a tenth is held out."""
    settings = {
        "kind": "cascade", "size": 16, "stages": [16], "flip": False,
        "denoiser": {
            "images": 8 * steps, "batch": 8, "label_dropout": 0.0, "learn": {"learning_rate": 4e-3},
            "backbone": {"kind": "dit", "patch": 4, "width": 64, "depth": 2, "heads": 2},
        },
        "sampling": {"steps": 12, "guidance": 1.0},
    }  # fmt: skip
    recipe, pictures = parse_recipe(settings), noise_pictures(count, classes=())
    form = Bucket(pictures, picture_examples(recipe, pictures, CPU))
    leg = denoiser_leg(recipe, [form], PixelSpace(), CPU)
    for _ in leg.steps():
        pass
    labels, rngs = torch.full((80,), NULL_LABEL), [Rng(("sample", index)) for index in range(80)]
    made = looked_at(rounded(generate([leg.trained], labels, [recipe.sampling], rngs)))
    trained = looked_at(images_from_pixels(pictures.pixels[pictures.train_indices]))
    real: Nearest = nearest_trained(trained, trained, themselves=True)
    return copy_verdict(nearest_trained(made, trained), real)


def looked_at(images):
    lite0 = Lite0()
    return Compared(features(images.split(32), lite0), small_pixels(images), features(images.flip(-1).split(32), lite0))
