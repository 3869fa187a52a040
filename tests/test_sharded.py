"""Sharded training equals training in one process, and its checkpoints are read by any number of ranks."""

import os
import shutil
import signal
from itertools import islice

import pytest
import torch
import torch.distributed.fsdp  # once, here: each rank is forked
import torch.distributed.tensor
from small import second_leg
from together import Together

from calotype import ranks as ranks_module
from calotype.files import is_whole
from calotype.nets.weights import local
from calotype.ranks import ALONE, joined_ranks
from calotype.training import checkpoint
from calotype.training.loop import train_steps
from calotype.training.pieces import Piece, gathered
from calotype.types import UserError

STEPS = 18


def leg_on(sharding="full", precision="float32"):
    """Two layers; their matrices by Muon, all else by AdamW."""
    learn = {"learning_rate": 1e-3, "optimizer": "muon"}
    denoiser = {"images": 4 * STEPS, "learn": learn, "backbone": {"depth": 2}}
    return second_leg(sharding=sharding, precision=precision, denoiser=denoiser)


def advanced(leg, ranks, steps, slices=1):
    """After so many further steps."""
    done = train_steps(leg.objective, leg.states, leg.source, leg.progress, slices, rounds=2, ranks=ranks)
    *_, last = islice(done, steps)
    return {name: float(term) for name, term in last.terms.items()} | last.norms


def whole(leg):
    """All tensors, of all ranks, as JSON."""
    named = leg.states["denoiser"].tensors().items()
    return {name: gathered(local(value), value).flatten().tolist() for name, value in named}


def assert_equal(tensors, others, tolerance=1e-5):
    assert tensors.keys() == others.keys()
    for name, values in tensors.items():
        other = torch.tensor(others[name])
        torch.testing.assert_close(torch.tensor(values), other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def alone():
    leg = leg_on()
    numbers = advanced(leg, ALONE, STEPS, slices=2)
    return whole(leg), numbers


def test_two_ranks_with_halves_of_all_weights_are_one_process(alone, tmp_path):
    def work():
        with joined_ranks("cpu") as ranks:
            leg = leg_on()
            state = leg.states["denoiser"]
            numbers = advanced(leg, ranks, STEPS)
            held = sum(local(value).numel() for value in state.tensors().values())
            return whole(leg), numbers, held

    (tensors, numbers, held), (_, other_numbers, other_held) = Together(2, work, tmp_path).results()
    assert_equal(tensors, alone[0])
    assert numbers == other_numbers == pytest.approx(alone[1], rel=1e-5)
    assert max(held, other_held) < 0.55 * sum(map(len, tensors.values()))
    assert "optimizer.0.exp_avg" in tensors and any(name.endswith("momentum") for name in tensors)


# -- Checkpoints -------------------------------------------------------------------------------------------------------


def saved_on(ranks, leg, folder):
    checkpoint.save(folder, "denoiser", leg.saved, leg.progress, ranks)


def gone_on(ranks, folder, steps):
    """From the newest checkpoint, so many further steps; all tensors then."""
    leg = leg_on()
    if ranks.first:
        checkpoint.restore(folder, "denoiser", leg.saved, leg.progress)
    newest = ranks.say(lambda: checkpoint.checkpoints(folder, "denoiser")[-1].name)
    if not ranks.first:
        checkpoint.load(folder / newest, leg.saved, leg.progress)
    advanced(leg, ranks, steps, slices=2 if ranks.alone else 1)
    saved_on(ranks, leg, folder)
    return whole(leg)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of two ranks after 6 and 12 steps."""
    folder = tmp_path_factory.mktemp("sharded") / "checkpoints"

    def work():
        with joined_ranks("cpu") as ranks:
            leg = leg_on()
            for _ in range(2):
                advanced(leg, ranks, 6)
                saved_on(ranks, leg, folder)

    Together(2, work, folder.parent / "ranks").results()
    return folder


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "checkpoints")


def test_a_run_moves_from_two_ranks_to_one_and_back(copied, alone, tmp_path):
    """And is the run that never moved; no rank wrote more than its half."""
    sizes = [path.stat().st_size for path in copied.glob("*48/*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)
    gone_on(ALONE, copied, 3)
    assert not list(copied.glob("*60/shards.json")) and len(list(copied.iterdir())) == 2

    def work():
        with joined_ranks("cpu") as ranks:
            return gone_on(ranks, copied, 3)

    first, second = Together(2, work, tmp_path / "ranks").results()
    assert first == second
    assert_equal(first, alone[0])
