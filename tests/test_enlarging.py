"""Stages that enlarge, whose network is silent: what they make is what their Gaussians say, sample by sample."""

from dataclasses import dataclass, replace

import pytest
import torch
from test_local import edges
from test_stage import CLASSES, Silent

from calotype.build import build_enlarger
from calotype.data.images import images_from_pixels
from calotype.demo.portraits import read_portraits
from calotype.diffusion.augmentation import NoiseAugmentation
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.init import canvas, condition_switch, image_to_image, inpainting
from calotype.diffusion.schedules import Karras
from calotype.diffusion.stage import Sampling, Stage, from_noise, last, shrunk
from calotype.priors.patches import PatchPrior, enlarged, patches_of, windows_of
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.types import Rng, UserError

DETERMINISTIC = ("euler", "heun", "dpm_solver")
SIDE = 32
PAIR = torch.zeros(2, dtype=torch.long)


@dataclass(frozen=True)
class Mirrored:
    """The randomness of another picture, all noise of its sampler turned round; its smaller picture is the same."""

    rng: Rng

    def at(self, *where):
        return self.rng.at(*where) if where == ("augmentation",) else Mirrored(self.rng.at(*where))

    def normal(self, *shape):
        return -self.rng.normal(*shape)


RNGS = [Rng(("pair",)), Mirrored(Rng(("pair",)))]
"""A linear denoiser makes two pictures whose mean is the mean of all that it makes: no samples are counted."""


@pytest.fixture(scope="module", params=[2, 4])
def gaussians(request):
    fitted = PatchPrior(request.param)
    fitted.fit([(shrunk(part, request.param), part) for part in edges(200).split(50)])
    return fitted


def silent(local=None, factor=2, spread=0.0):
    """A stage with the schedule that a plan would measure for it."""
    factor = local.factor if local else factor
    images = edges(32)
    deviation = spread or float(
        local.posterior(shrunk(images, factor), torch.zeros(32)).deviation.square().mean().sqrt()
    )
    denoiser = Denoiser(Silent(), 8, CLASSES, "edm", sigma_data=spread, prior=local).eval()
    schedule = Karras(smallest=0.01 * deviation, largest=15 * deviation)
    return Stage(denoiser, PixelSpace(), schedule, SIDE, SIDE // factor, NoiseAugmentation())


def small_pair(stage, side=SIDE):
    return shrunk(edges(1, side, seed=5), stage.factor).expand(2, -1, -1, -1)


def made(stage, sampling, start=from_noise, low_res=None):
    low_res = small_pair(stage) if low_res is None else low_res
    with torch.no_grad():
        return last(stage.steps(PAIR, low_res, sampling, RNGS, start=start))


def known_mean(stage, sampling, low_res=None):
    low_res = small_pair(stage) if low_res is None else low_res
    return stage.sampling_condition(PAIR, low_res, sampling, RNGS).low_res


def is_mean(pictures, expected):
    """To a thousandth of the picture's RMS, at every pixel."""
    return torch.allclose(pictures.mean(0), expected[0], atol=1e-3 * float(expected.square().mean().sqrt()))


# -- The mean ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, "ancestral"])
@pytest.mark.parametrize("conditioning", ["whole", "truncated"])
@pytest.mark.parametrize(("steps", "level"), [(1, 0.0), (12, 0.0), (12, 0.1), (20, 0.2)])
def test_the_mean_of_samples_is_the_posterior_mean(gaussians, sampler, conditioning, steps, level):
    """Whatever the sampler, its steps and its last sigma, at edges too."""
    stage = silent(gaussians)
    sampling = Sampling(sampler=sampler, steps=steps, guidance=1.0, augmentation=level, conditioning=conditioning)
    expected = known_mean(stage, sampling)
    assert is_mean(made(stage, sampling), expected)
    if not level:
        assert torch.equal(expected, gaussians.posterior(small_pair(stage), torch.zeros(2)).mean)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, "ancestral"])
@pytest.mark.parametrize("factor", [2, 4])
def test_from_nothing_it_is_the_smaller_picture_enlarged(sampler, factor):
    stage = silent(factor=factor, spread=0.1)
    pictures = made(stage, Sampling(sampler=sampler, steps=12, guidance=1.0))
    assert is_mean(pictures, enlarged(small_pair(stage), factor)) and float(pictures.std(0).mean()) > 0.01


@pytest.mark.parametrize("height", [SIDE, 2 * SIDE])
def test_every_start_begins_at_the_prior_mean(gaussians, height):
    """On another canvas, with a strength of 1, and on the way from one label to another."""
    stage, sampling = silent(gaussians), Sampling(steps=12, guidance=1.0)
    low_res = small_pair(stage, height)
    plain = made(stage, sampling, low_res=low_res)
    assert is_mean(plain, known_mean(stage, sampling, low_res))
    starts = (
        canvas(height, height, SIDE),
        image_to_image(edges(1, height), SIDE, 1.0),
        condition_switch(PAIR, None, torch.ones(2)),
    )
    for start in starts:
        assert torch.equal(made(stage, sampling, start, low_res), plain)


@pytest.mark.parametrize("sampler", [*DETERMINISTIC, "ancestral"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_keeps_what_is_known_and_the_rest_has_its_mean(gaussians, sampler, strength):
    """The squares below different pixels are independent, so the rest has the mean that it has without a mask."""
    stage, sampling = silent(gaussians), Sampling(sampler=sampler, steps=12, guidance=1.0)
    picture, mask = edges(1, SIDE, seed=9), (torch.arange(SIDE) >= SIDE // 2).float().expand(1, 1, SIDE, SIDE)
    pictures = made(stage, sampling, inpainting(picture, mask, SIDE, image_to_image(picture, SIDE, strength)))
    assert torch.equal(pictures[..., : SIDE // 2], picture[..., : SIDE // 2].expand(2, -1, -1, -1))
    if strength == 1:
        assert is_mean(pictures[..., SIDE // 2 :], known_mean(stage, sampling)[..., SIDE // 2 :])


# -- The covariance ----------------------------------------------------------------------------------------------------


def variance_ratios(stage, sampling, count=16):
    """Of samples, along the axes of each place, by what the Gaussians say there."""
    images, labels = edges(count, SIDE, seed=7), torch.zeros(count, dtype=torch.long)
    rngs = [Rng(("covariance", index)) for index in range(count)]
    with torch.no_grad():
        samples = last(stage.steps(labels, shrunk(images, stage.factor), sampling, rngs))
    condition = stage.sampling_condition(labels, shrunk(images, stage.factor), sampling, rngs)
    around = condition.posterior_mean.__self__
    left = around.by_cluster.times(patches_of(samples - around.mean, stage.factor), around.axes)
    return left.square() / around.noise_variances, around.noise_variances


@pytest.mark.parametrize(
    ("sampler", "level"), [*((name, 0.1) for name in [*DETERMINISTIC, "ancestral"]), ("heun", 0.0)]
)
def test_with_many_steps_the_variances_are_those_of_the_gaussians(gaussians, sampler, level):
    """Along all axes together, and where they are largest, which is at edges."""
    stage = silent(gaussians)
    stage = replace(stage, schedule=stage.schedule.model_copy(update={"largest": 4 * stage.schedule.largest}))
    steps = {"euler": 400, "ancestral": 400}.get(sampler, 50)
    ratios, variances = variance_ratios(stage, Sampling(sampler=sampler, steps=steps, guidance=1.0, augmentation=level))
    large = variances >= variances.quantile(0.9) if variances.numel() < 1e6 else variances > 4 * variances.mean()
    assert float(ratios[variances > stage.schedule.smallest**2 * 100].mean()) == pytest.approx(1, abs=0.05)
    assert float(ratios[large].mean()) == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("sampler", ["heun", "dpm_solver"])
def test_with_the_steps_of_a_plan_the_variances_are_a_seventh_off_at_most(gaussians, sampler):
    stage = silent(gaussians)
    ratios, variances = variance_ratios(stage, Sampling(sampler=sampler, steps=12, guidance=1.0))
    middle = (0.3 * stage.schedule.largest / 15) ** 2
    assert float(ratios[variances > middle].mean()) == pytest.approx(1, abs=1 / 7)


# -- The prediction ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def portraits():
    return images_from_pixels(read_portraits(128, 600).pixels[torch.arange(600)])


@pytest.mark.parametrize("factor", [2, 4])
def test_pictures_are_as_far_from_the_mean_as_is_predicted(portraits, factor):
    """With and without noise on the smaller ones; the noise of plain areas along each axis, not only on average.

    Of pictures that the fit has not seen: few of them do not make it sure.
    """
    train, unseen = portraits[Rng(("fit",)).permutation(600)].split([400, 200])
    unseen = unseen[: 25 * factor]
    fitted = PatchPrior(factor)
    fitted.fit([(shrunk(part, factor), part) for part in train[: 100 * factor].split(25)])
    for level in (0.0, 0.05, 0.1, 0.2):
        small = shrunk(unseen, factor)
        noise = level * torch.randn(small.shape, generator=torch.Generator().manual_seed(1))
        around = fitted.posterior(small + noise, torch.full((len(small),), level))
        left = around.by_cluster.times(patches_of(unseen - around.mean, factor), around.axes).square()
        assert float(around.variances.mean() / left.mean()) == pytest.approx(1, abs=0.1), level
        assert float(around.deviation.square().mean() / left.mean()) == pytest.approx(1, abs=0.1), level
        still = windows_of(small)[1] < 1e-3
        if level:
            ratios = around.variances[still].mean(0) / left[still].mean(0)
            assert float(ratios.min()) > 0.85 and float(ratios.max()) < 1.15


def test_plain_areas_have_the_spread_of_plain_areas_once(gaussians):
    """The network's outputs are scaled by the deviation that the Gaussians predict, and by nothing beside it."""
    size, factor = SIDE, gaussians.factor
    recipe = parse_recipe(
        {"kind": "cascade", "size": size, "stages": [size // factor, size], "enlarge": {str(size): {}}}
    )
    stage = build_enlarger(recipe, size, 0)
    stage.denoiser.prior.load_state_dict(gaussians.state_dict())
    grey = torch.zeros(1, 3, size // factor, size // factor)
    condition = stage.condition(PAIR[:1], grey, torch.zeros(1), torch.zeros(()))
    scale = stage.denoiser.scalings(torch.tensor([1e4]), condition).out
    assert torch.allclose(scale, gaussians.plain.expand_as(scale), rtol=1e-3)


def test_a_stage_from_nothing_needs_a_spread():
    bare = {"kind": "cascade", "size": 32, "stages": [16, 32], "enlarge": {"32": {"prior": "none"}}}
    with pytest.raises(UserError, match="sigma_data is 0, but must be above 0 for a stage without a prior"):
        parse_recipe(bare)


@pytest.mark.parametrize("level", [0.0, 0.1])
def test_gaussians_of_format_5_open_and_predict_what_they_did(gaussians, level):
    """One gain for all axes, and all variances random: as their networks have learned beside them."""
    since = ("noise_gain", "contrast_gain", "random_share")
    old = {name: value for name, value in gaussians.state_dict().items() if name not in since}
    opened = PatchPrior(gaussians.factor)
    opened.load_state_dict(old)
    small = shrunk(edges(4, SIDE, seed=3), gaussians.factor)
    small = small + level * torch.randn(small.shape, generator=torch.Generator().manual_seed(0))
    around = opened.posterior(small, torch.full((4,), level))
    places, contrast = windows_of(small)
    strength = (contrast**2 - (0.86 * level) ** 2).clamp(min=0)
    before = strength[:, None] * opened.variances[opened.clusters(places)] + opened.plain**2 + (0.86 * level) ** 2
    assert torch.equal(around.noise_variances, around.variances)
    assert torch.allclose(around.noise_variances, before, rtol=1e-4)
