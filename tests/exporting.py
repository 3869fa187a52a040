"""Models to export: those of version 0.1.0, and others with random weights, which take no training."""

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from small import CPU

from calotype.build import build_enlarger, build_space, build_stage
from calotype.diffusion.stage import generate
from calotype.export.bundle import STANDALONE, in_float32, settings_of_bundle
from calotype.export.graphs import stage_graphs
from calotype.model import Model, load
from calotype.priors.clusters import components_of, mixture_of
from calotype.priors.patches import PatchPrior
from calotype.settings import parse_recipe
from calotype.spaces.pixel import PixelSpace
from calotype.store import save_model

GOLDEN = Path(__file__).parent / "golden"
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript", "onnxruntime"))
with_onnx = pytest.mark.skipif(not ONNX, reason="needs the extra onnx")
LEVEL = 1 / 255


def golden(name, **changes):
    """One of version 0.1.0, or of another folder, in float32."""
    model = in_float32(load(GOLDEN / name, "cpu"))
    return replace(model, samplings=model.settings(changes))


def widened(name, folder):
    """The folder of a golden model with what version 0.1.0 had not: some sampling settings and, in latents, views."""
    model, scaling = golden(name), {"epsilon_scaling": 0.2, "final_denoising": 0.1}
    recipe = model.recipe.model_copy(update={"sampling": model.recipe.sampling.model_copy(update=scaling)})
    if recipe.kind == "latent":
        denoiser = model.stages[0].denoiser
        denoiser.view = torch.nn.Linear(4, denoiser.label.embedding_dim, bias=False)
        recipe = recipe.model_copy(update={"denoiser": recipe.denoiser.model_copy(update={"views": 4})})
    save_model(folder, recipe, model.stages, model.classes)
    return folder


def random_model(settings, classes=("a", "b"), frozen=None):
    """A model of these settings whose weights are random, and whose priors, of several clusters a component, are fitted
    to noise."""
    recipe = parse_recipe(settings)
    space = build_space(recipe) if recipe.kind == "latent" else PixelSpace()
    shape = build_stage(recipe, space, len(classes), None, frozen).shape
    points, first = torch.randn(200, *shape).flatten(1), torch.arange(200) < 100
    prior = mixture_of([part.divided(3) for part in components_of(points, {0: first, 1: ~first}, 4)], 4)
    stages = [build_stage(recipe, space, len(classes), prior if recipe.denoiser.prior == "gaussian" else None, frozen)]
    stages += [build_enlarger(recipe, size, len(classes), frozen) for size in recipe.chain[1:]]
    for stage in stages:
        if isinstance(stage.denoiser.prior, PatchPrior):
            large = torch.rand(40, 3, stage.image_size, stage.image_size) * 2 - 1
            stage.denoiser.prior.fit([(torch.nn.functional.avg_pool2d(large, stage.factor), large)])
        for network in (stage.denoiser, stage.space):
            if isinstance(network, torch.nn.Module):
                for parameter in network.eval().requires_grad_(False).parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return Model(recipe, tuple(stages), recipe.samplings, tuple(classes), CPU)


def ours(model, labels, text=None, seed=0):
    """Images in [-1, 1]."""
    rngs = model.rngs(len(labels), seed)
    return generate(model.stages, torch.tensor(labels), model.samplings, rngs, text=text).numpy()


@cache
def script_alone():
    """`sample.py` as a module of its own, also where onnxruntime is not installed: then it opens no graph."""
    spec = importlib.util.spec_from_file_location("sample_alone", STANDALONE / "sample.py")
    module, runtime = importlib.util.module_from_spec(spec), ModuleType("onnxruntime")
    runtime.SessionOptions = SimpleNamespace
    with pytest.MonkeyPatch.context() as patch:
        if not importlib.util.find_spec("onnxruntime"):
            patch.setitem(sys.modules, "onnxruntime", runtime)
        spec.loader.exec_module(module)
    return module


def bundle_in_torch(model):
    """The bundle of a model, whose graphs are the modules that `--to onnx` would export."""
    named = [stage_graphs(stage) for stage in model.stages]
    graphs = {stage.image_size: graphs for stage, graphs in zip(model.stages, named, strict=True)}

    class InTorch(script_alone().Bundle):
        def __init__(self):
            self.about, self.texts = settings_of_bundle(model, named), {}
            self.classes, self.stages, self.size = self.about["classes"], self.about["stages"], self.about["size"]

        @torch.no_grad()
        def run(self, stage, graph, values):
            module, inputs, outputs = graphs[stage["size"]][graph]
            made = module(**{name: torch.from_numpy(np.ascontiguousarray(values[name])) for name in inputs})
            made = [made] if isinstance(made, torch.Tensor) else made
            return {name: value.numpy() for name, value in zip(outputs, made, strict=True)}

    return InTorch()
