"""What the measures of an autoencoder mean: findings with what to change, a verdict in a sentence, and a score."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import mean, median

from calotype.evaluation.autoencoder import MISTAKE, Channel, Measures

LEAST_CONTRAST = 0.02
"""Pictures that vary by less than two or three levels of 255 say nothing about an autoencoder."""
FEWEST = 4
"""With fewer pictures than this nothing is so sure that a run should end for it."""
MOST = 0.5
"""What is wrong with more than this share of the channels is wrong with the whole; else it is a loss."""
LEAST_SIGNAL = 0.1
"""A channel that is nine tenths noise tells a decoder next to nothing."""
EVEN = 0.5
"""Where most channels have more noise than picture, a decoder sees no more than a denoiser does half way."""
MOST_STUCK = 0.5
"""A channel most of whose values stay where they are when every pixel changes has run into a limit."""
FARTHEST_MEAN, FARTHEST_STD = 0.5, 2.0
"""Held-out pictures are off by a tenth; a mean half a spread off, or a spread twice or half of 1, is no chance."""
LARGEST_STD = 100.0
"""Well-kept latents spread by 1 to 6; a spread of 100 grows on, and the latents are stored in 16 bits, up to 65,504."""
LEAST_FORGIVING = 20.0
"""dB between pictures whose latents are a tenth of a spread apart: closed-form autoencoders have 30 and more."""
WORST_COLOUR = 0.03
"""A shift of four levels of 255 in an even area can be seen."""
BELOW_BLOCKS, USELESS = 1.0, 20.0
"""dB by which reconstructions may be worse than a mean colour a place; and dB below which that is no use at all."""
MOST_LOST = 1.0
"""dB of held-out PSNR lost again: a critic that sharpens costs less."""
INVISIBLE = 40.0
"""dB above which a loss cannot be seen."""
CRITIC_WON = 0.97
"""Of its verdicts right: it has won, and a critic that has won only disturbs."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong. `grave`: diffusion on these latents would be a waste of time."""

    name: str
    what: str
    value: float
    threshold: float
    advice: str
    grave: bool


@dataclass(frozen=True)
class Diagnosis:
    findings: list[Finding]
    score: float
    """How much of a picture's looks is left after the autoencoder and the simplest of denoisers: 0 nothing, 1 all."""
    verdict: str

    @property
    def fit(self) -> bool:
        return not any(one.grave for one in self.findings)

    @property
    def advice(self) -> str:
        """What to do about the gravest, in a line."""
        worst = sorted(self.findings, key=lambda one: not one.grave)
        return f"{worst[0].what}; {worst[0].advice}" if worst else ""


def diagnose(measures: Measures) -> Diagnosis:
    findings = list(examine(measures)) if measures.contrast >= LEAST_CONTRAST else []
    score = fitness(measures)
    return Diagnosis(findings, score, verdict(measures, findings, score))


def examine(measures: Measures) -> Iterator[Finding]:
    if not measures.finite:
        yield not_finite()
        return
    sure = measures.pictures >= FEWEST
    for find in (of_channels, of_scale, of_reconstruction, of_decoder, of_critic):
        for finding in find(measures):
            yield finding if sure else Finding(**{**vars(finding), "grave": False})


def not_finite() -> Finding:
    advice = "start again with precision=float32 and a lower autoencoder.learn.learning_rate"
    return Finding("not finite", "latents or pictures are not numbers", math.nan, math.inf, advice, True)


# -- The latents -------------------------------------------------------------------------------------------------------


def of_channels(measures: Measures) -> Iterator[Finding]:
    channels = measures.channels
    silent, noisy = ([one for one in channels if one.signal < least] for least in (LEAST_SIGNAL, EVEN))
    if len(noisy) > MOST * len(channels):
        yield Finding(
            "posterior collapse",
            f"the posterior has collapsed: {share_of(noisy, channels)} hold more noise than picture",
            median(one.signal for one in noisy), EVEN,
            "lower autoencoder.losses.kl (1e-5 is the default) and train the autoencoder again", True,
        )  # fmt: skip
        return
    if silent:
        yield Finding(
            "dead channels", f"{share_of(silent, channels)} hold nothing of the picture",
            max(one.signal for one in silent), LEAST_SIGNAL,
            "take fewer autoencoder.network.channels, or a lower autoencoder.losses.kl", False,
        )  # fmt: skip
    loud = [one for one in channels if one.signal >= LEAST_SIGNAL]
    yield from of_most(
        "saturated channels", loud, lambda one: one.stuck, MOST_STUCK, "do not move when the picture does: they have "
        "run into a limit", "lower autoencoder.learn.learning_rate, and scale down what comes before the limit",
    )  # fmt: skip
    yield from of_most(
        "wrong statistics", loud, off, 1.0, f"are off mean 0 by more than {FARTHEST_MEAN:g} or off spread 1 by more "
        f"than {FARTHEST_STD:g} times", "measure mean and spread of the latents on the pictures to be trained on",
    )  # fmt: skip


def of_most(
    name: str, channels: list[Channel], value: Callable[[Channel], float], threshold: float, what: str, advice: str
) -> Iterator[Finding]:
    """One finding on all channels above the threshold, if there are any."""
    wrong = [one for one in channels if value(one) > threshold]
    if wrong:
        grave = len(wrong) > MOST * len(channels)
        yield Finding(name, f"{share_of(wrong, channels)} {what}", max(map(value, wrong)), threshold, advice, grave)


def share_of(affected: list[Channel], channels: list[Channel]) -> str:
    return f"{len(affected)} of {len(channels)} channels"


def off(channel: Channel) -> float:
    """Above 1 for a channel whose mean or spread is too far from 0 and 1."""
    spread = math.inf if channel.std <= 0 else abs(math.log(channel.std)) / math.log(FARTHEST_STD)
    return max(abs(channel.mean) / FARTHEST_MEAN, spread)


def of_scale(measures: Measures) -> Iterator[Finding]:
    largest = max(one.raw_std for one in measures.channels)
    if largest > LARGEST_STD:
        yield Finding(
            "exploding scale", f"the encoder's values spread by {largest:,.0f}; nothing holds their scale",
            largest, LARGEST_STD, "set autoencoder.losses.kl above 0 (1e-5 is the default)", largest > LARGEST_STD**2,
        )  # fmt: skip


# -- The pictures ------------------------------------------------------------------------------------------------------


def of_reconstruction(measures: Measures) -> Iterator[Finding]:
    measured = measures.reconstruction
    if measured.psnr < measured.blocks - BELOW_BLOCKS:
        yield Finding(
            "poor reconstruction",
            f"reconstructions have {measured.psnr:.1f} dB, less than a mean colour for each place "
            f"({measured.blocks:.1f} dB)",
            measured.psnr, measured.blocks - BELOW_BLOCKS,
            "the decoder has not learned to read these latents: train it longer, or with a lower learning rate",
            measured.psnr < USELESS,
        )  # fmt: skip
    shift = max(map(abs, measures.colour))
    if shift > WORST_COLOUR:
        yield Finding(
            "colour bias", f"even areas come back {shift * 127.5:.0f} levels of 255 lighter or darker",
            shift, WORST_COLOUR, "train the autoencoder longer, on whole pictures (autoencoder.crop=0)", False,
        )  # fmt: skip


def of_decoder(measures: Measures) -> Iterator[Finding]:
    if measures.mistaken < LEAST_FORGIVING:
        yield Finding(
            "unforgiving decoder",
            f"latents {MISTAKE:g} of their spread apart decode to pictures {measures.mistaken:.1f} dB apart",
            measures.mistaken, LEAST_FORGIVING,
            "train the autoencoder longer, or on fewer channels (autoencoder.network.channels)", False,
        )  # fmt: skip


def of_critic(measures: Measures) -> Iterator[Finding]:
    critic = measures.critic
    if critic is None:
        return
    lost = min(critic.best, INVISIBLE) - critic.last
    if lost > MOST_LOST:
        yield Finding(
            "critic gone wild",
            f"held-out reconstructions fell from {critic.best:.1f} to {critic.last:.1f} dB with the critic",
            lost, MOST_LOST, "lower autoencoder.losses.adversarial, or set it to 0 to do without a critic", False,
        )  # fmt: skip
    if critic.right > CRITIC_WON:
        yield Finding(
            "critic has won",
            f"the critic is right in {critic.right:.0%} of its verdicts: what it says helps no longer",
            critic.right, CRITIC_WON,
            "lower autoencoder.critic_learn.learning_rate, or set autoencoder.losses.adversarial=0", False,
        )  # fmt: skip


# -- The whole ---------------------------------------------------------------------------------------------------------


def fitness(measures: Measures) -> float:
    """What is left of pictures after noise, the simplest denoiser and the decoder, less what wrong statistics cost.

    1 where nothing is lost, a half where what comes out is as far off as another picture; for pictures of one size.
    """
    lost = mean(measures.developed.values())
    return mean(map(agreement, measures.channels)) / (1 + lost) if math.isfinite(lost) else 0.0


def agreement(channel: Channel) -> float:
    """1 for a channel of mean 0 and spread 1: noise of a given sigma means there what it should."""
    return min(channel.std, 1 / max(channel.std, 1e-6)) / (1 + channel.mean**2)


def verdict(measures: Measures, findings: list[Finding], score: float) -> str:
    about = f"score {score:.2f}, {measures.reconstruction.psnr:.1f} dB"
    names = ", ".join(one.name for one in findings)
    if measures.contrast < LEAST_CONTRAST:
        return "The pictures hardly differ from one another, so there is nothing to judge."
    if any(one.grave for one in findings):
        return f"Not fit to diffuse ({about}): {names}."
    return f"Fit to diffuse ({about}), but: {names}." if findings else f"Fit to diffuse ({about}): nothing is wrong."
