"""More variance outside the axes, where validation pictures have it."""

import pytest
import torch
from analytic import unconditional

from calotype.priors.calibration import FACTORS, calibrated, with_residual
from calotype.priors.captioned import CaptionLevel, FittingSet, fit_captioned
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.gaussian_fit import components_of, flow_errors, mixture_of
from calotype.priors.selection import Trial
from calotype.types import NULL_LABEL, Condition, Rng, Text

SHAPE = (4, 4, 4)
SPREAD = torch.cat([torch.logspace(0.5, -0.5, 8), torch.full((56,), 0.1)])
RNG = Rng(("calibration",))


def drawn(count, where):
    """From the Gaussian of this covariance, turned so that no axis is a pixel's."""
    turn = torch.linalg.qr(RNG.at("turn").normal(64, 64))[0]
    return (SPREAD * RNG.at(where).normal(count, 64) @ turn).reshape(count, *SHAPE)


def mixture(train, rank=24):
    torch.manual_seed(0)
    return mixture_of(components_of(train.flatten(1), {NULL_LABEL: torch.ones(len(train)) > 0}, 1, rank), rank)


def error(form, clean, sigma, where="noise", text=None):
    sigmas, noise = torch.full((len(clean),), sigma), RNG.at(where).normal(*clean.shape)
    return float(flow_errors(form, clean, unconditional(len(clean)).labels, sigmas, noise, text).mean())


def calibrated_on(form, clean, text=None):
    return calibrated(form, clean, unconditional(len(clean)).labels, RNG.at("noise").normal(*clean.shape), text)


def test_few_pictures_leave_too_little_outside_the_axes_and_calibration_mends_it():
    """On pictures that neither the fit nor the calibration has seen; and towards the error of the true covariance."""
    train, validation, test = drawn(40, "train"), drawn(200, "validation"), drawn(1000, "test")
    before = mixture(train)
    after, ideal = calibrated_on(before, validation), mixture(drawn(20_000, "many"))
    assert after.rest / before.rest >= FACTORS[0] and before.rest < 0.9 * ideal.rest
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
    sigma, noise = torch.logspace(-1.523, -0.523, count), RNG.at("noise").normal(count, *SHAPE)
    errors = [
        flow_errors(one, validation, unconditional(count).labels, sigma, noise).mean().item() for one in (before, after)
    ]
    assert errors[1] <= errors[0] * (1 + 1e-5)
    assert count > 1 or after is before


def test_components_with_fewer_axes_still_answer_as_alone():
    """Axes of no length have the variance outside, before and after."""
    points = torch.cat([torch.randn(60, 8) + 9, 3 * torch.randn(60, 8)])
    groups = {0: torch.arange(120) < 60, 1: torch.arange(120) >= 60}
    parts = [components_of(points, {label: groups[label]}, 1, rank) for label, rank in enumerate((2, 6))]
    both, noisy = mixture_of([*parts[0], *parts[1]], 6), torch.randn(5, 8, 1, 1)
    kept = {name: value.clone() for name, value in both.state_dict().items()}
    for label, rank in enumerate((2, 6)):
        alone = with_residual(mixture_of(parts[label], rank), 2.0)
        found, expected = (
            one.mean(noisy, torch.ones(5), Condition(torch.full((5,), label)))
            for one in (with_residual(both, 2.0), alone)
        )
        assert torch.allclose(found, expected, atol=1e-5)
    assert all(torch.equal(value, kept[name]) for name, value in both.state_dict().items())


@pytest.mark.parametrize(("count", "rank", "optimistic"), [(6, 5, True), (66, 60, False), (3000, 2, False)])
def test_calibration_mends_optimism_at_low_noise_and_what_is_left_is_at_high_noise(count, rank, optimistic):
    """Of very few pictures the mean and the largest variances are wrong as well, which calibration does not mend."""
    validation, train = (
        FittingSet(clean, unconditional(len(clean)).labels, [""] * len(clean))
        for clean in (drawn(200, "validation"), drawn(count, "train"))
    )
    trial = Trial(validation, torch.ones(200), RNG.at("noise").normal(200, *SHAPE))
    before, low = mixture(train.clean, rank), torch.full((min(count, 200),), 0.05)
    after = trial.calibrated(before)
    ratios = [trial.error(form, sigma=low) / trial.error(form, train, low) for form in (before, after)]
    assert trial.optimistic(after, train) == optimistic
    assert (ratios[0] > 1.7 and ratios[1] < 1.4) == (count < 100)


def test_a_mixture_with_words_is_calibrated_too():
    def captioned(count, where):
        clean, red = drawn(count, where), RNG.at("words", where).uniform(count) < 0.5
        clean += 2.0 * red[:, None, None, None]
        return FittingSet(clean, unconditional(count).labels, ["red" if one else "blue" for one in red.tolist()])

    train, validation, test = (captioned(count, where) for count, where in ((60, "a"), (200, "b"), (1000, "c")))
    torch.manual_seed(0)
    form = fit_captioned(mixture(train.clean), [CaptionLevel(train, validation)])
    after = calibrated_on(form, validation.clean, Text(tuple(validation.texts)))
    text = Text(tuple(test.texts))
    assert (
        isinstance(after.mixture, GaussianMixture)
        and after.regression_out is form.regression_out
        and after.mixture.rest[0] > form.mixture.rest[0]
    )
    assert error(after, test.clean, 0.1, text=text) < 0.99 * error(form, test.clean, 0.1, text=text)
