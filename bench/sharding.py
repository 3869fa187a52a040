"""What a rank holds, and how long a step takes, where ranks have replicas of a DiT (DDP) and where they have shares of
it (FSDP2), on Gloo and CPUs.

    python bench/sharding.py [--ranks 2] [--width 512] [--depth 8] [--batch 4] [--steps 3]

Memory is the peak of a process, less that before the network was built. The C library keeps much of what is freed; with
MALLOC_MMAP_THRESHOLD_=65536 and MALLOC_TRIM_THRESHOLD_=65536 in the environment it gives that back.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from multiprocessing.connection import Connection


def work(pipe: Connection, settings: dict, sharding: str, index: int, port: int) -> None:
    """Sends parameters, bytes of all tensors that are held between steps, bytes at the peak, and seconds of steps."""
    os.environ |= {
        "RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(settings["ranks"]), "MASTER_ADDR": "127.0.0.1",
        "LOCAL_WORLD_SIZE": str(settings["ranks"]), "MASTER_PORT": str(port),
    }  # fmt: skip
    import torch
    import torch.distributed.fsdp

    from calotype.build import build_stage
    from calotype.machine import held_memory, peak_memory
    from calotype.nets.weights import local
    from calotype.ranks import joined_ranks
    from calotype.settings import parse_recipe
    from calotype.spaces.pixel import PixelSpace
    from calotype.training.loop import Division, TrainProgress, train_step
    from calotype.training.objectives import DenoisingObjective
    from calotype.training.sharding import ShardedState, sharding_mesh
    from calotype.training.state import TrainState
    from calotype.types import Batch, Rng

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    backbone = {"kind": "dit", "width": settings["width"], "depth": settings["depth"], "heads": 8, "patch": 2}
    recipe = parse_recipe({
        "kind": "cascade", "size": 16, "sampling": {"guide": "unconditional"},
        "denoiser": {"backbone": backbone, "prior": "none", "learn": {"optimizer": "muon"}},
    })  # fmt: skip
    with joined_ranks("cpu") as ranks:
        before, mesh = held_memory(cpu), sharding_mesh(sharding, cpu)
        stage = build_stage(recipe, PixelSpace(), 10, None, None)
        learn = recipe.denoiser.learn
        state = (
            TrainState(stage.denoiser, learn) if mesh is None else ShardedState(stage.denoiser, learn, "float32", mesh)
        )
        state.share(ranks)
        images = Rng(("bench",)).normal(settings["batch"], 3, 16, 16).clamp(-1, 1)
        data = Batch(images, torch.zeros(len(images), dtype=torch.long))
        progress, seconds = TrainProgress(10**6, len(images), 0, 500_000), []
        for _ in range(settings["steps"]):
            start = time.perf_counter()
            train_step(DenoisingObjective(stage), {"denoiser": state}, data, progress, Division(ranks=ranks))
            seconds.append(time.perf_counter() - start)
        held = sum(local(value).nbytes for value in state.tensors().values())
        count = sum(weight.numel() for weight in state.parameters)
        pipe.send((count, held, peak_memory(cpu) - before, seconds[1:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"ranks": 2, "width": 512, "depth": 8, "batch": 4, "steps": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    settings, spawn = vars(parser.parse_args()), multiprocessing.get_context("spawn")
    for sharding in ("none", "full"):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        pipes = [spawn.Pipe() for _ in range(settings["ranks"])]
        processes = [
            spawn.Process(target=work, args=(theirs, settings, sharding, index, port))
            for index, (_, theirs) in enumerate(pipes)
        ]
        for process in processes:
            process.start()
        for index, (ours, _) in enumerate(pipes):
            count, held, peak, seconds = ours.recv()
            print(
                f"{sharding:<5} rank {index}: {count / 1e6:.1f} M parameters, {held / count:.1f} bytes of each, "
                f"{peak / count:.1f} at the peak; {statistics.median(seconds):.2f} s a step"
            )
        for process in processes:
            process.join()


if __name__ == "__main__":
    main()
