"""A rank that is stopped or killed ends the whole job, torchrun too, within a minute, and the last lines say which.

Where torchrun may start the ranks again, they go on. `make proofs` runs it, with -s to see the seconds.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import small
from small import SETTINGS, write_pictures
from test_kills import trained

from calotype.run import Run
from calotype.settings import parse_recipe, to_toml
from calotype.tables import merge

LIMIT = 60.0
"""Seconds from the signal to the end of torchrun."""
LONG = merge(SETTINGS, {"autoencoder": {"images": 10**7}})
LAUNCHERS = {
    "--ranks": ["-m", "calotype", "train", "--ranks", "2"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "calotype", "train"],
}


def started(launcher, folder):
    (folder / "recipe.toml").write_text(to_toml(parse_recipe(LONG)))
    write_pictures(folder / "pictures")
    options = [str(folder / "pictures"), "--recipe", str(folder / "recipe.toml"), "--out", str(folder / "run")]
    command = [sys.executable, *LAUNCHERS[launcher], *options, "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    with (folder / "printed").open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=file, env=environment)


def trains(folder):
    log = folder / "run" / "log.jsonl"
    return log.exists() and '"event": "step"' in log.read_text()


def rank_of(job, index):
    children = psutil.Process(job.pid).children()
    return next(child for child in children if child.environ().get("RANK") == str(index))


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=lambda end: end.name)
@pytest.mark.parametrize("index", [0, 1])
def test_a_lost_rank_ends_the_job_within_a_minute_and_is_named_at_its_end(launcher, end, index, tmp_path):
    job = started(launcher, tmp_path)
    try:
        begun = time.monotonic()
        while not trains(tmp_path):
            assert job.poll() is None and time.monotonic() < begun + 300, (tmp_path / "printed").read_text()
            time.sleep(0.2)
        ranks = [rank_of(job, place) for place in range(2)]
        ranks[index].send_signal(end)
        lost = time.monotonic()
        code = job.wait(120)
        seconds = time.monotonic() - lost
    finally:
        for process in (*psutil.Process(job.pid).children(), job) if job.poll() is None else ():
            process.kill()
    printed = (tmp_path / "printed").read_text()
    ended = "\n".join(printed.strip().splitlines()[-1 if launcher == "--ranks" else -8 :])
    print(f"{launcher}: rank {index} got {end.name}: {seconds:.1f} s, exit code {code}; {ended}")
    assert code != 0 and seconds < LIMIT, printed
    assert not any(rank.is_running() for rank in ranks)
    killed = f"rank {index} was killed by SIGKILL" if launcher == "--ranks" else "Signal 9 (SIGKILL)"
    assert (killed if end == signal.SIGKILL else f"rank {index} of 2 gave no sign any more") in ended, printed


SCRIPT = """
import os, signal
import pytest
import small
from calotype.cli.app import main
from calotype.data.sources import LatentSource
from calotype.training import leg

patch = pytest.MonkeyPatch()
small.be_quick(patch)
patch.setattr(leg, "SAVE_SECONDS", 0.0)
if os.environ["DIES"] and os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    def batch(self, seen, count, real=LatentSource.batch):
        if seen == 16:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, seen, count)
    patch.setattr(LatentSource, "batch", batch)
main()
"""
"""The command line, with a checkpoint after every step; rank 1 dies in the middle of the denoiser, once."""


def restarted(script, *command, dies=False):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    environment = {**os.environ, "DIES": "1" if dies else "", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(Path(small.__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [*launcher, str(script), *map(str, command), "--budget", "1s", "--device", "cpu"]
    job = subprocess.run(command, check=False, capture_output=True, text=True, timeout=500, env=environment)
    assert job.returncode == 0, job.stdout + job.stderr
    assert ("exitcode: -9" in job.stderr) == dies, job.stderr


def test_ranks_that_are_started_again_go_on_from_the_last_checkpoint(tmp_path):
    """And so in the next part of the run; the weights are those of ranks that nobody disturbs, to the bit."""
    (tmp_path / "recipe.toml").write_text(to_toml(parse_recipe(SETTINGS)))
    (tmp_path / "script.py").write_text(SCRIPT)
    pictures, runs = write_pictures(tmp_path / "pictures"), {dies: tmp_path / f"run-{dies}" for dies in (False, True)}
    for part in (1, 2):
        for dies, run in runs.items():
            begun = len(Run.open(run).events) if part == 2 else 0
            new = ["train", pictures, "--recipe", tmp_path / "recipe.toml", "--out", run]
            restarted(tmp_path / "script.py", *(new if part == 1 else ["resume", run]), dies=dies)
            texts = [event["text"] for event in Run.open(run).events[begun:] if event["event"] == "note"]
            assert ("denoiser: went on from denoiser-0000000016" in texts) == dies, texts
            assert Run.open(run).state.status == "finished" and Run.open(run).state.part == part
        assert trained(runs[True]) == trained(runs[False])
