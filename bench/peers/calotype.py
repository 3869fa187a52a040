"""Calotype, as a user has it: `calotype train FOLDER --size 64 --budget 10m`; the time includes samples and report."""

from __future__ import annotations

import subprocess
import sys

import torch

from calotype.data.images import images_from_pil
from calotype.model import load
from calotype.tables import read_value
from peers import Images, Labels, Task

RATES = (0.0,)  # the plan's


def train(task: Task) -> None:
    settings = ["split.test=0", f"seed={task.seed}", *task.settings]  # the track has test pictures of its own
    command = [sys.executable, "-m", "calotype", "train", task.folder, "--size", str(task.size), "--out", task.run]
    sets = [word for setting in settings for word in ("--set", setting)]
    subprocess.run([*command, "--budget", f"{round(task.seconds)}s", *sets], check=True)


def sample(task: Task, labels: Labels, seed: int) -> Images:
    model = load(task.run)
    changes = {name: read_value(value) for name, _, value in (setting.partition("=") for setting in task.sampling)}
    images = torch.empty(len(labels), 3, task.size, task.size)
    for label, name in enumerate(task.classes):
        if len(rows := (labels == label).nonzero()[:, 0]):
            known = {"label": name} if name in model.classes else {}  # one class alone is none
            drawn = model.draw(len(rows), seed=seed, **known, **changes)
            images[rows] = torch.cat([images_from_pil(picture) for picture in drawn])
    return images
