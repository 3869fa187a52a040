"""The nearest training picture at the end of a run, without a network: where it is known which that is."""

import pytest
import torch
from small import noise_pictures, noise_pixels

from calotype.data.images import images_from_pixels, pils_from_images
from calotype.evaluation.memorisation import mirrored_to_match, nearest_trained, thumbnails
from calotype.evaluation.neighbours import SHOWN_SAMPLES, write_neighbours
from calotype.files import read_json

TRAINED = images_from_pixels(noise_pixels(40, 64))


def nearest(images, trained=TRAINED):
    return nearest_trained(thumbnails(images), thumbnails(trained))


def test_a_copy_finds_its_original_mirrored_or_not():
    images = TRAINED[[7, 3, 21]]
    both = torch.cat([images, images.flip(-1)])
    found = nearest(both)
    assert found.place.tolist() == [7, 3, 21, 7, 3, 21]
    assert found.apart == pytest.approx(0, abs=1e-3)
    assert torch.equal(mirrored_to_match(TRAINED[found.place], both), both)


def test_a_blurred_and_darker_copy_finds_its_original():
    blurred = torch.nn.functional.avg_pool2d(TRAINED[:6], 3, 1, 1, count_include_pad=False) - 0.05
    assert nearest(blurred).place.tolist() == list(range(6))


@pytest.mark.parametrize("size", [8, 16, 100])
def test_any_size_and_a_single_trained_picture_will_do(size):
    some, trained = (images_from_pixels(noise_pixels(count, 4 * size, seed=count)) for count in (2, 1))
    assert nearest(some, trained).place.tolist() == [0, 0]


def test_copies_lie_nearer_to_trained_pictures_than_held_out_ones_do(tmp_path):
    pictures = noise_pictures(40, 64)
    copies = pils_from_images(images_from_pixels(pictures.pixels[pictures.train_indices[:8]]))
    for name in ("samples", "previews"):
        (tmp_path / name).mkdir()
    for index, picture in enumerate(copies):
        picture.save(tmp_path / "samples" / f"0-{index:04d}.png")
    copies[0].save(tmp_path / "samples" / "grid.png")
    write_neighbours(tmp_path, pictures)
    found = read_json(tmp_path / "previews" / "nearest.json")
    assert found["n"] == [SHOWN_SAMPLES, 4] and found["trained"] == 32
    assert found["samples_median"] < 0.1 * found["held_out_median"]
    assert (tmp_path / "previews" / "nearest.png").is_file()
