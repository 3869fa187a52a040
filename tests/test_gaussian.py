import pytest
import torch
from analytic import mixture as analytic_mixture

from calotype.nets.weights import load_weights
from calotype.priors import fit
from calotype.priors.clusters import class_component, components_of, mixture_of
from calotype.priors.fit import CaptionedLatents, PriorValidation, cross_fit, fit_classes, fit_prior
from calotype.priors.gaussian import CrossFitted, GaussianMixture
from calotype.priors.stored import PriorDescription, described, prior_in
from calotype.types import NULL_LABEL, Condition

NEW_IN_CLUSTERS = ("offsets", "shares", "rotations")
SIGMAS = [0.01, 0.3, 1.0, 5.0, 100.0]


def filled(means, axes, variances, rest, label=None):
    mixture = GaussianMixture(*axes.shape[:2], axes.shape[2])
    mixture.means.copy_(means), mixture.axes.copy_(axes), mixture.rest.copy_(rest)
    mixture.variances.copy_(variances[:, None])
    mixture.prior.fill_(1 / len(means))
    mixture.label.copy_(torch.tensor([NULL_LABEL] * len(means) if label is None else label))
    mixture.group.copy_(mixture.label.unique_consecutive(return_inverse=True)[1])
    return mixture.double()


def unconditional(count):
    return torch.full((count,), NULL_LABEL)


def parted(means, spreads, counts):
    """Clean pictures (count, 2, 2, 2) around each of the means."""
    parts = [mean + spread * torch.randn(count, 8) for mean, spread, count in zip(means, spreads, counts, strict=True)]
    return torch.cat(parts).reshape(-1, 2, 2, 2)


def fitted(train, labels=None, seed=1):
    labels = unconditional(len(train)) if labels is None else labels
    torch.manual_seed(seed)
    sigma = torch.rand(len(train)) * 2 + 0.05
    nothing = [""] * len(train)
    validation = PriorValidation(CaptionedLatents(train, labels, nothing, nothing), sigma, torch.randn_like(train))
    return fit_classes(train, labels, validation)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("rank", [0, 3, 8])
def test_one_component_is_the_posterior_mean_of_a_gaussian(sigma, rank):
    """`mean + C (C + sigma^2)^-1 (noisy - mean)`, with `C` written out."""
    axes = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0][:rank]
    variances, mean = torch.logspace(-2, 1, rank, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    covariance = 0.3 * torch.eye(8, dtype=torch.float64) + axes.T @ torch.diag(variances - 0.3) @ axes
    noisy = 3 * torch.randn(5, 2, 2, 2, dtype=torch.float64)
    shrink = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(8))
    expected = mean + (noisy.flatten(1) - mean) @ shrink.T
    mixture = filled(mean[None], axes[None], variances[None], torch.tensor([0.3]))
    found = mixture.mean(noisy, torch.full((5,), sigma).double(), Condition(unconditional(5)))
    assert torch.allclose(found.flatten(1), expected, atol=1e-6)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("label", [None, 2])
def test_several_components_are_the_posterior_mean_of_their_mixture(sigma, label):
    """And of the components of a label alone, where that is told."""
    means = torch.randn(4, 6, dtype=torch.float64)
    labels = None if label is None else [0, 1, 2, 2]
    mixture = filled(means, torch.zeros(4, 0, 6), torch.zeros(4, 0), torch.full((4,), 0.09), labels)
    noisy = torch.randn(7, 6, 1, 1, dtype=torch.float64)
    labels = unconditional(7) if label is None else torch.full((7,), label)
    exact = analytic_mixture(means if label is None else means[[2, 3]], 0.3)
    found = mixture.mean(noisy, torch.full((7,), sigma).double(), Condition(labels))
    assert torch.allclose(found, exact(noisy, sigma), atol=1e-6)


def clustered(components=2, rank=5, clusters=3, turned=2, dimension=8):
    """A mixture whose components have clusters, with mean and covariance of each: (Gaussian, ...)."""
    torch.manual_seed(0)
    mixture = GaussianMixture(components, rank, dimension, clusters, turned).double()
    mixture.means.normal_(), mixture.offsets.normal_(), mixture.variances.uniform_(0.05, 3), mixture.rest.fill_(0.1)
    mixture.axes.copy_(torch.linalg.qr(torch.randn(components, dimension, rank).double())[0].mT)
    mixture.shares.copy_(torch.rand(components, clusters).softmax(1))
    mixture.rotations.copy_(torch.linalg.qr(torch.randn(components, clusters, turned, turned).double())[0])
    means, covariances = [], []
    for component in range(components):
        axes = mixture.axes[component]
        for cluster in range(clusters):
            own = torch.eye(rank).double()
            own[:turned, :turned] = mixture.rotations[component, cluster]
            along = own @ torch.diag(mixture.variances[component, cluster]) @ own.T
            means.append(mixture.means[component] + mixture.offsets[component, cluster] @ axes)
            covariances.append(axes.T @ along @ axes + 0.1 * (torch.eye(dimension) - axes.T @ axes))
    return mixture, torch.stack(means), torch.stack(covariances)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("turned", [0, 2, 5])
def test_clusters_along_common_axes_are_the_posterior_mean_of_their_mixture(sigma, turned):
    """Responsibilities and posterior means by the covariances written out."""
    mixture, means, covariances = clustered(turned=turned)
    noisy = 2 * torch.randn(5, 2, 2, 2, dtype=torch.float64)
    noised = covariances + sigma**2 * torch.eye(8)
    density = torch.distributions.MultivariateNormal(means, noised).log_prob(noisy.reshape(5, 1, 8))
    weights = torch.softmax(density + (mixture.prior[:, None] * mixture.shares).flatten().log(), 1)
    shrunk = torch.einsum("gij,gjk,bgk->bgi", covariances, torch.linalg.inv(noised), noisy.reshape(5, 1, 8) - means)
    found = mixture.mean(noisy, torch.full((5,), sigma).double(), Condition(unconditional(5)))
    assert torch.allclose(found.flatten(1), (weights[..., None] * (means + shrunk)).sum(1), atol=1e-6)


def test_a_mixture_of_an_earlier_version_has_one_cluster_a_component():
    """Files had one Gaussian for each component: no offsets, shares and rotations."""
    means, axes = torch.randn(3, 8), torch.linalg.qr(torch.randn(3, 8, 4))[0].mT
    mixture = filled(means, axes, torch.rand(3, 4) + 0.1, torch.full((3,), 0.2)).float()
    older = {name: value for name, value in mixture.state_dict().items() if name not in NEW_IN_CLUSTERS}
    older["variances"] = older["variances"][:, 0]
    about = PriorDescription(kind="mixture", shape={"components": 3, "rank": 4, "dimension": 8})
    opened, empty = prior_in({f"prior.{name}": value for name, value in older.items()}), described(about)
    load_weights(empty, older, "the file")
    at = torch.randn(5, 2, 2, 2), torch.full((5,), 0.4), Condition(unconditional(5))
    for one in (opened, empty):
        assert torch.equal(one.mean(*at), mixture.mean(*at))


def test_clusters_are_found_along_the_axes_of_their_class():
    """Two crossed ellipses: each with its offset, share and covariance."""
    torch.manual_seed(0)
    count = 4000
    own = torch.randn(count, 8) * 0.1
    first = torch.arange(count) < count // 2
    own[first, :2] += torch.randn(count // 2, 2) * torch.tensor([2.0, 0.2]) + torch.tensor([6.0, 0.0])
    own[~first, :2] += torch.randn(count // 2, 2) * torch.tensor([0.2, 2.0]) - torch.tensor([6.0, 0.0])
    component = class_component(own.clone(), NULL_LABEL, 8).divided(2)
    offsets, variances, shares, rotations = component.clusters
    assert torch.allclose(shares, torch.full((2,), 0.5), atol=0.01) and rotations.shape == (2, 8, 8)
    for cluster, rows in zip(
        offsets[:, 0].argsort(), (~first, first) if component.axes[0, 0] > 0 else (first, ~first), strict=True
    ):
        turned = component.axes.T @ rotations[cluster]
        covariance, exact = turned @ torch.diag(variances[cluster]) @ turned.T, own[rows].T.cov(correction=0)
        assert torch.allclose(component.mean + offsets[cluster] @ component.axes, own[rows].mean(0), atol=0.02)
        assert (covariance - exact).norm() < 0.1 * exact.norm()


def test_images_far_from_all_others_are_not_left_out():
    """Five are too few for a Gaussian of their own; what is left is one Gaussian, of all images."""
    torch.manual_seed(0)
    points = torch.randn(60, 8)
    points[:5] += 30
    component = class_component(points.clone(), NULL_LABEL, 8).divided(2)
    assert component.clusters.shares.tolist() == [1.0] and component.clusters.offsets.abs().max() < 1e-4
    assert torch.allclose(component.clusters.variances.sum(), component.total)


def test_axes_of_no_length_change_nothing():
    """So components of unlike numbers of axes stand in one mixture."""
    points = torch.cat([torch.randn(60, 8) + 9, 3 * torch.randn(60, 8)])
    groups = {0: torch.arange(120) < 60, 1: torch.arange(120) >= 60}
    parts = [components_of(points, {label: groups[label]}, rank) for label, rank in enumerate((2, 6))]
    both, noisy = mixture_of([*parts[0], *parts[1]], 6), torch.randn(5, 8, 1, 1)
    for label, rank in enumerate((2, 6)):
        alone = mixture_of(parts[label], rank)
        found, expected = (one.mean(noisy, torch.ones(5), Condition(torch.full((5,), label))) for one in (both, alone))
        assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_the_answer_does_not_depend_on_the_batch(sigma):
    """Nor is it lost in rounding where the noise is large and its dimensions many: distances near 1e4 differ by 1."""
    means = torch.randn(3, 2048)
    mixture = filled(means, torch.zeros(3, 0, 2048), torch.zeros(3, 0), torch.full((3,), 0.1)).float()
    noisy = (means[torch.arange(40) % 3] + sigma * torch.randn(40, 2048)).reshape(40, 32, 8, 8)
    levels = torch.full((40,), sigma)
    together = mixture.mean(noisy, levels, Condition(unconditional(40)))
    alone = torch.cat([mixture.mean(noisy[[one]], levels[[one]], Condition(unconditional(1))) for one in range(40)])
    exact = mixture.double().mean(noisy.double(), levels.double(), Condition(unconditional(40)))
    assert torch.allclose(together, alone, atol=2e-6) and torch.allclose(together.double(), exact, atol=1e-3)


def test_the_fit_finds_the_gaussian_it_was_drawn_from():
    spread = torch.logspace(-1, 0.5, 8)
    mixture = fitted(parted([torch.arange(8.0)], [spread], [4000]))
    sigma, noisy = torch.full((50,), 0.7), torch.arange(8.0) + torch.randn(50, 8)
    exact = torch.arange(8.0) + spread**2 / (spread**2 + 0.49) * (noisy - torch.arange(8.0))
    found = mixture.mean(noisy.reshape(-1, 2, 2, 2), sigma, Condition(unconditional(50))).flatten(1)
    assert (found - exact).square().mean() < 0.01


def test_labels_have_means_of_their_own():
    labels = torch.arange(200) % 2
    train = parted([torch.zeros(8)], [0.1], [200]) + 5.0 * labels.reshape(-1, 1, 1, 1)
    mixture, lost = fitted(train, labels), torch.zeros(2, 2, 2, 2)
    found = mixture.mean(lost, torch.full((2,), 1000.0), Condition(torch.tensor([0, 1]))).flatten(1).mean(1)
    assert torch.allclose(found, torch.tensor([0.0, 5.0]), atol=0.1)
    both = mixture.mean(lost, torch.full((2,), 1000.0), Condition(unconditional(2))).mean()
    assert abs(both - 2.5) < 0.2


POOR = {
    "one picture": lambda: torch.randn(1, 2, 2, 2),
    "two pictures": lambda: torch.randn(2, 2, 2, 2),
    "equal pictures": lambda: torch.ones(400, 2, 2, 2),
    "three kinds": lambda: torch.randn(3, 2, 2, 2)[torch.arange(400) % 3],
    "one far away": lambda: torch.cat([torch.zeros(399, 2, 2, 2), torch.full((1, 2, 2, 2), 1000.0)]),
    "many pictures of few values": lambda: torch.randn(1000, 2, 1, 1),
}


@pytest.mark.parametrize("train", POOR.values(), ids=POOR)
def test_poor_data_make_a_sound_mixture(train):
    train = train()
    mixture = fitted(train)
    for sigma in (1e-3, 1.0, 1e3):
        found = mixture.mean(
            train[:50], torch.full((len(train[:50]),), sigma), Condition(unconditional(len(train[:50])))
        )
        assert found.isfinite().all() and (sigma > 1e-3 or torch.allclose(found, train[:50], atol=0.1))


def test_classes_too_rare_for_a_gaussian_share_one():
    labels = torch.tensor([0] * 100 + [1] * 5)
    mixture = fitted(torch.randn(105, 2, 2, 2), labels)
    assert (mixture.label == NULL_LABEL).all()


@pytest.mark.parametrize(("folds", "labelled"), [(torch.arange(72) // 6 % 2, True), (torch.arange(72) % 2, False)])
def test_an_unseen_closed_form_knows_the_classes_of_the_prior(folds, labelled):
    """Also of classes that are too rare in a half; where one is missing there, neither knows any."""
    labels = torch.arange(72) % 6  # 12 of each
    train = torch.randn(72, 2, 2, 2) + 5 * torch.randn(6, 2, 2, 2)[labels]
    examples = CaptionedLatents(train, labels, ("",) * 72, ("",) * 72)
    validation = PriorValidation(examples, torch.ones(72), torch.randn(72, 2, 2, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "FEWEST_TO_FOLD", 2)
        patch.setattr(PriorValidation, "optimistic", lambda self, prior, train: True)
        prior, crossed = fit_prior(examples, validation, folds)
    assert len(crossed) == 2
    for mixture in (prior, *crossed):
        assert sorted({*mixture.label.tolist()}) == ([0, 1, 2, 3, 4, 5] if labelled else [NULL_LABEL])


def test_an_unseen_closed_form_has_not_seen_the_picture():
    """Of each fold it is the mixture of the others: a new value in one picture changes it for the other fold alone."""
    torch.manual_seed(0)
    train, folds = torch.randn(40, 2, 2, 2), torch.arange(40) % 2
    like = fitted(train)
    changed = train.clone()
    changed[4] += 5

    def refitted(pictures):
        torch.manual_seed(1)  # the randomised decomposition draws from torch's own generator
        return CrossFitted(tuple(cross_fit(like, pictures, unconditional(40), folds)))

    before, after = refitted(train), refitted(changed)
    noisy, sigma = torch.randn(6, 2, 2, 2), torch.full((6,), 0.7)
    for fold in (0, 1):
        old, new = (unseen.of(torch.full((6,), fold), unconditional(6))(noisy, sigma) for unseen in (before, after))
        assert torch.equal(old, new) == (fold == 0)


def test_few_axes_of_an_unseen_closed_form_are_the_principal_ones():
    """As those of the mixture it stands in for are: the first of many, not as many as a rough search finds."""
    train, folds = (torch.randn(400, 16) * torch.linspace(1, 2, 16)).reshape(-1, 4, 2, 2), torch.arange(400) % 2
    like = mixture_of(components_of(train.flatten(1), {NULL_LABEL: folds >= 0}, 16), 3)
    unseen = cross_fit(like, train, unconditional(400), folds)
    for fold, mixture in enumerate(unseen):
        exact = torch.linalg.eigvalsh(train[folds != fold].flatten(1).T.cov(correction=0)).flip(0)[:3]
        assert torch.allclose(mixture.variances[0], exact, rtol=1e-2)


def test_an_unseen_closed_form_answers_each_picture_by_its_fold():
    train, folds = torch.randn(40, 2, 2, 2), torch.arange(40) % 2
    unseen = CrossFitted(tuple(cross_fit(fitted(train), train, unconditional(40), folds)))
    noisy, sigma = torch.randn(4, 2, 2, 2), torch.rand(4) + 0.1
    together = unseen.of(torch.tensor([0, 1, 1, 0]), unconditional(4))(noisy, sigma)
    alone = [
        unseen.mixtures[fold].mean(noisy[i, None], sigma[i, None], Condition(unconditional(1)))
        for i, fold in enumerate([0, 1, 1, 0])
    ]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
