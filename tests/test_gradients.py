"""Gradients run through the closed forms: what is trained end to end moves with all that the picture depends on."""

import copy

import pytest
import torch
from analytic import slope_error
from test_gaussian import filled, unconditional
from test_local import edges

from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import shrunk
from calotype.priors.captions import CaptionedMixture, buckets
from calotype.priors.gaussian import CrossFitted
from calotype.priors.patches import PatchPrior
from calotype.types import Condition, Text

SIGMAS = [0.05, 0.3, 1.0, 5.0]
CANVASES = {"as fitted": (4, 4), "larger": (6, 9)}
LABELS = {
    "labels": torch.tensor([0, 1, 1, 0]),
    "some labels": torch.tensor([0, -1, 1, -1]),
    "no labels": unconditional(4),
}
TEXTS = {"captions": Text(("red", "red ball", "", "ball")), "no captions": None}


def several(channels=2):
    """Six components in two classes, on squares of 4, so near to each other that all answer."""
    axes = torch.linalg.qr(torch.randn(6, 16 * channels, 3, dtype=torch.float64))[0].mT
    variances = torch.rand(6, 3, dtype=torch.float64) + 0.2
    means = 0.3 * torch.randn(6, 16 * channels, dtype=torch.float64)
    return filled(means, axes, variances, torch.full((6,), 0.2), [0, 0, 0, 1, 1, 1])


def captioned(channels=2):
    """Of the same components; of two words each moves both classes, and makes one of them likelier."""
    form = CaptionedMixture(several(channels), 2, 2, 1).double()
    form.vocabulary.copy_(torch.tensor(sorted([*buckets("red"), *buckets("ball")])))
    form.regression_in.normal_(), form.regression_out.normal_(std=0.2), form.gate.normal_()
    return form


def wrong(denoise, noisy):
    """The error of the gradient of a fixed weighting of the answer."""
    weights = torch.randn(noisy.shape, dtype=torch.float64)
    return slope_error(lambda one: (weights * denoise(one)).sum(), noisy)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", CANVASES.values(), ids=CANVASES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_the_gradient_of_a_mixture_is_its_slope(sigma, shape, labels):
    mixture, sigmas = several(), torch.full((4,), sigma).double()
    noisy = (0.6 + sigma) * torch.randn(4, 2, *shape, dtype=torch.float64)
    assert wrong(lambda one: mixture.mean(one, sigmas, Condition(labels)), noisy) < 0.001


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("shape", CANVASES.values(), ids=CANVASES)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_the_gradient_of_a_mixture_that_captions_shift_is_its_slope(sigma, shape, labels, text):
    form, sigmas = captioned(), torch.full((4,), sigma).double()
    noisy = (0.6 + sigma) * torch.randn(4, 2, *shape, dtype=torch.float64)
    assert wrong(lambda one: form.mean(one, sigmas, Condition(labels, text=text)), noisy) < 0.001


def test_the_gradient_of_a_cross_fitted_mixture_is_its_slope():
    known = CrossFitted((several(), several())).of(torch.tensor([0, 1, 1, 0]), LABELS["some labels"])
    sigmas = torch.tensor([0.1, 0.5, 1.0, 3.0]).double()
    assert wrong(lambda one: known(one, sigmas), torch.randn(4, 2, 4, 4, dtype=torch.float64)) < 0.001


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_gradient_of_local_gaussians_is_their_slope(sigma):
    local = PatchPrior(4)
    local.fit([(shrunk(part, 4), part) for part in edges(60).split(30)])
    around = copy.deepcopy(local).double().posterior(shrunk(edges(2, seed=2), 4).double(), torch.zeros(2).double())
    noisy = around.mean + sigma * torch.randn_like(around.mean)
    assert wrong(lambda one: around.denoise(one, torch.full((2,), sigma).double()), noisy) < 0.001


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_the_gradient_of_a_denoiser_beside_its_closed_form_is_its_slope(labels, text):
    """Of both together: the network also sees what the closed form says. It answers in float32."""
    denoiser = Denoiser(Weighted(2), 8, 2, "flow", prior=captioned())
    sigmas, condition = torch.tensor([0.05, 0.3, 1.0, 5.0]), Condition(labels, text=text)
    weights, noisy = (torch.randn(4, 2, 4, 4, dtype=torch.float64) for _ in range(2))
    assert slope_error(lambda one: (weights * denoiser(one, sigmas, condition)).sum(), noisy, step=1e-3) < 0.01


@pytest.mark.parametrize("form", [several, captioned])
def test_no_graph_is_built_where_the_picture_needs_no_gradient(form):
    """So a step of training a denoiser pays nothing for it."""
    saved = []
    denoiser = Denoiser(Weighted(2), 8, 2, "flow", prior=form().float())
    clean, noise, condition = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4), Condition(LABELS["labels"])
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        denoiser.loss(clean, torch.ones(4), noise, condition).mean().backward()
        with_form, saved[:] = len(saved), []
        known = lambda noisy, sigma: torch.zeros_like(noisy)  # noqa: E731
        denoiser.loss(clean, torch.ones(4), noise, Condition(condition.labels, posterior_mean=known)).mean().backward()
    assert with_form == len(saved) > 0


class Weighted(torch.nn.Module):
    """A backbone of one weight."""

    def __init__(self, channels):
        super().__init__()
        self.channels, self.weight = channels, torch.nn.Parameter(torch.ones(()))

    def forward(self, image, vector, *text):
        seen, known = image.split(self.channels, 1)
        return self.weight * torch.tanh(seen - known) + vector.mean()
