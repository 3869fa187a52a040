"""`calotype export --to web`: the graphs with a page that samples in the browser, and onnxruntime-web beside it."""

from __future__ import annotations

from pathlib import Path

from calotype.export.bundle import STANDALONE, export_onnx
from calotype.export.check import Difference
from calotype.model import Model
from calotype.nets.frozen import FrozenConfig
from calotype.types import Progress, UserError, no_progress

LARGEST_WEB = 128
"""Pixels a side of pictures that a browser makes in seconds."""
RUNTIME_FILES = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
PAGE_FILES = ("index.html", "page.js", "model.js")
NPM_FOLDER = Path("node_modules") / "onnxruntime-web"

WEB_README = """# Pictures in a browser

    python -m http.server --directory FOLDER

and open http://127.0.0.1:8000. Any web server will do; nothing is loaded from elsewhere. `sample.py` samples without a
browser: `python sample.py --count 9`, with numpy and onnxruntime. Its seeds give other pictures than those of the page.
"""


def export_web(
    model: Model, folder: Path, runtime: Path | None = None, progress: Progress = no_progress, card: Path | None = None
) -> Difference:
    """As `export_onnx`, with the page and the files of onnxruntime-web, whose npm package is in `runtime`."""
    if model.image_size > LARGEST_WEB:
        raise UserError(
            f"this model's pictures have {model.image_size} px, but a page is for up to {LARGEST_WEB} px; try --to onnx"
        )
    if isinstance(model.recipe.denoiser.text, FrozenConfig):
        raise UserError("the page reads no prompts with a pretrained text encoder; try --to onnx")
    files = [*(STANDALONE / name for name in PAGE_FILES), *runtime_files(runtime)]
    return export_onnx(model, folder, progress, card, WEB_README, files)


def runtime_files(runtime: Path | None = None) -> list[Path]:
    """The files of onnxruntime-web in an npm package, by default the one installed here. Raises `UserError`."""
    package = NPM_FOLDER if runtime is None else runtime
    folder = package / "dist" if (package / "dist").is_dir() else package
    files = [folder / name for name in RUNTIME_FILES]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(
            f"{missing[0]} is missing; the page needs onnxruntime-web beside it: npm install onnxruntime-web, then "
            f"--runtime {NPM_FOLDER}"
        )
    return files
