"""Bundles of cascades: stages that enlarge, in several steps or one, with every augmentation, equal to ours."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from exporting import GOLDEN, LEVEL, golden, ours, random_model, with_onnx
from small import CASCADE, Keeper

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.export.bundle import export_onnx, settings_of_bundle, write_graph
from calotype.export.check import between
from calotype.export.graphs import PatchGraph, stage_graphs, text_graph
from calotype.nets.frozen import Frozen, Projected
from calotype.tables import merge
from calotype.types import Text

PLAIN = merge(CASCADE, {
    "denoiser": {
        "prior": "none", "sigma_data": 0.5, "text": {"kind": "bytes", "width": 8},
        "backbone": {"kind": "unet", "width": 8, "multiples": [1, 2], "blocks": 1, "attention_levels": [1]},
    },
    "enlarge": {"16": {
        "prior": "none", "sigma_data": 0.3, "augmentation": {"kind": "blur"}, "sampling": {"augmentation": 0.7},
    }},
})  # fmt: skip
"""Without closed forms, with blur, and with prompts at every stage."""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    out = tmp_path_factory.mktemp("cascade") / "out"
    return export(ExportOptions(run=GOLDEN / "cascade", to="onnx", out=out), Keeper())


@pytest.fixture
def sample():
    if not importlib.util.find_spec("onnxruntime"):
        pytest.skip("needs onnxruntime")
    from calotype.export.standalone import sample

    return sample


ENLARGER = {
    "as stored": {},
    "in one step": {"steps": 1, "guidance": 1.0},
    "with noise": {"augmentation": 0.2},
    "truncated": {"augmentation": 0.2, "conditioning": "truncated"},
    "classifier-free": {"guide": "unconditional", "guidance": 2.0},
}


@with_onnx
@pytest.mark.parametrize("kind", ENLARGER)
def test_pictures_of_a_cascade_are_ours(exported, sample, kind):
    model, bundle = golden("cascade", steps=4), sample.Bundle(exported, threads=1)
    model = replace(model, samplings=(model.samplings[0], model.samplings[1].model_copy(update=ENLARGER[kind])))
    named = [(stage, dict.fromkeys(bundle.stages[place]["graphs"])) for place, stage in enumerate(model.stages)]
    bundle.stages = settings_of_bundle(model, named)["stages"]
    theirs = bundle.images([0, -1], [""] * 2, [""] * 2, range(2), sample.seeded(1))
    apart = between(ours(model, [0, -1], seed=1), theirs)
    assert theirs.shape == (2, 3, 32, 32) and apart.largest < LEVEL / 4


@with_onnx
def test_a_picture_does_not_depend_on_its_batch(exported, sample):
    bundle = sample.Bundle(exported, threads=1)
    together = bundle.sample([0, 1, 0], seed=2)
    alone = np.concatenate([bundle.sample([label], seed=2, first=index) for index, label in enumerate([0, 1, 0])])
    assert np.abs(together.astype(int) - alone).max() <= 1


@with_onnx
def test_stages_without_closed_forms_with_blur_and_prompts(sample, tmp_path):
    model = random_model(PLAIN)
    assert export_onnx(model, tmp_path / "out").largest < LEVEL / 4
    bundle, prompts = sample.Bundle(tmp_path / "out", threads=1), ["a red cat", "ô"]
    assert not any("prior" in stage["graphs"] for stage in bundle.stages)
    theirs = bundle.images([0, -1], prompts, ["dog", "dog"], range(2), sample.seeded(0))
    text = Text(tuple(prompts), ("dog", "dog"))
    assert between(ours(model, [0, -1], text), theirs).largest < LEVEL / 4


@with_onnx
def test_words_of_a_frozen_encoder_are_ours(sample, tmp_path):
    pytest.importorskip("tokenizers")
    from encoders import small_reader

    torch.manual_seed(2)
    encoder = Projected(Frozen(small_reader(tmp_path)), 8)
    write_graph(tmp_path / "text.onnx", text_graph(encoder))
    bundle = sample.Bundle.__new__(sample.Bundle)
    bundle.folder, bundle.sessions, bundle.texts, bundle.providers = tmp_path, {}, {}, ["CPUExecutionProvider"]
    bundle.settings = sample.onnxruntime.SessionOptions()
    bundle.about = {"text": {"kind": "tokenizer", "words": 12, "width": {"16": 8}}, "vocabulary": None}
    stage, texts = {"size": 16, "graphs": {"text": "text.onnx"}}, ["a red cat", "", "the cat on the red sofa"]
    values = bundle.text(stage, texts)
    with torch.no_grad():
        expected = encoder(texts)
    assert np.array_equal(values["mask"], expected.mask.numpy())
    assert np.abs(values["pooled"] - expected.pooled.numpy()).max() < 2e-3  # they are stored in half precision
    assert np.abs((values["words"] - expected.context.numpy()) * values["mask"][..., None]).max() < 2e-3


def test_the_graphs_of_a_stage_have_what_it_needs():
    base, above = (stage_graphs(stage) for stage in golden("cascade").stages)
    assert list(base) == ["prior", "denoiser"] and list(above) == ["condition", "prior", "denoiser"]
    assert isinstance(above["prior"].module, PatchGraph) and "low_res" in above["denoiser"].inputs
    first = stage_graphs(golden("captions").stages[0])
    assert list(first) == ["text", "prior", "denoiser", "decoder", "encoder"] and "bag" in first["prior"].inputs
