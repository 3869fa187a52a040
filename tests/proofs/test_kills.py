"""A run that is killed again and again, at random moments, ends as one that nobody disturbs.

`make proofs` runs it, with KILLS=200 for longer. Nothing may be lost but what came after the last checkpoint, and the
final weights are equal to the bit.
"""

import hashlib
import os
import random
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import write_pictures
from test_cli import python

KILLS = int(os.environ.get("KILLS", "40"))
SEED = os.environ.get("SEED", "")
SCRIPT = """
import sys
from pathlib import Path
import pytest
import small
from calotype.cli.commands import resume, train
from calotype.cli.options import ResumeOptions
from calotype.training import leg
patch, (folder, run, kind) = pytest.MonkeyPatch(), ARGUMENTS
small.be_quick(patch)
patch.setattr(leg, "SAVE_SECONDS", 0.0)
print("begun", flush=True)
if (Path(run) / "run.json").exists():
    resume(ResumeOptions(Path(run)), small.Keeper())
else:
    train(small.request(Path(folder), Path(run), settings=getattr(small, kind)), small.Keeper())
print("ended", flush=True)
"""


def start(folder, run, kind):
    process = python(f"ARGUMENTS = {[str(folder), str(run), kind]!r}", SCRIPT)
    assert process.stdout.readline() == "begun\n"
    return process


def trained(run):
    """A hash of every tensor of the finished model."""
    files = sorted((run / "model").glob("*.safetensors"))
    assert files, f"{run} has no model"
    return [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


@pytest.mark.parametrize("kind", ["SETTINGS", "CASCADE"])
def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_weights(tmp_path, kind):
    folder, rng = write_pictures(tmp_path / "pictures"), random.Random(f"{kind}{SEED}")
    began = time.monotonic()
    printed, wrong = start(folder, tmp_path / "undisturbed", kind).communicate(timeout=300)
    seconds = time.monotonic() - began
    assert printed == "ended\n", wrong
    run, kills, runs = tmp_path / "run-0", 0, 0
    while kills < KILLS:
        process = start(folder, run, kind)
        time.sleep(rng.uniform(0, seconds))
        if process.poll() is None:
            process.kill()
            kills += 1
        printed, wrong = process.communicate()
        assert printed in ("", "ended\n") and "Traceback" not in wrong, wrong
        if printed:
            assert trained(run) == trained(tmp_path / "undisturbed")
            runs += 1
            run = tmp_path / f"run-{runs}"
    printed, wrong = start(folder, run, kind).communicate(timeout=300)
    assert printed == "ended\n" and trained(run) == trained(tmp_path / "undisturbed"), wrong
