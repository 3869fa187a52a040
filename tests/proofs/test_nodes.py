"""Two nodes, each with its own torchrun and network, train one run, sample from it and evaluate it.

`make proofs` runs it. Where the user may make network namespaces, the nodes have nothing in common but a virtual cable
and the disk; else both are at localhost.
"""

import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from small import SETTINGS, opened, write_pictures

from calotype.run import Run
from calotype.settings import parse_recipe, to_toml

NAMES = "calo-a", "calo-b"
ADDRESS = "10.211.77.{}"


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


@contextmanager
def namespaces():
    """Two networks with a cable between them."""
    try:
        for name in NAMES:
            ip("netns", "add", name)
        ip("link", "add", "veth-a", "netns", NAMES[0], "type", "veth", "peer", "name", "veth-b", "netns", NAMES[1])
        for place, (name, link) in enumerate(zip(NAMES, ("veth-a", "veth-b"), strict=True), 1):
            ip("-n", name, "address", "add", f"{ADDRESS.format(place)}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in NAMES:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@pytest.fixture(params=["localhost", "namespaces"])
def nodes(request):
    """Of each node: the start of its commands, the address of the first, and the interface by which they talk."""
    if request.param == "localhost":
        yield [[], []], "127.0.0.1", ["lo", "lo"]
        return
    try:
        with namespaces():
            yield [["ip", "netns", "exec", name] for name in NAMES], ADDRESS.format(1), ["veth-a", "veth-b"]
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces cannot be made here: {error}")


def on_nodes(nodes, *command):
    """What both print; the command runs on two nodes of one rank each, the first of which holds the rendezvous."""
    starts, address, links = nodes
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    rendezvous = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=static", f"--master-addr={address}",
                  f"--master-port={port}"]  # fmt: skip
    processes = [
        subprocess.Popen(
            [*start, sys.executable, "-m", "torch.distributed.run", *rendezvous, f"--node-rank={place}",
             "-m", "calotype", *map(str, command), "--device", "cpu"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "GLOO_SOCKET_IFNAME": links[place], "OMP_NUM_THREADS": "1"},
        )
        for place, start in enumerate(starts)
    ]  # fmt: skip
    try:
        printed = [process.communicate(timeout=280)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(printed)
    return printed


def test_two_nodes_train_sample_and_evaluate(nodes, tmp_path):
    run, recipe = tmp_path / "run", tmp_path / "recipe.toml"
    recipe.write_text(to_toml(parse_recipe(SETTINGS)))
    pictures = write_pictures(tmp_path / "pictures")
    first, second = on_nodes(nodes, "train", pictures, "--recipe", recipe, "--out", run)
    assert "done: look at" in first and "done: look at" not in second
    state = Run.open(run).state
    assert state.status == "finished" and state.ranks == 2
    on_nodes(nodes, "sample", run, "--count", "5", "--out", tmp_path / "samples")
    assert len(opened(tmp_path / "samples")) == 6
    on_nodes(nodes, "evaluate", run, "--count", "8")
    assert (run / "evaluation.json").exists()
