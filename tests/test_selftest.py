"""`calotype selftest`: what it says of this machine, of a weak one and of a broken one."""

import filecmp
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import Keeper, be_quick, machine

from calotype.cli.commands import selftest, selftesting
from calotype.cli.commands.selftesting import Check, Selftest, attempted, compiler, disk, enough
from calotype.cli.options import SelftestOptions
from calotype.training.process import Interrupted
from calotype.types import UserError

SHORT = selftesting.SMALL | {"autoencoder.images": 16, "denoiser.images": 32, "sampling.steps": 2}


@pytest.fixture
def quick(monkeypatch):
    """On a machine of 1e9 operations a second, whose float32 is faster, with 100 GB free."""
    be_quick(monkeypatch)
    monkeypatch.setattr(selftesting, "examine", lambda device: machine())
    monkeypatch.setattr(selftesting, "SMALL", SHORT)
    monkeypatch.setattr(selftesting.psutil, "cpu_percent", lambda interval: 0.0)
    monkeypatch.setattr(selftesting, "WRITTEN", 2**21)
    monkeypatch.setattr(selftesting.shutil, "disk_usage", lambda place: SimpleNamespace(free=10**11))
    monkeypatch.setenv("CXX", sys.executable)  # which is there


def test_a_slow_machine_is_fit_with_advice(quick):
    console = Keeper()
    results = selftest(SelftestOptions("cpu"), console)
    assert [name for name, check in results.items() if check.verdict != "ok"] == ["speed", "memory"]
    assert "200 times slower" in results["speed"].advice and "same weights to the bit" in results["resuming"].value
    assert len(results) == 12 and console.printed[-1] == "this machine is fit; weak: speed, memory"
    assert sum(line.startswith(("ok ", "weak ")) for line in console.printed) == len(results)


def test_a_broken_check_is_one_line_and_the_others_are_made(quick, monkeypatch, tmp_path):
    def broken(self):
        raise RuntimeError("no\nkernel")

    monkeypatch.setattr(selftesting, "GOLDEN", tmp_path)
    for name in ("training", "resuming"):
        monkeypatch.setattr(Selftest, name, broken)
    console = Keeper()
    with pytest.raises(UserError, match="not fit for calotype: training, resuming, old model"):
        selftest(SelftestOptions("cpu"), console)
    assert "unfit  training   RuntimeError: no kernel" in console.printed
    assert any(line.startswith("unfit  old model") and "no model in" in line for line in console.printed)


@pytest.mark.parametrize(("device", "verdict"), [("cpu", "weak"), ("cuda", "ok")])
def test_other_weights_after_resuming_are_noticed(monkeypatch, tmp_path, device, verdict):
    def interrupted(options, console):
        raise Interrupted(str(options.out))

    here = replace(machine(), device=torch.device(device))
    monkeypatch.setattr(selftesting, "examine", lambda device: here)
    monkeypatch.setattr(selftesting, "train", interrupted)
    monkeypatch.setattr(selftesting, "resume", lambda options, console: options.run)
    monkeypatch.setattr(selftesting, "weights_of", lambda run: run.name)
    assert Selftest(device, tmp_path).resuming().verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(2**33, "ok"), (2**30, "weak"), (2**20, "unfit")])
def test_free_bytes(free, verdict):
    check = enough(free, "so many", "free some")
    assert check.verdict == verdict and check.advice == ("" if verdict == "ok" else "free some")


def test_a_slow_disk_is_weak(monkeypatch, tmp_path):
    monkeypatch.setattr(selftesting, "WRITTEN", 2**20)
    monkeypatch.setattr(selftesting, "SLOW_DISK", 1e15)
    assert disk(tmp_path).verdict == "weak" and not [*tmp_path.iterdir()]


def test_a_driver_without_cuda_in_torch_is_named(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(selftesting.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    found = Selftest("cpu", tmp_path).found()
    assert found.verdict == "weak" and "no CUDA" in found.advice


def test_a_missing_compiler_is_weak(monkeypatch):
    monkeypatch.setattr(selftesting.shutil, "which", lambda name: None)
    assert compiler() == Check("none", "weak", "install a C++ compiler (g++ or clang) to train denoisers faster")


def test_busy_cores_are_named(quick, monkeypatch, tmp_path):
    monkeypatch.setattr(selftesting.psutil, "cpu_percent", lambda interval: 100.0)
    assert Selftest("cpu", tmp_path).threads().verdict == "weak"


def test_a_wrong_device_is_the_users_mistake(tmp_path):
    checked = attempted(Selftest("gpu", tmp_path).found)
    assert checked == Check(checked.value, "unfit", "correct this, then run the test again")
    assert "this machine has" in checked.value


def test_generated_pictures_are_of_two_kinds(tmp_path):
    selftesting.write_generated(tmp_path / "pictures")
    files = sorted((tmp_path / "pictures").glob("*/*.png"))
    pixels = np.stack([np.asarray(Image.open(file), int) for file in files])
    striped = (pixels[:, 1:] == pixels[:, :-1]).all((1, 2, 3))  # along the columns
    assert (
        striped.tolist() == [file.parent.name == "stripes" for file in files]
        and len(files) == selftesting.GENERATED_PICTURES
    )
    assert len(np.unique(pixels[:, 0, 0], axis=0)) > 50


def test_the_model_in_the_package_is_the_golden_one():
    golden = Path(__file__).parent / "golden"
    ours = selftesting.GOLDEN
    assert filecmp.cmp(golden / "labels.png", ours / "samples.png", shallow=False)
    names = sorted(path.name for path in (golden / "labels").iterdir())
    assert filecmp.cmpfiles(golden / "labels", ours / "model", names, shallow=False) == (names, [], [])
