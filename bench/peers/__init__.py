"""Systems that the track trains: Calotype and its peers, each a module with three things.

    RATES: tuple[float, ...]                                    learning rates to try; the middle one is the default
    train(task: Task) -> None                                   within `task.seconds` of the process, writes task.run
    sample(task: Task, labels: Labels, seed: int) -> Images     pictures in [-1, 1], with the peer's own best sampler

A new peer is a module in this folder; `python bench/track.py train --peer NAME` finds it. Each call runs in a process
of its own (`bench/call_peer.py`), whose start is the start of its time, as for Calotype.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn

Images = Float[Tensor, "count 3 size size"]
Labels = Int[Tensor, " count"]
TASK = "task.json"


@dataclass(frozen=True)
class Task:
    """What a peer is to do. `folder` has one subfolder a class; `rate` 0 stands for the middle one of its `RATES`."""

    peer: str
    pictures: str
    folder: str
    run: str
    size: int
    seconds: float
    seed: int
    rate: float = 0.0
    settings: tuple[str, ...] = ()
    sampling: tuple[str, ...] = ()  # NAME=VALUE in place of the peer's own

    @property
    def classes(self) -> list[str]:
        return sorted(path.name for path in Path(self.folder).iterdir() if path.is_dir())

    def read(self) -> tuple[Images, Labels]:
        """All training pictures, in [-1, 1], and their classes."""
        paths = sorted(Path(self.folder).glob("*/*.png"))
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in paths])
        numbers = {name: number for number, name in enumerate(self.classes)}
        labels = [numbers[path.parent.name] for path in paths]
        return torch.from_numpy(pixels).float() / 127.5 - 1, torch.tensor(labels)

    def batches(self, count: int) -> Iterator[tuple[Images, Labels, float]]:
        """Random batches, half of the pictures mirrored, with the fraction of the time that is spent, until it is."""
        images, labels = self.read()
        generator = torch.Generator().manual_seed(self.seed)
        while (spent := self.spent()) < 1:
            rows = torch.randint(len(images), (count,), generator=generator)
            mirrored = (torch.rand(count, generator=generator) < 0.5)[:, None, None, None]
            yield torch.where(mirrored, images[rows].flip(-1), images[rows]), labels[rows], spent

    def spent(self) -> float:
        """Fraction of the time since the start of the process."""
        return (time.time() - psutil.Process().create_time()) / self.seconds

    def save(self, network: nn.Module, **known: float) -> None:
        """Weights, and what else is to be known, such as the pictures that were seen."""
        Path(self.run).mkdir(parents=True, exist_ok=True)
        torch.save(network.state_dict(), Path(self.run) / "weights.pt")
        parameters = sum(weights.numel() for weights in network.parameters())
        record = known | {"rate": self.rate, "parameters": parameters, "spent": self.spent() * self.seconds}
        (Path(self.run) / "known.json").write_text(json.dumps(record))

    def load(self, network: nn.Module) -> nn.Module:
        network.load_state_dict(torch.load(Path(self.run) / "weights.pt", weights_only=True))
        return network.eval()

    def write(self) -> None:
        (Path(self.run) / TASK).write_text(json.dumps(asdict(self)))

    @classmethod
    def of(cls, run: Path) -> Task:
        """The task of a finished run."""
        return cls.parsed((run / TASK).read_text())

    @classmethod
    def parsed(cls, text: str) -> Task:
        stored = json.loads(text)
        return cls(**stored | {name: tuple(stored[name]) for name in ("settings", "sampling")})


def in_parts(labels: Labels, count: int = 50) -> Iterator[Labels]:
    yield from labels.split(count)
