"""Whole runs whose denoisers are sharded, and hybrid sharding (HSDP) on two nodes, all here. `make proofs` runs it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import pytest
import torch
from small import Keeper, be_quick, request, write_pictures
from test_ranks import assert_same_model
from test_sharded import STEPS, advanced, alone, assert_equal, leg_on, saved_on, whole
from test_train import interrupted_at, resume
from together import Together

from calotype.cli import commands
from calotype.files import read_json
from calotype.ranks import joined_ranks
from calotype.run import Run
from calotype.training.pieces import piece_of, read_pieces
from calotype.training.snapshot import snapshot

assert alone  # a fixture


def test_two_nodes_of_two_ranks_are_one_process(alone, tmp_path):
    """The ranks of a node have the pieces, and the first node writes them."""

    def work():
        os.environ["LOCAL_WORLD_SIZE"] = "2"
        with joined_ranks("cpu") as ranks:
            leg = leg_on("hybrid")
            numbers = advanced(leg, ranks, STEPS)
            piece = piece_of(leg.states["denoiser"].tensors().values())
            saved_on(ranks, leg, tmp_path / "checkpoints")
            return whole(leg), numbers, [piece.replica, piece.index, piece.count]

    results = Together(4, work, tmp_path / "ranks").results()
    assert [place for _, _, place in results] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    for tensors, numbers, _ in results:
        assert_equal(tensors, alone[STEPS][1])
        assert numbers == pytest.approx(alone[STEPS][0], rel=1e-5)
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert len(list(saved.glob("*.safetensors"))) == 2
    stored = {name: value.flatten().tolist() for name, value in read_pieces(saved, "denoiser").items()}
    assert stored == results[0][0]


def test_a_run_in_which_all_is_sharded_ends_with_the_model_of_one_process(tmp_path, monkeypatch, finished):
    """Stopped and resumed on the way; a preview reads the pieces of its checkpoint."""
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures")
    run = tmp_path / "run"

    def begin():
        if os.environ["RANK"] == "1":
            interrupted_at(monkeypatch, [("denoiser", 8)])
        return commands.train(request(tmp_path / "pictures", run, "sharding=full"), Keeper())

    assert Together(2, begin, tmp_path / "ranks").codes() == [1, 1]
    assert (run / "checkpoints" / "denoiser-0000000012" / "denoiser-00002-of-00002.safetensors").exists()
    model, words = snapshot(run, torch.device("cpu"))
    assert "after 12" in words and len(model.sample(count=2, seed=0)) == 2
    Together(2, lambda: str(resume(run)), tmp_path / "ranks-2").results()
    (choice,) = [choice for choice in read_json(run / "plan.json")["choices"] if choice["what"] == "sharding"]
    assert choice["value"] == "full" and Run.open(run).state.status == "finished"
    assert_same_model(run, finished)
