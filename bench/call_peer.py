"""One call of a peer in a process of its own: `train TASK` or `sample TASK LABELS.npy SEED OUT.npy`."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace

import numpy as np
import torch
from peers import Task


def main(verb: str, stored: str, *more: str) -> None:
    task = Task.parsed(stored)
    peer = importlib.import_module(f"peers.{task.peer}")
    if verb == "train":
        torch.manual_seed(task.seed)
        peer.train(task if task.rate else replace(task, rate=peer.RATES[len(peer.RATES) // 2]))
        return
    labels, seed, out = more
    torch.manual_seed(int(seed))
    with torch.no_grad():
        images = peer.sample(task, torch.from_numpy(np.load(labels)), int(seed))
    np.save(out, (images.clamp(-1, 1).add(1).mul(127.5).round()).to(torch.uint8).numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])
