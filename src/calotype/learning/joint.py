"""End to end: autoencoder and denoiser learn together, after each of them has learned alone."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor, nn

from calotype.learning.objectives import Denoising, FirstStage, Loss, edge_distance, share
from calotype.nets.vae import Moments
from calotype.spaces.latent import LatentSpace
from calotype.vocabulary import Batch, Condition, Config, Images, Rng, per_image

TRACKING = 0.02
"""How much of the latents' statistics is new with each batch."""


class JointConfig(Config):
    foresight: float = Field(default=0.5, ge=0)
    """Weight of the distance of a picture from what is decoded after the denoiser, beside the first stage's losses."""
    foresight_share: float = Field(default=0.5, gt=0, le=1)
    """Fraction of each batch that goes through all of it."""


class Joint:
    """The first stage's losses and the denoiser's, and one that runs through both.

    The denoiser's own loss must not reach the encoder, which would make its latents easy instead of good (REPA-E, arXiv
    2504.10483, section 3). What shapes it is how well the picture comes back through encoder, denoiser and decoder.
    The latents' statistics follow while the encoder moves, and no gradient runs through them.
    """

    def __init__(self, denoising: Denoising, first: FirstStage, config: JointConfig) -> None:
        stage = denoising.stage
        assert isinstance(stage.space, LatentSpace)
        self.denoising, self.stage, self.space, self.first, self.config = denoising, stage, stage.space, first, config
        self.players: dict[str, nn.Module] = {**first.players, "autoencoder": stage.space, "denoiser": stage.denoiser}

    def losses(self, batch: Batch, progress: float, rng: Rng) -> dict[str, Loss]:
        moments = self.space.vae.encode(batch.clean)
        losses = self.first.judged(batch.clean, moments, progress, rng.at("first"))
        self.space.follow(torch.cat(moments, 1).detach(), TRACKING)
        latents = Batch(torch.cat(moments, 1).detach(), batch.labels, text=batch.text)
        losses["denoiser"] = self.denoising.losses(latents, progress, rng.at("denoiser"))["denoiser"]
        some = share(len(batch), self.config.foresight_share)
        few = Moments(moments.mean[:some], moments.log_variance[:some])
        told = Condition(batch.labels[:some], text=batch.text and batch.text.at(range(some)))
        foreseen = self.config.foresight * self._foreseen(batch.clean[:some], few, told, rng)
        first = losses["autoencoder"]
        losses["autoencoder"] = Loss(first.total + foreseen, {**first.terms, "foreseen": foreseen.detach()})
        return losses

    def _foreseen(self, real: Images, moments: Moments, told: Condition, rng: Rng) -> Tensor:
        """How far a picture is from itself, encoded, made noisy, denoised and decoded."""
        clean = self.space.sample(torch.cat(moments, 1), rng.at("foreseen"))
        sigma = self.stage.schedule.draw(len(real), rng.at("sigma")).to(real.device)
        noisy = clean + per_image(sigma) * rng.at("noise").noise_like(clean)
        with rng.at("dropout").seeding(real.device):
            fake = self.space.developed(self.stage.denoiser(noisy, sigma, told))
        return (fake - real).abs().mean() + self.first.config.edges * edge_distance(real, fake)
