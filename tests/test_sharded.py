"""Sharded training equals training in one process, and its checkpoints are read by any number of ranks."""

import os
import shutil
import signal
from contextlib import suppress
from dataclasses import replace
from itertools import islice

import pytest
import torch
import torch.distributed as dist
import torch.distributed.fsdp  # once, here: ranks are forked
from small import machine, recipe, second_leg
from test_overfitting import BETTER, GOOD, WORSE, Stop, Validations
from together import Together, be_impatient
from torch.distributed import device_mesh

from calotype.files import is_whole, read_json, write_json
from calotype.nets.weights import local
from calotype.planning.memory import choose_sharding, rounds_of
from calotype.ranks import ALONE, joined_ranks
from calotype.run import Run, RunState
from calotype.training import checkpoint
from calotype.training import leg as leg_module
from calotype.training.leg import LegLimits, train_leg
from calotype.training.loop import Division, train_steps
from calotype.training.pieces import PIECES, Piece, gather_rows, read_pieces
from calotype.training.process import Interrupted
from calotype.training.sharding import sharding_mesh
from calotype.types import UserError

STEPS, MOVED = 50, 12
"""Steps of the comparison, and of a run that moves between one process and two ranks."""
DIT = {"learn": {"learning_rate": 1e-3, "optimizer": "muon"}, "backbone": {"depth": 2}}
"""Whose matrices have Muon, and all else AdamW."""
UNET = {"learn": {"learning_rate": 1e-3}, "backbone": {"kind": "unet", "patch": 1, "width": 8, "dropout": 0.5}}


def leg_on(sharding="full", denoiser=DIT, precision="float32"):
    return second_leg(sharding=sharding, precision=precision, denoiser={"images": 4 * STEPS, **denoiser})


def advanced(leg, ranks, steps, slices=1):
    """The terms and norms of the last of so many further steps."""
    done = train_steps(leg.objective, leg.states, leg.source, leg.progress, Division(slices, 2, ranks))
    *_, last = islice(done, steps)
    return {name: float(value) for name, value in (last.terms | last.norms).items()}


def whole(leg):
    """All tensors, of all ranks, as JSON."""
    named = leg.states["denoiser"].tensors().items()
    return {name: gather_rows(local(value), value).flatten().tolist() for name, value in named}


def assert_equal(tensors, others, tolerance=1e-5):
    assert tensors.keys() == others.keys()
    for name, values in tensors.items():
        other = torch.tensor(others[name])
        torch.testing.assert_close(torch.tensor(values), other, rtol=tolerance, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def alone():
    """One process, two slices at once: its numbers and tensors by steps."""
    leg = leg_on()
    moved = advanced(leg, ALONE, MOVED, slices=2), whole(leg)
    return {MOVED: moved, STEPS: (advanced(leg, ALONE, STEPS - MOVED, slices=2), whole(leg))}


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of checkpoints of two ranks, after 4 and 8 steps, and all their tensors after 50."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"

    def work():
        with joined_ranks("cpu") as ranks:
            leg = leg_on()
            for _ in range(2):
                advanced(leg, ranks, 4)
                saved_on(ranks, leg, folder)
            held = sum(local(value).numel() for value in leg.states["denoiser"].tensors().values())
            return advanced(leg, ranks, STEPS - 8), whole(leg), held

    return folder, Together(2, work, folder.parent / "ranks").results()


def test_two_ranks_with_halves_of_all_weights_are_one_process(two, alone):
    _, ((numbers, tensors, held), (other_numbers, other_tensors, other_held)) = two
    assert tensors == other_tensors and numbers == other_numbers
    assert_equal(tensors, alone[STEPS][1])
    assert numbers == pytest.approx(alone[STEPS][0], rel=1e-5)
    assert max(held, other_held) < 0.55 * sum(map(len, tensors.values()))
    assert {name.rpartition(".")[2] for name in tensors} >= {"momentum", "exp_avg", "exp_avg_sq"}


def test_a_unet_with_dropout_in_bfloat16_on_two_nodes_is_one_process_too(tmp_path):
    """Hybrid sharding (HSDP): the two ranks of a node have halves."""

    def work():
        os.environ["LOCAL_WORLD_SIZE"] = "2"
        with joined_ranks("cpu") as ranks:
            leg = leg_on("hybrid", UNET, "bfloat16")
            return advanced(leg, ranks, 2), whole(leg)

    (numbers, tensors), *others = Together(4, work, tmp_path).results()
    assert others == [[numbers, tensors]] * 3
    leg = leg_on("none", UNET, "bfloat16")
    assert advanced(leg, ALONE, 2, slices=2) == pytest.approx(numbers, rel=1e-5)
    assert_equal(tensors, whole(leg))


def stretched(progress):
    progress.total = 32


def overfit(folder, ranks, after):
    """8 steps with validations of the average, of which the second is best; stops after some steps.

    Two of them are what the control of the first rank adds.
    """
    run = Run.open(folder) if (folder / "run.json").exists() else Run(folder, RunState(legs={"denoiser": "waiting"}))
    run.writes = ranks.first
    leg = leg_on(denoiser={**DIT, "images": 24})
    table = {8: GOOD, 16: BETTER, 24: {"held_out_loss": 1.0, "train_loss": 0.5}, 32: WORSE}
    leg = replace(leg, validator=Validations(leg.progress, table), write_raw=None)
    limits, division = LegLimits(stretched, previews_at=(0.25, 0.5, 0.75, 1.0)), Division(1, 2, ranks)
    with suppress(Interrupted):
        train_leg(run, leg, Stop(after), lambda done, total, note="": None, limits=limits, division=division)
    return {name: value.flatten().tolist() for name, value in leg.trained.denoiser.named_parameters()}


def test_a_leg_of_two_ranks_stops_goes_on_and_ends_with_its_best_average(tmp_path, monkeypatch):
    """On both ranks, and in its last checkpoint, as with one process."""
    monkeypatch.setattr(leg_module, "CONTROL_SECONDS", 0.0)

    def work(after):
        with joined_ranks("cpu") as ranks:
            return overfit(tmp_path / "run", ranks, after)

    (tmp_path / "run").mkdir()
    assert Together(2, lambda: work(5), tmp_path / "ranks").codes() == [0, 0]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").glob("d*")] == ["denoiser-0000000024"]
    first, second = Together(2, lambda: work(100), tmp_path / "ranks").results()
    assert first == second
    (tmp_path / "alone").mkdir()
    assert_equal(first, overfit(tmp_path / "alone", ALONE, 100))
    last = read_pieces(tmp_path / "run" / "checkpoints" / "denoiser-0000000032", "denoiser")
    assert all(last[f"average.{name}"].flatten().tolist() == values for name, values in first.items())


def test_the_plan_shards_what_is_too_large_for_a_rank():
    large = recipe(denoiser={"batch": 2, "backbone": {"kind": "dit", "width": 512, "depth": 8, "heads": 2}})
    sharded = recipe(**large.model_dump(include={"denoiser"}), sharding="full")
    enough, little = (replace(machine(), ranks=8, memory=memory) for memory in (2**40, 5 * 10**8))
    assert choose_sharding(large, enough)[0] == "none" and choose_sharding(large, little)[0] == "full"
    assert rounds_of(sharded, little)["denoiser"] == 1
    with pytest.raises(UserError, match=r"needs about 0\.7 GB"):
        rounds_of(large, little)


@pytest.mark.parametrize(("of_node", "shape"), [("4", (4,)), ("2", (2, 2)), ("1", None), ("3", "no multiple of the 3")])
def test_hybrid_sharding_is_within_a_node(of_node, shape, monkeypatch):
    """Of four ranks; with one on each node each has all weights."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    monkeypatch.setattr(device_mesh, "init_device_mesh", lambda kind, shape, mesh_dim_names: shape)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", of_node)
    if isinstance(shape, str):
        with pytest.raises(UserError, match=shape):
            sharding_mesh("hybrid", torch.device("cpu"))
    else:
        assert sharding_mesh("hybrid", torch.device("cpu")) == shape


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
        checkpoint.load_checkpoint(folder / newest, leg.saved, leg.progress)
    advanced(leg, ranks, steps, slices=2 if ranks.alone else 1)
    saved_on(ranks, leg, folder)
    return whole(leg)


@pytest.fixture
def copied(two, tmp_path):
    return shutil.copytree(two[0], tmp_path / "checkpoints")


def test_a_run_moves_from_two_ranks_to_one_and_back(copied, alone, tmp_path):
    """And is the run that never moved; each rank has written its half."""
    sizes = [path.stat().st_size for path in copied.glob("*32/*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 0.6 * sum(sizes)
    gone_on(ALONE, copied, 2)
    assert not list(copied.glob("*40/pieces.json")) and len(list(copied.iterdir())) == 2

    def work():
        with joined_ranks("cpu") as ranks:
            return gone_on(ranks, copied, 2)

    first, second = Together(2, work, tmp_path / "ranks").results()
    assert first == second
    assert_equal(first, alone[MOVED][1])


@pytest.mark.parametrize("rows", [1, 2, 3, 8, 9])
def test_pieces_are_those_of_torch(rows):
    pieces = [torch.arange(rows)[Piece(index, 4).rows(rows)].tolist() for index in range(4)]
    assert [piece for piece in pieces if piece] == [chunk.tolist() for chunk in torch.arange(rows).chunk(4)]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_any_number_of_ranks_reads_the_pieces(two, count):
    (saved,) = two[0].glob("*32")
    whole = read_pieces(saved, "denoiser")
    pieces = [read_pieces(saved, "denoiser", Piece(index, count)) for index in range(count)]
    for name, value in whole.items():
        own = [piece[name] for piece in pieces]
        assert torch.equal(torch.cat(own) if value.ndim else own[-1], value), name


def test_a_missing_or_damaged_piece_is_named_and_the_checkpoint_before_is_used(copied):
    warnings, leg = [], leg_on()
    (newest,) = copied.glob("*32")
    piece = newest / "denoiser-00002-of-00002.safetensors"
    content = piece.read_bytes()
    for harm, what in (
        (lambda: piece.write_bytes(content[:-1] + b"?"), "has other content"),
        (piece.unlink, "is missing"),
    ):
        harm()
        used = checkpoint.restore(copied, "denoiser", leg.saved, leg.progress, warnings.append)
        assert used.name.endswith("16") and leg.progress.images_seen == 16
        assert f"{piece.name} {what}" in warnings[-1], warnings


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor["pieces"].pop(), "ends at row 8, but has 16 rows"),
        (lambda tensor: tensor["pieces"].reverse(), "starts at row 8, but the rows before end at 0"),
        (lambda tensor: tensor["pieces"][0].update(file="../x"), "is not listed"),
        (lambda tensor: tensor["pieces"].clear(), "pieces"),
        (lambda tensor: tensor["shape"].__setitem__(0, 17), "ends at row 16, but has 17 rows"),
    ],
)
def test_a_layout_that_does_not_fit_its_files_is_refused(change, message, copied):
    (newest,) = copied.glob("*32")
    layout = read_json(newest / PIECES)
    change(layout["denoiser"]["network.noise_level.mlp.0.weight"])
    write_json(newest / PIECES, layout)
    with pytest.raises(UserError, match=message):
        read_pieces(newest, "denoiser")


def test_a_rank_that_is_killed_while_it_writes_leaves_the_checkpoint_before(copied, tmp_path, monkeypatch):
    be_impatient(monkeypatch)

    def work():
        with joined_ranks("cpu") as ranks:
            leg = leg_on()
            leg.progress.images_seen = 60
            if not ranks.first:
                monkeypatch.setattr(checkpoint, "write_pieces", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            saved_on(ranks, leg, copied)

    ranks = Together(2, work, tmp_path / "ranks")
    assert ranks.codes(30) == [1, -signal.SIGKILL] and "rank 1 of 2 gave no sign" in ranks.error(0)
    assert sorted(path.name[-2:] for path in copied.iterdir()) == ["16", "32"] and all(map(is_whole, copied.iterdir()))
