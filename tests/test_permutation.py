"""The order of large sets: a keyed bijection, with the statistics of a random permutation."""

from itertools import pairwise

import pytest
import torch

from calotype.data import sources
from calotype.data.permutation import FeistelPermutation
from calotype.data.sources import LARGE_SET, epoch_permutation, order
from calotype.types import Rng

RNG = Rng(("large",))


def whole(count, *path):
    return FeistelPermutation(count, RNG.at(*path)).at(torch.arange(count))


@pytest.mark.parametrize("count", [*range(1, 20), 63, 64, 65, 255, 257, 1000, 4096, 4097, 2**16 + 1])
def test_it_is_a_permutation(count):
    assert torch.equal(whole(count).sort().values, torch.arange(count))


def test_a_part_of_it_is_that_part_of_the_whole():
    places = torch.tensor([7, 0, 999, 7, 500])
    assert torch.equal(FeistelPermutation(1000, RNG).at(places), whole(1000)[places])


def test_other_epochs_and_seeds_have_permutations_that_share_as_much_as_random_ones():
    """The fixed points of two random permutations of any count are distributed as a Poisson variable of mean 1."""
    permutations = [whole(1000, "epoch", epoch) for epoch in range(200)]
    shared = [int((a == b).sum()) for a, b in pairwise(permutations)]
    assert abs(sum(shared) / len(shared) - 1) < 5 / len(shared) ** 0.5 and max(shared) < 8


@pytest.mark.parametrize("count", [5, 12, 17])
def test_each_index_is_as_likely_in_each_place(count):
    """Chi-squared over 3,000 keys: mean (count - 1)^2, variance twice that."""
    drawn = torch.stack([whole(count, key) for key in range(3000)])
    counts = torch.nn.functional.one_hot(drawn).sum(0).double()
    expected = 3000 / count
    freedom = (count - 1) ** 2
    assert abs(float(((counts - expected) ** 2 / expected).sum()) - freedom) < 5 * (2 * freedom) ** 0.5


def test_neighbours_are_not_near_each_other():
    """Of a random permutation the distance of neighbours is count / 3 on average, and their ranks do not correlate."""
    drawn = whole(2**16 - 5).double()
    distance = float((drawn.diff().abs() / len(drawn)).mean())
    correlation = float(torch.corrcoef(torch.stack([drawn[1:], drawn[:-1]]))[0, 1])
    parity = float((drawn[1:].long() % 2 == drawn[:-1].long() % 2).double().mean())
    assert abs(distance - 1 / 3) < 0.005 and abs(correlation) < 0.02 and abs(parity - 0.5) < 0.01


def test_large_sets_have_it_and_others_have_the_order_of_before():
    small, large = LARGE_SET, LARGE_SET + 1
    assert torch.equal(order(small, 100, 8, RNG), epoch_permutation(small, 0, RNG)[100:108].long())
    assert torch.equal(
        order(large, 100, 8, RNG), FeistelPermutation(large, RNG.at("epoch", 0)).at(torch.arange(100, 108))
    )
    assert len(order(large, 0, large, RNG).unique()) == large


@pytest.mark.parametrize(("count", "batch"), [(10, 3), (50, 32), (7, 20)])
def test_the_order_of_a_large_set_is_that_of_its_epochs(count, batch, monkeypatch):
    monkeypatch.setattr(sources, "LARGE_SET", 1)
    epochs = torch.cat([whole(count, "epoch", epoch) for epoch in range(40 * batch // count + 2)])
    for start in (0, 5, 2 * batch, 39 * batch):
        assert torch.equal(order(count, start, batch, RNG), epochs[start : start + batch])


def test_a_batch_of_any_set_needs_no_memory_for_the_others():
    batch = order(10**12, 3 * 10**12 - 2, 8, RNG)
    assert ((batch >= 0) & (batch < 10**12)).all() and len(batch.unique()) == 8
