"""200 clients for a minute: no crash, no wrong picture, and memory that does not grow. `make proofs` runs it.

LOAD_SECONDS=60 and CLIENTS=200 are the defaults. A sampling process is killed meanwhile.
"""

import asyncio
import base64
import io
import os
import shutil
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import RUN, served, until
from small import be_quick, train_small

from calotype.model import load

CLIENTS, SECONDS = int(os.environ.get("CLIENTS", "200")), float(os.environ.get("LOAD_SECONDS", "60"))
LARGEST_GROWTH = 100e6
"""Bytes of all processes together, in the last two thirds of the time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        made = train_small(tmp_path_factory.mktemp("small"))
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(made, folder / "run")
    return folder


def memory(process):
    """Resident bytes of the server and of its two processes: one samples, one waits to take its place."""
    until(lambda: len(process.children()) == 2)
    return sum(each.memory_info().rss for each in (process, *process.children()))


async def ask(client, index, end, answers, pictures):
    """One client: pages and pictures in turn, until the time is over."""
    turn = index
    while time.monotonic() < end:
        turn += 1
        if turn % 4:
            answer = await client.get(("/", f"/runs/{RUN}", "/api/runs", "/v1/models")[turn % 4])
            answers[answer.status_code] += 1
            continue
        seed = turn % 5
        sent = {"model": "run", "seed": seed, "label": "a", "steps": 2}
        answer = await client.post("/v1/images/generations", json=sent)
        answers[answer.status_code] += 1
        if answer.status_code == 200:
            pictures[seed].add(base64.b64decode(answer.json()["data"][0]["b64_json"]))
        else:
            assert answer.status_code in (429, 503), answer.text
            await asyncio.sleep(min(2.0, float(answer.headers.get("retry-after", 1))))


async def crowd(address, token, process, answers, pictures, grown):
    limits = httpx.Limits(max_connections=CLIENTS)
    headers = {"Authorization": f"Bearer {token}"}
    end = time.monotonic() + SECONDS
    async with httpx.AsyncClient(base_url=address, headers=headers, limits=limits, timeout=120) as client:
        tasks = [asyncio.create_task(ask(client, index, end, answers, pictures)) for index in range(CLIENTS)]
        await asyncio.sleep(SECONDS / 3)
        before = memory(process)
        os.kill(min(each.pid for each in process.children()), signal.SIGKILL)
        await asyncio.gather(*tasks)
        grown.append(memory(process) - before)


def test_200_clients_for_a_minute(folder):
    answers, pictures, grown = Counter(), {seed: set() for seed in range(5)}, []
    with served(folder, "--device", "cpu") as (address, token, server):
        process = psutil.Process(server.pid)
        asyncio.run(crowd(address, token, process, answers, pictures, grown))
        assert server.poll() is None
    print(dict(answers), {seed: len(got) for seed, got in pictures.items()}, f"{grown[0] / 1e6:+.0f} MB")
    assert set(answers) <= {200, 429, 503} and answers[503] <= 1 and answers[200] > CLIENTS
    model = load(folder / "run", "cpu")
    for seed, got in pictures.items():
        (picture,) = got  # equal seeds, equal pictures, whoever asked
        assert np.array_equal(Image.open(io.BytesIO(picture)), model.sample(1, "a", seed, steps=2)[0])
    assert len(set.union(*pictures.values())) == 5  # another for each seed
    assert grown[0] < LARGEST_GROWTH
