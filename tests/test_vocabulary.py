import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from calotype.types import Condition, Rng

PATHS = [(), (0,), (1,), (-1,), ("0",), (0, 0), (0, 1), (1, 0), (12,), (1, 2), ("noise", 0), ("noise0",), ("noise, 0",)]
DRAWS = {
    "normal": lambda rng: rng.normal(100),
    "uniform": lambda rng: rng.uniform(100),
    "integers": lambda rng: rng.integers(1000, 100),
    "permutation": lambda rng: rng.permutation(100),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_equal_paths_draw_equal_numbers_whatever_was_drawn_before(draw):
    rng, path = Rng((7, "here")), (7, "here")
    first = draw(rng)
    torch.randn(3), rng.normal(5), torch.manual_seed(99)
    assert torch.equal(draw(rng), first) and torch.equal(draw(Rng(path)), first)
    assert not torch.equal(draw(rng.at(0)), first)


def test_drawing_leaves_the_generator_of_torch_alone():
    before = torch.get_rng_state()
    for draw in DRAWS.values():
        draw(Rng((1,)))
    assert torch.equal(torch.get_rng_state(), before)


def test_different_paths_are_independent():
    count = 20_000
    numbers = torch.stack([Rng(path).normal(count) for path in PATHS])
    correlation = torch.corrcoef(numbers) - torch.eye(len(PATHS))
    assert correlation.abs().max() < 4 / count**0.5


def test_neighbouring_places_are_independent():
    """The first number of each of many places is as good as many numbers of one place."""
    numbers = torch.cat([Rng(("noise",)).at(place).normal(1) for place in range(2000)])
    lagged = torch.corrcoef(torch.stack([numbers[:-1], numbers[1:]]))[0, 1]
    assert abs(numbers.mean()) < 0.06 and abs(numbers.std() - 1) < 0.06 and abs(lagged) < 0.06


def test_at_composes():
    assert Rng(()).at("a").at(1, "b").at() == Rng(("a", 1, "b"))


def test_the_numbers_of_a_path_are_pinned():
    """A checkpoint goes on with the same numbers after an upgrade, and in another process."""
    assert Rng((0, "noise", 8855)).integers(1000, 4).tolist() == [633, 616, 57, 777]


def test_shapes_are_checked_here():
    with pytest.raises(BeartypeCallHintViolation):
        Condition(torch.zeros(2, 2, dtype=torch.long))
