import copy
import math

import pytest
import torch
from analytic import perturbed
from small import fingerprint, noise_pixels
from torch.autograd import grad, gradcheck

from calotype.data.images import images_from_pixels
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.schedules import Flow
from calotype.diffusion.stage import Stage
from calotype.nets.critic import Critic, CriticConfig
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.perceptual import perceptual_distance, pretrained_lite0
from calotype.nets.vae import Moments, Vae, VaeConfig, kl_to_normal
from calotype.ranks import Ranks
from calotype.recipe import AutoencoderLossConfig, ConditionDropout, OptimizerConfig
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace
from calotype.training.loop import TrainProgress, accumulated, update
from calotype.training.objectives import (
    AutoencoderObjective,
    BatchShare,
    DenoisingObjective,
    Objective,
    batch_share,
    edge_distance,
)
from calotype.training.state import TrainState
from calotype.types import NULL_LABEL, Batch, Rng

RNG = Rng(("objectives",))
LITE0 = pretrained_lite0()
ALONE = {"edges": 0.0, "perceptual": 0.0, "kl": 0.0, "adversarial": 0.0}


def tiny_vae():
    return perturbed(Vae(VaeConfig(reduction=4, channels=2, widths=(8,), decoder_blocks=1)))


def batch_of(count=4, size=16):
    return Batch(images_from_pixels(noise_pixels(count, size)), torch.full((count,), NULL_LABEL))


def first_stage(vae=None, **config):
    critic = perturbed(Critic(CriticConfig(width=4, depth=2)))
    config = AutoencoderLossConfig(**{"perceptual_start": 0.0} | config)
    return AutoencoderObjective(vae or tiny_vae(), critic, LITE0, config)


def reconstruct(stage, images):
    moments = stage.vae.encode(images)
    noise = RNG.at("latents").normal(*moments.mean.shape)
    return moments, stage.vae.decode(moments.mean + (moments.log_variance / 2).exp() * noise)


# -- The terms, written out --------------------------------------------------------------------------------------------


def test_every_term_of_the_first_stage_is_its_formula():
    stage, batch = first_stage(edges=0.3, perceptual=0.2, perceptual_share=0.5, kl=0.01, adversarial=0), batch_of()
    moments, fake = reconstruct(stage, batch.clean)
    wrong, variance = fake - batch.clean, moments.log_variance.exp()
    across, down = wrong[..., 1:] - wrong[..., :-1], wrong[..., 1:, :] - wrong[..., :-1, :]
    expected = {
        "l1": wrong.abs().sum() / wrong.numel(),
        "edges": 0.3 * (across.abs().sum() / across.numel() + down.abs().sum() / down.numel()),
        "perceptual": 0.2 * perceptual_distance(LITE0, batch.clean[:2], fake[:2]).mean(),
        "kl": 0.01 * (moments.mean**2 + variance - variance.log() - 1).mean() / 2,
    }
    loss = stage.losses(batch, 0.0, RNG)["autoencoder"]
    assert loss.terms == {name: pytest.approx(value.item(), rel=1e-4) for name, value in expected.items()}
    assert loss.total.item() == pytest.approx(sum(expected.values()).item(), rel=1e-5)


@pytest.mark.parametrize(("mean", "spread"), [(0.0, 1.0), (1.5, 1.0), (0.0, 0.1), (-2.0, 3.0)])
def test_the_kl_is_that_of_two_gaussians(mean, spread):
    moments = Moments(torch.full((1, 1, 1, 1), mean), torch.full((1, 1, 1, 1), 2 * math.log(spread)))
    ours, normal = torch.distributions.Normal(mean, spread), torch.distributions.Normal(0.0, 1.0)
    assert kl_to_normal(moments).item() == pytest.approx(torch.distributions.kl_divergence(ours, normal).item())


def test_edges_do_not_see_a_shift_of_all_colours():
    """They see lines only; the L1 distance of the pixels sees the rest."""
    images = batch_of().clean
    assert edge_distance(images, images + torch.tensor([0.1, -0.3, 0.2])[:, None, None]) < 1e-6
    assert edge_distance(images, images.flip(-1)) > 0.1


def test_the_hinge_loss_is_its_formula():
    stage, batch = first_stage(critic_start=0.0, critic_share=0.5), batch_of()
    _, fake = reconstruct(stage, batch.clean)
    of_real, of_fake = (stage.critic(images[2:]).flatten().tolist() for images in (batch.clean, fake))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    expected = {
        "hinge": (mean([max(0, 1 - v) for v in of_real]) + mean([max(0, 1 + v) for v in of_fake])) / 2,
        "right": (mean([v > 0 for v in of_real]) + mean([v < 0 for v in of_fake])) / 2,
        "gap": mean(of_real) - mean(of_fake),
    }
    loss = stage.losses(batch, 0.0, RNG)["critic"]
    assert loss.terms == {name: pytest.approx(value, rel=1e-3, abs=1e-6) for name, value in expected.items()}
    assert loss.total.item() == pytest.approx(expected["hinge"], rel=1e-4)


@pytest.mark.parametrize(("count", "fraction", "some"), [(8, 0.25, 2), (8, 1.0, 8), (3, 0.01, 1), (1, 0.5, 1)])
def test_a_share_of_a_batch_is_never_nothing(count, fraction, some):
    assert batch_share(count, fraction) == some


# -- Gradients ---------------------------------------------------------------------------------------------------------


def term_gradient(vae, term, progress=0.9):
    """Of one term alone, on every weight: the loss is linear in the weights of its terms, and L1 has weight 1."""

    def gradient(config):
        torch.manual_seed(3)  # for the critic's weights
        stage = first_stage(vae, **config)
        total = stage.losses(batch_of(), progress, RNG)["autoencoder"].total
        named = {name: weight for name, weight in vae.named_parameters() if weight.requires_grad}
        return dict(zip(named, grad(total, list(named.values()), allow_unused=True), strict=True))

    without = gradient(ALONE)
    if term == "l1":
        return without
    return {name: value - without[name] for name, value in gradient({**ALONE, term: 1.0}).items()}


@pytest.mark.parametrize("term", ["l1", "edges", "perceptual", "adversarial"])
def test_what_is_known_of_the_picture_reaches_encoder_and_decoder(term):
    """A well-known trainer computes the perceptual distance without gradients: nothing fails, nothing is learned."""
    gradients = term_gradient(tiny_vae(), term)
    assert all(value.abs().max() > 1e-5 for value in gradients.values()), term


def test_the_kl_reaches_the_encoder_alone():
    for name, value in term_gradient(tiny_vae(), "kl").items():
        assert (value.abs().max() > 1e-5) == name.startswith("encoder"), name


@pytest.mark.parametrize("term", ["l1", "edges", "perceptual", "kl"])
def test_the_gradient_of_a_term_is_its_slope(term):
    """Central differences along the gradient itself; the linear path and float64 leave little rounding."""
    config = {**ALONE, **({} if term == "l1" else {term: 1.0})}
    stage, batch = first_stage(tiny_vae().double(), **config), batch_of()
    stage.features = copy.deepcopy(stage.features).double()
    batch = Batch(batch.clean.double(), batch.labels)
    weights = [weight for weight in stage.vae.parameters() if weight.requires_grad]

    def loss():
        return stage.losses(batch, 0.0, RNG)["autoencoder"].total

    gradient = grad(loss(), weights)
    length = torch.stack([part.square().sum() for part in gradient]).sum().sqrt()

    def moved(step):
        with torch.no_grad():
            torch._foreach_add_(weights, [step / length * part for part in gradient])
            value = loss()
            torch._foreach_add_(weights, [-step / length * part for part in gradient])
        return value

    assert ((moved(1e-3) - moved(-1e-3)) / 2e-3).item() == pytest.approx(length.item(), rel=2e-3)


def test_gradients_of_the_formulas_in_double():
    images, others = (torch.randn(1, 3, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert gradcheck(edge_distance, (images, others))
    assert gradcheck(lambda mean, log: kl_to_normal(Moments(mean, log)), (images, others))


@pytest.mark.parametrize(("adversarial", "cap", "capped"), [(0.1, 1e9, False), (2.0, 1e9, False), (0.5, 1e-3, True)])
def test_the_critic_is_heard_as_loud_as_asked(adversarial, cap, capped):
    """At the picture, its gradient is `adversarial` times as long as that of the reconstruction; or it is capped."""
    stage = first_stage(adversarial=adversarial, adversarial_cap=cap)
    real = batch_of().clean
    fake = (real + 0.1 * torch.randn_like(real)).requires_grad_(True)
    reconstruction = (fake - real).abs().mean()
    (theirs,) = grad(stage._adversarial(reconstruction, fake, BatchShare(0, 1, len(fake)), Ranks().norm), fake)
    (ours,) = grad(reconstruction, fake)
    (plain,) = grad(-stage.critic(fake[-2:]).mean(), fake)
    expected = cap * plain if capped else adversarial * ours.norm() / plain.norm() * plain
    assert torch.allclose(theirs, expected, rtol=1e-4, atol=1e-9) and theirs.any()


def test_no_loss_leaves_a_gradient_on_the_other_player():
    stage, batch = first_stage(critic_start=0.0, critic_used=0.0), batch_of()
    states = {name: TrainState(network, OptimizerConfig()) for name, network in stage.networks.items()}
    losses = stage.losses(batch, 0.9, RNG)
    for name, other in (("autoencoder", "critic"), ("critic", "autoencoder")):
        states[name].add(states[name].gradients(losses[name].total))
        assert all(weight.grad is not None and weight.grad.any() for weight in states[name].parameters)
        assert all(weight.grad is None for weight in states[other].parameters)
        states[name].zero_grad()
    assert all(weight.grad is None for weight in stage.features.parameters())


def test_players_learn_together_what_each_would_learn_alone():
    """All gradients are taken before any weight moves, so nobody's step depends on who was first."""

    def after(*names):
        torch.manual_seed(0)
        stage = first_stage(critic_start=0.0, critic_used=0.0)
        states = {name: TrainState(network, OptimizerConfig()) for name, network in stage.networks.items()}
        losses = stage.losses(batch_of(), 0.5, RNG)
        gradients = {name: (losses[name], states[name].gradients(losses[name].total)) for name in names}
        update(states, accumulated(states, [gradients]), batch_of(), TrainProgress(8, 4, 0, images_seen=4))
        return {name: fingerprint({name: train_state}) for name, train_state in states.items()}

    nobody, vae, critic = after(), after("autoencoder"), after("critic")
    both = {"autoencoder": vae["autoencoder"], "critic": critic["critic"]}
    assert after("autoencoder", "critic") == after("critic", "autoencoder") == both
    assert vae["critic"] == nobody["critic"] and critic["autoencoder"] == nobody["autoencoder"]
    assert both["autoencoder"] != nobody["autoencoder"] and both["critic"] != nobody["critic"]


@pytest.mark.parametrize(
    ("start", "used", "progress", "learns", "heard"),
    [
        (0.6, 0.75, 0.0, False, False),
        (0.6, 0.75, 0.599, False, False),
        (0.6, 0.75, 0.6, True, False),
        (0.6, 0.75, 0.749, True, False),
        (0.6, 0.75, 0.75, True, True),
        (0.6, 0.2, 0.3, False, False),  # nobody listens to a critic that has learned nothing
        (0.6, 0.2, 0.6, True, True),
        (0.0, 0.0, 0.0, True, True),
    ],
)
def test_the_critic_learns_and_is_heard_from_its_fractions_on(start, used, progress, learns, heard):
    losses = first_stage(critic_start=start, critic_used=used).losses(batch_of(), progress, RNG)
    assert ("critic" in losses, "adversarial" in losses["autoencoder"].terms) == (learns, heard)


def test_without_a_critic_there_is_none():
    losses = first_stage(adversarial=0, critic_start=0.0, critic_used=0.0).losses(batch_of(), 0.99, RNG)
    assert list(losses) == ["autoencoder"] and "adversarial" not in losses["autoencoder"].terms


# -- The denoiser's ----------------------------------------------------------------------------------------------------


def denoising(dropout=0.0, label_dropout=0.1, classes=3, space=None):
    space = space or PixelSpace()
    config = DitConfig(width=16, depth=1, heads=2, dropout=dropout)
    backbone = perturbed(Dit(config, space.channels, space.channels))
    conditions = ConditionDropout(label_dropout=label_dropout, caption_alone=0.0, label_alone=0.0)
    return DenoisingObjective(Stage(Denoiser(backbone, 16, classes, "flow"), space, Flow(), 4), conditions)


def small_batch(count=6):
    return Batch(torch.randn(count, 3, 4, 4), torch.arange(count) % 3)


def test_the_loss_of_a_denoiser_is_that_of_what_was_drawn():
    objective, batch = denoising(label_dropout=0.0), small_batch()
    sigma = Flow().sample(6, RNG.at("sigma"))
    noise = RNG.at("noise").normal(6, 3, 4, 4)
    condition = objective.stage.condition(batch.labels, None, torch.zeros(6), torch.zeros(()))
    expected = objective.stage.denoiser.loss(batch.clean, sigma, noise, condition).mean()
    assert objective.losses(batch, 0.5, RNG)["denoiser"].total.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_all_that_is_random_comes_from_the_rng(dropout):
    """The past of torch's own generator, which dropout draws from, and the progress change nothing."""
    vae = LatentSpace(tiny_vae())
    objective = denoising(dropout, label_dropout=0.5, space=vae)
    batch = Batch(torch.randn(4, 4, 4, 4), torch.arange(4) % 3)

    def loss(past, progress, rng):
        torch.manual_seed(past)
        return objective.losses(batch, progress, rng)["denoiser"].total.item()

    assert loss(0, 0.1, RNG) == loss(1, 0.1, RNG) == loss(0, 0.9, RNG)
    assert len({loss(0, 0.1, RNG.at(place)) for place in range(20)}) == 20


def test_dropout_is_another_one_at_each_place():
    objective, batch = denoising(0.5, label_dropout=0.0), small_batch()
    with torch.no_grad():
        objective.stage.denoiser.backbone.blocks[0].modulation.bias += 1  # gates are open
    masks = []
    objective.stage.denoiser.backbone.blocks[0].register_forward_hook(
        lambda block, given, out: masks.append(out - given[0])
    )
    for place in (1, 1, 2):
        objective.losses(batch, 0.0, RNG.at(place))
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


@pytest.mark.parametrize("share_dropped", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_labels_that_are_dropped(share_dropped):
    objective, count = denoising(label_dropout=share_dropped), 4000
    seen = []
    objective.stage.denoiser.label.register_forward_pre_hook(lambda layer, given: seen.append(given[0]))
    labels = torch.arange(count) % 3
    objective.losses(Batch(torch.zeros(count, 3, 2, 2), labels), 0.0, RNG)
    dropped = seen[0] == 3
    assert torch.equal(seen[0][~dropped], labels[~dropped])
    assert abs(dropped.double().mean() - share_dropped) <= 4 * math.sqrt(share_dropped * (1 - share_dropped) / count)


def test_the_denoiser_hears_its_loss_everywhere():
    objective = denoising()
    objective.losses(small_batch(), 0.0, RNG)["denoiser"].total.backward()
    deaf = [name for name, weight in objective.stage.denoiser.named_parameters() if weight.grad is None]
    assert deaf and all(name.startswith("augmentation_level") for name in deaf)
    assert all(weight.grad is None or weight.grad.any() for weight in objective.stage.denoiser.parameters())


def test_both_are_objectives():
    for objective, names in ((first_stage(), {"autoencoder", "critic"}), (denoising(), {"denoiser"})):
        assert isinstance(objective, Objective) and set(objective.networks) == names
        assert set(objective.losses(batch_of(size=4), 0.99, RNG)) <= names
