"""Which prior a stage that starts from noise gets: everything is chosen on validation images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from calotype.priors.calibration import Mixture, calibrated, log_spaced
from calotype.priors.captioned import CaptionedMixture, CaptionLevel, FittingSet, fit_captioned
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.gaussian_fit import cross_fit, fit_classes, flow_error
from calotype.priors.prior import Prior
from calotype.types import Folds, Rng, Sigmas, Text

FEWEST_TO_FOLD = 8
"""Images that each fold needs, if a mixture of the others is to stand in for its own."""
FEWEST_CAPTIONED = 64
"""Captioned images below which a captioned mixture is not tried."""
OPTIMISTIC = 1.3
"""Ratio of validation to training error from which a mixture is cross-fitted."""
OPTIMISTIC_SIGMAS = (1.0, 10.0)
"""The noise at which this is judged. Overfitting at lower noise is calibrated, and there the weaker mixture of half the
images does more harm than good (dev/LOG.md)."""

Shorten = Callable[[FittingSet, Rng], FittingSet]  # the same images with captions as caption dropout leaves them


@dataclass(frozen=True)
class Trial:
    """Validation images by which priors are judged, with their noise."""

    validation: FittingSet
    sigma: Sigmas
    noise: Tensor

    def error(self, prior: Prior, examples: FittingSet | None = None, sigma: Sigmas | None = None) -> float:
        """Flow error on these images, or on as many `examples` with the same noise; at `sigma` or the trial's own."""
        clean, labels, texts = examples or self.validation
        sigma = self.sigma if sigma is None else sigma
        count = min(len(clean), len(sigma))
        part, captions = slice(0, count), Text(tuple(texts[:count]))
        return flow_error(prior, clean[part], labels[part], sigma[part], self.noise[part], captions)

    def calibrated(self, prior: Mixture) -> Mixture:
        clean, labels, texts = self.validation
        return calibrated(prior, clean, labels, self.noise, Text(tuple(texts)))

    def optimistic(self, prior: Prior, train: FittingSet) -> bool:
        """Whether the means and the large variances of `prior` overfit its training images."""
        count = min(len(train.clean), len(self.validation.clean))
        sigma = log_spaced(*OPTIMISTIC_SIGMAS, count).to(self.validation.clean)
        return self.error(prior, sigma=sigma) >= OPTIMISTIC * self.error(prior, train, sigma)


def fit_prior(
    train: FittingSet, again: Callable[[], FittingSet], trial: Trial, folds: Folds | None, shorten: Shorten
) -> tuple[GaussianMixture | CaptionedMixture, CrossFitted | None]:
    """The prior of `train`, and what stands in for it in training where it overfits.

    `again` gives the same images with other augmentations and captions, for the regression on captions.
    """
    mixture = trial.calibrated(fit_classes(train.clean, train.labels, *trial.validation[:2], trial.sigma, trial.noise))
    if folds is None or min(folds.bincount(minlength=2)) < FEWEST_TO_FOLD or not trial.optimistic(mixture, train):
        return select_captioned(mixture, train, again(), trial, shorten), None
    crossed = cross_fit(mixture, train.clean, train.labels, folds)
    return mixture, CrossFitted(tuple(trial.calibrated(one) for one in crossed.mixtures))


def select_captioned(
    mixture: GaussianMixture, train: FittingSet, again: FittingSet, trial: Trial, shorten: Shorten
) -> GaussianMixture | CaptionedMixture:
    """A captioned mixture, if it denoises validation images with whole captions better than `mixture`; else `mixture`.

    Shortened captions are not judged: there it may be a little worse, as it has the axes of two groups to estimate.
    """
    if sum(map(bool, train.texts)) < FEWEST_CAPTIONED:
        return mixture
    rng = Rng(("telling",))  # as in version 0.1: another name would draw other numbers
    full = CaptionLevel(train.joined(again).captioned(), trial.validation.captioned())
    parts = [shorten(one, rng.at(place)) for place, one in enumerate((train, again, trial.validation))]
    captioned = fit_captioned(mixture, [full, CaptionLevel(parts[0].joined(parts[1]), parts[2])])
    if captioned is None:
        return mixture
    captioned = trial.calibrated(captioned)
    worse = trial.optimistic(captioned, train) or trial.error(captioned) >= trial.error(mixture)
    return mixture if worse else captioned
