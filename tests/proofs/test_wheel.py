"""Wheel and sdist install in an empty environment and pass `calotype selftest`; models of version 0.1.0 open there.

`make proofs` runs it; it needs the package registry. `WHEELS=folder` takes those that are there.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
OPEN = """
import sys, calotype
assert "site-packages" in calotype.__file__, calotype.__file__
print(calotype.__version__, *(len(calotype.load(folder, "cpu").sample(2, seed=1)) for folder in sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist of this version."""
    if given := os.environ.get("WHEELS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("built")
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, ROOT], check=True, capture_output=True)
    return folder


@pytest.fixture
def empty(tmp_path):
    """An environment that has pip alone; its processes see nothing of this repository."""
    venv.create(tmp_path / "empty", with_pip=True)
    binaries = tmp_path / "empty" / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *words):
        command = [binaries / program, *map(str, words)]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize("ending", [".whl", ".tar.gz"])
def test_it_installs_and_the_machine_is_fit(built, empty, ending):
    (package,) = built.glob(f"calotype-*{ending}")
    empty("python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", package)
    tested = empty("calotype", "selftest", "--device", "cpu")
    assert "this machine is fit" in tested and "unfit" not in tested
    opened = empty("python", "-c", OPEN, *(GOLDEN / name for name in ("labels", "captions", "cascade")))
    assert opened.split() == [package.name.split("-")[1].removesuffix(".tar.gz"), "2", "2", "2"]
    resumed = empty("calotype", "runs", GOLDEN)
    assert "stopped-run" in resumed


def test_the_wheel_has_all_of_the_package_and_the_sdist_all_of_the_repository(built):
    (wheel,), (sdist,) = built.glob("calotype-*.whl"), built.glob("calotype-*.tar.gz")
    kept = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    ours = {file.removeprefix("src/") for file in kept if file.startswith("src/")}
    with zipfile.ZipFile(wheel) as opened:
        assert {each for each in opened.namelist() if ".dist-info/" not in each} == ours
    with tarfile.open(sdist) as opened:
        packed = {each.name.split("/", 1)[1] for each in opened.getmembers() if each.isfile()}
    assert {file for file in kept if not file.startswith(".ci/")} <= packed
