"""`calotype train --serve`: the page ends with its training. A training that a page has started goes on without it.

`make proofs` runs it.
"""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import httpx2 as httpx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import OPENED, SOURCES, served, until
from small import write_pictures

from calotype.run import Run
from calotype.serve.library import id_of
from calotype.training.process import owner_of


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


@contextmanager
def asking(folder):
    """A client of a new server, and its process."""
    with (
        served(folder, "--device", "cpu") as (address, token, server),
        httpx.Client(base_url=address, headers={"Authorization": f"Bearer {token}"}, timeout=60) as client,
    ):
        yield client, server


def test_a_training_outlives_its_server_and_is_stopped_by_another(tmp_path):
    pictures, folder, run = write_pictures(tmp_path / "pictures", 20, 32), tmp_path / "runs", id_of("pets")
    asked = {"name": "pets", "path": str(pictures), "size": 32, "budget": "10m"}
    with asking(folder) as (client, server):
        assert client.post("/api/runs", json=asked).status_code == 202
        until(lambda: client.get(f"/api/runs/{run}").json().get("state") == "training")
        server.terminate()
        server.wait(60)
    trains, log = owner_of(folder / "pets"), folder / "pets" / "log.jsonl"
    before = log.stat().st_size if log.exists() else 0
    until(lambda: log.exists() and log.stat().st_size > before)
    assert trains is not None and owner_of(folder / "pets") == trains
    with asking(folder) as (client, _):
        assert client.get(f"/api/runs/{run}").json()["state"] == "training"
        assert client.post(f"/api/runs/{run}/stop").status_code == 202
        until(lambda: owner_of(folder / "pets") is None)
    assert Run.open(folder / "pets").state.status == "interrupted"
