import threading
import time
from dataclasses import replace
from functools import partial
from itertools import chain

import pytest
import torch
from small import CASCADE, CPU, LEGS, first_leg, noise_pictures, second_leg
from test_checkpoint import go_on
from torch import nn

from calotype.nets.blocks import dropout, dropout_seeds, layer_seeds
from calotype.settings import parse_recipe
from calotype.threads import at_once, one_thread, rows_of, shared_out
from calotype.training import fitting
from calotype.training.examples import crop_examples
from calotype.training.legs import enlarger_leg
from calotype.training.loop import Division, accumulated, differentiated, train_step
from calotype.training.state import divided
from calotype.types import Rng, Text

RNG = Rng(("slices",))


@pytest.fixture(autouse=True)
def few_patches(monkeypatch):
    monkeypatch.setattr(fitting, "PATCHES", 2**13)


@pytest.mark.parametrize(("count", "slices"), [(6, 1), (6, 2), (7, 3), (2, 5), (1, 4), (32, 8)])
def test_slices_hold_every_image_once_in_equal_parts(count, slices):
    parts = [list(range(count))[rows] for rows in rows_of(count, slices)]
    assert [*chain.from_iterable(parts)] == list(range(count)) and len(parts) == min(count, slices)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_each_task_has_a_thread_of_its_own_and_torch_uses_no_others():
    before, barrier = torch.get_num_threads(), threading.Barrier(3, timeout=20)

    def task(place):
        barrier.wait()  # only met if all three run at once
        return place, threading.get_ident(), torch.get_num_threads()

    results = at_once([lambda place=place: task(place) for place in range(3)])
    assert [place for place, _, _ in results] == [0, 1, 2] and {threads for _, _, threads in results} == {1}
    assert len({thread for _, thread, _ in results}) == 3 and results[0][1] == threading.get_ident()
    assert torch.get_num_threads() == before


def test_a_failing_task_fails_all():
    before = torch.get_num_threads()
    for divisors in ((0, 1), (1, 0)):
        with pytest.raises(ZeroDivisionError):
            at_once([lambda divisor=divisor: 1 / divisor for divisor in divisors])
        assert torch.get_num_threads() == before


# -- Slices of a step --------------------------------------------------------------------------------------------------


def captioned_leg():
    text = {"kind": "bytes", "width": 16, "heads": 1, "depth": 1}
    return second_leg(denoiser={"text": text, "caption_dropout": 0.5, "label_dropout": 0.3})


def enlarging_leg():
    recipe, pictures = parse_recipe(CASCADE), noise_pictures()
    return enlarger_leg(recipe, 16, pictures, crop_examples(recipe, 16, pictures, CPU), CPU)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("make", [LEGS["denoiser"], LEGS["unet"], captioned_leg, enlarging_leg])
def test_gradients_of_slices_add_up_to_those_of_the_whole(make, count):
    """Under dropout in the network, of labels and of captions; after some steps, so that every path has a gradient."""
    leg = go_on(make(), 16)
    objective, state = leg.objective, leg.states["denoiser"]
    batch = leg.source.batch(16, 4)
    if make is captioned_leg:
        batch = replace(batch, text=Text(("red and round", "", "blue", "green and tall")))

    def gradients(slices):
        parts = objective.slices(batch, 0.5, RNG, slices)
        assert len(parts) == slices
        losses = at_once([lambda part=part: part()["denoiser"] for part in parts])
        for loss in losses:
            state.add(state.gradients(loss.total))
        found = [parameter.grad for parameter in state.parameters if parameter.grad is not None]
        state.zero_grad()
        return sum(loss.total.item() for loss in losses), torch.cat([gradient.flatten() for gradient in found])

    (loss, whole), (sum_of_losses, added) = gradients(1), gradients(count)
    assert sum_of_losses == pytest.approx(loss, rel=1e-6)
    assert (added - whole).norm() <= 1e-6 * whole.norm() > 0


def test_a_step_in_slices_is_the_step_of_the_whole_batch():
    """Adam divides by the gradient's size, so where that is nearly 0 a step differs by more than the gradient does."""
    weights = []
    for slices in (1, 2):
        leg = go_on(second_leg(), 16)
        result = train_step(leg.objective, leg.states, leg.source.batch(16, 4), leg.progress, Division(slices))
        weights.append(torch.cat([weight.flatten() for weight in leg.states["denoiser"].parameters]).detach())
        assert list(result.terms) == ["denoiser.loss"] and list(result.norms) == ["denoiser"]
    assert (weights[0] - weights[1]).norm() <= 1e-5 * weights[0].norm()


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("fraction", [0.05, 0.9])
def test_slices_of_an_autoencoder_add_up_to_the_whole(fraction, count):
    """Before the critic and with it: the weight of its loss takes the gradients of all images."""
    leg = go_on(first_leg(), 16)
    objective, batch = leg.objective, leg.source.batch(16, 4)

    def gradients(slices):
        parts = objective.slices(batch, fraction, RNG, slices)
        assert len(parts) == slices
        accumulated(leg.states, at_once([partial(differentiated, leg.states, part) for part in parts]))
        each = {name: [weight.grad for weight in state.parameters] for name, state in leg.states.items()}
        for state in leg.states.values():
            state.zero_grad()
        return {name: torch.cat([grad.flatten() for grad in grads if grad is not None]) for name, grads in each.items()
                if any(grad is not None for grad in grads)}  # fmt: skip

    whole, added = gradients(1), gradients(count)
    assert whole.keys() == added.keys() and ("critic" in whole) == (fraction == 0.9)
    for name, gradient in whole.items():
        assert (added[name] - gradient).norm() <= 1e-6 * gradient.norm() > 0


def test_slices_of_an_autoencoder_are_not_worked_on_one_after_the_other():
    leg = first_leg()
    batch = leg.source.batch(0, 4)
    assert [len(leg.objective.slices(batch, 0.9, RNG, slices, 3)) for slices in (1, 2, 8)] == [1, 2, 4]


def test_a_slice_that_fails_ends_those_that_wait_for_it(monkeypatch):
    leg = first_leg()
    real, batch_of_four = leg.objective.reconstruct, leg.source.batch(0, 4)

    def reconstruct(batch, rng, rows):
        if rows.start == 1:
            raise MemoryError("the second")
        return real(batch, rng, rows)

    monkeypatch.setattr(leg.objective, "reconstruct", reconstruct)
    with pytest.raises(MemoryError, match="the second"):
        at_once(leg.objective.slices(batch_of_four, 0.9, RNG, 3))


# -- The update --------------------------------------------------------------------------------------------------------


def test_tasks_are_shared_out_and_their_results_in_order():
    seen = set()

    def task(place):
        time.sleep(0.01)
        seen.add(threading.get_ident())
        return place

    assert shared_out([partial(task, place) for place in range(20)], 3) == list(range(20)) and len(seen) == 3
    with pytest.raises(ZeroDivisionError):
        shared_out([lambda divisor=divisor: 1 / divisor for divisor in (1, 1, 0, 1)], 2)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_update_on_several_threads_is_the_same_to_the_last_bit(optimizer):
    after = []
    for threads in (1, 3):
        leg = second_leg(denoiser={"learn": {"optimizer": optimizer}})
        (state,) = leg.states.values()
        for step in range(3):
            for place, weight in enumerate(state.parameters):
                weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place + step))
            with one_thread():
                state.step(0.1 * step, threads)
        after.append(state.tensors())
    assert len({type(group.optimizer) for group in state.groups}) == (2 if optimizer == "muon" else 1)
    assert after[0].keys() == after[1].keys()
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())


@pytest.mark.parametrize(("sizes", "count"), [([5], 3), ([9, 1, 1, 1], 2), ([50, 3, 7, 20, 20, 9, 1], 3), ([4] * 9, 8)])
def test_weights_are_divided_into_about_equal_parts(sizes, count):
    weights = [nn.Parameter(torch.zeros(size)) for size in sizes]
    groups = divided(weights, count)
    assert sorted(map(id, chain.from_iterable(groups))) == sorted(map(id, weights)) and all(groups)
    totals = [sum(len(weight) for weight in group) for group in groups]
    assert len(groups) == min(count, len(sizes)) and max(totals) - min(totals) <= max(sizes)


# -- Dropout -----------------------------------------------------------------------------------------------------------


def test_dropout_of_an_image_depends_on_its_seed_alone():
    values, seeds = torch.rand(3, 5, 40) + 1, torch.tensor([4, 9, 4])

    def dropped(rows):
        with dropout_seeds(seeds[rows], CPU):
            return dropout(values[rows], 0.25, True, layer_seeds()), dropout(values[rows], 0.25, True, layer_seeds())

    first, second = dropped(slice(0, 3))
    assert torch.equal(first[0] == 0, first[2] == 0) and not torch.equal(first[0] == 0, first[1] == 0)
    assert not torch.equal(first == 0, second == 0)
    assert torch.equal(dropped(slice(1, 3))[1], second[1:])
    kept = first != 0
    assert torch.allclose(first[kept], values[kept] / 0.75) and 0.6 < kept.float().mean() < 0.9


def test_masks_are_as_independent_as_chance_makes_them():
    """Of neighbours, of images and of layers: the mean of products of 400,000 numbers of mean 0 and deviation 1."""
    seeds = torch.arange(50) + 2**61
    with dropout_seeds(seeds, CPU):
        first, second = (dropout(torch.ones(50, 8000), 0.3, True, layer_seeds()) > 0 for _ in range(2))
    first, second = ((kept.double() - 0.7) / 0.21**0.5 for kept in (first, second))
    moved = ((first, first.roll(by, 1)) for by in (1, 8, 64, 128))
    for one, other in ((first, torch.ones(1)), (first, second), (first[1:], first[:-1]), *moved):
        assert abs(float((one * other).mean())) < 4 / 400_000**0.5


def test_without_dropout_values_are_as_they_were():
    values = torch.rand(2, 3)
    assert torch.equal(dropout(values, 0.5, False), values) and torch.equal(dropout(values, 0.0, True), values)
