"""Bundles of cascades: stages that enlarge, in several steps or one, with every augmentation, equal to ours."""

import importlib.util
from dataclasses import replace

import numpy as np
import pytest
from exporting import GOLDEN, LEVEL, golden, ours, with_onnx
from small import Keeper

from calotype.cli.commands import export
from calotype.cli.options import ExportOptions
from calotype.export.bundle import settings_of_bundle
from calotype.export.check import between
from calotype.export.graphs import PatchGraph, stage_graphs


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
    "epsilon scaling": {"epsilon_scaling": 0.2, "augmentation": 0.2},
    "final denoising": {"final_denoising": 0.1, "augmentation": 0.2},
    "classifier-free": {"guide": "unconditional", "guidance": 2.0},
}


@with_onnx
@pytest.mark.parametrize("kind", ENLARGER)
def test_pictures_of_a_cascade_are_ours(exported, sample, kind):
    model, bundle = golden("cascade", steps=4), sample.Bundle(exported, threads=1)
    model = replace(model, samplings=(model.samplings[0], model.samplings[1].model_copy(update=ENLARGER[kind])))
    bundle.stages = settings_of_bundle(model, [list(stage["graphs"]) for stage in bundle.stages])["stages"]
    theirs = bundle.images([0, -1], [""] * 2, [""] * 2, range(2), sample.seeded(1))
    apart = between(ours(model, [0, -1], seed=1), theirs)
    assert theirs.shape == (2, 3, 32, 32) and apart.largest < LEVEL / 4


@with_onnx
def test_a_picture_does_not_depend_on_its_batch(exported, sample):
    bundle = sample.Bundle(exported, threads=1)
    together = bundle.sample([0, 1, 0], seed=2)
    alone = np.concatenate([bundle.sample([label], seed=2, first=index) for index, label in enumerate([0, 1, 0])])
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_the_graphs_of_a_stage_have_what_it_needs():
    base, above = (stage_graphs(stage) for stage in golden("cascade").stages)
    assert list(base) == ["prior", "denoiser"] and list(above) == ["condition", "prior", "denoiser"]
    assert isinstance(above["prior"].module, PatchGraph) and "low_res" in above["denoiser"].inputs
    first = stage_graphs(golden("captions").stages[0])
    assert list(first) == ["text", "prior", "denoiser", "decoder", "encoder"]
    assert {"words", "mask", "pooled"} <= set(first["denoiser"].inputs)
