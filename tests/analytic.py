"""Data, networks and measures whose right answers can be written down."""

import torch
from torch import nn

from calotype.types import NULL_LABEL, Condition, Rng

DDPM_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WEIGHT = Rng(("smooth network",)).normal(4, 4)


def gaussian(mean, spread):
    """`E[x | noisy]` for data of `N(mean, spread^2)`."""
    return lambda noisy, sigma: (spread**2 * noisy + sigma**2 * mean) / (spread**2 + sigma**2)


def log_density(noisy, sigma, mean, spread):
    """Of Gaussian data with noise, up to a constant."""
    return -((noisy - mean) ** 2).sum() / (2 * (spread**2 + sigma**2))


def mixture(means, spread):
    """`E[x | noisy]` for an even mixture of Gaussians around `means` (mode, channel); pictures of one pixel."""

    def denoise(noisy, sigma):
        variance = spread**2 + sigma**2
        points = noisy.flatten(1)
        odds = torch.softmax(-(points[:, None] - means).square().sum(2) / (2 * variance), 1)
        clean = (spread**2 * points + sigma**2 * odds @ means) / variance
        return clean.reshape_as(noisy)

    return denoise


def even_noise(count):
    """`count` pictures of one pixel whose values are the quantiles of `N(0, 1)`: no luck in their mean and spread."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    noise = torch.distributions.Normal(0.0, 1.0).icdf(levels)
    return (noise / noise.std(correction=0)).reshape(-1, 1, 1, 1)


def smooth_network(image, sigma):
    """A fixed network of four channels, smooth in the picture and in sigma."""
    mixed = torch.einsum("oc,bchw->bohw", WEIGHT.to(image), image)
    return torch.tanh(mixed + torch.log1p(torch.as_tensor(sigma)) / 4)


def denoise_with(network, scaling):
    """The `Denoise` that `scaling` makes of `network(image, sigma)`."""

    def denoise(noisy, sigma):
        skip, out, size = scaling(torch.tensor(sigma, dtype=noisy.dtype))
        return skip * noisy + out * network(size * noisy, sigma)

    return denoise


def walk(sampler, denoise, noisy, sigmas, fresh=None):
    """All states of a sampler, the first included."""
    return torch.stack([noisy, *sampler(denoise, noisy, sigmas, fresh or (lambda: torch.zeros_like(noisy)))])


def diffusers_walk(scheduler, network, image, sigmas, **more):
    """All states of a sampler of diffusers, which asks the network at `sigmas`; the first state included."""
    states = [image]
    scale = getattr(scheduler, "scale_model_input", lambda image, time: image)
    for time, sigma in zip(scheduler.timesteps, sigmas, strict=True):
        answer = network(scale(states[-1], time), sigma)
        states.append(scheduler.step(answer, time, states[-1], **more).prev_sample)
    return torch.stack([state.double() for state in states])


def slope(xs, ys):
    """Of the straight line through the logarithms."""
    xs, ys = (torch.as_tensor(values, dtype=torch.float64).log() for values in (xs, ys))
    return ((xs - xs.mean()) @ (ys - ys.mean()) / (xs - xs.mean()).square().sum()).item()


def distance_to_uniform(values):
    """Kolmogorov's: the largest gap between the shares found and the shares expected on [0, 1]."""
    ranks = torch.arange(1, len(values) + 1, dtype=torch.float64) / len(values)
    return (values.double().sort().values - ranks).abs().max().item()


def normal_share(values):
    return torch.special.ndtr(values.double())


def perturbed(module, amount=0.1):
    """The same module with no weight left at 0."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return module


def silent_parameters(module, loss):
    """Names of the parameters of which some number does not hear the loss."""
    module.zero_grad()
    loss.backward()
    return [name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.all()]


def conditioned(*labels, **more):
    return Condition(torch.tensor(labels), **more)


def unconditional(count):
    return conditioned(*[NULL_LABEL] * count)


class Fixed(nn.Module):
    """A backbone that says `answer` to everything, and remembers what it saw."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, image, vector):
        self.seen = image
        return self.answer


def slope_error(function, at, step=1e-6, directions=4):
    """How far derivatives by autograd are from central differences, as a share of these: along random directions."""
    with torch.enable_grad():
        point = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point), point)
    along = torch.randn(directions, *at.shape, dtype=at.dtype)
    with torch.no_grad():
        slopes = [(function(at + step * one) - function(at - step * one)) / (2 * step) for one in along]
    expected = torch.stack(slopes)
    return float(((gradient * along).flatten(1).sum(1) - expected).norm() / expected.norm())
