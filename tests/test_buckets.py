import os
import re
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from PIL import Image
from small import CASCADE, CPU, Keeper, be_quick, noise_pictures, noise_pixels, recipe, request

import calotype
from calotype.cli.commands import check_data, plan, resume, train
from calotype.cli.options import CheckOptions, ResumeOptions
from calotype.data import buckets
from calotype.data import folder as data_folder
from calotype.data.buckets import (
    PixelSize,
    assign_buckets,
    bucket_counts,
    bucket_notes,
    bucket_sizes,
    cropped_fraction,
    read_buckets,
)
from calotype.data.captions import Captions
from calotype.data.folder import read_folder
from calotype.data.images import cut, images_from_pixels, pils_from_images
from calotype.data.sources import PictureSource
from calotype.data.split import Split
from calotype.files import read_json
from calotype.planning.make import sets_of
from calotype.priors import fit
from calotype.spaces.pixel import PixelSpace
from calotype.training.examples import Bucket, MixedSource, main_bucket, picture_examples
from calotype.training.fitting import fit_mixture, take
from calotype.training.legs import denoiser_leg
from calotype.types import Condition, Rng, UserError

TALL, SQUARE, WIDE = PixelSize(12, 24), PixelSize(16, 16), PixelSize(24, 12)
THREE = (TALL, SQUARE, WIDE)


@pytest.fixture
def few(monkeypatch):
    """A bucket needs only two pictures."""
    monkeypatch.setattr(buckets, "MIN_PICTURES", 2)


def write_shapes(folder, counts, seed=0):
    """Pictures of two classes in these sizes, in turn."""
    sizes = [size for size, count in counts.items() for _ in range(count)]
    for index, (size, picture) in enumerate(zip(sizes, pils_from_images(coloured(len(sizes), seed)), strict=True)):
        place = folder / "ab"[index % 2]
        place.mkdir(parents=True, exist_ok=True)
        picture.resize(size).save(place / f"{index}.png")
    return folder


def coloured(count, seed):
    return images_from_pixels(noise_pixels(count, 16, seed))


@pytest.fixture
def folder(tmp_path, few):
    return write_shapes(tmp_path / "pictures", {(30, 60): 12, (40, 40): 5, (50, 26): 8, (44, 40): 3, (400, 8): 1})


# -- Buckets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3, 5, 9])
@pytest.mark.parametrize(("size", "unit"), [(64, 8), (256, 16), (16, 4), (1000, 1)])
def test_buckets_have_the_area_of_the_square_and_evenly_spaced_aspect_ratios(count, size, unit):
    made = bucket_sizes(count, size, unit)
    assert PixelSize(size, size) in made and [PixelSize(*reversed(one)) for one in reversed(made)] == made
    assert all(side % unit == 0 for one in made for side in one)
    assert all(abs(one.width * one.height - size**2) <= 1.5 * unit * size for one in made)
    ratios = [one.width / one.height for one in made]
    assert ratios == sorted(set(ratios)) and len(made) <= count
    if unit == 1 and count > 1:
        assert ratios[-1] == pytest.approx(2, rel=0.01)
        steps = [after / before for before, after in pairwise(ratios)]
        assert steps == pytest.approx([4 ** (1 / (count - 1))] * (count - 1), rel=0.02)


@pytest.mark.parametrize("size", [(30, 60), (61, 33), (400, 8), (1, 1), (37, 37)])
@pytest.mark.parametrize("shape", THREE)
def test_the_cropped_fraction_is_that_of_the_rows_or_columns_outside(size, shape):
    """Of the rows or the columns of a picture that is enlarged enough to be cut without rounding."""
    width, height = (side * 24 for side in size)
    part = min(width, height * shape.width / shape.height) * min(height, width * shape.height / shape.width)
    assert cropped_fraction(PixelSize(*size), shape) == pytest.approx(1 - part / (width * height))
    assert cropped_fraction(shape, shape) == 0 <= cropped_fraction(PixelSize(*size), shape) < 1


def test_pictures_go_to_the_nearest_bucket_with_enough_pictures():
    sizes = [PixelSize(10, 20)] * 20 + [PixelSize(10, 10)] * 20 + [PixelSize(90, 40)] * 15 + [PixelSize(1, 900)]
    assert Counter(assign_buckets(sizes, THREE)) == {TALL: 21, SQUARE: 35}
    assert Counter(assign_buckets([*sizes, PixelSize(90, 40)], THREE)) == {TALL: 21, SQUARE: 20, WIDE: 16}
    assert assign_buckets(sizes[::-1], THREE) == assign_buckets(sizes, THREE)[::-1]
    assert assign_buckets([PixelSize(10, 20), PixelSize(20, 10), PixelSize(9, 20)], THREE) == [TALL] * 3


def test_notes_say_what_squares_cut_away_and_what_buckets_do():
    sizes = [PixelSize(30, 60)] * 20 + [PixelSize(10, 10)] * 20
    assert bucket_notes([PixelSize(7, 7)] * 3, 1, 16, 4) == []
    (note,) = bucket_notes(sizes, 1, 16, 4)
    assert note == "squares cut away 25% of 40 pictures; with --set aspect_buckets=5 it is 0%"
    cut, default = bucket_notes(sizes, 3, 16, 4)
    assert cut == (
        "aspect buckets: 12 x 24 px 20, 16 x 16 px 20; 0% of each is cut away on average, 20 are enlarged "
        "(25% with squares)"
    )
    assert "squares" in default and "--size" in default


# -- Reading -----------------------------------------------------------------------------------------------------------


def test_every_picture_is_in_one_bucket_cropped_from_its_file(folder, tmp_path):
    pictures = read_folder(folder, 16)
    divided = read_buckets(pictures, THREE, 1, tmp_path)
    assert [(*reversed(one.pixels.shape[2:]), len(one)) for one in divided] == [(*TALL, 12), (*WIDE, 9), (*SQUARE, 8)]
    seen = {original.path: index for index, original in enumerate(pictures.originals)}
    for bucket in divided:
        for row, original in enumerate(bucket.originals):
            index = seen.pop(original.path)
            assert bucket.labels[row] == pictures.labels[index]
            for name, inside in pictures.split.sets.items():
                assert bucket.split.sets[name][row] == inside[index]
            (made,) = pils_from_images(images_from_pixels(bucket.pixels[row, None]))
            assert made.tobytes() == cut(Image.open(original.path), *made.size).tobytes()
    assert not seen and len({bucket.content for bucket in divided}) == 3
    half = read_buckets(pictures, THREE, 2, tmp_path)
    assert [tuple(one.pixels.shape[2:]) for one in half] == [(12, 6), (6, 12), (8, 8)]


def test_a_plan_counts_the_pictures_of_each_bucket_also_those_of_which_it_has_a_sample(folder, tmp_path):
    """Each bucket is a set of its own, by whose size it is decided where its latents are."""
    pictures = read_folder(folder, 16)
    found = [len(each) for each in read_buckets(pictures, THREE, 1, tmp_path)]
    assert bucket_counts(pictures, THREE) == found and sum(found) == len(pictures)
    assert bucket_counts(replace(pictures, sampled_from=100 * len(pictures)), THREE) == [100 * each for each in found]
    assert sets_of(recipe(), pictures) == [len(pictures)]
    assert sum(sets_of(recipe(aspect_buckets=3), pictures)) == len(pictures)


def test_a_picture_that_has_gone_since_is_reported(folder, tmp_path):
    pictures = read_folder(folder, 16)
    pictures.originals[3].path.unlink()
    with pytest.raises(UserError, match=r"\.png could be read before, but not now: no such file.*; put it back"):
        read_buckets(pictures, THREE, 1, tmp_path)


def test_a_picture_that_is_put_back_is_read_again(folder, tmp_path, monkeypatch):
    """Also where pixels are in files, which know what was refused."""
    monkeypatch.setattr(data_folder, "fit_into", lambda needed, free: False)
    pictures = read_folder(folder, 16, tmp_path)
    expected = [bucket.pixels for bucket in read_buckets(pictures, THREE, 1, tmp_path / "other")]
    path = pictures.originals[3].path
    away = path.rename(tmp_path / "away.png")
    with pytest.raises(UserError, match=r"could be read before, but not now: no such file.*; put it back"):
        read_buckets(pictures, THREE, 1, tmp_path)
    away.rename(path)
    os.utime(path, (1, 1))
    with pytest.raises(UserError, match=r"cannot be read again: it changed while it was read; wait"):
        read_buckets(pictures, THREE, 1, tmp_path)
    again = read_buckets(read_folder(folder, 16, tmp_path), THREE, 1, tmp_path)
    assert all(torch.equal(bucket.pixels, its) for bucket, its in zip(again, expected, strict=True))


def test_data_check_says_what_squares_cut_away(folder):
    console = Keeper()
    check_data(CheckOptions(folder, 16), console)
    assert any(
        re.search(r"squares cut away \d+% of 29 pictures; with --set aspect_buckets=5 it is \d%", one)
        for one in console.printed
    )


# -- Batches and priors ------------------------------------------------------------------------------------------------


def buckets_of(folder, tmp_path):
    parts = read_buckets(read_folder(folder, 16), THREE, 1, tmp_path)
    return [Bucket(one, picture_examples(recipe(), one, CPU)) for one in parts]


def mixed(divided, *path):
    rows = [bucket.pictures.train_indices for bucket in divided]
    sources = [bucket.examples(chosen) for bucket, chosen in zip(divided, rows, strict=True)]
    return MixedSource(sources, [*map(len, rows)], Rng(path))


def test_a_batch_is_of_one_bucket_and_a_function_of_the_images_seen(folder, tmp_path):
    divided = buckets_of(folder, tmp_path)
    source, again = (mixed(divided, "mixed") for _ in range(2))
    batches = [source.batch(images_seen, 4) for images_seen in range(0, 400, 4)]
    assert {tuple(one.clean.shape[2:]) for one in batches} == {(24, 12), (12, 24), (16, 16)}
    assert all(
        torch.equal(one.clean, again.batch(4 * place, 4).clean) for place, one in reversed([*enumerate(batches)])
    )


def test_every_picture_is_as_likely_as_any_other(folder, tmp_path):
    """As often within what chance allows: 5 standard deviations of a count of pairs."""
    divided, seen = buckets_of(folder, tmp_path), Counter()
    source = mixed(divided, "mixed")
    for images_seen in range(0, 2000, 2):
        for image in source.batch(images_seen, 2).clean:
            seen[min(one.numpy().tobytes() for one in (image, image.flip(-1)))] += 1
    trained = sum(len(bucket.pictures.train_indices) for bucket in divided)
    expected = 2000 / trained
    assert len(seen) == trained == 26
    assert max(abs(times - expected) for times in seen.values()) < 5 * (2 * expected) ** 0.5


def test_a_single_bucket_is_the_same_as_no_buckets(folder):
    pictures = read_folder(folder, 16)
    examples = picture_examples(recipe(), pictures, CPU)
    alone = PictureSource(pictures, pictures.train_indices, Rng((0, "base")), CPU, 16, True)
    for source in (examples(pictures.train_indices), mixed([Bucket(pictures, examples)], "any")):
        assert all(torch.equal(source.batch(place, 5).clean, alone.batch(place, 5).clean) for place in (0, 7, 300))


def test_the_prior_of_several_buckets_is_fitted_to_all(folder, tmp_path):
    """Through the largest square that lies in all of them; and better than no knowledge at all."""
    divided = buckets_of(folder, tmp_path)
    mixture = fit_mixture(recipe(), divided, PixelSpace())["mixture"]
    assert mixture.side(3) == 12
    for bucket in divided:
        clean = images_from_pixels(bucket.pictures.pixels)
        sigma, noisy = torch.ones(len(clean)), clean + torch.randn_like(clean)
        wrong = (mixture.mean(noisy, sigma, Condition(bucket.pictures.labels)) - clean).square().mean()
        assert wrong < 0.5 * (clean - clean.mean()).square().mean()


def test_the_closed_form_is_calibrated_on_held_out_pictures(tmp_path, few):
    """What `fit_mixture` gives has more variance outside its axes than the fit left there, where pictures are few."""
    pictures = read_folder(write_shapes(tmp_path / "pictures", {(16, 16): 60}), 16)
    divided = [Bucket(pictures, picture_examples(recipe(flip=False), pictures, CPU))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "RESIDUAL_FACTORS", (1.0,))
        before = fit_mixture(recipe(flip=False), divided, PixelSpace())["mixture"]
    after = fit_mixture(recipe(flip=False), divided, PixelSpace())["mixture"]
    clean = images_from_pixels(pictures.pixels[pictures.validation_indices])
    noisy, sigma = clean + 0.1 * torch.randn_like(clean), torch.full((len(clean),), 0.1)
    labels = pictures.labels[pictures.validation_indices]
    wrong = [(one.mean(noisy, sigma, Condition(labels)) - clean).square().mean() for one in (before, after)]
    assert (after.rest > 1.2 * before.rest).all() and wrong[1] < wrong[0]


def test_a_window_keeps_the_caption_of_its_picture_and_the_first_windows_are_of_all_buckets(folder, tmp_path):
    pictures = read_folder(folder, 16)
    named = replace(pictures, captions=Captions(tuple((one.path.stem,) for one in pictures.originals)))
    parts = read_buckets(named, THREE, 1, tmp_path)
    divided = [Bucket(one, picture_examples(recipe(flip=False), one, CPU)) for one in parts]
    whole = {
        original.path.stem: image
        for one in parts
        for original, image in zip(one.originals, images_from_pixels(one.pixels), strict=True)
    }
    for turn in range(2):
        seen = take(divided, [torch.arange(len(one)) for one in parts], len(whole), Rng(("seen",)), turn)
        assert sorted(seen.text.prompts) == sorted(whole)
        for window, name in zip(seen.clean, seen.text.prompts, strict=True):
            places = whole[name].unfold(1, 12, 1).unfold(2, 12, 1)
            assert (places == window[:, None, None]).all(-1).all(-1).all(0).any()
        for first in range(1, len(whole)):
            counts = Counter(whole[name].shape for name in seen.text.prompts[:first])
            expected = (first * len(one) / len(whole) for one in parts)
            assert all(
                abs(counts[one.pixels.shape[1:]] - share) <= 1 for one, share in zip(parts, expected, strict=True)
            )


def test_a_leg_is_validated_by_the_bucket_with_most_validation_pictures(folder, tmp_path):
    divided = buckets_of(folder, tmp_path)
    counts = [len(bucket.pictures.validation_indices) for bucket in divided]
    assert sum(counts) == 1 and counts[main_bucket(divided)] == max(counts) > 0


def test_an_aspect_ratio_may_be_in_the_validation_set_alone():
    squares, wide = noise_pictures(12), noise_pictures(6, seed=1)
    nobody, all_of = torch.zeros, torch.ones
    squares = replace(squares, split=Split(*(fill(12, dtype=torch.bool) for fill in (all_of, nobody, nobody))))
    wide = replace(wide, split=Split(*(fill(6, dtype=torch.bool) for fill in (nobody, all_of, nobody))))
    wide = replace(wide, pixels=wide.pixels[..., :12, :])
    divided = [Bucket(one, picture_examples(recipe(flip=False), one, CPU)) for one in (squares, wide)]
    leg = denoiser_leg(recipe(flip=False), divided, PixelSpace(), CPU)
    assert leg.validator.held_out.clean.shape[-2:] == (12, 16) and len(leg.validator.held_out) == 6
    assert leg.validator.train.clean.shape[-2:] == (16, 16)
    assert leg.validator.measure().keys() >= {"held_out_loss", "train_loss"}


# -- Runs --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch, few):
    be_quick(monkeypatch)


def test_training_on_several_aspect_ratios_and_sampling_them(folder, tmp_path, quick):
    run = train(request(folder, tmp_path / "run", "aspect_buckets=3"), Keeper())
    notes = " ".join(read_json(run / "plan.json")["notes"])
    assert "aspect buckets: 12 x 24 px 12, 24 x 12 px 9, 16 x 16 px 8;" in notes and "(38% with squares)" in notes
    assert len([*(run / "cache").glob("latents-*.safetensors")]) == 3
    model = calotype.load(run)
    assert model.sample()[0].size == (16, 16) and model.least_side == 12
    for size in (*THREE, (32, 20)):
        assert model.sample(1, size=size)[0].size == tuple(size)
    with pytest.raises(UserError, match="multiples of 4 from 12 to 128"):
        model.sample(1, size=(8, 24))
    assert resume(ResumeOptions(run, "cpu"), Keeper()) == run


def test_a_cascade_has_aspect_buckets_in_its_first_stage(folder, tmp_path, quick):
    model = calotype.load(train(request(folder, tmp_path / "run", "aspect_buckets=3", settings=CASCADE), Keeper()))
    assert model.least_side == 12
    for size in ((12, 24), (24, 12), (16, 32)):
        assert model.sample(1, size=size)[0].size == size


def test_squares_stay_squares(tmp_path, quick):
    made = plan(
        request(write_shapes(tmp_path / "squares", {(20, 20): 10}), tmp_path / "run", "aspect_buckets=3"), Keeper()
    )
    assert any(note.startswith("aspect buckets: 16 x 16 px 10; 0% of each") for note in made.notes)
