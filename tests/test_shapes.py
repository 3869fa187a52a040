"""The types of arguments, results and fields are checked in every test, and sizes of one name are equal."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import shapes
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from calotype.diffusion.scalings import SCALINGS
from calotype.types import Condition, Rng


@shapes.checked
def added(a: Float[Tensor, "batch width"], b: Float[Tensor, " batch"], how: str = "") -> Float[Tensor, "batch width"]:
    return a[1:] + b[1:, None] if how == "short" else a + b[:, None]


@shapes.checked
def halves(values: "list[Float[Tensor, ' half']]", count: int = 2) -> "Later":
    return values


@shapes.checked
def counted(count: int) -> Iterator[int]:
    yield from range(count)


@shapes.checked
@dataclass(frozen=True)
class Pair:
    first: Float[Tensor, " size"]
    second: Float[Tensor, " size"]

    @shapes.checked
    @property
    def both(self) -> Float[Tensor, "size 2"]:
        return torch.stack([self.first, self.second], 1)

    @shapes.checked
    @staticmethod
    def of(size: int) -> "Pair":
        return Pair(torch.zeros(size), torch.zeros(size))


Later = list[Tensor]


def test_what_fits_passes():
    assert added(torch.ones(3, 2), torch.ones(3)).shape == (3, 2)
    assert added(b=torch.ones(1), a=torch.ones(1, 2)).shape == (1, 2)  # sizes of another call are forgotten
    assert len(halves([torch.ones(2), torch.ones(2)])) == 2
    assert list(counted(3)) == [0, 1, 2]
    assert Pair.of(3).both.shape == (3, 2)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: added(torch.ones(3, 2), torch.ones(4)),
        lambda: added(torch.ones(3, 2).long(), torch.ones(3)),
        lambda: added(torch.ones(3, 2), torch.ones(3), how=1),
        lambda: added(torch.ones(3, 2), torch.ones(3), "short"),
        lambda: halves([torch.ones(2, 2)]),
        lambda: halves([], 2.5),
        lambda: counted("3"),
        lambda: Pair(torch.ones(2), torch.ones(3)),
        lambda: Pair.of(2.5),
    ],
    ids=["argument", "dtype", "plain", "result", "in a list", "plain beside shapes", "generator", "field", "method"],
)
def test_what_does_not_fit_is_an_error(wrong):
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        wrong()


def test_the_code_is_checked_too():
    """A dataclass, a method, and a function that was put into a table when its module was imported."""
    for wrong in (lambda: Condition(torch.zeros(2, 2, dtype=torch.long)), lambda: Rng(()).normal("1")):
        with pytest.raises(BeartypeCallHintViolation):
            wrong()
    assert all(hasattr(scaling, "__wrapped__") for scaling in SCALINGS.values())
