"""`recipes/slurm.sbatch`, with stand-ins for `srun` and `scontrol`: what it starts, and when it puts the job back.

And what `recipes/skypilot.yaml` runs, with one for `torchrun`.
"""

import json
import os
import shutil
import subprocess
import textwrap
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
SCRIPT = RECIPES / "slurm.sbatch"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the scripts are of bash")


@pytest.fixture
def job(tmp_path):
    """Runs the script; `srun` leaves a run with this status, and ends with this code."""
    (tmp_path / "bin").mkdir()

    def program(name, text):
        (tmp_path / "bin" / name).write_text(text)
        (tmp_path / "bin" / name).chmod(0o755)

    def run(*options, status="finished", code=0):
        state = json.dumps({"version": 2, "status": status}, indent=1)
        program("srun", f"#!/bin/sh\necho \"$@\" > asked\nmkdir -p run\necho '{state}' > run/run.json\nexit {code}\n")
        program("scontrol", '#!/bin/sh\n[ "$1" = show ] && echo node-1 || echo "$@" > requeued\n')
        environment = {
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "SLURM_JOB_NODELIST": "node-[1-2]",
            "SLURM_NNODES": "2",
            "SLURM_GPUS_ON_NODE": "4",
            "SLURM_JOB_ID": "7",
        }
        command = ["bash", str(SCRIPT), "pictures", "run", "8h", *options]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        requeued = tmp_path / "requeued"
        asked = (tmp_path / "asked").read_text().split()
        assert done.returncode == code, done.stderr
        return asked, requeued.read_text().split() if requeued.exists() else None

    return run


def test_a_new_run_is_trained_with_the_options_that_follow(job):
    asked, requeued = job("--size", "256", "--set", "seed=1")
    calotype = asked[asked.index("calotype") + 1 :]
    assert calotype == [*["train", "pictures", "--out", "run", "--budget", "8h", "--size", "256", "--set", "seed=1"]]
    assert {"torchrun", "--nnodes=2", "--nproc-per-node=4", "--rdzv-endpoint=node-1:29500"} < {*asked}
    assert requeued is None


def test_one_that_the_time_limit_has_stopped_is_put_back_and_resumed(job):
    asked, requeued = job("--size", "256", status="interrupted", code=1)
    assert requeued == ["requeue", "7"] and "train" in asked
    asked, requeued = job("--size", "256")
    assert asked[asked.index("calotype") + 1 :] == ["resume", "run"]


def test_one_that_has_failed_is_not_put_back(job):
    assert job(status="failed", code=2)[1] is None


def test_skypilot_trains_a_new_run_and_resumes_one_that_has_begun(tmp_path):
    """Each word is a line, so that names with spaces stay whole."""
    script = textwrap.dedent((RECIPES / "skypilot.yaml").read_text().partition("\nrun: |\n")[2])
    (tmp_path / "bin").mkdir()
    (program := tmp_path / "bin" / "torchrun").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    program.chmod(0o755)
    environment = {
        "PATH": f"{program.parent}:{os.environ['PATH']}", "PICTURES": "my pictures", "BUDGET": "2h",
        "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_GPUS_PER_NODE": "8",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }  # fmt: skip
    command = ["bash", "-euo", "pipefail", "-c", script.replace("/bucket", str(tmp_path))]

    def words():
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    run = tmp_path / "runs" / "my pictures"
    assert words() == [
        "--nnodes=2", "--node-rank=1", "--nproc-per-node=8", "--master-addr=10.0.0.1", "--master-port=29500",
        "--max-restarts=3", "-m", "calotype", "train", str(tmp_path / "my pictures"), "--out", str(run),
        "--budget", "2h",
    ]  # fmt: skip
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    assert words()[-3:] == ["calotype", "resume", str(run)]
