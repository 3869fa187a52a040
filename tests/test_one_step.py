"""A stage that enlarges in one step, by the losses of an autoencoder."""

from dataclasses import replace

import pytest
import torch
from small import CASCADE, CPU, HYBRID, be_quick, fingerprint, noise_pictures, train_small
from test_checkpoint import go_on, restore, save
from test_cost import count_operations

from calotype.diffusion.stage import generate
from calotype.model import load
from calotype.recipe import leg_above
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.tables import merge
from calotype.training.examples import Bucket, crop_examples, picture_examples
from calotype.training.legs import denoiser_leg, enlarger_leg, exposure_leg
from calotype.types import Rng, UserError

ONE_STEP = {"enlarge": {"16": {
    "objective": "one_step", "sampling": {"steps": 1}, "critic": {"width": 4, "depth": 2},
    "losses": {"critic_start": 0.25, "critic_used": 0.5},
}}}  # fmt: skip
RNG = Rng(("one step",))


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        count_operations(patch)
        yield


def leg_of(pictures=None, **changes):
    recipe, pictures = parse_recipe(merge(merge(CASCADE, ONE_STEP), changes)), pictures or noise_pictures()
    return enlarger_leg(recipe, 16, pictures, crop_examples(recipe, 16, pictures, CPU), CPU)


def test_a_sample_is_the_estimate_at_the_largest_sigma():
    leg = go_on(leg_of(), 16)
    stage, batch, rngs = leg.trained, leg.source.batch(0, 4), [Rng((index,)) for index in range(4)]
    sampling = parse_recipe(merge(CASCADE, ONE_STEP)).enlarging(16).sampling
    condition = stage.sampling_condition(batch.labels, batch.low_res, sampling, rngs)
    sigma = torch.full((4,), max(stage.schedule.grid(30)))
    noise = torch.stack([rng.at("start").normal(*batch.clean.shape[1:]) for rng in rngs])
    with torch.no_grad():
        expected = stage.denoiser(stage.prior_mean(condition) + sigma[0] * noise, sigma, condition).clamp(-1, 1)

    class Unplaced(Rng):
        def at(self, *path):
            return super().at(*path) if path != (stage.image_size,) else self

    made = generate([stage], batch.labels, [sampling], [Unplaced((index,)) for index in range(4)], batch.low_res)
    assert torch.allclose(made, expected, atol=1e-5)


def test_a_perfect_stage_has_no_loss_and_a_silent_one_that_of_the_prior_mean():
    leg = leg_of()
    objective, batch = leg.objective, leg.source.batch(0, 4)
    objective.stage.denoiser.forward = lambda noisy, sigma, condition: batch.clean
    assert float(objective.losses(batch, 0.0, RNG)["denoiser"].total) == 0
    means = []

    def silent(noisy, sigma, condition):
        means.append(condition.low_res)
        return condition.low_res

    objective.stage.denoiser.forward = silent
    terms = objective.losses(batch, 0.0, RNG)["denoiser"].terms
    assert torch.allclose(terms["l1"], (means[0] - batch.clean).abs().mean()) and terms["l1"] > 0.01


def test_the_critic_takes_part_from_its_fraction_on():
    objective, batch = leg_of().objective, leg_of().source.batch(0, 4)
    names = [sorted(objective.losses(batch, fraction, RNG)) for fraction in (0.0, 0.3)]
    assert names == [["denoiser"], ["critic", "denoiser"]]
    assert "adversarial" not in objective.losses(batch, 0.3, RNG)["denoiser"].terms
    assert {"adversarial", "perceptual"} <= set(objective.losses(batch, 0.6, RNG)["denoiser"].terms)
    without = leg_of(enlarge={"16": {"losses": {"adversarial": 0.0}}})
    assert set(without.states) == {"denoiser"} and without.guard is None


def test_training_makes_edges_sharp():
    """Of discs, whose low-resolution pictures tell nearly all."""
    rows = torch.arange(16.0)
    centres, radii = 4 + 8 * RNG.at("centre").uniform(40, 2), 2 + 4 * RNG.at("radius").uniform(40, 1, 1)
    across = (rows[None, :, None] - centres[:, 0, None, None]).square()
    inside = across + (rows[None, None] - centres[:, 1, None, None]).square() < radii.square()
    discs = noise_pictures(40)
    discs = replace(discs, pixels=(255 * inside[:, None].expand(-1, 3, -1, -1)).to(torch.uint8))
    stage = {
        "images": 1600, "prior": "none", "sigma_data": 0.3, "augmentation": {"share": 0.0},
        "losses": {"adversarial": 0.0, "perceptual": 0.0}, "learn": {"learning_rate": 4e-3},
        "backbone": {"dropout": 0.0},
    }  # fmt: skip
    leg = leg_of(pictures=discs, enlarge={"16": stage})
    batch = leg.source.batch(0, 32)

    def distance():
        return float(leg.objective.losses(batch, 0.0, RNG)["denoiser"].terms["l1"])

    before = distance()
    go_on(leg, 1600)
    assert distance() < 0.6 * before


@pytest.fixture(scope="module")
def whole():
    """What a leg comes to without a stop."""
    return fingerprint(go_on(leg_of()).states)


@pytest.mark.parametrize("until", [4, 12, 28])
def test_stop_and_resume_is_the_same_to_the_bit(until, tmp_path, whole):
    save(tmp_path, go_on(leg_of(), until))
    second = leg_of()
    restore(tmp_path, second)
    assert second.progress.images_seen == until and fingerprint(go_on(second).states) == whole


def test_a_run_with_one_step_is_trained_guarded_and_sampled(tmp_path):
    folder = train_small(tmp_path, settings=merge(HYBRID, ONE_STEP))
    model = load(folder)
    assert model.recipe.enlarging(16).objective == "one_step"
    (picture,) = model.sample(1)
    assert picture.size == (16, 16)
    assert (folder / "checkpoints").is_dir() and leg_above(16) in (folder / "log.jsonl").read_text()


@pytest.mark.parametrize(
    "sampling", [{"steps": 2}, {"steps": 1, "guidance": 2.0}, {"steps": 1, "final_denoising": 0.1}]
)
def test_more_steps_and_guidance_are_refused(sampling):
    with pytest.raises(UserError, match="objective is one_step"):
        parse_recipe(merge(merge(CASCADE, ONE_STEP), {"enlarge": {"16": {"sampling": sampling}}}))


def test_the_critic_of_exposure_fine_tuning_starts_the_same_whatever_was_drawn_before():
    """In a run of one session the clock decides how often threads are timed, which draws numbers; a resumed one has
    not drawn them."""
    exposure = {"enlarge": {"16": {"exposure": {"images": 8, "pictures": 2}}}}
    recipe, pictures = parse_recipe(merge(merge(CASCADE, ONE_STEP), exposure)), noise_pictures()
    small = pictures.shrunk(8)
    below = denoiser_leg(recipe, [Bucket(small, picture_examples(recipe, small, CPU))], PixelSpace(), CPU).trained
    stage, critics = leg_of().trained, []
    for seed in (1, 2):
        torch.manual_seed(seed)
        leg = exposure_leg(recipe, below, stage, pictures, CPU)
        critics.append(fingerprint({"critic": leg.states["critic"]}))
    assert critics[0] == critics[1]
