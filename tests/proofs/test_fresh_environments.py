"""Exports are opened in new environments, which have what docs/export.md asks for, and no Calotype.

`make proofs` runs it; it needs the package registry.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from exporting import GOLDEN, LEVEL, golden, ours, with_onnx
from small import Keeper
from webpage import CHROMIUM, drawn_in_browser

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.export.check import between

NPM = shutil.which("npm")
PACKAGES = {"onnx": ["numpy", "onnxruntime"], "diffusers": ["torch==2.13.0", "diffusers>=0.38", "safetensors", "numpy"]}
SCRIPTS = {
    "onnx": """
import sys
sys.path.insert(0, sys.argv[1])
import sample
bundle = sample.Bundle(sys.argv[1])
labels = [index % len(bundle.classes) for index in range(2)]
prompts = ["", ""] if bundle.about["text"] is None else [PROMPT] * 2
if prompts[0]:
    labels = [-1, -1]
for index, picture in enumerate(bundle.sample(labels, prompts, seed=3)):
    with open(f"{sys.argv[2]}/{index}.png", "wb") as file:
        file.write(sample.png(picture))
""",
    "diffusers": """
import sys
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained(sys.argv[1], trust_remote_code=True)
prompt = None if pipeline.stages.config.text is None else PROMPT
for index, picture in enumerate(pipeline(prompt, num_images=2, seed=3).images):
    picture.save(f"{sys.argv[2]}/{index}.png")
""",
}
PROMPT = "a woman with red hair"


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Environments by what they are for, made when they are first asked for."""
    made = {}

    def python(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            venv.create(folder, with_pip=True)
            made[kind] = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
            subprocess.run([made[kind], "-m", "pip", "install", "--quiet", *PACKAGES[kind]], check=True)
        return made[kind]

    return python


@pytest.mark.parametrize("kind", [pytest.param("onnx", marks=with_onnx), "diffusers"])
@pytest.mark.parametrize("name", ["labels", "captions", "cascade"])
def test_an_export_opens_where_there_is_no_calotype(fresh, tmp_path, kind, name):
    python = fresh(kind)
    environment = {**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    ours_there = [python, "-c", "import calotype"]
    assert subprocess.run(ours_there, env=environment, cwd=tmp_path, capture_output=True, check=False).returncode
    export(ExportOptions(run=GOLDEN / name, to=kind, out=tmp_path / "out"), Keeper())
    script = f"PROMPT = {PROMPT!r}\n{SCRIPTS[kind]}"
    subprocess.run([python, "-c", script, tmp_path / "out", tmp_path], env=environment, check=True, cwd=tmp_path)
    prompt = PROMPT if name == "captions" else None
    ours = np.stack([np.asarray(picture, int) for picture in golden(name).sample(2, seed=3, prompt=prompt)])
    theirs = np.stack([np.asarray(Image.open(tmp_path / f"{index}.png"), int) for index in range(2)])
    assert np.abs(ours - theirs).max() <= 1


@with_onnx
@pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
@pytest.mark.skipif(not NPM, reason="needs npm")
def test_a_page_opens_with_a_runtime_that_was_just_installed(tmp_path):
    from calotype.export.standalone import sample

    install = [NPM, "install", "--prefix", tmp_path, "--no-audit", "--no-fund", "onnxruntime-web"]
    subprocess.run(install, check=True, capture_output=True)
    runtime = tmp_path / "node_modules" / "onnxruntime-web"
    out = export(ExportOptions(run=GOLDEN / "labels", to="web", out=tmp_path / "out", runtime=runtime), Keeper())
    result = drawn_in_browser(out, sample.seeded(5), {"prompt": "", "negative": ""}, tmp_path / "profile")
    theirs = np.array(result["images"][0], np.float32).reshape(1, 3, 16, 16)
    assert between(ours(golden("labels"), [1], seed=5), theirs).largest < LEVEL / 4
