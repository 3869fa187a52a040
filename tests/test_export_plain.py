"""Bundles of stages without closed forms, with blur and prompts, and of a frozen text encoder, equal to ours."""

import importlib.util

import numpy as np
import pytest
import torch
from exporting import LEVEL, ours, random_model, with_onnx
from small import CASCADE
from test_static import captioned, mixture

from calotype.export.bundle import export_onnx, write_graph
from calotype.export.check import between
from calotype.export.graphs import Graph, text_graph
from calotype.nets.frozen import FrozenEncoder, ProjectedEncoder
from calotype.priors.captions import buckets
from calotype.priors.static import StaticMixture
from calotype.tables import merge
from calotype.types import NULL_LABEL, Condition, Text

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


@pytest.fixture
def sample():
    if not importlib.util.find_spec("onnxruntime"):
        pytest.skip("needs onnxruntime")
    from calotype.export.standalone import sample

    return sample


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
def test_a_closed_form_without_axes_is_a_graph(sample, tmp_path):
    """As few pictures give it."""
    prior, inputs = mixture(rank=0), (torch.randn(2, 3, 4, 4), torch.tensor([0.5, 2.0]), torch.tensor([0, 1]))
    named = dict(zip(("noisy", "sigma", "label"), inputs, strict=True))
    write_graph(tmp_path / "prior.onnx", Graph(StaticMixture(prior), named, ("mean",)))
    session = sample.onnxruntime.InferenceSession(tmp_path / "prior.onnx", providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {name: value.numpy() for name, value in named.items()})
    assert np.abs(theirs - prior.mean(*inputs[:2], Condition(inputs[2])).numpy()).max() < 1e-4


def opened(sample, folder, text, vocabulary=None):
    """A bundle of whatever graphs there are in the folder."""
    bundle = sample.Bundle.__new__(sample.Bundle)
    bundle.folder, bundle.sessions, bundle.texts, bundle.providers = folder, {}, {}, ["CPUExecutionProvider"]
    bundle.settings, bundle.about = sample.onnxruntime.SessionOptions(), {"text": text, "vocabulary": vocabulary}
    bundle.settings.intra_op_num_threads = 1
    return bundle


@with_onnx
def test_a_closed_form_that_reads_captions_is_ours(sample, tmp_path):
    prior = captioned()
    texts = ["a red cat", "a blue dog on the sofa", ""]
    known = {bucket for text in texts for bucket in buckets(text)}
    prior.vocabulary.copy_(torch.tensor(sorted([*known, *(set(range(40)) - known)][:30])))
    noisy, sigma, label = 3 * torch.randn(3, 3, 4, 4), torch.tensor([0.3, 2.0, 9.0]), torch.tensor([0, NULL_LABEL, 1])
    inputs = {"noisy": noisy, "sigma": sigma, "label": label, "bag": torch.zeros(3, 30)}
    write_graph(tmp_path / "prior.onnx", Graph(StaticMixture(prior), inputs, ("mean",)))
    bundle = opened(sample, tmp_path, None, prior.vocabulary.tolist())
    values = {name: value.numpy() for name, value in inputs.items()} | bundle.text({"graphs": {}}, texts)
    assert values["bag"].sum() > 10
    theirs = bundle.run({"graphs": {"prior": "prior.onnx"}}, "prior", values)["mean"]
    expected = prior.mean(noisy, sigma, Condition(label, text=Text(tuple(texts))))
    assert np.abs(theirs - expected.numpy()).max() < 1e-4


@with_onnx
def test_words_of_a_frozen_encoder_are_ours(sample, tmp_path):
    pytest.importorskip("tokenizers")
    from encoders import small_encoder

    torch.manual_seed(2)
    encoder = ProjectedEncoder(FrozenEncoder(small_encoder(tmp_path)), 8)
    write_graph(tmp_path / "text.onnx", text_graph(encoder))
    bundle = opened(sample, tmp_path, {"kind": "tokenizer", "words": 12, "width": {"16": 8}})
    stage, texts = {"size": 16, "graphs": {"text": "text.onnx"}}, ["a red cat", "", "the cat on the red sofa"]
    values = bundle.text(stage, texts)
    with torch.no_grad():
        expected = encoder(texts)
    assert np.array_equal(values["mask"], expected.mask.numpy())
    assert np.abs(values["pooled"] - expected.pooled.numpy()).max() < 2e-3  # they are stored in half precision
    assert np.abs((values["words"] - expected.context.numpy()) * values["mask"][..., None]).max() < 2e-3
