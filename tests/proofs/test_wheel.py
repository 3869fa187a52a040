"""Wheel and sdist install in an empty environment and pass `calotype selftest`; models of version 0.1.0 open there.

`make proofs` runs it; it needs the package registry. `WHEELS=folder` takes those that are there.
"""

import os
import subprocess
import sys
import venv
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


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """An environment that has pip alone; its processes see nothing of this repository."""
    folder = tmp_path_factory.mktemp("empty")
    venv.create(folder, with_pip=True)
    binaries = folder / ("Scripts" if os.name == "nt" else "bin")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *words):
        command = [binaries / program, *map(str, words)]
        return subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)

    return run


@pytest.mark.parametrize("ending", [".whl", ".tar.gz"])
def test_it_installs_and_the_machine_is_fit(built, empty, ending):
    (package,) = built.glob(f"calotype-*{ending}")
    for more in ([], ["--no-deps", "--force-reinstall"]):  # so that each of both is what is installed
        installed = empty("python", "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *more, package)
        assert installed.returncode == 0, installed.stderr
    tested = empty("calotype", "selftest", "--device", "cpu")
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "this machine is fit" in tested.stdout and "unfit" not in tested.stdout
    opened = empty("python", "-c", OPEN, *(GOLDEN / name for name in ("labels", "captions", "cascade")))
    assert opened.stdout.split() == [package.name.split("-")[1].removesuffix(".tar.gz"), "2", "2", "2"], opened.stderr
