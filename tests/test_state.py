import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from small import fingerprint
from torch import nn

from calotype.recipe import OptimizerConfig
from calotype.training.state import TrainState, average_power, learning_rate_factor
from calotype.types import NotFiniteError

NETWORKS = {
    "plain": lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.SiLU(), nn.Conv2d(5, 2, 1)),
    "channels last": lambda: NETWORKS["plain"]().to(memory_format=torch.channels_last),
    "with buffers": lambda: nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)),
    "partly frozen": lambda: nn.Sequential(nn.Conv2d(3, 3, 1).requires_grad_(False), nn.Conv2d(3, 2, 3)),
}


def learned(train_state, *places):
    """After one step at each place, on what is drawn for that place."""
    for place in places:
        images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(place))
        train_state.add(train_state.gradients((train_state.network(images) - 1).square().mean()))
        train_state.step(place / 10)
    return train_state


@pytest.mark.parametrize(
    ("warmup", "decay", "corners"),
    [
        (0.1, 0.5, {0.0: 0.0, 0.05: 0.5, 0.1: 1.0, 0.3: 1.0, 0.5: 1.0, 0.75: 0.5, 1.0: 0.0}),
        (0.0, 0.5, {0.0: 1.0, 0.5: 1.0, 0.9: 0.2, 1.0: 0.0}),
        (0.2, 0.0, {0.0: 0.0, 0.1: 0.5, 0.2: 1.0, 1.0: 1.0}),
        (0.0, 0.0, {0.0: 1.0, 0.5: 1.0, 1.0: 1.0}),
        (0.5, 1.0, {0.25: 0.5, 0.75: 0.25}),  # where they overlap, the lower one
    ],
)
def test_the_learning_rate_rises_stays_and_falls(warmup, decay, corners):
    config = OptimizerConfig(warmup=warmup, decay=decay)
    assert {at: pytest.approx(learning_rate_factor(at, config)) for at in corners} == corners


def test_the_optimizer_takes_the_learning_rate_of_the_place():
    """Without momentum and second moments, Adam's step is the learning rate, whatever the gradient."""
    network = nn.Linear(1, 1, bias=False)
    config = OptimizerConfig(learning_rate=0.5, warmup=0.2, decay=0.5, betas=(0.0, 0.0))
    train_state, before = TrainState(network, config), network.weight.item()
    for progress, factor in ((0.1, 0.5), (0.3, 1.0), (0.9, 0.2)):
        train_state.add(train_state.gradients(7 * network.weight.sum()))
        train_state.step(progress)
        assert before - network.weight.item() == pytest.approx(0.5 * factor, rel=1e-4)
        before = network.weight.item()


@pytest.mark.parametrize(("width", "power"), [(0.05, 16.97), (0.10, 6.94)])
def test_the_power_is_that_of_edm2(width, power):
    """arXiv 2312.02696, section 3.1."""
    assert average_power(width) == pytest.approx(power, abs=0.01)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.25])
def test_the_average_is_as_wide_as_asked(width):
    """The weights `t ** power` have standard deviation `width` of the run."""
    times = (np.arange(100_000) + 0.5) / 100_000
    weights = times ** average_power(width)
    mean = (weights * times).sum() / weights.sum()
    spread = math.sqrt((weights * (times - mean) ** 2).sum() / weights.sum())
    assert spread == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.05, 0.2])
def test_the_average_is_the_weighted_mean_of_all_weights_so_far(width):
    """Step t of T has `(t ** (power + 1) - (t - 1) ** (power + 1)) / T ** (power + 1)`: the start counts nothing."""
    train_state, history = TrainState(NETWORKS["channels last"](), OptimizerConfig(average=width)), []
    for place in range(9):
        learned(train_state, place)
        history.append([weight.detach().clone().double() for weight in train_state.network.parameters()])
    ends = (np.arange(10) / 9) ** (average_power(width) + 1)
    for index, weight in enumerate(train_state.average.parameters()):
        expected = sum(share * step[index] for share, step in zip(np.diff(ends), history, strict=True))
        assert torch.allclose(weight.double(), expected, atol=1e-6)


def test_the_average_follows_buffers_and_neither_learns_nor_drops_out():
    train_state = learned(TrainState(NETWORKS["with buffers"](), OptimizerConfig()), 1, 2, 3)
    assert train_state.average[1].num_batches_tracked == 3
    assert torch.equal(train_state.average[1].running_mean, train_state.network[1].running_mean)
    assert not train_state.average.training and not any(
        weight.requires_grad for weight in train_state.average.parameters()
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_a_number_moves_nothing(bad):
    train_state = learned(TrainState(NETWORKS["plain"](), OptimizerConfig()), 1, 2)
    before = fingerprint({"": train_state})
    train_state.add(train_state.gradients(bad * train_state.network[0].bias.sum()))
    with pytest.raises(NotFiniteError, match=r"norm of the gradient is (nan|inf)"):
        train_state.step(0.5)
    assert fingerprint({"": train_state}) == before and train_state.steps == 2
    assert all(weight.grad is None for weight in train_state.parameters)
    assert fingerprint({"": learned(train_state, 3)}) == fingerprint(
        {"": learned(TrainState(again(NETWORKS["plain"]), OptimizerConfig()), 1, 2, 3)}
    )


def again(network):
    torch.manual_seed(0)
    return network()


def test_a_long_gradient_is_cut_to_length_and_its_length_reported():
    network = nn.Linear(2, 1, bias=False)
    train_state = TrainState(network, OptimizerConfig(clip=0.5, betas=(0.0, 0.999)))
    train_state.add(train_state.gradients((network.weight * torch.tensor([3.0, 4.0])).sum()))
    assert float(train_state.step(0.5).gradient) == pytest.approx(5.0)
    squares = train_state.tensors()["optimizer.0.exp_avg_sq"].sum() / (1 - 0.999)
    assert squares.sqrt().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("stop", [1, 4])
def test_a_restored_train_state_continues_bit_exactly(network, stop):
    """To the bit, in another process's memory: through safetensors, into a network with other weights."""
    whole = learned(TrainState(network(), OptimizerConfig(weight_decay=0.1)), *range(6))
    first = learned(TrainState(again(network), OptimizerConfig(weight_decay=0.1)), *range(stop))
    saved = load(save({name: value.contiguous() for name, value in first.tensors().items()}))
    torch.manual_seed(99)
    second = TrainState(network(), OptimizerConfig(weight_decay=0.1))
    second.restore(saved, first.steps)
    assert fingerprint({"": second}) == fingerprint({"": first})
    assert fingerprint({"": learned(second, *range(stop, 6))}) == fingerprint({"": whole})


def test_a_frozen_weight_stays():
    train_state = TrainState(NETWORKS["partly frozen"](), OptimizerConfig(weight_decay=0.5))
    before = train_state.network[0].weight.clone()
    learned(train_state, 1, 2, 3)
    assert torch.equal(train_state.network[0].weight, before) and torch.equal(train_state.average[0].weight, before)


@pytest.mark.parametrize(
    "wrong",
    [{"learning_rate": 0}, {"warmup": 1}, {"decay": -0.1}, {"betas": (0.9, 1.0)}, {"clip": 0}, {"average": 0.3}],
)
def test_settings_that_cannot_train_are_refused(wrong):
    with pytest.raises(ValidationError):
        OptimizerConfig(**wrong)
