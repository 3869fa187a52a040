import pytest
import torch
from safetensors.torch import load, save
from small import fingerprint
from torch import nn

from calotype.nets.dit import Dit, DitConfig
from calotype.recipe import OptimizerConfig
from calotype.training.muon import ADAMW_RMS, MOMENTUM, Muon, orthogonal
from calotype.training.state import TrainState

CONFIG = OptimizerConfig(optimizer="muon", weight_decay=0.1)


def matrices(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


def small_dit():
    return Dit(DitConfig(width=16, depth=2, heads=2, patch=2), 3, 3)


def learned(state, *places):
    for place in places:
        generator = torch.Generator().manual_seed(place)
        images, vector = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(2, 16, generator=generator)
        state.add(state.gradients((state.network(images, vector) - 1).square().mean()))
        state.step(place / 10)
    return state


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40)])
def test_the_nearest_orthogonal_matrix_is_approached(shape):
    """Of the polar decomposition: the singular vectors stay, the singular values come near 1."""
    drawn = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    given = left * torch.linspace(1, 0.1, min(shape)) @ right
    turned = left.mT @ orthogonal(given) @ right.mT
    values = turned.diagonal(dim1=1, dim2=2)
    assert float(values.min()) > 0.6 and float(values.max()) < 1.25
    assert torch.allclose(turned, torch.diag_embed(values), atol=1e-4)


def test_an_update_has_the_size_of_one_of_adamw():
    weights = matrices((30, 20), (20, 30), (20, 30))
    before = [weight.detach().clone() for weight in weights]
    muon = Muon(weights, 0.01)
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(9))
    muon.step()
    for old, new in zip(before, weights, strict=True):
        assert float((new.detach() - old).square().mean().sqrt()) == pytest.approx(0.01 * ADAMW_RMS, rel=0.2)


def test_it_is_torchs_muon_but_for_the_precision():
    ours, theirs = matrices((30, 20), (20, 30), (20, 30)), matrices((30, 20), (20, 30), (20, 30))
    muon = Muon(ours, 0.02, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, 0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for step in range(4):
        for pair in zip(ours, theirs, strict=True):
            for weight in pair:
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(step))
        muon.step()
        reference.step()
    for weight, expected, start in zip(ours, theirs, matrices((30, 20), (20, 30), (20, 30)), strict=True):
        assert float((weight - expected).detach().norm() / (expected - start).detach().norm()) < 0.02


def test_the_matrices_of_the_blocks_have_muon_and_all_else_adamw():
    state = learned(TrainState(small_dit(), CONFIG), 1)
    kinds = {name.rpartition(".")[2] for name in state.tensors() if name.startswith("optimizer.")}
    assert kinds == {"step", "exp_avg", "exp_avg_sq", "momentum"}
    parts = [group.weights for group in state.groups if isinstance(group.optimizer, Muon)]
    hidden = [weight for weights in parts for weight in weights]
    assert len(hidden) == 2 * 4 and all(weight.ndim == 2 for weight in hidden)
    assert all(len({weight.shape for weight in weights}) == 1 for weights in parts)
    assert sum(len(group.weights) for group in state.groups) == len(state.parameters)
    assert not any(isinstance(group.optimizer, Muon) for group in TrainState(nn.Linear(2, 2), CONFIG).groups)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_train_state_continues_bit_exactly(precision):
    torch.manual_seed(0)
    whole = learned(TrainState(small_dit(), CONFIG, precision), *range(6))
    torch.manual_seed(0)
    first = learned(TrainState(small_dit(), CONFIG, precision), *range(3))
    saved = load(save({name: value.contiguous() for name, value in first.tensors().items()}))
    torch.manual_seed(99)
    second = TrainState(small_dit(), CONFIG, precision)
    second.restore(saved, first.steps)
    assert fingerprint({"": second}) == fingerprint({"": first})
    assert fingerprint({"": learned(second, *range(3, 6))}) == fingerprint({"": whole})
