"""What is learned: the losses of the first stage, and the loss of a denoiser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from calotype.diffusion.gaussian import Unseen
from calotype.diffusion.telling import partly
from calotype.nets.critic import Critic
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import EfficientNetLite0, perceptual_distance
from calotype.nets.vae import Moments
from calotype.stage import Stage
from calotype.vocabulary import NOT_TOLD, Batch, Config, Images, Labels, Latents, Rng, Sigmas, Text


@dataclass(frozen=True)
class Loss:
    """What one player makes smaller, and the terms that it is made of, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


@runtime_checkable
class Objective(Protocol):
    """`players` learn, each from its own loss; all randomness comes from `rng`."""

    players: dict[str, nn.Module]

    def losses(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Loss]: ...


class FirstStageConfig(Config):
    """Weights of the three losses, and when the critic plays. Fractions are of the run, never steps."""

    edges: float = Field(default=0.5, ge=0)
    """Of the L1 distance of neighbouring pixels' differences, beside the L1 distance of the pixels, which has 1."""
    perceptual: float = Field(default=0.02, ge=0)
    perceptual_start: float = Field(default=0.5, ge=0, le=1)
    """From this fraction of the run on: large shapes first, and half of the run at half the cost."""
    perceptual_share: float = Field(default=0.25, gt=0, le=1)
    """Fraction of each batch that the perceptual distance looks at: it costs more than the autoencoder."""
    kl: float = Field(default=1e-5, ge=0)
    equivariance: float = Field(default=0.0, ge=0)
    """Of how far latents shrunk to half and turned are from becoming the picture shrunk and turned (EQ-VAE, arXiv
    2502.09509, eq. 5)."""
    adversarial: float = Field(default=0.1, ge=0)
    """Gradient of the critic's loss at the picture, relative to the reconstruction's. 0: no critic at all."""
    adversarial_cap: float = Field(default=1.0, gt=0)
    """The most that the critic's loss may be multiplied by to reach that."""
    critic_start: float = Field(default=0.6, ge=0, le=1)
    """The critic learns from here on, at first alone,"""
    critic_used: float = Field(default=0.75, ge=0, le=1)
    """and the autoencoder listens to it from here on."""
    critic_share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of each batch that the critic looks at."""


class FirstStage:
    """Reconstruction (L1 and perceptual), KL to N(0, 1), and a critic: arXiv 2112.10752, appendix G."""

    def __init__(self, vae: Autoencoder, critic: Critic, features: EfficientNetLite0, config: FirstStageConfig) -> None:
        self.vae, self.critic, self.features, self.config = vae, critic, features, config
        self.players: dict[str, nn.Module] = {"autoencoder": vae, **({"critic": critic} if config.adversarial else {})}
        self.trust = 1.0
        """What is left of the critic's weight; lowered when it has done harm (`guard.py`)."""

    @property
    def listens_from(self) -> float:
        """The fraction of the run from which on the autoencoder listens to the critic."""
        return max(self.config.critic_start, self.config.critic_used)

    def losses(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Loss]:
        real = batch.clean
        moments = self.vae.encode(real)
        latents = self.vae.sample(moments, rng.at("latents").noise_like(moments.mean))
        fake = self.vae.decode(latents)
        terms = self._reconstruction(real, fake, progress)
        if self.config.equivariance:
            terms["equivariance"] = self.config.equivariance * self._equivariance(real, latents, rng)
        losses = {"autoencoder": self._autoencoder(terms, fake, moments, progress)}
        if self.config.adversarial and progress >= self.config.critic_start:
            losses["critic"] = self._critic(real, fake.detach())
        return losses

    def _reconstruction(self, real: Images, fake: Images, progress: float) -> dict[str, Tensor]:
        config = self.config
        terms = {"l1": (fake - real).abs().mean(), "edges": config.edges * edge_distance(real, fake)}
        if config.perceptual and progress >= config.perceptual_start:
            some = share(len(real), config.perceptual_share)
            distance = perceptual_distance(self.features, fake[:some], real[:some]).mean()
            terms["perceptual"] = config.perceptual * distance
        return terms

    def _equivariance(self, real: Images, latents: Latents, rng: Rng) -> Tensor:
        """The L1 distances of pictures of half the size, turned by a random number of quarters."""
        quarters = int(rng.at("quarters").integers(4, 1))
        wanted, start = (torch.rot90(F.avg_pool2d(one, 2), quarters, (-2, -1)) for one in (real, latents))
        fake = self.vae.decode(start)
        return (fake - wanted).abs().mean() + self.config.edges * edge_distance(wanted, fake)

    def _autoencoder(self, terms: dict[str, Tensor], fake: Images, moments: Moments, progress: float) -> Loss:
        config = self.config
        reconstruction = torch.stack(list(terms.values())).sum()
        terms["kl"] = config.kl * kl_to_normal(moments).mean()
        if config.adversarial and progress >= self.listens_from:
            terms["adversarial"] = self._adversarial(reconstruction, fake)
        return Loss(torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()})

    def _adversarial(self, reconstruction: Tensor, fake: Images) -> Tensor:
        """Hinge loss; its gradient at the picture is `adversarial` times the length of the reconstruction's, or less.

        The adaptive weight of arXiv 2012.09841, eq. 7, taken at the picture instead of the last layer, and capped.
        """
        some = share(len(fake), self.config.critic_share)
        loss = -self.critic(fake[-some:]).mean()
        ours, theirs = (torch.autograd.grad(part, fake, retain_graph=True)[0].norm() for part in (reconstruction, loss))
        weight = (self.config.adversarial * ours / (theirs + 1e-8)).clamp(max=self.config.adversarial_cap)
        return self.trust * weight * loss

    def _critic(self, real: Images, fake: Images) -> Loss:
        """Hinge loss (arXiv 1705.02894, eq. 3), with the logit gap and the share of right verdicts."""
        some = share(len(real), self.config.critic_share)
        of_real, of_fake = self.critic(real[-some:]), self.critic(fake[-some:])
        total = (F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()) / 2
        right = ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        gap = (of_real.mean() - of_fake.mean()).detach()
        return Loss(total, {"hinge": total.detach(), "right": right, "gap": gap})


def share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def edge_distance(real: Images, fake: Images) -> Tensor:
    """L1 distance of the differences between neighbouring pixels: lines count, not only areas."""
    wrong = fake - real
    return wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()


def kl_to_normal(moments: Moments) -> Tensor:
    """KL divergence of the posterior from N(0, 1), one number a latent value, in nats (arXiv 1312.6114, appendix B)."""
    return 0.5 * (moments.mean.square() + moments.log_variance.exp() - 1 - moments.log_variance)


class Denoising:
    """The denoiser's loss on latents (or pixels) with random sigmas; some labels and captions are not told.

    `unseen` are closed forms for the training pictures, none of which has seen the picture it is asked about.
    """

    def __init__(
        self, stage: Stage, label_dropout: float, phrase_dropout: float = 0.0, unseen: Unseen | None = None
    ) -> None:
        self.stage, self.unseen = stage, unseen
        self.label_dropout, self.phrase_dropout = label_dropout, phrase_dropout
        self.players: dict[str, nn.Module] = {"denoiser": stage.denoiser}

    def losses(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Loss]:
        loss = self.each(batch, rng)[1].mean()
        return {"denoiser": Loss(loss, {"loss": loss.detach()})}

    def each(self, batch: Batch, rng: Rng) -> tuple[Sigmas, Float[Tensor, " batch"]]:
        """The sigma and the loss of every picture."""
        count, device = len(batch), batch.clean.device
        clean = self.stage.space.sample(batch.clean, rng.at("latents"))
        sigma = self.stage.schedule.draw(count, rng.at("sigma")).to(device)
        noise = rng.at("noise").noise_like(clean)
        labels, text = told(batch, self.label_dropout, self.phrase_dropout, rng)
        level = self.stage.augmentation.draw(count, rng.at("augmentation")).to(device)
        spoiling = torch.zeros(()) if batch.smaller is None else rng.at("spoiling").noise_like(batch.smaller)
        condition = self.stage.condition(labels, batch.smaller, level, spoiling, text)
        if self.unseen is not None and batch.fold is not None:
            condition = replace(condition, known=self.unseen.of(batch.fold, labels))
        torch.manual_seed(int(rng.at("dropout").integers(2**62, 1)))  # dropout draws from torch's own generator
        return sigma, self.stage.denoiser.loss(clean, sigma, noise, condition)


def told(batch: Batch, dropout: float, phrases: float, rng: Rng) -> tuple[Labels, Text | None]:
    """What a denoiser is told of each picture: nothing, with the probability `dropout`; else its label and its caption.

    Where it has both, it must also do with one of them: four times as often with the caption, as prompts are. And a
    caption says only some of its phrases with the probability `phrases`.
    """
    count = len(batch)
    something = rng.at("told").uniform(count) >= dropout
    if batch.text is None:
        return batch.labels.where(something.to(batch.labels.device), NOT_TOLD), None
    labelled = (batch.labels != NOT_TOLD).cpu()
    captioned = torch.tensor([bool(caption) for caption in batch.text.wanted])
    alone = rng.at("alone").uniform(count) / max(dropout, 1e-9)
    label = something & ~(captioned & (alone < 4))
    caption = something & ~(labelled & captioned & (alone >= 4) & (alone < 5))
    said = partly(batch.text.wanted, phrases, rng)
    captions = (one if kept else "" for one, kept in zip(said, caption.tolist(), strict=True))
    return batch.labels.where(label.to(batch.labels.device), NOT_TOLD), Text(tuple(captions))
