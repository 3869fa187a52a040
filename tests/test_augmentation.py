import pytest
import torch

from calotype.diffusion.augmentation import BlurAugmentation, NoiseAugmentation, gaussian_blur, sample_levels
from calotype.priors.patches import enlarged
from calotype.types import Rng

RNG = Rng(("augmentation",))
AUGMENTATIONS = {"noise": NoiseAugmentation(), "blur": BlurAugmentation()}
augmentations = pytest.mark.parametrize("augmentation", AUGMENTATIONS.values(), ids=AUGMENTATIONS)


@pytest.fixture
def images():
    return torch.rand(3, 3, 24, 20) * 2 - 1


def impulse(size=41):
    image = torch.zeros(1, 3, size, size)
    image[..., size // 2, size // 2] = 1
    return image


@augmentations
def test_level_0_is_the_identity(augmentation, images):
    assert torch.equal(augmentation.apply(images, torch.zeros(3), torch.randn_like(images)), images)
    assert augmentation.deviation(torch.zeros(3)).eq(0).all()


@augmentations
def test_each_image_has_its_own_level_and_none_of_the_others(augmentation, images):
    levels, noise = torch.tensor([0.0, 0.3, 0.9]), torch.randn_like(images)
    together = augmentation.apply(images, levels, noise)
    alone = [augmentation.apply(images[[i]], levels[[i]], noise[[i]]) for i in range(3)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-6)


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0, 2.0])
def test_blur_keeps_the_mean(level):
    """Of a flat picture up to its border, and of a spot wherever it is spread to."""
    flat = torch.tensor([0.2, -0.5, 1.0])[:, None, None].expand(1, 3, 9, 12)
    assert torch.allclose(gaussian_blur(flat, torch.tensor([level]), 6), flat, atol=1e-6)
    assert torch.allclose(gaussian_blur(impulse(), torch.tensor([level]), 6).sum((2, 3)), torch.ones(1, 3), atol=1e-5)


@pytest.mark.parametrize("level", [0.7, 1.0, 1.5])
def test_blur_spreads_a_spot_by_its_level(level):
    """In pixels, the same along rows and columns."""
    spot = gaussian_blur(impulse(), torch.tensor([level]), 12)[0, 0]
    away = (torch.arange(41) - 20.0) ** 2
    for along in (spot.sum(0), spot.sum(1)):
        assert (along @ away).sqrt().item() == pytest.approx(level, rel=0.01)


def test_more_blur_leaves_less(images):
    spreads = [gaussian_blur(images, torch.full((3,), level), 6).std().item() for level in (0.0, 0.3, 0.6, 1.0, 2.0)]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < spreads[0] / 3


def test_blur_looks_at_no_noise_and_noise_adds_its_level(images):
    levels, noise = torch.tensor([0.1, 0.2, 0.5]), torch.randn_like(images)
    assert torch.equal(
        BlurAugmentation().apply(images, levels, noise), BlurAugmentation().apply(images, levels, -noise)
    )
    noisy = NoiseAugmentation().apply(images, levels, noise)
    assert torch.allclose(noisy - images, levels[:, None, None, None] * noise, atol=1e-6)


@pytest.mark.parametrize(
    "augmentation",
    [
        NoiseAugmentation(most=0.3),
        NoiseAugmentation(most=2.0, share=0.25),
        BlurAugmentation(),
        NoiseAugmentation(share=0),
    ],
)
def test_levels_are_even_between_0_and_the_most_for_the_share(augmentation):
    count, most, share = 4000, augmentation.most, augmentation.share
    levels = augmentation.sample_level(count, RNG)
    assert levels.min() >= 0 and levels.max() <= most
    used = levels[levels > 0]
    assert abs(len(used) / count - share) <= 4 * (share * (1 - share) / count) ** 0.5 + 1 / count
    if share:
        for fraction in (0.25, 0.5, 0.75):
            assert (used < fraction * most).float().mean().item() == pytest.approx(fraction, abs=2 / len(used) ** 0.5)


def test_levels_are_a_function_of_the_place():
    one, same, other = (sample_levels(1.0, 0.5, 50, rng) for rng in (RNG, RNG, RNG.at(1)))
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize("factor", [2, 4])
def test_the_deviation_is_what_the_enlarged_picture_has_of_the_noise(factor):
    noise = enlarged(torch.randn(1, 3, 96, 96), factor)
    assert NoiseAugmentation().deviation(torch.ones(1)).item() == pytest.approx(noise.std().item(), rel=0.1)
