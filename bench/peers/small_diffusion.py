"""smalldiffusion with classes: the kind of UNet, schedules, average and sampler of its CIFAR-10 example, at this size.

The example's network has a width of 128; `--set network=default` takes it, and otherwise one of 32.

pip install --no-deps smalldiffusion==0.5.0 && pip install einops accelerate
"""

from __future__ import annotations

import peers.no_torchvision  # noqa: F401

# isort: split

import copy

import torch
from smalldiffusion import (
    CondEmbedderLabel,
    Scaled,
    ScheduleLogLinear,
    ScheduleSigmoid,
    Unet,
    generate_train_sample,
    samples,
)

from peers import Images, Labels, Task, in_parts

RATES = (2e-4, 5e-4, 1e-3)
BATCH = 32


def network(task: Task) -> torch.nn.Module:
    width = 128 if "network=default" in task.settings else 32
    labels = CondEmbedderLabel(4 * width, len(task.classes), dropout_prob=0.1)
    sizes = {"ch": width, "ch_mult": (1, 2, 2, 2), "attn_resolutions": (16,)}
    return Scaled(Unet)(task.size, 3, 3, cond_embed=labels, **sizes)


def train(task: Task) -> None:
    model, seen = network(task).train(), 0
    average, schedule = copy.deepcopy(model), ScheduleSigmoid(N=1000)
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.rate)
    for images, labels, _ in task.batches(BATCH):
        clean, sigma, noise, condition = generate_train_sample((images, labels), schedule, conditional=True)
        model.get_loss(clean, sigma, noise, cond=condition).backward()
        optimizer.step()
        optimizer.zero_grad()
        seen += BATCH
        weight = max(1e-4, 1 / (1 + seen / BATCH / 10))  # the example's 0.9999, reached by a warm-up
        with torch.no_grad():
            for old, new in zip(average.parameters(), model.parameters(), strict=True):
                old.lerp_(new, weight)
    task.save(average, seen=seen)


def sample(task: Task, labels: Labels, seed: int) -> Images:
    model, schedule = task.load(network(task)), ScheduleLogLinear(sigma_min=0.01, sigma_max=35, N=1000)
    sigmas = schedule.sample_sigmas(20)
    return torch.cat(
        [list(samples(model, sigmas, gam=2.1, batchsize=len(part), cond=part))[-1] for part in in_parts(labels)]
    )
