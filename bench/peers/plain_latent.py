"""A plain latent diffusion model, as one would write it from the papers: nothing in closed form, no plan.

A convolutional autoencoder with a KL term (LDM, arXiv 2112.10752; f4, 4 channels, squared error and a tenth of an L1
loss of gradients) has a third of the time. A DiT (arXiv 2212.09748; patches of 2, width 256, 6 layers) learns flow
matching (arXiv 2210.02747) in its latents, divided by their standard deviation, in the rest. Labels are dropped in one
of ten; sampling takes 25 Heun steps with classifier-free guidance 1.5.
"""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import Images, Labels, Task, in_parts

RATES = (3e-4, 1e-3, 2e-3)
BATCH, SHARE = 32, 1 / 3
CHANNELS, KL, EDGES, DROPPED = 4, 1e-5, 0.1, 0.1
WIDTH, LAYERS, HEADS, PATCH = 256, 6, 4, 2
STEPS, GUIDANCE = 25, 1.5


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        first, second = (nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), each) for each in convolutions)
        self.block = nn.Sequential(first, second)

    def forward(self, image: Tensor) -> Tensor:
        return image + self.block(image)


class Autoencoder(nn.Module):
    def __init__(self, width: int = 64) -> None:
        super().__init__()
        down = [nn.Conv2d(3, width, 3, padding=1)]
        for _ in range(2):
            down += [Residual(width), nn.Conv2d(width, width, 3, 2, 1)]
        self.encoder = nn.Sequential(*down, Residual(width), nn.Conv2d(width, 2 * CHANNELS, 3, padding=1))
        up = [nn.Conv2d(CHANNELS, width, 3, padding=1), Residual(width)]
        for _ in range(2):
            up += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1), Residual(width)]
        self.decoder = nn.Sequential(*up, nn.Conv2d(width, 3, 3, padding=1))
        self.register_buffer("deviation", torch.ones(()))

    def moments(self, images: Images) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, 1)
        return mean, log_variance.clamp(-20, 10)

    def loss(self, images: Images) -> Tensor:
        mean, log_variance = self.moments(images)
        made = self.decoder(mean + torch.randn_like(mean) * (log_variance / 2).exp())
        edges = sum((made.diff(dim=dim) - images.diff(dim=dim)).abs().mean() for dim in (2, 3))
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return F.mse_loss(made, images) + EDGES * edges + KL * divergence


class Block(nn.Module):
    """adaLN-Zero, section 3.2 of DiT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.feed_forward = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU("tanh"), nn.Linear(4 * WIDTH, WIDTH))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        nn.init.zeros_(self.modulation[1].weight)
        nn.init.zeros_(self.modulation[1].bias)

    def forward(self, tokens: Tensor, vector: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(vector)[:, None].chunk(6, -1)
        normed = F.layer_norm(tokens, (WIDTH,)) * (1 + scale1) + shift1
        tokens = tokens + gate1 * self.attention(normed, normed, normed, need_weights=False)[0]
        return tokens + gate2 * self.feed_forward(F.layer_norm(tokens, (WIDTH,)) * (1 + scale2) + shift2)


class DiT(nn.Module):
    def __init__(self, side: int, classes: int) -> None:
        super().__init__()
        self.null = classes
        self.embed = nn.Conv2d(CHANNELS, WIDTH, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(1, (side // PATCH) ** 2, WIDTH) * 0.02)
        self.labels = nn.Embedding(classes + 1, WIDTH)
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.out = nn.Linear(WIDTH, CHANNELS * PATCH**2)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, noisy: Tensor, time: Tensor, labels: Labels) -> Tensor:
        frequencies = torch.exp(torch.arange(WIDTH // 2) * (-math.log(10000) / (WIDTH // 2)))
        angles = 1000 * time[:, None] * frequencies
        vector = self.time(torch.cat([angles.cos(), angles.sin()], 1)) + self.labels(labels)
        tokens = self.embed(noisy).flatten(2).transpose(1, 2) + self.places
        for block in self.blocks:
            tokens = block(tokens, vector)
        return F.fold(self.out(F.layer_norm(tokens, (WIDTH,))).transpose(1, 2), noisy.shape[-2:], PATCH, stride=PATCH)

    def loss(self, latents: Tensor, labels: Labels) -> Tensor:
        """Flow matching with logit-normal times (arXiv 2403.03206, section 3.1): noise at time 1."""
        time, noise = torch.randn(len(latents)).sigmoid(), torch.randn_like(latents)
        mixed = torch.lerp(latents, noise, time[:, None, None, None])
        labels = torch.where(torch.rand(len(labels)) < DROPPED, self.null, labels)
        return F.mse_loss(self(mixed, time, labels), noise - latents)

    def guided(self, noisy: Tensor, time: float, labels: Labels) -> Tensor:
        twice = torch.cat([labels, torch.full_like(labels, self.null)])
        given, null = self(noisy.repeat(2, 1, 1, 1), torch.full((len(twice),), time), twice).chunk(2)
        return null + GUIDANCE * (given - null)


class Both(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.autoencoder = Autoencoder()
        self.denoiser = DiT(task.size // 4, len(task.classes))


class Learner:
    """Adam with a warm-up and a linear decay over a share of the time, and an average of the weights."""

    def __init__(self, network: nn.Module, rate: float) -> None:
        self.network, self.average, self.rate, self.steps = network, copy.deepcopy(network), rate, 0
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)

    def step(self, loss: Tensor, fraction: float) -> None:
        self.steps += 1
        self.optimizer.param_groups[0]["lr"] = self.rate * min(1, self.steps / 100) * max(0.02, 1 - fraction)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        weight = max(1e-3, 1 / (1 + self.steps / 10))
        with torch.no_grad():
            for old, new in zip(self.average.parameters(), self.network.parameters(), strict=True):
                old.lerp_(new, weight)


def train(task: Task) -> None:
    torch.manual_seed(task.seed)
    both = Both(task)
    first, second = Learner(both.autoencoder, task.rate), Learner(both.denoiser, task.rate)
    for images, labels, spent in task.batches(BATCH):
        if spent < SHARE:
            first.step(both.autoencoder.loss(images), spent / SHARE)
            continue
        if not second.steps:
            both.autoencoder = first.average.eval()
            with torch.no_grad():
                some = task.read()[0]
                some = some[torch.randperm(len(some))[:1000]]
                both.autoencoder.deviation = both.autoencoder.moments(some)[0].std()
        with torch.no_grad():
            latents = both.autoencoder.moments(images)[0] / both.autoencoder.deviation
        second.step(both.denoiser.loss(latents, labels), (spent - SHARE) / (1 - SHARE))
    both.denoiser = second.average
    task.save(both, seen=second.steps * BATCH, seen_by_autoencoder=first.steps * BATCH)


def sample(task: Task, labels: Labels, seed: int) -> Images:
    both, parts = task.load(Both(task)), []
    times = torch.linspace(1, 0, STEPS + 1).tolist()
    for part in in_parts(labels):
        latents = torch.randn(len(part), CHANNELS, task.size // 4, task.size // 4)
        for now, then in pairwise(times):
            slope = both.denoiser.guided(latents, now, part)
            moved = latents + (then - now) * slope
            if then > 0:
                moved = latents + (then - now) * (slope + both.denoiser.guided(moved, then, part)) / 2
            latents = moved
        parts.append(both.autoencoder.decoder(latents * both.autoencoder.deviation))
    return torch.cat(parts)
