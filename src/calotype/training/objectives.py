"""What is learned: the losses of the first stage, and the loss of a denoiser."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from calotype.data.caption_dropout import partly
from calotype.diffusion.stage import Stage
from calotype.nets.critic import Critic
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import EfficientNetLite0, perceptual_distance
from calotype.nets.vae import Moments
from calotype.priors.gaussian import CrossFitted
from calotype.types import NULL_LABEL, Batch, Config, Images, Labels, Latents, Rng, Sigmas, Text, per_image


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


class AutoencoderLossConfig(Config):
    """Weights of the three losses, and when the critic plays. Fractions are of the run, never steps."""

    edges: float = Field(default=0.5, ge=0)
    """Of the L1 distance of neighbouring pixels' differences, beside the L1 distance of the pixels, which has 1."""
    perceptual: float = Field(default=0.02, ge=0)
    perceptual_start: float = Field(default=0.5, ge=0, le=1)
    """From this fraction of the run on: large shapes first, and half of the run at half the cost."""
    perceptual_share: float = Field(default=0.25, gt=0, le=1)
    """Fraction of each batch that the perceptual distance looks at: it costs more than the autoencoder."""
    kl: float = Field(default=1e-5, ge=0)
    latent_noise: float = Field(default=0.0, ge=0)
    """Most noise on the latents that the decoder is trained on, relative to each channel's standard deviation, so that
    it tolerates noise there (RAE, arXiv 2510.11690, section 4.3). It costs detail; dev/LOG.md has the table."""
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


class AutoencoderObjective:
    """Reconstruction (L1 and perceptual), KL to N(0, 1), and a critic: arXiv 2112.10752, appendix G."""

    def __init__(
        self, vae: Autoencoder, critic: Critic, features: EfficientNetLite0, config: AutoencoderLossConfig
    ) -> None:
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
        fake = self.vae.decode(add_latent_noise(latents, self.config.latent_noise, rng.at("latent noise")))
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


def add_latent_noise(latents: Latents, most: float, rng: Rng) -> Latents:
    """With Gaussian noise of a level from U(0, most) for each picture, relative to each channel's standard deviation.

    The latter is of this batch and without gradient, so that an encoder gains nothing from larger latents.
    """
    if not most:
        return latents
    level = per_image(most * rng.at("level").uniform(len(latents))).to(latents)
    deviation = latents.detach().std((0, 2, 3), correction=0, keepdim=True)
    return latents + level * deviation * rng.at("noise").noise_like(latents)


def share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def edge_distance(real: Images, fake: Images) -> Tensor:
    """L1 distance of the differences between neighbouring pixels: lines count, not only areas."""
    wrong = fake - real
    return wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()


def kl_to_normal(moments: Moments) -> Tensor:
    """KL divergence of the posterior from N(0, 1), one number a latent value, in nats (arXiv 1312.6114, appendix B)."""
    return 0.5 * (moments.mean.square() + moments.log_variance.exp() - 1 - moments.log_variance)


class ConditionDropout(Config):
    """Classifier-free dropout of label and caption (arXiv 2207.12598, section 3.2), in probabilities.

    Of a picture that has both, training gives neither, the caption alone, the label alone, or both, which is the rest.
    """

    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Neither: so that the model can be guided away from what it makes without them."""
    caption_alone: float = Field(default=0.4, ge=0, le=1)
    """The caption without its label, as prompts are."""
    label_alone: float = Field(default=0.1, ge=0, le=1)
    """The label without its caption."""
    phrase_dropout: float = Field(default=0.5, ge=0, le=1)
    """How often only a part of a caption is given, as prompts do; what it leaves out is open then, not denied."""

    @model_validator(mode="after")
    def _sum(self) -> ConditionDropout:
        total = self.label_dropout + self.caption_alone + self.label_alone
        if total > 1 + 1e-6:
            raise ValueError(
                f"label_dropout {self.label_dropout:g}, caption_alone {self.caption_alone:g} and label_alone "
                f"{self.label_alone:g} sum to {total:g}, but are shares of the same pictures and expected to sum to at "
                f"most 1; lower caption_alone or label_alone"
            )
        return self


NO_DROPOUT = ConditionDropout(label_dropout=0, caption_alone=0, label_alone=0, phrase_dropout=0)


class DenoisingObjective:
    """The denoiser's loss on latents (or pixels) with random sigmas, under dropout of labels and captions.

    `unseen` are closed forms for the training pictures, none of which has seen the picture it is asked about.
    """

    def __init__(self, stage: Stage, dropout: ConditionDropout = NO_DROPOUT, unseen: CrossFitted | None = None) -> None:
        self.stage, self.dropout, self.unseen = stage, dropout, unseen
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
        labels, text = drop_condition(batch, self.dropout, rng.at("condition"))
        level = self.stage.augmentation.draw(count, rng.at("augmentation")).to(device)
        spoiling = torch.zeros(()) if batch.low_res is None else rng.at("spoiling").noise_like(batch.low_res)
        condition = self.stage.condition(labels, batch.low_res, level, spoiling, text)
        if self.unseen is not None and batch.fold is not None:
            condition = replace(condition, known=self.unseen.of(batch.fold, labels))
        with rng.at("dropout").seeding(device):
            return sigma, self.stage.denoiser.loss(clean, sigma, noise, condition)


def drop_condition(batch: Batch, dropout: ConditionDropout, rng: Rng) -> tuple[Labels, Text | None]:
    """The labels and captions that are given in this step: one draw for each picture decides between the four cases.

    A picture that has only one of both loses it with the probability `label_dropout`.
    """
    draw, captions = rng.uniform(len(batch)), ("",) * len(batch) if batch.text is None else batch.text.prompts
    both = (batch.labels != NULL_LABEL).cpu() & torch.tensor([bool(caption) for caption in captions])
    bounds = accumulate((dropout.label_dropout, dropout.caption_alone, dropout.label_alone))
    neither, caption_alone, label_alone = (draw < bound for bound in bounds)  # each holds those before it
    label_given, caption_given = ~(neither | caption_alone & both), ~(neither | label_alone & ~caption_alone & both)
    labels = batch.labels.where(label_given.to(batch.labels.device), NULL_LABEL)
    if batch.text is None:
        return labels, None
    given = zip(partly(captions, dropout.phrase_dropout, rng), caption_given.tolist(), strict=True)
    return labels, Text(tuple(caption if kept else "" for caption, kept in given))
