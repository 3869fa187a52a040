"""`calotype export --to onnx`: graphs, one JSON of settings, and a script that samples with numpy and onnxruntime."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

import calotype
from calotype.diffusion.stage import Sampling, Stage, stops
from calotype.export.check import Difference, picture_differences
from calotype.export.graphs import VARIABLE_WORDS, Graph, encoder_of, stage_graphs
from calotype.files import whole_folder, write_json, write_whole
from calotype.interop.folders import TOKENIZER
from calotype.model import Model
from calotype.nets.frozen import FolderConfig, MiniLmConfig, ProjectedEncoder
from calotype.priors.captions import CaptionedMixture
from calotype.recipe import leg_above
from calotype.spaces.latent import LatentSpace
from calotype.types import Progress, UserError, no_progress

BUNDLE_FORMAT = 1
SETTINGS, SCRIPT = "calotype.json", "sample.py"
OPSET = 20
LEAST_EPSILON = 1e-7
"""The exporter drops the addition of a constant below 1e-8."""
STANDALONE = Path(__file__).parent / "standalone"
CARD_COPY = "model-card.md"

BUNDLE_README = """# A model as ONNX graphs

    pip install numpy onnxruntime
    python sample.py --count 9 --seed 0 --out grid.png

`sample.py --help` has the other options; all of it is data but that script, which imports numpy and onnxruntime alone;
where there is a `tokenizer.json`, prompts need one more package, tokenizers.
Equal seeds give the pictures of Calotype in float32, to a level of 8 bits.

| file | inputs -> outputs |
| --- | --- |
| `prior.onnx` | the closed form: noisy, sigma, label (-1: none), bag of n-grams -> mean |
| `denoiser.onnx` | the network around it: noisy, sigma, label, mean, words -> denoised |
| `decoder.onnx`, `encoder.onnx` | latents -> images in [-1, 1], and back |
| `text.onnx` | tokens of a prompt -> words, pooled |
| `enlarge-N-*.onnx` | the same of a stage that enlarges; `condition` is what it knows of the picture below it |
| `calotype.json` | sigmas, sampler and guidance of each stage, classes, latent statistics |

`noisy = clean + sigma * noise` with Gaussian noise; the batch may have any size. Not every model has every file.
"""


def export_onnx(
    model: Model, folder: Path, progress: Progress = no_progress, card: Path | None = None,
    readme: str = BUNDLE_README, files: Iterable[Path] = (),
) -> Difference:  # fmt: skip
    """Writes the bundle of a model on the CPU, and returns how far its pictures are from ours.

    Copies of `card`, the model's card, and of further `files` are put into it. Raises `UserError` where packages are
    missing, and where pictures differ by more than a level of 8 bits; then there is no folder.
    """
    require_packages("onnx", "onnxscript", "onnxruntime")
    model = in_float32(model)
    with whole_folder(folder) as path:
        write_bundle(model, path, progress)
        write_readme(path, readme, card)
        for file in files:
            shutil.copy(file, path / file.name)
        return picture_differences(model, path).checked()


def require_packages(*names: str, extra: str = "onnx") -> None:
    """Raises `UserError` that says what to install."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f'this export needs {", ".join(missing)}; try: pip install "calotype[{extra}]"')


def in_float32(model: Model) -> Model:
    """The same model, computing in float32, whatever it was trained in."""
    for stage in model.stages:
        stage.denoiser.precision = "float32"
        if isinstance(stage.space, LatentSpace):
            stage.space.vae.precision = "float32"
    return model


def write_bundle(model: Model, path: Path, progress: Progress = no_progress) -> None:
    """All files but the manifest."""
    graphs = [stage_graphs(stage) for stage in model.stages]
    total, done = sum(map(len, graphs)), 0
    for stage, named in zip(model.stages, graphs, strict=True):
        for name, graph in named.items():
            write_graph(path / graph_file(model, stage, name), graph)
            progress(done := done + 1, total)
    write_json(path / SETTINGS, settings_of_bundle(model, graphs))
    shutil.copy(STANDALONE / SCRIPT, path / SCRIPT)
    copy_tokenizer(model, path)


def write_graph(file: Path, graph: Graph) -> None:
    """As an ONNX file whose batch, and number of words, may be any."""
    from torch.export import Dim

    batch, words = Dim("batch"), Dim("words")
    inputs = {name: value.clone() for name, value in graph.inputs.items()}  # one tensor for two would be one input
    shapes = {name: {0: batch, 1: words} if name in VARIABLE_WORDS else {0: batch} for name in inputs}
    keep_epsilons(graph.module)
    with quiet():
        program = torch.onnx.export(
            graph.module.eval(), (), kwargs=inputs, input_names=list(inputs), output_names=list(graph.outputs),
            dynamic_shapes=shapes, opset_version=OPSET, dynamo=True, verbose=False,
        )  # fmt: skip
    assert program is not None
    write_whole(file, program.model_proto.SerializeToString())


def keep_epsilons(network: nn.Module) -> None:
    """Raises those of its modules that the exporter would take for 0, after which 0 / 0 is not a number."""
    for part in network.modules():
        if isinstance(eps := getattr(part, "eps", None), float) and 0 < eps < LEAST_EPSILON:
            part.eps = LEAST_EPSILON  # type: ignore[assignment]


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's warnings, of packages that are not used and of what it is to lose."""
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def write_readme(path: Path, text: str, card: Path | None) -> None:
    """With the tags of the model's card, for hubs, and a copy of it."""
    content = card.read_text("utf-8", "replace") if card is not None and card.is_file() else ""
    front = re.match(r"---\n.*?\n---\n", content, re.S)
    write_whole(path / "README.md", f"{front[0]}\n{text}" if front else text)
    if content:
        write_whole(path / CARD_COPY, content)


def graph_file(model: Model, stage: Stage, name: str) -> str:
    """`denoiser.onnx` of the first stage, `enlarge-256-denoiser.onnx` of another."""
    return f"{name}.onnx" if stage is model.stages[0] else f"{leg_above(stage.image_size)}-{name}.onnx"


# -- Settings ----------------------------------------------------------------------------------------------------------


def settings_of_bundle(model: Model, graphs: Sequence[Collection[str]]) -> dict[str, Any]:
    """What `calotype.json` holds: all that sampling needs beside the graphs, whose names at each stage are given."""
    space, prior = model.stages[0].space, model.stages[0].denoiser.prior
    latents = None
    if isinstance(space, LatentSpace):
        latents = {"mean": space.mean.flatten().tolist(), "spread": space.spread.flatten().tolist()}
    stages = zip(model.stages, graphs, model.samplings, stops(model.samplings), strict=True)
    return {
        "format": BUNDLE_FORMAT,
        "calotype": calotype.__version__,
        "size": model.image_size,
        "classes": list(model.classes),
        "latents": latents,
        "text": text_settings(model),
        "vocabulary": prior.vocabulary.tolist() if isinstance(prior, CaptionedMixture) else None,
        "stages": [stage_settings(model, *stage) for stage in stages],
    }


def stage_settings(
    model: Model, stage: Stage, names: Collection[str], sampling: Sampling, until: float
) -> dict[str, Any]:
    return {
        "size": stage.image_size,
        "shape": list(stage.shape),
        "graphs": {name: graph_file(model, stage, name) for name in names},
        "sigma_data": stage.denoiser.sigma_data,
        "sigmas": stage.schedule.grid(sampling.steps),
        "until": until,
        "sampling": sampling.model_dump(mode="json"),
    }


def text_settings(model: Model) -> dict[str, Any] | None:
    """How texts become tokens, and the width of their embeddings at each stage."""
    if (encoder := encoder_of(model.stages[0])) is None:
        return None
    text = model.recipe.denoiser.text
    assert text.kind != "none"
    frozen = encoder.frozen.pretrained if isinstance(encoder, ProjectedEncoder) else None
    kind, words = ("bytes", text.words) if frozen is None else ("tokenizer", frozen.most)
    encoders = {stage.image_size: encoder_of(stage) for stage in model.stages}
    widths = {str(size): each.width for size, each in encoders.items() if each is not None}
    return {"kind": kind, "words": words, "width": widths}


def copy_tokenizer(model: Model, path: Path) -> None:
    """tokenizer.json of a frozen text encoder."""
    from calotype.interop.minilm import minilm_folder

    match model.recipe.denoiser.text:
        case MiniLmConfig():
            shutil.copy(minilm_folder() / TOKENIZER, path / TOKENIZER)
        case FolderConfig() as text:
            shutil.copy(Path(text.path) / TOKENIZER, path / TOKENIZER)
