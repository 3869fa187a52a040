from dataclasses import replace

import pytest
import torch
from analytic import conditioned, perturbed
from torch import nn

from calotype.diffusion.augmentation import BlurAugmentation, NoiseAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.init import image_to_image, sdedit
from calotype.diffusion.schedules import Karras
from calotype.diffusion.stage import Sampling, Stage, for_all, generate, noise_each, shrunk, stops
from calotype.nets.unet import Unet, UnetConfig
from calotype.priors.patches import enlarged
from calotype.spaces.pixel import PixelSpace
from calotype.training.objectives import DenoisingObjective
from calotype.types import NULL_LABEL, Batch, Rng, per_image

CLASSES = 2
LABELS = torch.tensor([0, 1, NULL_LABEL])
RNGS = [Rng(("stage", index)) for index in range(3)]
PLAIN = Sampling(steps=3, guidance=1.0)
SAMPLINGS = {
    "plain": [PLAIN] * 3,
    "guided": [Sampling(steps=3, guidance=3.0), Sampling(steps=2, guidance=2.0), PLAIN],
    "augmented": [PLAIN, Sampling(steps=3, augmentation=0.2), Sampling(steps=2, augmentation=0.1)],
    "truncated": [
        PLAIN, Sampling(steps=3, augmentation=0.2, conditioning="truncated"),
        Sampling(steps=2, augmentation=0.1, conditioning="truncated"),
    ],
    "ancestral": [
        Sampling(steps=3, sampler="ancestral"), Sampling(steps=3, sampler="ancestral", augmentation=0.2),
        Sampling(steps=3, sampler="euler", augmentation=0.3, conditioning="truncated"),
    ],
}  # fmt: skip
samplings = pytest.mark.parametrize("samplings", SAMPLINGS.values(), ids=SAMPLINGS)


def stage(size, low_res=None, augmentation=None):
    config = UnetConfig(width=8, patch=1 if low_res is None else 2, multiples=(1,), blocks=1, attention_levels=())
    backbone = perturbed(Unet(config, 3 if low_res is None else 6, 3), 0.03)
    denoiser = Denoiser(backbone, 8, CLASSES, "edm", sigma_data=0.5).eval()
    schedule = Karras(smallest=0.01, largest=20.0)
    return Stage(denoiser, PixelSpace(), schedule, size, low_res, augmentation or NoiseAugmentation())


@pytest.fixture
def chain():
    return [stage(4), stage(8, 4), stage(16, 8)]


def conditions_of(stage):
    """What its denoiser is told from now on."""
    seen = []
    stage.denoiser.register_forward_pre_hook(lambda denoiser, asked: seen.append(asked[2]))
    return seen


def equal(one, other):
    names = ("labels", "low_res", "augmentation", "deviation")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a is b or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_what_is_redrawn_depends_on_its_own_picture_and_noise_alone(chain, share):
    images, sampling = torch.rand(3, 3, 4, 4) * 2 - 1, Sampling(steps=10, guidance=1.0)
    found = sdedit(chain[0], images, LABELS, sampling, share, RNGS)
    assert found.shape == images.shape and torch.equal(found, sdedit(chain[0], images, LABELS, sampling, share, RNGS))
    alone = sdedit(chain[0], images[1:2], LABELS[1:2], sampling, share, RNGS[1:2])
    assert torch.allclose(found[1:2], alone, atol=1e-4)


def test_the_more_steps_are_redrawn_the_less_is_kept(chain):
    images, sampling = torch.rand(3, 3, 4, 4) * 2 - 1, Sampling(steps=10, guidance=1.0)
    away = [(sdedit(chain[0], images, LABELS, sampling, share, RNGS) - images).norm() for share in (0.1, 0.5, 0.9)]
    assert away[0] < away[1] < away[2]


# -- Smaller and larger pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_a_crop_of_the_shrunk_picture_is_the_shrunk_crop(factor):
    images = torch.randn(2, 3, 12 * factor, 9 * factor)
    for top, left, height, width in ((0, 0, 4, 4), (3, 2, 5, 7), (8, 0, 4, 9)):
        part = (..., slice(top, top + height), slice(left, left + width))
        above = (..., slice(factor * top, factor * (top + height)), slice(factor * left, factor * (left + width)))
        assert torch.equal(shrunk(images, factor)[part], shrunk(images[above], factor))


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_shrunk_is_the_mean_of_squares_and_undoes_whole_pixels(factor):
    small = torch.randn(2, 3, 5, 4)
    assert torch.allclose(shrunk(small.repeat_interleave(factor, 2).repeat_interleave(factor, 3), factor), small)
    large = torch.randn(2, 3, 4 * factor, 4 * factor)
    assert torch.allclose(shrunk(large, factor).mean((2, 3)), large.mean((2, 3)), atol=1e-6)
    assert torch.allclose(shrunk(shrunk(large, factor), 2), shrunk(large, 2 * factor), atol=1e-6)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_enlarged_keeps_flat_pictures_and_straight_slopes(factor):
    """A slope stays the slope through the middles of the pixels, but for the ripple of cubics: 1/16 of a step."""
    flat = torch.tensor([0.3, -1.0, 0.5])[:, None, None].expand(1, 3, 6, 6)
    assert torch.allclose(enlarged(flat, factor), flat[:, :, :1, :1].expand(1, 3, 6 * factor, 6 * factor), atol=1e-6)
    slope = (torch.arange(12.0) + 0.5).expand(1, 3, 12, 12)
    expected = (torch.arange(12.0 * factor) + 0.5) / factor
    inside = slice(3 * factor, -3 * factor)
    assert torch.allclose(enlarged(slope, factor)[0, 0, 0, inside], expected[inside], atol=1 / 16)


# -- What a stage is told ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "augmentation", [NoiseAugmentation(most=0.4, share=1.0), BlurAugmentation(share=1.0)], ids=["noise", "blur"]
)
def test_training_and_sampling_share_one_condition(augmentation):
    """The smaller picture is spoilt first and enlarged then, and the level goes with it."""
    one, rng = stage(8, 4, augmentation), Rng(("told",))
    small, clean = torch.rand(3, 3, 4, 4), torch.rand(3, 3, 8, 8)
    given = []
    one.denoiser.loss = lambda clean, sigma, noise, condition, weights: given.append(condition) or torch.zeros(3)
    DenoisingObjective(one).losses(Batch(clean, LABELS, small), 0.0, rng)
    level, noise = augmentation.sample_level(3, rng.at("augmentation")), rng.at("spoiling").normal(3, 3, 4, 4)
    assert equal(given[0], one.condition(LABELS, small, level, noise))
    assert torch.equal(given[0].low_res, enlarged(augmentation.apply(small, level, noise), 2)) and level.all()

    seen = conditions_of(one)
    generate([one], LABELS, [Sampling(steps=2, guidance=1.0, augmentation=0.25)], RNGS, small)
    noise = noise_each([rng.at(8, "augmentation") for rng in RNGS], (3, 4, 4))
    assert len(seen) == 2 and equal(seen[0], seen[1])
    assert equal(seen[0], one.condition(LABELS, small, torch.full((3,), 0.25), noise))


def test_the_deviation_goes_with_the_level_and_is_that_of_the_augmentation():
    level, small = torch.tensor([0.0, 0.1, 0.3]), torch.zeros(3, 3, 4, 4)
    for augmentation in (NoiseAugmentation(), BlurAugmentation()):
        condition = stage(8, 4, augmentation).condition(LABELS, small, level, small)
        assert torch.equal(condition.augmentation, level)
        assert torch.allclose(condition.deviation, per_image(augmentation.deviation(level)).expand(3, 1, 8, 8))


def test_the_first_stage_is_conditioned_on_its_label_and_nothing_else():
    small = torch.zeros(3, 3, 4, 4)
    assert equal(stage(4).condition(LABELS, None, torch.zeros(3), small), conditioned(0, 1, NULL_LABEL))


def test_the_factor_is_that_of_the_sizes():
    assert [one.factor for one in (stage(4), stage(8, 4), stage(32, 8))] == [1, 2, 4]


def test_a_stage_that_enlarges_takes_crops_and_larger_pictures():
    one = stage(8, 4)
    for height, width in ((4, 4), (2, 2), (6, 4), (8, 8)):
        assert generate([one], LABELS, [PLAIN], RNGS, torch.zeros(3, 3, height, width)).shape == (
            3, 3, 2 * height, 2 * width,
        )  # fmt: skip


# -- Chains ------------------------------------------------------------------------------------------------------------


@samplings
def test_a_picture_through_a_chain_does_not_depend_on_its_batch(chain, samplings):
    together = generate(chain, LABELS, samplings, RNGS)
    assert together.shape == (3, 3, 16, 16) and together.abs().max() <= 1 and together.std() > 0.01
    for index in (0, 2):
        alone = generate(chain, LABELS[[index]], samplings, RNGS[index : index + 1])
        assert torch.allclose(alone[0], together[index], atol=1e-4)
    swapped = generate(chain, LABELS.flip(0), samplings, RNGS[::-1])
    assert torch.allclose(swapped.flip(0), together, atol=1e-4)


@samplings
def test_pictures_divided_among_threads_are_those_of_one_thread(chain, samplings):
    """Each slice has its own labels, randomness and initializer."""
    start_at = [image_to_image(0.3 * index * torch.ones(1, 3, 16, 16), 16, 0.9) for index in range(3)]
    threads, asked = torch.get_num_threads(), []

    def starts(rows):
        asked.append(rows)
        return start_at[rows.start]

    try:
        torch.set_num_threads(3)
        divided = generate(chain, LABELS, samplings, RNGS, starts=starts)
    finally:
        torch.set_num_threads(threads)
    assert sorted(rows.start for rows in asked) == [0, 1, 2]
    for index in range(3):
        starts = for_all(start_at[index])
        alone = generate(chain, LABELS[[index]], samplings, RNGS[index : index + 1], starts=starts)
        assert torch.allclose(alone[0], divided[index], atol=1e-4)


@samplings
@pytest.mark.parametrize("cut", [1, 2])
def test_the_rest_of_a_chain_goes_on_with_what_the_first_stages_made(chain, samplings, cut):
    whole = generate(chain, LABELS, samplings, RNGS)
    images = None
    for one, sampling, until in [*zip(chain, samplings, stops(samplings), strict=True)][:cut]:
        *_, images = one.steps(LABELS, images, sampling, [rng.at(one.image_size) for rng in RNGS], until)
        images = images if until else one.space.decode(images)
    assert torch.equal(generate(chain[cut:], LABELS, samplings[cut:], RNGS, images), whole)


@samplings
def test_every_stage_is_heard_in_the_picture(chain, samplings):
    """Neither stage repeats the noise of the one before."""
    whole = generate(chain, LABELS, samplings, RNGS)
    assert not torch.allclose(shrunk(whole, 2), generate(chain[:2], LABELS, samplings[:2], RNGS), atol=0.01)
    for index in range(3):
        moved = [*chain]
        moved[index] = replace(chain[index], schedule=Karras(smallest=0.01, largest=5.0))
        assert not torch.allclose(generate(moved, LABELS, samplings, RNGS), whole, atol=1e-3)


class Silent(nn.Module):
    def forward(self, image, vector):
        return torch.zeros_like(image[:, :3])


def point(spread=1e-3, size=16, low_res=None):
    """A stage whose pictures are all grey, exactly."""
    denoiser = Denoiser(Silent(), 8, CLASSES, "edm", sigma_data=spread)
    return Stage(denoiser, PixelSpace(), Karras(smallest=0.01, largest=20.0), size, low_res, NoiseAugmentation())


def conditioned_on(conditioning, level, sampler="dpm_solver"):
    """What the second of two stages is told, and the states of the first."""
    first, second = point(), point(0.1, 32, 16)
    both = [Sampling(steps=20, guidance=1.0, sampler=sampler), Sampling(steps=2, guidance=1.0, augmentation=level)]
    both[1] = both[1].model_copy(update={"conditioning": conditioning})
    seen = conditions_of(second)
    generate([first, second], LABELS, both, RNGS)
    return seen[0], list(first.steps(LABELS, None, both[0], [rng.at(16) for rng in RNGS], stops(both)[0]))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver", "ancestral"])
@pytest.mark.parametrize("level", [0.05, 0.3, 1.0])
def test_a_truncated_stage_hands_on_its_noisy_state_and_no_noise_is_added(level, sampler):
    condition, states = conditioned_on("truncated", level, sampler)
    assert torch.equal(condition.low_res, enlarged(states[-1], 2))
    assert states[-1].std().item() == pytest.approx(level, rel=0.05)
    assert condition.augmentation.tolist() == pytest.approx([level] * 3)


@pytest.mark.parametrize("level", [0.0, 0.05, 0.3])
def test_a_whole_picture_gets_the_noise_of_its_level(level):
    condition, states = conditioned_on("whole", level)
    noise = noise_each([rng.at(32, "augmentation") for rng in RNGS], (3, 16, 16))
    expected = enlarged(states[-1] + per_image(torch.full((3,), level)) * noise, 2)
    assert states[-1].abs().max() < 0.01 and torch.allclose(condition.low_res, expected, atol=1e-6)


def test_what_is_whole_and_what_is_truncated_are_as_noisy():
    spreads = [conditioned_on(conditioning, 0.3)[0].low_res.std().item() for conditioning in ("whole", "truncated")]
    assert spreads[0] == pytest.approx(spreads[1], rel=0.05)


def test_each_stage_stops_where_the_next_one_wants_it_to():
    cut = Sampling(augmentation=0.2, conditioning="truncated")
    whole = Sampling(augmentation=0.5)
    assert stops([PLAIN, cut, whole, cut]) == [0.2, 0.0, 0.2, 0.0] and stops([cut]) == [0.0]
