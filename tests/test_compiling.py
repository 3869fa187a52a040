"""The blocks of a denoiser are compiled for training alone, and what they compute is the same."""

import os
import shutil
import subprocess
import sys
import threading

import pytest
import torch
from small import LEGS, Keeper, fingerprint, noise_pictures, recipe, second_leg
from test_train import run_in, silent

from calotype.nets.dit import Dit, DitBlock, DitConfig
from calotype.training.compiling import compiled
from calotype.training.control import TimeBudget
from calotype.training.leg import train_leg
from calotype.training.loop import WHOLE, Division, TrainProgress, differentiated
from calotype.training.pipeline import Pipeline

UNPICKLED = ("FX_GRAPH_CACHE", "AUTOGRAD_CACHE")


def prepared(leg, note, division=WHOLE):
    batch = leg.source.batch(leg.progress.images_seen, leg.progress.batch)
    return batch, lambda: compiled(leg.objective, leg.states, batch, leg.progress, division, note)


def first_gradients(leg, batch):
    (part,) = leg.objective.slices(batch, 0.0, leg.progress.rng(), 1)
    loss, gradients = differentiated(leg.states, part)["denoiser"]
    return [loss.total.detach(), *(gradient for gradient in gradients if gradient is not None)]


def compare():
    """In a process without the checks of shapes, which torch's compiler cannot see through."""
    leg, notes, ends = LEGS["denoiser"](), [], []
    batch, compile_it = prepared(leg, notes.append)
    eager = first_gradients(leg, batch)
    assert compile_it() and not notes
    for fast, slow in zip(first_gradients(leg, batch), eager, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-3, atol=1e-5)
    for division in (Division(2), Division(2)):
        leg = second_leg(precision="bfloat16")
        assert prepared(leg, notes.append, division)[1]() and not notes
        for _ in leg.steps(division):
            pass
        ends.append(fingerprint(leg.states))
    assert ends[0] == ends[1]


def test_a_leg_that_is_finished_is_not_prepared_again(tmp_path):
    calls, run = [], run_in(tmp_path / "run")
    for _ in range(2):
        train_leg(run, LEGS["denoiser"](), threading.Event(), silent, prepare=lambda: calls.append(1))
    assert calls == [1]


def test_a_leg_gives_the_time_of_compiling_back(tmp_path):
    """It is not known when the leg begins: a run that is resumed compiles in its new process."""
    run, ends = run_in(tmp_path / "run"), []
    budget = TimeBudget(
        budget_seconds=100.0, predicted={"seconds": {"denoiser": 100.0}}, phases={"denoiser": [(1.0, 0.1)]},
        paced=["denoiser"], compiled=["denoiser"],
    )  # fmt: skip
    device = torch.device("cpu")
    limits = Pipeline(run, recipe(), budget, noise_pictures(), device, Keeper(), threading.Event())._limits("denoiser")
    for run.state.seconds["compile"] in (0.0, 20.0):
        progress = TrainProgress(1000, 10, 0, images_seen=500, seconds=50.0)
        limits.control(progress)
        ends.append(progress.total)
    assert ends == [1000, 800]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="there is no C++ compiler")
def test_losses_and_gradients_are_the_same_and_a_run_repeats_to_the_bit(tmp_path):
    code = "import torch, test_compiling; torch.set_num_threads(1); test_compiling.compare()"
    settings = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), **{f"TORCHINDUCTOR_{name}": "0" for name in UNPICKLED}}
    settings["TORCHINDUCTOR_VEC_ISA_OK"] = "1"  # else torch builds a program for each set of vector instructions first
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "0", **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    kept = {file.name for file in tmp_path.iterdir()}
    assert kept and not kept & {"fxgraph", "aotautograd"}  # the folders of pickles


def test_sampling_and_validation_are_not_compiled(monkeypatch):
    """Each size of a batch would be compiled anew."""
    network, calls = Dit(DitConfig(width=16, depth=2, heads=2), 3, 3), []

    def counted(*given):
        calls.append(given)
        return DitBlock.forward(*given)

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: counted)
    network.compile_blocks()
    images, vector = torch.randn(2, 3, 4, 4), torch.randn(2, 16)
    network.eval()(images, vector)
    assert not calls
    network.train()(images, vector)
    assert len(calls) == 2
    network.compile_blocks(False)
    network(images, vector)
    assert len(calls) == 2


def test_without_a_compiler_training_goes_on_and_says_so(monkeypatch):
    def fails(*_):
        raise RuntimeError("InvalidCxxCompiler: no working C++ compiler found\nsecond line")

    monkeypatch.setattr(torch, "compile", lambda function, dynamic: fails)
    leg, notes = LEGS["denoiser"](), []
    assert not prepared(leg, notes.append)[1]()
    assert notes == [
        "the network is not compiled, which would make its training faster; torch.compile says: InvalidCxxCompiler: "
        "no working C++ compiler found"
    ]
    for _ in leg.steps():
        pass
    assert not prepared(LEGS["unet"](), notes.append)[1]() and not prepared(LEGS["autoencoder"](), notes.append)[1]()
