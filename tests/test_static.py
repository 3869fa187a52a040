"""Priors without branches are equal to those that leave out what has no weight."""

import weakref

import pytest
import torch
from test_local import edges
from torch.utils._python_dispatch import TorchDispatchMode

from calotype.diffusion.stage import shrunk
from calotype.priors import gaussian, patches
from calotype.priors.captions import CaptionedMixture, bags_of
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.priors.static import StaticMixture, gathered
from calotype.types import NULL_LABEL, Condition, Text

LABELS = torch.tensor([0, 1, 2, NULL_LABEL, 1])
TEXTS = ("a red cat", "a blue dog", "", "a cat", "nothing that is known")


def mixture(side=4, components=6, rank=5):
    """With clusters that have axes of their own within the first ones, of which some components have fewer."""
    turned = min(3, rank)
    filled = GaussianMixture(components, rank, 3 * side**2, 3, turned)
    filled.means.normal_()
    filled.offsets.normal_()
    filled.shares.copy_(torch.tensor([0.5, 0.3, 0.2])).view(-1)[2::6] = 0
    filled.rotations.copy_(torch.linalg.qr(torch.randn(components, 3, turned, turned))[0])
    filled.axes.copy_(torch.linalg.qr(torch.randn(components, 3 * side**2, rank))[0].mT)
    filled.variances.uniform_(0.5, 3)
    filled.rest.uniform_(0.05, 0.2)
    filled.prior.copy_(torch.softmax(torch.randn(components), 0))
    filled.label.copy_(torch.arange(components) // 3)  # no component of its own for label 2
    filled.group.copy_(filled.label)
    return filled


def captioned():
    filled = CaptionedMixture(mixture(), 2, 30, 4)
    filled.vocabulary.copy_(torch.randperm(4096)[:30].sort().values)
    filled.regression_in.normal_()
    filled.regression_out.normal_()
    filled.gate.normal_(std=3)
    return filled


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
@pytest.mark.parametrize(("height", "rank"), [(4, 5), (7, 5), (4, 0)])
def test_a_static_mixture_equals_the_mixture(sigma, height, rank):
    prior, sigmas = mixture(rank=rank), torch.full((5,), sigma)
    noisy = torch.randn(5, 3, height, 4) * (1 + sigma)
    expected = prior.mean(noisy, sigmas, Condition(LABELS))
    assert torch.allclose(StaticMixture(prior)(noisy, sigmas, LABELS), expected, atol=2e-6 * (1 + sigma))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_a_static_captioned_mixture_equals_the_mixture(sigma):
    prior, sigmas = captioned(), torch.full((5,), sigma)
    noisy, bags = torch.randn(5, 3, 4, 4) * (1 + sigma), bags_of(TEXTS, prior.columns)
    bags[:, :4] = torch.rand(5, 4).round()
    prior_mean = prior.mean
    texts = iter([bags])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("calotype.priors.captions.bags_of", lambda captions, columns: next(texts))
        expected = prior_mean(noisy, sigmas, Condition(LABELS, text=Text(TEXTS)))
    assert torch.allclose(StaticMixture(prior)(noisy, sigmas, LABELS, bags), expected, atol=2e-5 * (1 + sigma))


@pytest.mark.parametrize("most", [4096, 100])
def test_gathered_matrices_equal_those_of_clusters(most, monkeypatch):
    monkeypatch.setattr(patches, "WINDOWS_GATHERED", most)
    prior = PatchPrior(4)
    prior.fit([(shrunk(part, 4), part) for part in edges(200).split(50)])
    low_res, level = shrunk(edges(3, 48, seed=1), 4) + 0.05 * torch.randn(3, 3, 12, 12), torch.tensor([0.0, 0.1, 0.2])
    expected = prior.posterior(low_res, level)
    posterior = prior.posterior(low_res, level, lambda windows: gathered(prior, windows, 144))
    assert torch.equal(posterior.by_cluster.clusters, expected.by_cluster.clusters)
    noisy = torch.randn(3, 3, 48, 48)
    for ours, theirs in (
        (posterior.mean, expected.mean),
        (posterior.deviation, expected.deviation),
        (posterior.denoise(noisy, level + 0.1), expected.denoise(noisy, level + 0.1)),
    ):
        assert torch.allclose(ours, theirs, atol=1e-5)


class Counted(torch.Tensor):
    """Remembers how many matrices were gathered at once."""

    def __getitem__(self, chosen):
        gathered_at_once.append(chosen.numel())
        return super().__getitem__(chosen).as_subclass(torch.Tensor)


gathered_at_once = []


@pytest.mark.parametrize("count", [1, 5])
def test_on_a_gpu_matrices_take_no_more_memory_for_more_pictures(count, monkeypatch):
    monkeypatch.setattr(patches, "is_host", lambda device: False)
    monkeypatch.setattr(patches, "WINDOWS_GATHERED", 40)
    prior = PatchPrior(4)
    prior.fit([(shrunk(part, 4), part) for part in edges(200).split(50)])
    prior.weights = prior.weights.as_subclass(Counted)
    gathered_at_once.clear()
    prior.posterior(shrunk(edges(count, 48, seed=1), 4), torch.zeros(count))
    assert sum(gathered_at_once) == count * 12**2 and max(gathered_at_once) == 40


class Alive(TorchDispatchMode):
    """Counts tensors of one shape that exist at the same time."""

    def __init__(self, shape):
        super().__init__()
        self.shape, self.alive, self.most = shape, {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.shape == self.shape:
            self.alive[id(made)] = weakref.ref(made)
            self.most = max(self.most, sum(each() is not None for each in self.alive.values()))
        return made


@pytest.mark.parametrize("label", [0, NULL_LABEL])
def test_a_mixture_of_many_classes_takes_no_more_memory_than_one_of_few(label, monkeypatch):
    """On a GPU, where all groups are evaluated, also for images with a label."""
    monkeypatch.setattr(gaussian, "is_host", lambda device: False)
    noisy, labels, most = torch.randn(2, 3, 4, 4), torch.tensor([label] * 2), []
    for classes in (3, 12):
        prior = mixture(components=3 * classes)
        with Alive((2, 48)) as tensors:
            prior.mean(noisy, torch.ones(2), Condition(labels))
        most.append(tensors.most)
    assert len(prior.parts) == 12 and most[0] == most[1] > 0


@pytest.mark.parametrize("sigma", [0.05, 1.0, 30.0])
def test_on_a_gpu_nothing_is_skipped_and_all_is_equal(sigma, monkeypatch):
    """There skipping what has no weight would wait for the device."""
    sigmas, noisy = torch.full((5,), sigma), torch.randn(5, 3, 4, 4) * (1 + sigma)
    means = [(prior, Condition(LABELS, text=Text(TEXTS))) for prior in (mixture(), captioned())]
    crossed = CrossFitted((mixture(), mixture())).of(torch.tensor([0, 1, 1, 0, 0]), LABELS)
    patched = PatchPrior(4)
    patched.fit([(shrunk(part, 4), part) for part in edges(200).split(50)])
    low_res, level = shrunk(edges(3, 48, seed=1), 4), torch.tensor([0.0, 0.1, 0.2])

    def everything():
        posterior = patched.posterior(low_res, level)
        own = [posterior.mean, posterior.deviation, posterior.denoise(torch.zeros(3, 3, 48, 48), level + sigma)]
        return [prior.mean(noisy, sigmas, condition) for prior, condition in means] + [crossed(noisy, sigmas), *own]

    expected = everything()
    for module in (gaussian, patches):
        monkeypatch.setattr(module, "is_host", lambda device: False)
    for ours, theirs in zip(everything(), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5 * (1 + sigma))
