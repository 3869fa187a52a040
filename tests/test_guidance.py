import math

import pytest
import torch
from analytic import Fixed, gaussian, log_density, perturbed, walk
from small import recipe

from calotype.build import build_stage
from calotype.diffusion.guidance import epsilon_scaled, guided, in_interval, rising
from calotype.diffusion.init import image_to_image, inpainting
from calotype.diffusion.samplers import euler
from calotype.diffusion.schedules import Karras
from calotype.diffusion.stage import Sampling, filled, for_all, generate, sampled_latents
from calotype.priors.gaussian import GaussianMixture
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.training import scaling
from calotype.training.scaling import LEAST_AMPLITUDE, MOST_SCALING, NEAR_ENOUGH, amplitude, fitted_scaling, scaling_of
from calotype.types import NULL_LABEL, Condition, Rng, Text, UserError

STRONG, WEAK = gaussian(1.0, 0.5), gaussian(0.2, 0.9)


@pytest.fixture
def noisy():
    return torch.randn(3, 1, 2, 2, dtype=torch.float64)


@pytest.mark.parametrize(("scale", "expected"), [(1.0, STRONG), (0.0, WEAK)])
def test_scale_1_is_strong_and_scale_0_is_weak(scale, expected, noisy):
    assert torch.allclose(guided(STRONG, WEAK, scale)(noisy, 0.7), expected(noisy, 0.7))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.5, 7.0])
@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_guidance_follows_the_gradient_of_strong_to_the_scale_over_weak(scale, sigma, noisy):
    """arXiv 2207.12598, eq. 6; by Tweedie's formula `denoised = noisy + sigma^2 * gradient of the log-density`."""
    noisy.requires_grad_(True)
    log = scale * log_density(noisy, sigma, 1.0, 0.5) + (1 - scale) * log_density(noisy, sigma, 0.2, 0.9)
    (gradient,) = torch.autograd.grad(log, noisy)
    assert torch.allclose(guided(STRONG, WEAK, scale)(noisy, sigma), noisy + sigma**2 * gradient)


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_between_gaussians_of_one_spread_guidance_moves_the_mean(scale, noisy):
    moved = gaussian(0.2 + scale * (1.0 - 0.2), 0.5)
    assert torch.allclose(guided(STRONG, gaussian(0.2, 0.5), scale)(noisy, 0.7), moved(noisy, 0.7))


def test_samples_grow_sharper_with_the_scale():
    noisy = 80 * torch.randn(500, 1, 1, 1, dtype=torch.float64)
    denoisers = [guided(STRONG, WEAK, scale) for scale in (1.0, 2.0, 4.0, 8.0)]
    spreads = [walk(euler, denoise, noisy, Karras().grid(40))[-1].std().item() for denoise in denoisers]
    assert spreads == sorted(spreads, reverse=True) and spreads[-1] < spreads[0] / 2


@pytest.mark.parametrize(("sigma", "chosen"), [(0.5, WEAK), (0.50001, STRONG), (2.0, STRONG), (2.00001, WEAK)])
def test_within_is_inside_above_low_and_up_to_high(sigma, chosen, noisy):
    assert torch.equal(in_interval(STRONG, WEAK, 0.5, 2.0)(noisy, sigma), chosen(noisy, sigma))


@pytest.mark.parametrize("sigma", [1e-3, 1.0, 1e4])
def test_within_no_limits_is_inside(sigma, noisy):
    assert torch.equal(in_interval(STRONG, WEAK)(noisy, sigma), STRONG(noisy, sigma))


def test_within_never_asks_the_other_one(noisy):
    asked = []

    def inside(noisy, sigma):
        asked.append(sigma)
        return noisy

    sigmas = Karras().grid(18)
    walk(euler, in_interval(inside, WEAK, 0.2, 5.0), noisy, sigmas)
    assert asked == [sigma for sigma in sigmas if 0.2 < sigma <= 5.0]


def test_wrappers_nest(noisy):
    """Guidance by a third denoiser, of guidance in an interval."""
    third, sigma = gaussian(-1.0, 2.0), 0.7
    strong, weak, other = STRONG(noisy, sigma), WEAK(noisy, sigma), third(noisy, sigma)
    inner = in_interval(guided(STRONG, WEAK, 3.0), STRONG, 0.5, math.inf)
    expected = other + 2 * (weak + 3 * (strong - weak) - other)
    assert torch.allclose(guided(inner, third, 2.0)(noisy, sigma), expected)
    assert torch.allclose(guided(inner, third, 2.0)(noisy, 0.5), 2 * STRONG(noisy, 0.5) - third(noisy, 0.5))


# -- Epsilon scaling ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "share"), [(1.0, 0.3), (0.5, 0.192), (2.0, 0.192), (250.0, 0.0), (0.004, 0.0)])
def test_epsilon_scaling_leaves_noise_in_where_it_is_as_large_as_the_signal(ratio, share, noisy):
    reference = torch.tensor([0.5, 2.0])[:, None, None, None]
    for row, own in enumerate(reference.flatten().tolist()):
        estimate = STRONG(noisy, ratio * own)
        found = epsilon_scaled(STRONG, 0.3, reference.flatten())(noisy[:1].expand(2, *noisy.shape[1:]), ratio * own)
        assert torch.allclose(found[row], (estimate + share * (noisy - estimate))[0], atol=1e-3)


def test_the_reference_of_epsilon_scaling_is_the_deviation_of_the_stage(stage, monkeypatch):
    monkeypatch.setattr(stage.denoiser, "sigma_data", 0.25)
    noisy, condition = torch.randn(3, 3, SIZE, SIZE), Condition(LABELS)
    plain = answers(stage, PRIOR, condition, noisy, 0.25)
    scaled = answers(stage, PRIOR.model_copy(update={"epsilon_scaling": 0.3}), condition, noisy, 0.25)
    assert torch.allclose(scaled, plain + 0.3 * (noisy - plain), atol=1e-5)


def test_epsilon_scaling_raises_the_variance_of_samples(stage):
    """And none is none, to the bit; the network is called as often."""
    rngs, labels = [Rng(("scaled", index)) for index in range(24)], torch.arange(24) % 2

    def latents(amount):
        return sampled_latents(stage, labels, PRIOR.model_copy(update={"epsilon_scaling": amount, "steps": 12}), rngs)

    plain, more, most = map(latents, (0.0, 0.1, 0.2))
    assert torch.equal(plain, sampled_latents(stage, labels, PRIOR.model_copy(update={"steps": 12}), rngs))
    assert plain.var() < more.var() < most.var()
    condition = Condition(LABELS)
    assert calls(stage, PRIOR.model_copy(update={"epsilon_scaling": 0.2}), condition) == calls(stage, PRIOR, condition)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpm_solver", "ancestral"])
def test_the_last_state_is_denoised_once_more(stage, sampler):
    rngs, changes = [Rng(("final", index)) for index in range(3)], {"steps": 4, "sampler": sampler}
    plain = PRIOR.model_copy(update=changes)
    before, after = (
        [*stage.steps(LABELS, None, sampling, rngs)]
        for sampling in (plain, plain.model_copy(update={"final_denoising": 0.3}))
    )
    assert len(before) == len(after) == 5
    assert all(torch.equal(*states) for states in zip(before[:-1], after[:-1], strict=True))
    assert torch.allclose(after[-1], answers(stage, plain, Condition(LABELS), before[-1], 0.3), atol=1e-5)


def test_what_ends_above_sigma_0_is_not_denoised_once_more(stage):
    rngs, sampling = [Rng(("final", index)) for index in range(3)], PRIOR.model_copy(update={"steps": 4})
    more = sampling.model_copy(update={"final_denoising": 0.3})
    plain, same = ([*stage.steps(LABELS, None, each, rngs, until=0.5)] for each in (sampling, more))
    assert all(torch.equal(*states) for states in zip(plain, same, strict=True))


@pytest.mark.parametrize("growth", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.9, 0.98, 1.0, 2.0])
def test_the_epsilon_scaling_that_is_fitted_gives_samples_enough_amplitude(share, growth):
    start, tried = share * LEAST_AMPLITUDE, list[float]()

    def relative(amount):
        tried.append(amount)
        return start * math.exp(growth * amount)

    found = fitted_scaling(relative)
    reachable = start * math.exp(growth * MOST_SCALING)
    expected = max(start, min(LEAST_AMPLITUDE, reachable))
    assert abs(math.log(start * math.exp(growth * found) / expected)) <= NEAR_ENOUGH and len(tried) <= 5
    assert (found == 0) == (share >= 0.98) and len(set(tried)) == len(tried)


def test_samples_that_are_not_finite_or_all_plain_do_not_stop_the_fit():
    assert 0 <= fitted_scaling(lambda amount: 0.5 if amount < 0.01 else math.inf) <= MOST_SCALING
    assert fitted_scaling(lambda amount: 0.0) <= MOST_SCALING and fitted_scaling(lambda amount: math.nan) == 0


def test_the_fit_measures_samples_of_all_conditions(stage, monkeypatch):
    """The mean of roots, of samples with the labels of some pictures: one sample of great amplitude does not count for
    many."""
    asked, real = [], [2 * torch.ones(3, 3, SIZE, SIZE), torch.zeros(1, 3, SIZE, SIZE)]

    def fitted(relative):
        asked.append(relative(0.1))
        return 0.1

    monkeypatch.setattr(scaling, "fitted_scaling", fitted)
    monkeypatch.setattr(scaling, "SCALED_SAMPLES", 6)
    labels = torch.arange(2).repeat_interleave(30)
    assert amplitude(real) == 1.5
    assert scaling_of(stage, 1.5, labels, None, seed=3)(PRIOR) == 0.1
    rngs, scaled = [Rng((3, "scaling", index)) for index in range(6)], PRIOR.model_copy(update={"epsilon_scaling": 0.1})
    latents = sampled_latents(stage, torch.tensor([0, 0, 0, 1, 1, 1]), scaled, rngs)
    assert asked == [pytest.approx(float(latents.square().mean((1, 2, 3)).sqrt().mean() / 1.5), rel=1e-5)]


# -- The closed form as the guide --------------------------------------------------------------------------------------

SIZE = 8
PRIOR = Sampling(steps=4, guide="prior", guidance=3.0, guidance_slope=0.5)
RNGS = [Rng(("guide", index)) for index in range(3)]
LABELS = torch.tensor([0, 1, NULL_LABEL])


def a_mixture():
    torch.manual_seed(0)
    mixture = GaussianMixture(2, 3, 3 * SIZE**2)
    mixture.means.copy_(torch.randn_like(mixture.means))
    mixture.axes.copy_(torch.linalg.qr(torch.randn(2, 3 * SIZE**2, 3))[0].mT)
    mixture.variances.uniform_(0.5, 2.0)
    mixture.rest.fill_(0.1)
    mixture.label.copy_(torch.tensor([0, 1]))
    mixture.group.copy_(torch.tensor([0, 1]))
    return mixture


@pytest.fixture(scope="module")
def stage():
    """In pixels, with two classes, captions, a closed form and a network that says something."""
    torch.manual_seed(1)
    settings = {"backbone": {"kind": "dit", "width": 64, "depth": 2, "heads": 1, "patch": 2}}
    text = {"kind": "bytes", "width": 32, "heads": 1, "depth": 1}
    wanted = parse_recipe({"kind": "cascade", "size": SIZE, "denoiser": {**settings, "text": text}})
    made = build_stage(wanted, PixelSpace(), 2, a_mixture())
    perturbed(made.denoiser.backbone, 0.05)
    made.denoiser.eval()
    return made


def answers(stage, sampling, condition, noisy, sigma):
    with torch.no_grad():
        return stage.denoise(condition, sampling)(noisy, sigma)


@pytest.mark.parametrize("sigma", [0.05, 0.5, 1.0, 2.0, 40.0])
def test_the_scale_rises_between_a_fifth_and_five_times_its_reference(sigma):
    reference = torch.tensor([0.2, 1.0])
    found = rising(4.0, 0.75, reference)(sigma).flatten()
    for scale, own in zip(found.tolist(), reference.tolist(), strict=True):
        ramp = max(-1.0, min(1.0, math.log(sigma / own) / math.log(5)))
        assert scale == pytest.approx(1 + 3 * (1 + 0.75 * ramp), rel=1e-5)
    assert torch.equal(rising(1.0, 0.75, reference)(sigma), torch.ones(2, 1, 1, 1))  # 1 disables it at every sigma


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_guidance_by_the_prior_extrapolates_from_it_through_the_network(stage, sigma):
    noisy, condition = torch.randn(3, 3, SIZE, SIZE), Condition(LABELS)
    with torch.no_grad():
        network = stage.denoiser(noisy, filled(sigma, noisy), condition)
        prior = stage.denoiser.prior.mean(noisy, filled(sigma, noisy), Condition(LABELS))
    scale = 1 + 2.0 * (1 + 0.5 * max(-1.0, min(1.0, math.log(sigma) / math.log(5))))
    assert torch.allclose(answers(stage, PRIOR, condition, noisy, sigma), prior + scale * (network - prior), atol=1e-5)
    assert (network - prior).abs().max() > 1e-2


def test_a_silent_network_is_not_guided_anywhere(stage, monkeypatch):
    """Where the network adds nothing to the closed form, every scale gives the closed form."""
    noisy, condition = torch.randn(3, 3, SIZE, SIZE), Condition(LABELS)
    monkeypatch.setitem(stage.denoiser._modules, "backbone", Fixed(torch.zeros_like(noisy)))
    prior = stage.denoiser.prior.mean(noisy, filled(0.7, noisy), Condition(LABELS))
    for scale in (1.0, 3.0, 9.0):
        sampling = PRIOR.model_copy(update={"guidance": scale})
        assert torch.allclose(answers(stage, sampling, condition, noisy, 0.7), prior, atol=1e-5)


def calls(stage, sampling, condition):
    count = []
    hook = stage.denoiser.backbone.register_forward_pre_hook(lambda *asked: count.append(1))
    answers(stage, sampling, condition, torch.randn(3, 3, SIZE, SIZE), 0.7)
    hook.remove()
    return len(count)


def test_the_prior_costs_no_second_call_of_the_network_but_a_negative_prompt_does(stage):
    plain, negative = Text(("a cat",) * 3), Text(("a cat",) * 3, ("grass",) * 3)
    assert calls(stage, PRIOR, Condition(LABELS, text=plain)) == 1
    assert calls(stage, PRIOR, Condition(LABELS, text=negative)) == 2
    assert calls(stage, PRIOR.model_copy(update={"guide": "unconditional"}), Condition(LABELS, text=plain)) == 2
    assert calls(stage, PRIOR.model_copy(update={"guidance": 1.0}), Condition(LABELS, text=negative)) == 1


def test_a_negative_prompt_moves_away_from_what_it_says(stage):
    noisy = torch.randn(3, 3, SIZE, SIZE)
    with_prompt, against = Condition(LABELS, text=Text(("a cat",) * 3)), Text(("a cat",) * 3, ("grass",) * 3)
    positive = answers(stage, PRIOR, with_prompt, noisy, 0.7)
    negative = answers(stage, PRIOR, Condition(LABELS, text=against).unconditional(), noisy, 0.7)
    found = answers(stage, PRIOR, Condition(LABELS, text=against), noisy, 0.7)
    assert ((found - positive) * (positive - negative)).sum() > 0
    assert torch.allclose(found, positive + 0.3 * (positive - negative), atol=1e-4)


def test_guidance_of_the_prior_itself_adds_what_it_knows_of_the_condition(stage):
    """The network is called as often as without it; without a condition there is nothing to add."""
    noisy, sampling = 100 * torch.randn(3, 3, SIZE, SIZE), PRIOR.model_copy(update={"prior_guidance": 0.5})
    condition = Condition(torch.tensor([0, 1, NULL_LABEL]), text=Text(("a cat",) * 3))
    with torch.no_grad():
        known = stage.denoiser.prior.mean(noisy, filled(100.0, noisy), condition)
        unknown = stage.denoiser.prior.mean(noisy, filled(100.0, noisy), condition.unconditional())
    difference = answers(stage, sampling, condition, noisy, 100.0) - answers(stage, PRIOR, condition, noisy, 100.0)
    assert torch.allclose(difference, 0.5 * (known - unknown), atol=1e-3) and difference[:2].abs().max() > 1e-2
    assert difference[2].abs().max() <= 1e-3
    assert calls(stage, sampling, condition) == calls(stage, PRIOR, condition) == 1


def test_a_picture_guided_by_the_prior_does_not_depend_on_its_batch(stage):
    text = Text(("a cat", "a dog", ""))
    together = generate([stage], LABELS, [PRIOR], RNGS, text=text)
    alone = generate([stage], LABELS[1:2], [PRIOR], RNGS[1:2], text=text.at([1]))
    assert torch.allclose(together[1:2], alone, atol=1e-4)


def test_edits_are_guided_by_the_prior_too(stage):
    picture, mask = torch.rand(1, 3, SIZE, SIZE) * 2 - 1, torch.zeros(1, 1, SIZE, SIZE)
    mask[..., :4] = 1
    unguided = PRIOR.model_copy(update={"guidance": 1.0})
    for start in (image_to_image(picture, SIZE, 0.5), inpainting(picture, mask, SIZE)):
        guided_by_prior, without = (
            generate([stage], LABELS, [one], RNGS, starts=for_all(start)) for one in (PRIOR, unguided)
        )
        assert (guided_by_prior - without).abs().max() > 1e-2
    assert torch.allclose(guided_by_prior[..., 4:], picture[..., 4:].expand(3, -1, -1, -1), atol=1e-5)


def test_a_model_without_a_closed_form_is_not_guided_by_it():
    with pytest.raises(UserError, match=r"sampling.guide is prior, but denoiser.prior is none"):
        parse_recipe({"denoiser": {"prior": "none"}, "sampling": {"guide": "prior"}})
    with pytest.raises(UserError, match=r"enlarge.128.sampling.guide is prior, but enlarge.128.prior is none"):
        settings = {"prior": "none", "sigma_data": 0.02, "sampling": {"guide": "prior"}}
        parse_recipe({"kind": "cascade", "size": 128, "stages": [64, 128], "enlarge": {"128": settings}})
    assert recipe().sampling.guide == "unconditional"  # of models that were written before there was another guide
