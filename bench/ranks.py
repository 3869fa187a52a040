"""Pictures a second that ranks train, against one process with as many threads, and against independent processes.

    python bench/ranks.py [--ranks 2] [--size 64] [--steps 10] [--pairs 7] [--budget 600]

Three ways to train the default networks on the same cores: N ranks that share every batch, one process that has N
threads (with slices, as the plan takes them, where the network can), and N processes of one thread, each with an Nth of
the batch, which know nothing of each other: what they reach together is the most that ranks could reach. All processes
stay, and the ways take turns, A B C A B C; ratios are taken turn by turn, so that a machine whose speed drifts does not
decide. Each rank is held to a core of its own.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import time
from multiprocessing.connection import Connection

LEGS = "autoencoder", "denoiser"


def work(pipe: Connection, settings: dict, way: str, index: int, port: int) -> None:
    """Answers each leg that is asked for with the seconds of some steps."""
    count, here = settings["ranks"], sorted(os.sched_getaffinity(0))
    if way != "process":
        os.sched_setaffinity(0, {here[index % len(here)]})
    if way == "ranks":
        os.environ |= {
            "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }  # fmt: skip
    from calotype.cli.process import tune_process

    tune_process()
    import torch

    from calotype.ranks import joined_ranks

    torch.set_num_threads(count if way == "process" else 1)
    with joined_ranks("cpu") as ranks:
        steps = {leg: stepper(settings, leg, way, ranks) for leg in LEGS}
        pipe.send("ready")
        while (leg := pipe.recv()) is not None:
            start = time.perf_counter()
            for _ in range(settings["steps"]):
                steps[leg]()
            pipe.send(time.perf_counter() - start)


def stepper(settings: dict, leg: str, way: str, ranks):
    """A training step of the default networks on random pictures or latents."""
    import torch

    from calotype.build import build_space, build_stage
    from calotype.demo.portraits import read_portraits
    from calotype.recipe import OptimizerConfig
    from calotype.settings import parse_recipe
    from calotype.training.legs import autoencoder_objective
    from calotype.training.loop import Division, TrainProgress, train_step
    from calotype.training.objectives import DenoisingObjective
    from calotype.training.state import TrainState
    from calotype.types import Batch, Rng

    torch.manual_seed(0)
    recipe, cpu = parse_recipe(settings["recipe"]), torch.device("cpu")
    space, rng = build_space(recipe), Rng(("bench",))
    if leg == "autoencoder":
        objective, side, channels = autoencoder_objective(recipe, space.vae, cpu), recipe.size, 3
        if recipe.autoencoder.crop:
            side = recipe.autoencoder.crop
    else:
        stage = build_stage(recipe, space, len(read_portraits(32, 60).classes), None, None)
        objective = DenoisingObjective(stage, recipe.denoiser)
        side, channels = recipe.size // space.reduction, 2 * space.channels
    batch = recipe.legs[leg].batch // (settings["ranks"] if way == "independent" else 1)
    images = rng.normal(batch, channels, side, side).clamp(-1, 1).contiguous(memory_format=torch.channels_last)
    data = Batch(images, torch.zeros(batch, dtype=torch.long))
    states = {name: TrainState(network, OptimizerConfig()) for name, network in objective.networks.items()}
    for state in states.values():
        state.share(ranks)
    slices = settings["ranks"] if way == "process" else 1
    progress = TrainProgress(10**6, batch, 0, images_seen=900_000)  # the critic takes part
    return lambda: train_step(objective, states, data, progress, Division(slices, ranks=ranks))


def recipe_of(size: int, budget: float, flops: float) -> dict:
    from calotype.demo.portraits import read_portraits
    from calotype.machine import describe_machine
    from calotype.planning.choose import propose

    settings = {"size": size, "denoiser": {"prior": "none", "text": {"kind": "none"}}}
    proposal, _ = propose(read_portraits(size, 600), describe_machine("cpu", flops, 2**34), budget, settings)
    proposal["denoiser"] |= settings["denoiser"]
    return proposal


class Way:
    """The processes of one way to train."""

    def __init__(self, settings: dict, name: str) -> None:
        spawn, self.settings, self.name = multiprocessing.get_context("spawn"), settings, name
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.pipes, self.processes = [], []
        for index in range(1 if name == "process" else settings["ranks"]):
            ours, theirs = spawn.Pipe()
            self.pipes.append(ours)
            self.processes.append(spawn.Process(target=work, args=(theirs, settings, name, index, port)))
            self.processes[-1].start()
        for pipe in self.pipes:
            pipe.recv()

    def rate(self, leg: str) -> float:
        """Pictures a second, of all processes together."""
        for pipe in self.pipes:
            pipe.send(leg)
        seconds = [pipe.recv() for pipe in self.pipes]
        images = self.settings["steps"] * self.settings["recipe"][leg]["batch"]
        if self.name != "independent":
            return images / max(seconds)
        return sum(images / len(seconds) / each for each in seconds)

    def end(self) -> None:
        for pipe in self.pipes:
            pipe.send(None)
        for process in self.processes:
            process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--budget", type=float, default=600.0, help="seconds that the networks are chosen for")
    parser.add_argument("--flops", type=float, default=2e11, help="operations a second that they are chosen for")
    arguments = parser.parse_args()
    settings = {**vars(arguments), "recipe": recipe_of(arguments.size, arguments.budget, arguments.flops)}
    ways = {name: Way(settings, name) for name in ("ranks", "process", "independent")}
    for leg in LEGS:
        for way in ways.values():
            way.rate(leg)  # to warm up
        turns = [{name: way.rate(leg) for name, way in ways.items()} for _ in range(arguments.pairs)]
        medians = {name: statistics.median(turn[name] for turn in turns) for name in ways}
        shares = {
            f"ranks / {name}": [turn["ranks"] / turn[name] for turn in turns] for name in ("process", "independent")
        }
        print(leg, json.dumps({name: round(rate, 1) for name, rate in medians.items()}), "pictures a second")
        for name, ratios in shares.items():
            print(f"  {name:<20} {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")
    for way in ways.values():
        way.end()


if __name__ == "__main__":
    main()
