"""What is spent beside the legs: searches, mistakes, captions that a frozen encoder reads."""

import pytest
import torch
from encoders import small_reader
from small import Keeper, be_quick, request, write_pictures
from test_cascade import be_quick_and_search, trained

from calotype.cli import commands
from calotype.cli.commands.reading import read
from calotype.data.words import distinct
from calotype.evaluation.candidate import open_one
from calotype.evaluation.counting import counted
from calotype.evaluation.expenses import cost, deployment
from calotype.evaluation.features import features
from calotype.evaluation.preparations import frozen_encoder, preparations, sampling_flops
from calotype.files import read_json
from calotype.interop import minilm
from calotype.nets.frozen import Frozen, read_all


def parts_of(one, pictures):
    return {row["part"]: row for row in preparations(one, pictures)}


def test_a_search_and_redrawn_mistakes_are_counted(tmp_path):
    """By hand: each crop is made once below, and at each level tried; features are taken of all, and of the real."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick_and_search(patch)
        mistakes = ("enlarge.16.exposure.images=8", "enlarge.16.exposure.pictures=4")
        run = trained(tmp_path, "cascade", *mistakes)
    one, pictures = open_one("A", run, "cpu"), read(tmp_path / "pictures", 16, None, Keeper())
    rows, state = parts_of(one, pictures), read_json(run / "run.json")
    assert list(rows) == ["prepare", "fit", "level-16"]
    assert all(row["flops"] > 0 and row["seconds"] > 0 for row in rows.values())
    assert rows["prepare"]["flops"] > state["operations"]["prepare"] > 0
    crops, tried = read_json(run / "plan.json")["level_crops"]["16"], len(state["levels"]["16"]["tried"])
    seen = counted(lambda: features([torch.zeros(1, 3, 8, 8)]))
    below = sampling_flops(one, one.model.stages[:1], one.model.samplings[:1])
    level = sampling_flops(one, one.model.stages[1:], (one.recipe.enlarger(16).sampling,), 4)
    assert crops > 0 and tried >= 4
    assert rows["level-16"]["flops"] == crops * (below + seen + tried * (level + seen))
    legs = [leg["leg"] for leg in cost(one, pictures)["training"]["legs"]]
    assert legs == ["denoiser", "enlarge-16", "exposure-16"]


def test_a_frozen_encoder_counts_as_a_network_and_what_it_reads_as_work(tmp_path, monkeypatch):
    for index, path in enumerate(sorted(write_pictures(tmp_path / "pictures").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"a red cat {index % 3}, on the sofa", encoding="utf-8")
    be_quick(monkeypatch)
    frozen = Frozen(small_reader(tmp_path / "vocabulary"))
    for place in ("build", "training.pipeline", "planning.measurement"):
        monkeypatch.setattr(f"calotype.{place}.build_frozen", lambda text: frozen)
    monkeypatch.setattr(minilm, "find", lambda: tmp_path)
    run = commands.train(request(tmp_path / "pictures", tmp_path / "run", "denoiser.text.kind=minilm"), Keeper())
    one, pictures = open_one("A", run, "cpu"), read(tmp_path / "pictures", 16, None, Keeper())
    assert frozen_encoder(one) is frozen
    found = deployment(one)
    numbers = sum(value.numel() for value in frozen.reader.network.state_dict().values())
    assert found["networks"]["text encoder"] == {"trained": 0, "fitted": 0, "text_encoder": numbers, "sum": numbers}
    assert found["count"] == 3 and found["parameters"]["text_encoder"] == numbers > 0
    texts = distinct(pictures.captions)
    whole = counted(lambda: read_all(frozen.reader, texts))
    assert parts_of(one, pictures)["captions"]["flops"] == pytest.approx(whole) and whole > 0
    spent = cost(one, pictures)
    again = sampling_flops(one, one.model.stages, one.model.samplings)
    assert spent["flops_a_picture"] > again == sampling_flops(one, one.model.stages, one.model.samplings)
    assert list(parts_of(one, pictures)) == ["captions", "prepare", "fit"]
