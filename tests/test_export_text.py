"""The bundle of a captioned model, with its page for browsers: equal to ours in Python and in Chromium."""

import functools
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from exporting import GOLDEN, LEVEL, golden, ours, widened, with_onnx
from small import Keeper
from webpage import CHROMIUM, drawn_in_browser

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.data.captions import MAX_CHARACTERS, as_prompts
from calotype.export.check import between
from calotype.export.web import PAGE_FILES, RUNTIME_FILES, export_web
from calotype.nets.text import tokens_of
from calotype.priors.captions import buckets
from calotype.types import Text, UserError

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = ROOT / "node_modules" / "onnxruntime-web"
NODE = shutil.which("node")
MODEL_JS = ROOT / "src" / "calotype" / "export" / "standalone" / "model.js"
PROMPT, NEGATIVE = "a woman with glasses, ông già", "a beard"
TEXTS = [
    "",
    "A red cat on the sofa!",
    "Ông già, 3 quyển sách...",
    "extraordinarily-long_words ok",
    "猫がいます 고양이",
    "é\u0301\x1b[0m  x",
    "e\u200d\u0301",
    "x" * (MAX_CHARACTERS - 1) + " cut",
    "\x85a\x1cb\ufeffc\u2003d\u00ade",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model: that with captions as it is, others widened."""

    @functools.cache
    def trained(name):
        return GOLDEN / name if name == "captions" else widened(name, tmp_path_factory.mktemp("trained") / name)

    return trained


@pytest.fixture(scope="module")
def page(trained, tmp_path_factory):
    """The exported page of a model: with the runtime where it is installed, else with files of its names."""

    @functools.cache
    def page(name):
        folder = tmp_path_factory.mktemp("page")
        runtime = RUNTIME
        if not runtime.is_dir():
            runtime = folder / "runtime"
            runtime.mkdir()
            for file in RUNTIME_FILES:
                (runtime / file).write_text("")
        return export(ExportOptions(run=trained(name), to="web", out=folder / "out", runtime=runtime), Keeper())

    return page


@pytest.fixture
def exported(page):
    return page("captions")


@pytest.fixture
def sample():
    if not importlib.util.find_spec("onnxruntime"):
        pytest.skip("needs onnxruntime")
    from calotype.export.standalone import sample

    return sample


def test_texts_become_tokens_and_buckets_as_ours(sample):
    for text in (sample.cleaned(text) for text in TEXTS):
        assert [text] == as_prompts(text)
        if text:
            assert np.array_equal(sample.letters_of(text, 64), tokens_of([text], 64)[0].numpy())
        assert sample.ngram_buckets(text) == set(buckets(text))
    assert [sample.cleaned(text) for text in TEXTS] == as_prompts(TEXTS)


@pytest.mark.skipif(not NODE, reason="needs node")
def test_the_page_cleans_texts_as_ours_and_once_is_enough(tmp_path):
    shutil.copy(MODEL_JS, tmp_path / "model.mjs")
    (tmp_path / "ort.wasm.min.mjs").write_text("export const env = {wasm: {}};")
    spaces = [f"a{chr(code)}b" for code in range(0x10000) if not chr(code).strip() or code in (0x200B, 0xFEFF)]
    texts = [*TEXTS, *spaces]
    (tmp_path / "trial.mjs").write_text(
        f"import {{cleaned}} from './model.mjs'; console.log(JSON.stringify({json.dumps(texts)}.map(cleaned)))"
    )
    made = subprocess.run([NODE, tmp_path / "trial.mjs"], capture_output=True, text=True, check=True, timeout=300)
    assert json.loads(made.stdout) == as_prompts(texts) == as_prompts(as_prompts(texts))


@with_onnx
@pytest.mark.parametrize("changes", [{}, {"prior_guidance": 0.5}, {"guide": "unconditional", "guidance": 2.0}], ids=str)
def test_pictures_of_prompts_are_ours(exported, sample, changes):
    model, bundle = golden("captions", **changes), sample.Bundle(exported, threads=1)
    bundle.stages[0]["sampling"] = model.samplings[0].model_dump(mode="json")
    labels, prompts = [-1, 0, -1, 1], [PROMPT, "red hair", "", "a man"]
    for negatives in ([""] * 4, [NEGATIVE] * 4):
        theirs = bundle.images(labels, prompts, negatives, range(4), sample.seeded(2))
        text = Text(tuple(prompts), tuple(negatives) if negatives[0] else ())
        assert between(ours(model, labels, text, seed=2), theirs).largest < LEVEL / 4


@with_onnx
@pytest.mark.parametrize("prompt", ["Cafe\u0301  đỏ\n", "\u200b"], ids=ascii)
def test_prompts_are_cleaned_as_ours(exported, sample, prompt):
    """Another normal form, line breaks, and letters that are not seen."""
    bundle = sample.Bundle(exported, threads=1)
    theirs = bundle.sample([-1], [prompt], [prompt], seed=3)
    assert (
        np.abs(theirs[0].astype(int) - golden("captions").sample(1, seed=3, prompt=prompt, negative=prompt)[0]).max()
        <= 1
    )


def test_a_negative_prompt_of_nothing_that_is_seen_is_none():
    assert golden("captions").text(1, "red", " \u200b") == Text(("red",))


@with_onnx
def test_a_page_has_all_files(exported):
    names = {path.name for path in exported.iterdir()}
    assert {*PAGE_FILES, *RUNTIME_FILES, "sample.py", "text.onnx", "calotype.json", "manifest.json"} <= names


def test_what_a_page_cannot_do_is_refused(tmp_path):
    if not all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        pytest.skip("needs the extra onnx")
    with pytest.raises(UserError, match="npm install onnxruntime-web"):
        export_web(golden("labels"), tmp_path / "out", tmp_path / "nowhere")
    large = golden("labels")
    object.__setattr__(large.stages[0], "image_size", 256)
    with pytest.raises(UserError, match="up to 128 px"):
        export_web(large, tmp_path / "out")
    with pytest.raises(UserError, match="--runtime is for --to web"):
        export(ExportOptions(run=GOLDEN / "labels", to="onnx", out=tmp_path / "out", runtime=tmp_path), Keeper())


# -- In Chromium -------------------------------------------------------------------------------------------------------


@with_onnx
@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
@pytest.mark.skipif(not RUNTIME.is_dir(), reason="needs: npm install onnxruntime-web")
@pytest.mark.parametrize("name", ["labels", "captions", "cascade"])
def test_the_page_draws_the_same_pictures(name, trained, page, sample, tmp_path):
    (prompt, negative), model = (PROMPT, NEGATIVE) if name == "captions" else ("", ""), golden(trained(name))
    request = {"prompt": unicodedata.normalize("NFD", prompt) + "\n", "negative": f" {negative}"}
    result = drawn_in_browser(page(name), sample.seeded(5), request, tmp_path)
    side = model.image_size
    theirs = np.array(result["images"], np.float32).reshape(2, 3, side, side)
    text = Text(("", prompt), ("", negative)) if prompt else None
    first = ours(model, [1], seed=5)
    second = ours(model, [-1], text and text.at([1]), seed=5)
    assert between(np.concatenate([first, second]), theirs).largest < LEVEL / 4
    assert result["side"] == side and result["colours"] > 20 and result["state"].startswith("2 of 2")


# -- In ComfyUI --------------------------------------------------------------------------------------------------------


@with_onnx
def test_the_node_of_comfyui_draws_the_same_pictures(exported, tmp_path, monkeypatch):
    nodes = shutil.copytree(ROOT / "contrib" / "comfyui", tmp_path / "calotype_node")
    shutil.copy(exported / "sample.py", nodes)
    monkeypatch.syspath_prepend(tmp_path)
    import calotype_node

    node = calotype_node.NODE_CLASS_MAPPINGS["CalotypeSample"]()
    given = {
        "folder": str(exported),
        "label": "",
        "prompt": PROMPT,
        "negative": "",
        "count": 2,
        "seed": 3,
        "guidance": 2.0,
    }
    assert set(given) == set(node.INPUT_TYPES()["required"])
    (images,) = getattr(node, node.FUNCTION)(**given)
    made = golden("captions").sample(2, seed=3, prompt=PROMPT, guidance=2.0)
    assert images.shape == (2, 16, 16, 3) and images.dtype == torch.float32
    assert np.abs(images.numpy() * 255 - np.stack([np.asarray(one) for one in made])).max() < 1.01
    (again,) = node.sample(**{**given, "count": 1}, image=torch.rand(1, 40, 30, 4), strength=0.4)
    assert again.shape == (1, 16, 16, 3)
    model, changed = calotype_node.opened(str(exported)), node.IS_CHANGED(**given)
    assert calotype_node.opened(str(exported)) is model and node.IS_CHANGED(**given) == changed
    os.utime(exported / "calotype.json", ns=(0, 0))  # another export to this folder
    assert calotype_node.opened(str(exported)) is not model and node.IS_CHANGED(**given) == 0
    with pytest.raises(ValueError, match="is unknown"):
        node.sample(**{**given, "label": "nobody"})
    with pytest.raises(ValueError, match="folder is empty"):
        node.sample(**{**given, "folder": ""})
    sys.modules.pop("calotype_node")
