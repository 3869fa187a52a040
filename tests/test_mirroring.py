"""Mirrored pictures: when the plan takes them, and that the prior is as symmetric as what training sees."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from small import CPU, noise_pictures, recipe

from calotype.data.folder import read_folder
from calotype.data.images import images_from_pixels
from calotype.planning import mirroring
from calotype.planning.mirroring import chirality, choose_flip, is_symmetric
from calotype.spaces.pixel import PixelSpace
from calotype.training.examples import Bucket, picture_examples
from calotype.training.fitting import fit_mixture
from calotype.types import Condition

COUNT = 200


def noise(count=COUNT):
    return torch.randn(count, 3, 32, 32)


def with_bright(images, *, left):
    images = images.clone()
    images[..., :16] += 0.4 * left
    images[..., 16:] += 0.4 * (1 - left)
    return images


def test_of_symmetric_pictures_the_classifier_knows_no_more_than_chance():
    accuracies = torch.tensor([chirality(noise(), torch.zeros(COUNT).long()) for _ in range(20)])
    assert abs(accuracies.mean() - 0.5) < 0.03
    assert sum(is_symmetric(float(accuracy), COUNT) for accuracy in accuracies) >= 17


def test_it_knows_which_side_is_bright():
    accuracy = chirality(with_bright(noise(), left=1), torch.zeros(COUNT).long())
    assert accuracy > 0.95 and not is_symmetric(accuracy, COUNT)


def test_it_knows_which_side_is_bright_in_each_class():
    labels = torch.arange(COUNT) % 2
    images = with_bright(noise(), left=labels[:, None, None, None])
    assert not is_symmetric(chirality(images, labels), COUNT)
    assert is_symmetric(chirality(images, torch.zeros_like(labels)), COUNT)  # without the classes nothing is to be seen


def test_it_knows_letters_from_their_mirror_images():
    pictures = []
    for index in range(COUNT):
        picture = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(picture).text((8 + index % 5, 8 + index % 3), "FGR"[index % 3], "black", font_size=16)
        pictures.append(np.asarray(picture).transpose(2, 0, 1))
    images = images_from_pixels(torch.from_numpy(np.stack(pictures)))
    assert chirality(images, torch.zeros(COUNT).long()) > 0.9


def test_one_picture_of_a_class_and_pictures_of_one_colour_are_no_trouble():
    labels = torch.arange(COUNT)
    assert 0.3 < chirality(noise(), labels) < 0.7
    assert chirality(torch.ones(COUNT, 3, 8, 8), labels) == 0


def pictures_of(count):
    some = noise_pictures()
    pixels = (noise(count)[..., :16, :16] * 40 + 128).clamp(0, 255).byte()
    split = type(some.split)(torch.ones(count, dtype=torch.bool), *(torch.zeros(2, count, dtype=torch.bool)))
    return type(some)(pixels, torch.zeros(count).long(), (), split, "noise")


@pytest.mark.parametrize("side", [383, 512])
def test_large_pictures_are_compared_in_as_many_and_darker_edges_are_no_side(side, monkeypatch):
    monkeypatch.setattr(mirroring, "FEWEST", COUNT)
    torch.manual_seed(2)
    some = noise_pictures()
    across = torch.linspace(-1, 1, side).square()
    noisy = torch.nn.functional.interpolate(noise(), size=(side, side)) * 40 + 160
    split = type(some.split)(torch.ones(COUNT, dtype=torch.bool), *(torch.zeros(2, COUNT, dtype=torch.bool)))
    for side_by_side, mirrors in ((100 * (across + across[:, None]), True), (60 * torch.linspace(0, 1, side), False)):
        pixels = (noisy - side_by_side).clamp(0, 255).byte()
        flip, why = choose_flip(type(some)(pixels, torch.zeros(COUNT).long(), (), split, "noise"), False)
        assert flip is mirrors and f"of {COUNT} pictures" in why


def test_the_plan_mirrors_where_it_makes_no_difference(monkeypatch):
    torch.manual_seed(1)
    monkeypatch.setattr(mirroring, "FEWEST", COUNT)
    flip, why = choose_flip(pictures_of(COUNT), False)
    assert flip and "50% is chance" in why
    assert choose_flip(pictures_of(COUNT), True) == (False, "captions may speak of left and right")
    assert not choose_flip(pictures_of(mirroring.FEWEST - 1), False)[0]
    monkeypatch.setattr(mirroring, "MOST", COUNT - 1)
    assert not choose_flip(pictures_of(COUNT), False)[0]


@pytest.mark.parametrize("size", [16])
def test_the_prior_of_mirrored_pictures_is_symmetric(size, tmp_path):
    """Its mean of a mirrored noisy picture is the mirrored mean, for one Gaussian exactly."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(24):
        shade = np.random.default_rng(index).integers(0, 256, (size, size, 3), dtype=np.uint8)
        shade[:, : size // 2] //= 2
        Image.fromarray(shade).save(folder / f"{index}.png")
    pictures = read_folder(folder, size)
    for flip in (True, False):
        bucket = Bucket(pictures, picture_examples(recipe(flip=flip), pictures, CPU))
        prior = fit_mixture(recipe(flip=flip), [bucket], PixelSpace())["mixture"]
        noisy, sigma, condition = torch.randn(4, 3, size, size), torch.ones(4), Condition(torch.zeros(4).long())
        one, other = prior.mean(noisy, sigma, condition), prior.mean(noisy.flip(-1), sigma, condition).flip(-1)
        assert torch.allclose(one, other, atol=1e-3) == flip
