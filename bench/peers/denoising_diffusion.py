"""denoising-diffusion-pytorch with classes: the batch, optimizer and average of its README and Trainer.

The README's network has a width of 64; `--set network=default` takes it, and otherwise one of 16, of which two cores
train enough pictures in minutes.

pip install --no-deps denoising-diffusion-pytorch==2.3.4 pytorch-fid
pip install einops ema-pytorch accelerate scipy

The package imports torchvision, for which there is no build with a CPU torch; what is used here does not need it.
"""

from __future__ import annotations

import peers.no_torchvision  # noqa: F401

# isort: split

import torch
from denoising_diffusion_pytorch.classifier_free_guidance import GaussianDiffusion, Unet
from ema_pytorch import EMA

from peers import Images, Labels, Task, in_parts

RATES = (8e-5, 2e-4, 6e-4)
BATCH = 32


def network(task: Task) -> GaussianDiffusion:
    width = 64 if "network=default" in task.settings else 16
    unet = Unet(dim=width, dim_mults=(1, 2, 4, 8), num_classes=len(task.classes), cond_drop_prob=0.1)
    return GaussianDiffusion(unet, image_size=task.size, timesteps=1000, sampling_timesteps=50)


def train(task: Task) -> None:
    model, seen = network(task), 0
    optimizer = torch.optim.Adam(model.parameters(), lr=task.rate, betas=(0.9, 0.99))
    average = EMA(model, beta=0.995, update_every=10)
    for images, labels, _ in task.batches(BATCH):
        model((images + 1) / 2, classes=labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        seen += BATCH
    task.save(average.ema_model, seen=seen)


def sample(task: Task, labels: Labels, seed: int) -> Images:
    model = task.load(network(task))
    return torch.cat([model.sample(classes=part, cond_scale=1.5) * 2 - 1 for part in in_parts(labels)])
