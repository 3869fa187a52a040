"""The nearest training picture, where it is known which that is."""

import pytest
import torch
from small import CPU, noise_pictures, noise_pixels

from calotype.commands.sampling import PAIRS, show_neighbours
from calotype.data.images import images_from_pixels, pils_from_images
from calotype.evaluate.neighbours import neighbours
from calotype.files import read_json

TRAINED = noise_pixels(40, 64)


def test_a_copy_finds_its_original_mirrored_or_not():
    images = images_from_pixels(TRAINED[[7, 3, 21]])
    found = neighbours(torch.cat([images, images.flip(-1)]), TRAINED)
    assert found.places == [7, 3, 21, 7, 3, 21]
    assert found.distances == pytest.approx(0, abs=1e-3)
    assert torch.equal(found.images, torch.cat([images, images.flip(-1)]))


def test_a_blurred_and_darker_copy_finds_its_original():
    images = images_from_pixels(TRAINED[:6])
    blurred = torch.nn.functional.avg_pool2d(images, 3, 1, 1, count_include_pad=False) - 0.05
    assert neighbours(blurred, TRAINED).places == list(range(6))


@pytest.mark.parametrize("size", [8, 16, 100])
def test_any_size_and_a_single_trained_picture_will_do(size):
    found = neighbours(images_from_pixels(noise_pixels(2, 4 * size)), noise_pixels(1, 4 * size, seed=1))
    assert found.places == [0, 0] and found.images.shape == (2, 3, 4 * size, 4 * size)


def test_copies_lie_nearer_to_trained_pictures_than_held_out_ones_do(tmp_path):
    pictures = noise_pictures(40, 64)
    copies = pils_from_images(images_from_pixels(pictures.pixels[pictures.train_indices[:8]]))
    for name in ("samples", "previews"):
        (tmp_path / name).mkdir()
    for index, picture in enumerate(copies):
        picture.save(tmp_path / "samples" / f"0-{index:04d}.png")
    copies[0].save(tmp_path / "samples" / "grid.png")
    show_neighbours(tmp_path, pictures, CPU)
    found = read_json(tmp_path / "previews" / "nearest.json")
    assert found["n"] == [PAIRS, 4] and found["trained"] == 36
    assert found["samples_median"] < 0.1 * found["held_out_median"]
    assert (tmp_path / "previews" / "nearest.png").is_file()
