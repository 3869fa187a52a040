"""Objectives: losses of networks that make pictures in one step, with a critic, and the loss of a denoiser."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from calotype.data.captions import drop_phrases
from calotype.devices import sent
from calotype.diffusion.stage import Stage
from calotype.nets.blocks import dropout_seeds
from calotype.nets.critic import Critic
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import EfficientNetLite0, perceptual_distance
from calotype.nets.vae import kl_to_normal
from calotype.priors.gaussian import CrossFitted
from calotype.ranks import ALONE, Ranks
from calotype.recipe import AdversarialLossConfig, AutoencoderLossConfig, ConditionDropout
from calotype.threads import AllReduce, rows_of
from calotype.types import (
    NULL_LABEL,
    Batch,
    Condition,
    Images,
    Labels,
    Latents,
    OtherImages,
    Rng,
    Sigmas,
    Text,
    per_image,
)


@dataclass(frozen=True)
class Loss:
    """The loss of one network, and the terms that it is the sum of, for the log."""

    total: Tensor
    terms: dict[str, Tensor]


Slice = Callable[[], dict[str, Loss]]
"""The losses of a slice of a batch: shares of those of the whole."""
Norm = Callable[[Tensor], Tensor]
"""Norms of vectors, from the norms of the parts of them that are here."""


@dataclass(frozen=True)
class BatchShare:
    """The images of a batch that a rank works on: every `step`-th, so that each rank has as many of any part."""

    index: int
    step: int
    total: int
    """Images of the whole batch."""

    @property
    def rows(self) -> slice:
        return slice(self.index, None, self.step)

    @property
    def fraction(self) -> float:
        """Of the batch."""
        return self._below(self.total) / self.total

    def head(self, count: int) -> tuple[slice, float]:
        """Which of the share are among the first `count` images of the batch, and the fraction that they are of them.

        Where none is, it is one, which counts for nothing: so the loss of every rank has a gradient.
        """
        here = self._below(count)
        return slice(0, max(1, here)), here / count

    def tail(self, count: int) -> tuple[slice, float]:
        """As `head`, of the last `count` images."""
        here = self._below(self.total) - self._below(self.total - count)
        return slice(-max(1, here), None), here / count

    def _below(self, place: int) -> int:
        """How many of the share are among the images before this place."""
        return len(range(self.index, place, self.step))


@runtime_checkable
class Objective(Protocol):
    """Networks that are trained, each on its own loss; all randomness comes from `rng`."""

    networks: dict[str, nn.Module]

    def losses(self, batch: Batch, fraction: float, rng: Rng) -> dict[str, Loss]: ...

    def slices(
        self, batch: Batch, fraction: float, rng: Rng, at_once: int, rounds: int = 1, ranks: Ranks = ALONE
    ) -> list[Slice]:
        """At most `at_once` slices of the batch for each of so many rounds; those of this rank, of several.

        Over all ranks their losses add up to `losses`. Those of a round must be worked on at once.
        """
        ...


class AdversarialObjective(ABC):
    """L1 and perceptual distance of what a network makes in one step, and a critic: arXiv 2112.10752, appendix G."""

    name: ClassVar[str]
    """Of the network in the log."""

    def __init__(
        self, network: nn.Module, critic: Critic, features: EfficientNetLite0, config: AdversarialLossConfig
    ) -> None:
        self.critic, self.features, self.config = critic, features, config
        critics: dict[str, nn.Module] = {"critic": critic} if config.adversarial else {}
        self.networks: dict[str, nn.Module] = {self.name: network, **critics}
        self.trust = 1.0
        """Factor on the critic's weight; `CriticGuard` lowers it when the critic has done harm."""

    @property
    def adversarial_start(self) -> float:
        """The fraction of the leg at which the adversarial loss sets in."""
        return max(self.config.critic_start, self.config.critic_used)

    @abstractmethod
    def reconstruct(self, batch: Batch, rng: Rng, rows: slice) -> tuple[Images, dict[str, Tensor]]:
        """What the network makes of these rows of the batch, to be like `batch.clean`, and further terms of its loss,
        which are means over the rows. What is drawn for an image does not depend on the rows."""
        ...

    def losses(self, batch: Batch, fraction: float, rng: Rng) -> dict[str, Loss]:
        return self._share(batch, fraction, rng, BatchShare(0, 1, len(batch)), ALONE.norm)

    def slices(
        self, batch: Batch, fraction: float, rng: Rng, at_once: int, rounds: int = 1, ranks: Ranks = ALONE
    ) -> list[Slice]:
        """All in one round: the weight of the adversarial loss takes the gradients of all images."""
        if not ranks.alone:
            share = BatchShare(ranks.index, ranks.count, len(batch))
            return [partial(self._share, batch, fraction, rng, share, ranks.norm)]
        count = min(at_once, len(batch))
        all_reduce = AllReduce(count)

        def part(index: int) -> dict[str, Loss]:
            with all_reduce.attended():
                share = BatchShare(index, count, len(batch))
                return self._share(batch, fraction, rng, share, lambda own: all_reduce.sum(index, own.square()).sqrt())

        return (
            [partial(part, index) for index in range(count)]
            if count > 1
            else [lambda: self.losses(batch, fraction, rng)]
        )

    def _share(self, batch: Batch, fraction: float, rng: Rng, share: BatchShare, norm: Norm) -> dict[str, Loss]:
        """Losses of these images: the share that they have in those of the whole batch."""
        real = batch.clean[share.rows]
        fake, further = self.reconstruct(batch, rng, share.rows)
        terms = self._reconstruction(real, fake, fraction, share)
        further = {name: share.fraction * term for name, term in further.items()}
        losses = {self.name: self._network(terms, further, fake, fraction, share, norm)}
        if self.config.adversarial and fraction >= self.config.critic_start:
            rows, part = share.tail(batch_share(len(batch), self.config.critic_share))
            losses["critic"] = self._critic(real[rows], fake.detach()[rows], part)
        return losses

    def _reconstruction(self, real: Images, fake: Images, fraction: float, share: BatchShare) -> dict[str, Tensor]:
        config = self.config
        terms = {"l1": (fake - real).abs().mean(), "edges": config.edges * edge_distance(real, fake)}
        terms = {name: share.fraction * term for name, term in terms.items()}
        if config.perceptual and fraction >= config.perceptual_start:
            rows, part = share.head(batch_share(share.total, config.perceptual_share))
            distance = perceptual_distance(self.features, fake[rows], real[rows]).mean()
            terms["perceptual"] = part * config.perceptual * distance
        return terms

    def _network(
        self, terms: dict[str, Tensor], further: dict[str, Tensor], fake: Images, fraction: float, share: BatchShare,
        norm: Norm,
    ) -> Loss:  # fmt: skip
        reconstruction = torch.stack(list(terms.values())).sum()
        terms = terms | further
        if self.config.adversarial and fraction >= self.adversarial_start:
            terms["adversarial"] = self._adversarial(reconstruction, fake, share, norm)
        return Loss(torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()})

    def _adversarial(self, reconstruction: Tensor, fake: Images, share: BatchShare, norm: Norm) -> Tensor:
        """Hinge loss; its gradient at the picture is `adversarial` times the length of the reconstruction's, or less.

        The adaptive weight of arXiv 2012.09841, eq. 7, taken at the picture instead of the last layer, and capped. The
        lengths are those of the whole batch.
        """
        rows, part = share.tail(batch_share(share.total, self.config.critic_share))
        loss = -part * self.critic(fake[rows]).mean()
        gradients = (torch.autograd.grad(each, fake, retain_graph=True)[0] for each in (reconstruction, loss))
        ours, theirs = norm(torch.stack([gradient.norm() for gradient in gradients]))
        weight = (self.config.adversarial * ours / (theirs + 1e-8)).clamp(max=self.config.adversarial_cap)
        return self.trust * weight * loss

    def _critic(self, real: Images, fake: Images, part: float) -> Loss:
        """Hinge loss (arXiv 1705.02894, eq. 3), with the critic's accuracy and the gap of its logits.

        The images are `part` of those that the loss is about.
        """
        of_real, of_fake = self.critic(real), self.critic(fake)
        total = part * (F.relu(1 - of_real).mean() + F.relu(1 + of_fake).mean()) / 2
        right = part * ((of_real > 0).float().mean() + (of_fake < 0).float().mean()) / 2
        gap = part * (of_real.mean() - of_fake.mean()).detach()
        return Loss(total, {"hinge": total.detach(), "right": right, "gap": gap})


class AutoencoderObjective(AdversarialObjective):
    """With the KL divergence of the posterior from N(0, 1)."""

    name = "autoencoder"

    def __init__(
        self, vae: Autoencoder, critic: Critic, features: EfficientNetLite0, config: AutoencoderLossConfig
    ) -> None:
        super().__init__(vae, critic, features, config)
        self.vae, self.kl = vae, config.kl

    def reconstruct(self, batch: Batch, rng: Rng, rows: slice) -> tuple[Images, dict[str, Tensor]]:
        moments = self.vae.encode(batch.clean[rows])
        noise = rng.at("latents").noise_like(enlarged_to(len(batch), moments.mean))[rows]
        fake = self.vae.decode(moments.sample(noise))
        return fake, {"kl": self.kl * kl_to_normal(moments).mean()}


def enlarged_to(count: int, few: Float[Tensor, "_ channel height width"]) -> Latents:
    """Memory for so many latents, laid out as `torch.empty_like` lays out these few: on a GPU noise follows it."""
    last = torch.empty_like(few).is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(count, *few.shape[1:], dtype=few.dtype, device=few.device, memory_format=layout)


def batch_share(count: int, fraction: float) -> int:
    return max(1, round(count * fraction))


def edge_distance(real: Images, fake: Images) -> Tensor:
    """L1 distance of the image gradients: edges count, not only areas."""
    wrong = fake - real
    return wrong.diff(dim=-1).abs().mean() + wrong.diff(dim=-2).abs().mean()


NO_DROPOUT = ConditionDropout(label_dropout=0, caption_alone=0, label_alone=0, caption_dropout=0)


class DenoisingObjective:
    """The denoiser's loss on latents (or pixels) at random sigmas, under dropout of labels and captions.

    `cross_fitted` gives the closed form of each training picture, which was fitted to other pictures. Channels count by
    their `weights`, of mean 1.
    """

    def __init__(
        self, stage: Stage, dropout: ConditionDropout = NO_DROPOUT, cross_fitted: CrossFitted | None = None,
        weights: Float[Tensor, " channel"] | None = None,
    ) -> None:  # fmt: skip
        self.stage, self.dropout, self.cross_fitted, self.weights = stage, dropout, cross_fitted, weights
        self.networks: dict[str, nn.Module] = {"denoiser": stage.denoiser}

    def losses(self, batch: Batch, fraction: float, rng: Rng) -> dict[str, Loss]:
        (whole,) = self.slices(batch, fraction, rng, 1)
        return whole()

    def slices(
        self, batch: Batch, fraction: float, rng: Rng, at_once: int, rounds: int = 1, ranks: Ranks = ALONE
    ) -> list[Slice]:
        noised = self.noised(batch, rng)

        def share(rows: slice) -> dict[str, Loss]:
            loss = self.per_image(noised.at(rows)).sum() / len(batch)
            return {"denoiser": Loss(loss, {"loss": loss.detach()})}

        parts = rows_of(len(batch), at_once * rounds * ranks.count)
        return [partial(share, rows) for rows in parts[rows_of(len(parts), ranks.count)[ranks.index]]]

    def noised(self, batch: Batch, rng: Rng) -> Noised:
        """All that is random of each image."""
        count, device = len(batch), batch.clean.device
        clean = self.stage.space.sample(batch.clean, rng.at("latents"))
        sigma = sent(self.stage.schedule.sample(count, rng.at("sigma")), device)
        noise = rng.at("noise").noise_like(clean)
        labels, text = drop_condition(batch, self.dropout, rng.at("condition"))
        level = sent(self.stage.augmentation.sample_level(count, rng.at("augmentation")), device)
        augmentation_noise = None if batch.low_res is None else rng.at("spoiling").noise_like(batch.low_res)
        seeds = rng.at("dropout").integers(2**62, count)
        labels = sent(labels, device)
        return Noised(
            replace(batch, clean=clean, labels=labels, text=text), sigma, noise, level, augmentation_noise, seeds
        )

    def per_image(self, noised: Noised) -> Float[Tensor, " batch"]:
        batch, condition = noised.batch, self.condition(noised)
        if self.cross_fitted is not None and batch.fold is not None:
            condition = replace(condition, posterior_mean=self.cross_fitted.of(batch.fold, batch.labels))
        with dropout_seeds(noised.seeds, batch.clean.device):
            return self.stage.denoiser.loss(batch.clean, noised.sigma, noised.noise, condition, self.weights)

    def condition(self, noised: Noised) -> Condition:
        batch, noise = noised.batch, noised.augmentation_noise
        noise = torch.zeros(()) if noise is None else noise
        condition = self.stage.condition(batch.labels, batch.low_res, noised.level, noise, batch.text)
        return replace(condition, view=batch.view)


@dataclass(frozen=True)
class Noised:
    """A batch, its conditions after dropout, on the device, and all that was drawn for each of its images."""

    batch: Batch
    sigma: Sigmas
    noise: Latents
    level: Sigmas
    """Of the augmentation of the low-resolution image, with `augmentation_noise`, its noise."""
    augmentation_noise: OtherImages | None
    seeds: Int[Tensor, " batch"]
    """Of the network's dropout."""

    def at(self, rows: slice) -> Noised:
        noise = None if self.augmentation_noise is None else self.augmentation_noise[rows]
        batch, sigma, level, seeds = self.batch.at(rows), self.sigma[rows], self.level[rows], self.seeds[rows]
        return Noised(batch, sigma, self.noise[rows], level, noise, seeds)


def drop_condition(batch: Batch, dropout: ConditionDropout, rng: Rng) -> tuple[Labels, Text | None]:
    """The labels and captions that are given in this step: one draw for each picture decides between the four cases.

    A picture that has only one of both loses it with the probability `label_dropout`.
    """
    draw, captions = rng.uniform(len(batch)), ("",) * len(batch) if batch.text is None else batch.text.prompts
    both = (batch.labels != NULL_LABEL) & torch.tensor([bool(caption) for caption in captions])
    bounds = accumulate((dropout.label_dropout, dropout.caption_alone, dropout.label_alone))
    neither, caption_alone, label_alone = (draw < bound for bound in bounds)  # each holds those before it
    label_given, caption_given = ~(neither | caption_alone & both), ~(neither | label_alone & ~caption_alone & both)
    labels = batch.labels.where(label_given, NULL_LABEL)
    if batch.text is None:
        return labels, None
    given = zip(drop_phrases(captions, dropout.caption_dropout, rng), caption_given.tolist(), strict=True)
    return labels, Text(tuple(caption if kept else "" for caption, kept in given))


class OneStepObjective(AdversarialObjective):
    """A stage that enlarges in one step: from the prior mean and noise of the largest sigma to the picture.

    What the low-resolution picture leaves open is not sampled from the posterior: the losses make it likely and sharp.
    """

    name = "denoiser"

    def __init__(
        self, stage: Stage, dropout: ConditionDropout, critic: Critic, features: EfficientNetLite0,
        config: AdversarialLossConfig,
    ) -> None:  # fmt: skip
        super().__init__(stage.denoiser, critic, features, config)
        self.stage, self.denoising = stage, DenoisingObjective(stage, dropout)

    def reconstruct(self, batch: Batch, rng: Rng, rows: slice) -> tuple[Images, dict[str, Tensor]]:
        noised = self.denoising.noised(batch, rng).at(rows)
        condition, sigma = self.denoising.condition(noised), torch.full_like(noised.sigma, self.stage.largest_sigma)
        noisy = self.stage.prior_mean(condition) + per_image(sigma) * noised.noise
        with dropout_seeds(noised.seeds, noisy.device):
            return self.stage.denoiser(noisy, sigma, condition), {}
