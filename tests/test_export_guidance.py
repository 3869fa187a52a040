"""Guidance and starts of sample.py and of the page, with the modules in the place of the graphs: no onnxruntime."""

import importlib.util
import json
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from exporting import LEVEL, bundle_in_torch, golden, ours, random_model, script_alone
from PIL import Image
from small import CASCADE

from calotype.export.bundle import STANDALONE
from calotype.export.check import between
from calotype.nets.frozen import FrozenEncoder
from calotype.priors.captions import CaptionedMixture, buckets
from calotype.serve import api
from calotype.serve.requests import Generation
from calotype.tables import merge
from calotype.types import Text

ROOT = Path(__file__).resolve().parents[1]
NODE = shutil.which("node")
LABELS, PROMPTS = [-1, 0, -1, 1], ["red hair", "a man", "", "glasses"]


def captioned_model(**changes):
    """With captions in its prior, too, which version 0.1.0 had not."""
    model = golden("captions", **changes)
    denoiser = model.stages[0].denoiser
    vocabulary = sorted({bucket for text in [*PROMPTS, "a beard"] for bucket in buckets(text)})
    prior = CaptionedMixture(denoiser.prior, int(denoiser.prior.group.max()) + 1, len(vocabulary), 4)
    prior.vocabulary.copy_(torch.tensor(vocabulary))
    for constants in (prior.regression_in, prior.regression_out, prior.gate):
        constants.normal_()
    denoiser.prior = prior.eval()
    return model


@pytest.mark.parametrize("changes", [{}, {"prior_guidance": 0.5}, {"guide": "unconditional", "guidance": 2.0}], ids=str)
@pytest.mark.parametrize("negative", ["", "a beard", "nothing that is known"])
def test_negative_prompts_are_ours_where_the_prior_reads_captions(changes, negative):
    model = captioned_model(**changes)
    theirs = bundle_in_torch(model).images(LABELS, PROMPTS, [negative] * 4, range(4), script_alone().seeded(2))
    text = Text(tuple(PROMPTS), (negative,) * 4 if negative else ())
    assert between(ours(model, LABELS, text, seed=2), theirs).largest < LEVEL / 4


@pytest.mark.parametrize("strength", [0.25, 0.6])
def test_variations_in_a_truncated_cascade_are_ours(strength):
    """The first stage stops at the noise of the next one, which may be above the sigma at which a variation starts.

    A window that is as near to one cluster of the patch prior as to another may be enlarged by either.
    """
    model = golden("cascade", steps=4)
    above = model.samplings[1].model_copy(update={"augmentation": 0.4, "conditioning": "truncated"})
    model = replace(model, samplings=(model.samplings[0], above))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))
    theirs = bundle_in_torch(model).sample([-1, -1], seed=3, picture=np.asarray(picture), strength=strength)
    made = np.stack([np.asarray(each, int) for each in model.redraw(picture, strength, seed=3, count=2)])
    assert (np.abs(theirs.astype(int) - made) > 1).mean() < 0.01


def test_long_prompts_are_truncated_where_the_frozen_encoder_truncates_them(tmp_path):
    """It may have fewer positions than the recipe asks for tokens."""
    pytest.importorskip("tokenizers")
    from encoders import small_encoder

    text = {"text": {"kind": "folder", "path": str(tmp_path), "words": 64}}
    model = random_model(merge(CASCADE, {"denoiser": text}), frozen=FrozenEncoder(small_encoder(tmp_path, most=12)))
    bundle, prompt = bundle_in_torch(model), "a red cat on the sofa " * 10
    bundle.folder = tmp_path
    encoded = model.text_encoder([prompt])
    words, pooled = bundle.encode(bundle.stages[0], prompt)
    assert words.shape[0] == 12 and np.abs(words - encoded.context[0].numpy()).max() < 2e-3
    assert np.abs(pooled - encoded.pooled[0].numpy()).max() < 2e-3


def test_labels_are_found_in_any_normal_form(tmp_path, monkeypatch):
    """Folders of macOS have form D, and keyboards write form C."""
    script, name = script_alone(), "Hà Nội"
    model = replace(golden("labels"), classes=("other", unicodedata.normalize("NFD", name)))
    bundle = bundle_in_torch(model)
    monkeypatch.setattr(script, "Bundle", lambda: bundle)
    for label, file in ((name, "composed.png"), (model.classes[1], "decomposed.png")):
        monkeypatch.setattr(sys, "argv", ["sample.py", "--count", "1", "--label", label, "--out", str(tmp_path / file)])
        script.main()
    made = [np.asarray(Image.open(tmp_path / file), int) for file in ("composed.png", "decomposed.png")]
    assert np.array_equal(*made) and np.abs(made[0] - np.asarray(model.sample(1, name)[0], int)).max() <= 1


def test_the_node_of_comfyui_finds_a_label_in_any_normal_form(monkeypatch):
    place, name = ROOT / "contrib" / "comfyui", unicodedata.normalize("NFD", "Hà Nội")
    spec = importlib.util.spec_from_file_location("node_alone", place / "__init__.py", submodule_search_locations=[])
    monkeypatch.setitem(sys.modules, "node_alone.sample", script_alone())
    monkeypatch.setitem(sys.modules, "node_alone", module := importlib.util.module_from_spec(spec))
    spec.loader.exec_module(module)
    module.OPENED["folder", None] = bundle_in_torch(model := replace(golden("labels"), classes=("other", name)))
    (images,) = module.CalotypeSample().sample("folder", "Hà Nội", "", "", 1, 0, -1.0)
    assert np.abs(images[0].numpy() * 255 - np.asarray(model.sample(1, name)[0])).max() < 1.01


def test_the_pipeline_finds_a_label_in_any_normal_form():
    pytest.importorskip("diffusers")
    from calotype.export.standalone.pipeline import CalotypePipeline

    drawn, config = [], SimpleNamespace(text=None)
    images = lambda labels, *others: drawn.append(labels) or torch.zeros(len(labels), 3, 1, 1)  # noqa: E731
    stages = SimpleNamespace(dtype=torch.float32, config=config, images=images)
    pipeline = SimpleNamespace(classes=["other", unicodedata.normalize("NFD", "Hà Nội")], stages=stages, vae=None)
    CalotypePipeline.__call__(pipeline, label="Hà Nội", num_images=2)
    assert drawn == [[1, 1]]


def test_the_api_finds_a_label_in_any_normal_form(tmp_path, monkeypatch):
    name = "Hà Nội"
    state = SimpleNamespace(classes=[unicodedata.normalize("NFD", name)])
    monkeypatch.setattr(api, "Run", SimpleNamespace(open=lambda folder: SimpleNamespace(state=state)))
    asked = Generation(model="m", prompt=name, seed=1)
    assert api.sampling_fields(asked, tmp_path, 1, "auto") == {"count": 1, "seed": 1, "label": name}


RUN = """
import { Model } from "./model.mjs";
import * as ort from "./ort.wasm.min.mjs";
const model = new Model("", ABOUT);
model.run = async (stage, graph, values) => {
  const { noisy, label, sigma, bag, mean } = values;
  const shift = 0.1 * (Number(label.data[0]) + bag.data.reduce((sum, value, at) => sum + value * (at + 1), 0));
  const around = (value, at) => 0.7 * value + 0.2 * noisy.data[at] / (1 + sigma.data[0]);
  const data = graph === "prior" ? noisy.data.map((value) => 0.7 * value + shift) : mean.data.map(around);
  return { [graph === "prior" ? "mean" : "denoised"]: new ort.Tensor("float32", data, noisy.dims) };
};
const noise = () => Float32Array.from([0.5, -1, 2]);
console.log(JSON.stringify([...await model.sample({ label: 0, prompt: "a man", negative: NEGATIVE, noise })]));
"""
RUNTIME = """
export const env = { wasm: {} };
export class Tensor { constructor(type, data, dims) { Object.assign(this, { type, data, dims }); } }
"""


def stage_of_three(**changes):
    """The settings of a bundle whose latents are one pixel, and whose only stage has a prior that reads captions."""
    sampling = captioned_model(**changes).samplings[0].model_dump(mode="json")
    stage = {"size": 1, "shape": [3, 1, 1], "graphs": {"prior": "prior", "denoiser": "denoiser"}, "sigma_data": 1.0,
             "sigmas": [8.0, 2.0, 0.5, 0.0], "until": 0.0, "sampling": sampling}  # fmt: skip
    return {
        "size": 1,
        "classes": ["a"],
        "text": None,
        "vocabulary": sorted(buckets("a man, a beard")),
        "stages": [stage],
    }


def of_formulas(about, negative):
    """The picture of sample.py where the graphs are the formulas of `RUN`."""

    class OfFormulas(script_alone().Bundle):
        def __init__(self):
            self.about, self.stages, self.size, self.texts = about, about["stages"], 1, {}

        def run(self, stage, graph, values):
            noisy, bag = values["noisy"], values["bag"]
            if graph == "prior":
                return {"mean": 0.7 * noisy + 0.1 * (values["label"][0] + (bag * np.arange(1, bag.shape[1] + 1)).sum())}
            return {"denoised": 0.7 * values["mean"] + 0.2 * noisy / (1 + values["sigma"][0])}

    noise = np.array([0.5, -1, 2], np.float32).reshape(3, 1, 1)
    return OfFormulas().images([0], ["a man"], [negative], [0], lambda *where: noise)


@pytest.mark.skipif(not NODE, reason="needs node")
@pytest.mark.parametrize("negative", ["", "a beard"])
@pytest.mark.parametrize("changes", [{"prior_guidance": 0.5}, {"guide": "unconditional", "guidance": 2.0}], ids=str)
def test_the_page_guides_as_the_script(changes, negative, tmp_path):
    about = stage_of_three(**changes)
    shutil.copy(STANDALONE / "model.js", tmp_path / "model.mjs")
    (tmp_path / "ort.wasm.min.mjs").write_text(RUNTIME)
    run = RUN.replace("ABOUT", json.dumps(about)).replace("NEGATIVE", json.dumps(negative))
    (tmp_path / "trial.mjs").write_text(run)
    made = subprocess.run([NODE, tmp_path / "trial.mjs"], capture_output=True, text=True, check=True, timeout=300)
    assert np.allclose(json.loads(made.stdout), of_formulas(about, negative).ravel(), atol=1e-5)
