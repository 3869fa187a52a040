"""Exports beside the model that they were made from: size, processor time of a picture, and largest difference.

    python bench/exports.py runs/portraits-64-1 --onnx ENVIRONMENT/bin/python --diffusers ENVIRONMENT/bin/python

The folders onnx, diffusers and web of a run are measured where they are there (`calotype export`). Each is opened by
the Python that is named for it, of an environment that has no Calotype; the page by Chromium, through playwright. All
make the same pictures (of a captioned model every other one of a prompt) in one batch on one thread, once to get warm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import torch

from calotype.diffusion.stage import generate
from calotype.export.bundle import in_float32
from calotype.export.check import between, checked_request
from calotype.export.standalone.sample import seeded
from calotype.model import Model, load
from calotype.types import Text

TIMED = """
import json, sys, time
import numpy
request = json.loads(sys.argv[1])
labels, prompts = request["labels"], request["prompts"]
OPEN
for warm in (False, True):
    begin = time.process_time()
    images = MAKE
    seconds = time.process_time() - begin
numpy.save(request["out"], numpy.asarray(images))
print(seconds)
"""
OPENED = {
    "onnx": (
        "sys.path.insert(0, request['folder']); import sample; bundle = sample.Bundle(request['folder'], threads=1)",
        "bundle.images(labels, prompts, [''] * len(labels), range(len(labels)), sample.seeded(0))",
    ),
    "diffusers": (
        "import torch; torch.set_num_threads(1); from diffusers import DiffusionPipeline\n"
        "pipeline = DiffusionPipeline.from_pretrained(request['folder'], trust_remote_code=True)",
        "pipeline.stages.images(labels, prompts, [''] * len(labels), vae=pipeline.vae)",
    ),
}
IN_PAGE = """
async ({ labels, prompts }) => {
  const { cleaned } = await import("./model.js"), model = globalThis.calotype.model, images = [];
  for (let index = 0; index < labels.length; index++) {
    const noise = (size, where, shape) => {
      const asked = new XMLHttpRequest();
      asked.open("GET", `/noise?index=${index}&size=${size}&where=${where}&shape=${shape}`, false);
      asked.send();
      return Float32Array.from(JSON.parse(asked.responseText));
    };
    images.push([...await model.sample({ label: labels[index], prompt: cleaned(prompts[index]), noise })]);
  }
  return images;
}
"""


def ours(model: Model, labels: list[int], prompts: list[str]) -> tuple[float, np.ndarray]:
    """Seconds of processor time, and images in [-1, 1]."""
    text = Text(tuple(prompts)) if any(prompts) else None
    for _ in range(2):
        begin = time.process_time()
        images = generate(model.stages, torch.tensor(labels), model.samplings, model.rngs(len(labels), 0), text=text)
        seconds = time.process_time() - begin
    return seconds, images.float().numpy()


def elsewhere(kind: str, python: str, folder: Path, labels: list[int], prompts: list[str]) -> tuple[float, np.ndarray]:
    """The same from an environment that has no Calotype."""
    opened, made = OPENED[kind]
    with tempfile.TemporaryDirectory() as place:
        request = {"folder": str(folder.resolve()), "labels": labels, "prompts": prompts, "out": f"{place}/images.npy"}
        environment = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": place}
        script = TIMED.replace("OPEN", opened).replace("MAKE", made)
        command = [python, "-c", script, json.dumps(request)]
        done = subprocess.run(command, env=environment, cwd=place, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        return float(done.stdout.split()[-1]), np.load(request["out"])


def in_browser(chromium: str, folder: Path, labels: list[int], prompts: list[str]) -> tuple[float, np.ndarray]:
    """The same from the page, whose noise comes from a server here."""
    from playwright.sync_api import sync_playwright

    server = ThreadingHTTPServer(("127.0.0.1", 0), lambda *given: Page(*given, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with sync_playwright() as player:
        browser = player.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.set_default_timeout(600_000)
        page.goto(f"http://127.0.0.1:{server.server_port}/index.html")
        page.wait_for_function("globalThis.calotype?.ready")
        for _ in range(2):
            before = children_seconds()
            images = page.evaluate(IN_PAGE, {"labels": labels, "prompts": prompts})
            seconds = children_seconds() - before
        browser.close()
    server.shutdown()
    pictures = np.array(images, np.float32)
    side = round((pictures.shape[1] / 3) ** 0.5)
    return seconds, pictures.reshape(len(pictures), 3, side, side)


class Page(SimpleHTTPRequestHandler):
    """The files of an export, and noise for it."""

    def log_message(self, *given: object) -> None:
        pass

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        if address.path != "/noise":
            return super().do_GET()
        asked = {name: values[0].split(",") for name, values in parse_qs(address.query).items()}
        where = tuple(int(part) if part.isdigit() else part for part in asked["where"])
        shape = tuple(map(int, asked["shape"]))
        values = seeded(0)(int(asked["index"][0]), int(asked["size"][0]), where, shape)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(values.flatten().tolist()).encode())
        return None


def children_seconds() -> float:
    """Processor time of all processes below this one."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    return sum(each.user + each.system for each in times)


def megabytes(folder: Path, without: tuple[str, ...] = ()) -> float:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(without)]
    return sum(file.stat().st_size for file in files) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--onnx", default=sys.executable, help="Python with numpy and onnxruntime")
    parser.add_argument("--diffusers", default=sys.executable, help="Python with diffusers")
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for run in arguments.runs:
        model = load(run, "cpu")
        request = checked_request(model, arguments.pictures)
        stored, _ = ours(model, *request)
        exact, images = ours(in_float32(model), *request)
        print(f"{run}: {megabytes(run / 'model'):.1f} MB; stored precision {stored / len(images):.3f} s, "
              f"float32 {exact / len(images):.3f} s a picture", flush=True)  # fmt: skip
        for kind in ("onnx", "diffusers", "web"):
            folder = run / ("web" if kind == "onnx" and not (run / kind).is_dir() else kind)  # a page has the graphs
            if not folder.is_dir():
                continue
            if kind == "web":
                seconds, theirs = in_browser(arguments.chromium, folder, *request)
            else:
                seconds, theirs = elsewhere(kind, getattr(arguments, kind), folder, *request)
            apart = between(images, theirs)
            size = megabytes(folder, ("ort",) if kind == "onnx" else ())
            print(f"    {kind}: {size:.1f} MB; {seconds / len(images):.3f} s a picture; {apart}", flush=True)


if __name__ == "__main__":
    main()
