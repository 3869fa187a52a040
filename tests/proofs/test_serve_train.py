"""`calotype train --serve`: the page beside a training, which ends with it. `make proofs` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import OPENED, SOURCES, until
from small import write_pictures

from calotype.serve.library import id_of


def test_a_training_shows_itself_and_takes_the_page_with_it(tmp_path):
    pictures = write_pictures(tmp_path / "pictures", 20, 32)
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "calotype", "train", str(pictures), "--serve", "--size", "32", "--budget", "40s",
               "--out", str(tmp_path / "runs" / "pets"), "--device", "cpu"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        opened = next(filter(None, (OPENED.search(line) for line in process.stdout)))
        with httpx.Client(base_url=opened[1], headers={"Authorization": f"Bearer {opened[2]}"}, timeout=60) as client:
            until(lambda: client.get(f"/api/runs/{id_of('pets')}").is_success, 120)
            assert client.get(f"/api/runs/{id_of('pets')}").json()["state"] == "training"
            assert "It saves what it has learned" in client.get(f"/runs/{id_of('pets')}").text  # the button Stop
            process.communicate(timeout=500)
            assert process.returncode == 0 and (tmp_path / "runs" / "pets" / "report.html").is_file()
            with pytest.raises(httpx.ConnectError):
                client.get("/")
