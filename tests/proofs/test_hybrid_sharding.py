"""Hybrid sharding (HSDP) on two nodes of two ranks each, all here, equals one process. `make proofs` runs it."""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_sharded import STEPS, advanced, alone, assert_equal, leg_on, saved_on, whole
from together import Together

from calotype.ranks import joined_ranks
from calotype.training.pieces import piece_of, read_state

assert alone  # a fixture


def test_two_nodes_of_two_ranks_are_one_process(alone, tmp_path):
    """The ranks of a node have the pieces, and the first node writes them."""

    def work():
        os.environ["LOCAL_WORLD_SIZE"] = "2"
        with joined_ranks("cpu") as ranks:
            leg = leg_on("hybrid")
            numbers = advanced(leg, ranks, STEPS)
            piece = piece_of(leg.states["denoiser"].tensors())
            saved_on(ranks, leg, tmp_path / "checkpoints")
            return whole(leg), numbers, [piece.replica, piece.index, piece.count]

    results = Together(4, work, tmp_path / "ranks").results()
    assert [place for _, _, place in results] == [[0, 0, 2], [0, 1, 2], [1, 0, 2], [1, 1, 2]]
    for tensors, _, _ in results:
        assert_equal(tensors, alone[0])
    (saved,) = (tmp_path / "checkpoints").iterdir()
    assert len(list(saved.glob("*.safetensors"))) == 2
    stored = {name: value.flatten().tolist() for name, value in read_state(saved, "denoiser").items()}
    assert stored == results[0][0]
