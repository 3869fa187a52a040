"""More variance outside the axes, where validation pictures have it."""

import pytest
import torch
from analytic import unconditional

from calotype.priors.clusters import components_of, mixture_of
from calotype.priors.fit import RESIDUAL_FACTORS, CaptionedLatents, PriorValidation, fit_captioned
from calotype.priors.gaussian import GaussianMixture
from calotype.types import NULL_LABEL, Condition, Rng

SHAPE = (4, 4, 4)
SPREAD = torch.cat([torch.logspace(0.5, -0.5, 8), torch.full((56,), 0.1)])
RNG = Rng(("calibration",))


def drawn(count, where):
    """From the Gaussian of this covariance, turned so that no axis is a pixel's."""
    turn = torch.linalg.qr(RNG.at("turn").normal(64, 64))[0]
    return (SPREAD * RNG.at(where).normal(count, 64) @ turn).reshape(count, *SHAPE)


def mixture(train, rank=24):
    torch.manual_seed(0)
    return mixture_of(components_of(train.flatten(1), {NULL_LABEL: torch.ones(len(train)) > 0}, rank), rank)


def validation_of(clean, sigma=1.0, captions=None):
    captions = [""] * len(clean) if captions is None else captions
    examples = CaptionedLatents(clean, unconditional(len(clean)).labels, captions, captions)
    return PriorValidation(examples, torch.full((len(clean),), sigma), RNG.at("noise").normal(*clean.shape))


def error(form, clean, sigma, captions=None):
    return validation_of(clean, sigma, captions).error(form)


def calibrated_on(form, clean, captions=None):
    return validation_of(clean, captions=captions).calibrated(form)


def test_few_pictures_leave_too_little_outside_the_axes_and_calibration_mends_it():
    """On pictures that neither the fit nor the calibration has seen; and towards the error of the true covariance."""
    train, validation, test = drawn(40, "train"), drawn(200, "validation"), drawn(1000, "test")
    before = mixture(train)
    after, ideal = calibrated_on(before, validation), mixture(drawn(20_000, "many"))
    assert after.rest / before.rest >= RESIDUAL_FACTORS[0] and before.rest < 0.9 * ideal.rest
    for sigma in (0.05, 0.1, 0.3):
        assert error(ideal, test, sigma) < error(after, test, sigma) < 0.99 * error(before, test, sigma)
    for sigma in (3.0, 30.0):
        assert error(after, test, sigma) == pytest.approx(error(before, test, sigma), rel=0.01)


def test_what_is_right_is_left_alone():
    form = mixture(drawn(20_000, "many"), 8)
    assert calibrated_on(form, drawn(200, "validation")) is form


@pytest.mark.parametrize("count", [1, 2, 5, 60])
@pytest.mark.parametrize("train", [2, 12, 60, 500])
def test_the_validation_error_never_rises(train, count):
    before, validation = mixture(drawn(train, "train")), drawn(count, "validation")
    after = calibrated_on(before, validation)
    errors = [validation_of(validation).error(one, torch.logspace(-1.523, -0.523, count)) for one in (before, after)]
    assert errors[1] <= errors[0] * (1 + 1e-5)
    assert count > 1 or after is before


def test_components_with_fewer_axes_still_answer_as_alone():
    """Axes of no length have the variance outside, before and after."""
    points = torch.cat([torch.randn(60, 8) + 9, 3 * torch.randn(60, 8)])
    groups = {0: torch.arange(120) < 60, 1: torch.arange(120) >= 60}
    parts = [components_of(points, {label: groups[label]}, rank) for label, rank in enumerate((2, 6))]
    both, noisy = mixture_of([*parts[0], *parts[1]], 6), torch.randn(5, 8, 1, 1)
    kept = {name: value.clone() for name, value in both.state_dict().items()}
    for label, rank in enumerate((2, 6)):
        alone = mixture_of(parts[label], rank).with_residual(2.0)
        found, expected = (
            one.mean(noisy, torch.ones(5), Condition(torch.full((5,), label)))
            for one in (both.with_residual(2.0), alone)
        )
        assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.equal(value, kept[name]) for name, value in both.state_dict().items())


@pytest.mark.parametrize(("count", "rank", "optimistic"), [(6, 5, True), (66, 60, False), (3000, 2, False)])
def test_calibration_mends_optimism_at_low_noise_and_what_is_left_is_at_high_noise(count, rank, optimistic):
    """Of very few pictures the mean and the largest variances are wrong as well, which calibration does not mend."""
    clean, low = drawn(count, "train"), torch.full((min(count, 200),), 0.05)
    validation, train = validation_of(drawn(200, "validation")), validation_of(clean).examples
    before = mixture(clean, rank)
    after = validation.calibrated(before)
    ratios = [validation.error(form, low) / validation.error(form, low, train) for form in (before, after)]
    assert validation.optimistic(after, train) == optimistic
    assert (ratios[0] > 1.7 and ratios[1] < 1.4) == (count < 100)


def test_a_mixture_with_words_is_calibrated_too():
    def captioned(count, where):
        clean, red = drawn(count, where), RNG.at("words", where).uniform(count) < 0.5
        clean += 2.0 * red[:, None, None, None]
        return validation_of(clean, captions=["red" if one else "blue" for one in red.tolist()])

    train, validation, test = (captioned(count, where) for count, where in ((60, "a"), (200, "b"), (1000, "c")))
    torch.manual_seed(0)
    form = fit_captioned(mixture(train.examples.latents), [train.examples], validation.examples)
    after = validation.calibrated(form)
    assert (
        isinstance(after.mixture, GaussianMixture)
        and after.regression_out is form.regression_out
        and after.mixture.rest[0] > form.mixture.rest[0]
    )
    low = torch.full((1000,), 0.1)
    assert test.error(after, low) < 0.99 * test.error(form, low)
