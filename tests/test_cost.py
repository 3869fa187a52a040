"""The cost of what is done once: searches, exposure fine-tuning, captions that a frozen encoder reads."""

import pytest
import torch
from encoders import small_encoder
from small import Keeper, be_quick, request, write_pictures
from test_cascade import be_quick_and_search, trained

from calotype.cli import commands
from calotype.cli.commands.reading import read
from calotype.diffusion.stage import generate
from calotype.evaluation.candidate import PROMPT, open_candidate
from calotype.evaluation.comparison_results import ParameterCounts
from calotype.evaluation.cost import deployment_cost, frozen_encoder, sampling_flops, training_cost
from calotype.evaluation.counting import counted, counter
from calotype.evaluation.features import Lite0, features
from calotype.files import read_json
from calotype.interop import minilm
from calotype.nets.frozen import FrozenEncoder, encode_all
from calotype.planning import measure
from calotype.training import pipeline
from calotype.types import Rng


def parts_of(one):
    return {part.part: part for part in training_cost(one.run).parts}


def count_operations(patch):
    patch.setattr(pipeline, "counter", counter)
    patch.setattr(measure, "counted", counted)


def test_a_search_and_exposure_fine_tuning_are_counted(tmp_path):
    """What the search takes, by hand: each picture is made once by the stage below, and once at each level tried;
    features are taken of all of them, and of the real pictures.
    """
    with pytest.MonkeyPatch.context() as patch:
        be_quick_and_search(patch)
        count_operations(patch)
        run = trained(tmp_path, "cascade", "enlarge.16.exposure.images=8", "enlarge.16.exposure.pictures=4")
    one = open_candidate("A", run, "cpu")
    rows, state = parts_of(one), read_json(run / "run.json")
    assert list(rows) == ["denoiser", "enlarge-16", "exposure-16", "fit", "prepare", "level-16"]
    assert all(row.flops > 0 and row.seconds > 0 for row in rows.values())
    crops, tried = read_json(run / "plan.json")["level_crops"]["16"], len(state["levels"]["16"]["tried"])
    lite0 = Lite0()
    seen = counted(lambda: features([torch.zeros(1, 3, 16, 16)], lite0))
    below = flops_through(one, slice(0, 1))
    level = flops_through(one, slice(1, 2), torch.zeros(1, 3, 8, 8))
    assert crops > 0 and tried >= 4
    assert rows["level-16"].flops == pytest.approx(crops * (below + seen + tried * (level + seen)), rel=0.01)


def flops_through(one, which, low_res=None, text=None):
    stages, samplings = one.model.stages[which], one.recipe.samplings[which]
    return counted(lambda: generate(stages, torch.tensor([0]), samplings, [Rng(("cost",))], low_res, text=text))


def test_a_frozen_encoder_counts_as_a_network_and_what_it_reads_as_work(tmp_path, monkeypatch):
    for index, path in enumerate(sorted(write_pictures(tmp_path / "pictures").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"a red cat {index % 3}, on the sofa", encoding="utf-8")
    be_quick(monkeypatch)
    count_operations(monkeypatch)
    frozen = FrozenEncoder(small_encoder(tmp_path / "vocabulary"))
    for place in ("store", "training.pipeline", "planning.costs"):
        monkeypatch.setattr(f"calotype.{place}.build_frozen", lambda text: frozen)
    monkeypatch.setattr(minilm, "minilm_folder", lambda: tmp_path)
    run = commands.train(request(tmp_path / "pictures", tmp_path / "run", "denoiser.text.kind=minilm"), Keeper())
    one, pictures = open_candidate("A", run, "cpu"), read(tmp_path / "pictures", 16, None, Keeper())
    assert frozen_encoder(one) is frozen
    found = deployment_cost(one)
    numbers = sum(value.numel() for value in frozen.pretrained.network.state_dict().values())
    expected = ParameterCounts(trained=0, fitted=0, text_encoder=numbers, sum=numbers)
    assert found.networks["text encoder"] == expected
    assert found.count == 3 and found.parameters.text_encoder == numbers > 0
    whole = counted(lambda: encode_all(frozen.pretrained, pictures.captions.distinct))
    assert parts_of(one)["captions"].flops == pytest.approx(whole) and whole > 0
    assert list(parts_of(one)) == ["autoencoder", "denoiser", "captions", "prepare", "latents", "fit"]
    prompt = counted(lambda: encode_all(frozen.pretrained, [PROMPT]))
    frozen([PROMPT])  # it keeps what it has read
    plain = flops_through(one, slice(0, 1), text=one.model.text(1, PROMPT))
    assert sampling_flops(one) == plain + prompt == sampling_flops(one)
