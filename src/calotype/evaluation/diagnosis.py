"""What the measures of an autoencoder mean: findings with what to change, a verdict in a sentence, and a score."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median

from calotype.evaluation.autoencoder import LATENT_ERROR, AutoencoderMeasures, Channel
from calotype.evaluation.results import Schema

LEAST_CONTRAST = 0.02
"""Pictures that vary by less than two or three levels of 255 say nothing about an autoencoder."""
FEWEST_TO_BE_SURE = 4
"""With fewer pictures than this nothing is so sure that a run should end for it."""
MOST_AFFECTED = 0.5
"""What is wrong with more than this share of the channels is wrong with all of it; else it is a loss."""
LEAST_SIGNAL, EVEN_SIGNAL = 0.1, 0.5
"""A channel that is nine tenths noise gives a decoder next to nothing; where most channels have more noise than
picture, a decoder sees no more than a denoiser does half way."""
MOST_STUCK = 0.5
"""A channel most of whose values do not change when every pixel does has run into a limit."""
FARTHEST_MEAN, FARTHEST_STD = 0.5, 2.0
"""Held-out pictures are off by a tenth; a mean half a standard deviation off, or a standard deviation twice or half of
1, is no chance."""
LARGEST_STD = 100.0
"""Good latents have 1 to 6; a raw standard deviation of 100 grows on, and latents are stored in 16 bits, up to
65,504."""
LEAST_ROBUSTNESS = 20.0
"""dB between pictures whose latents are `LATENT_ERROR` apart: closed-form autoencoders have 30 and more."""
WORST_COLOUR = 0.03
"""A shift of four levels of 255 in an even area can be seen."""
BELOW_BLOCKS, USELESS_PSNR = 1.0, 20.0
"""dB by which reconstructions may be worse than the mean colours of patches; and dB below which they are no use."""
MOST_LOST, INVISIBLE = 1.0, 40.0
"""dB of held-out PSNR lost again: a critic that sharpens costs less. Above `INVISIBLE` a loss cannot be seen."""
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


class Diagnosis(Schema):
    verdict: str
    fit: bool
    """To diffuse on: no finding is grave."""
    score: float
    """How much of a picture's looks is left after the autoencoder and the simplest of denoisers: 0 nothing, 1 all."""
    findings: list[Finding]
    measures: AutoencoderMeasures

    @property
    def advice(self) -> str:
        """What to do about the gravest, in a line."""
        worst = sorted(self.findings, key=lambda finding: not finding.grave)
        return f"{worst[0].what}; {worst[0].advice}" if worst else ""

    @property
    def lines(self) -> list[str]:
        """For the terminal."""
        findings = (f"- {each.name}: {each.what}; {each.advice}" for each in self.findings)
        return [f"autoencoder: {self.verdict}", *findings]


class InspectionResult(Diagnosis):
    """`inspection.json`."""

    format: int
    name: str
    """Of the run."""
    created: str
    data: str
    state: str
    """Of the autoencoder: finished, or after how many images."""
    device: str
    foreign: bool
    """Whether the pictures are not those of the run."""


def diagnose(measures: AutoencoderMeasures) -> Diagnosis:
    findings = list(all_findings(measures)) if measures.contrast >= LEAST_CONTRAST else []
    fit, score = not any(finding.grave for finding in findings), fitness(measures)
    about = f"score {score:.2f}, {measures.reconstruction.psnr:.1f} dB"
    names = ", ".join(finding.name for finding in findings)
    if measures.contrast < LEAST_CONTRAST:
        verdict = "The pictures hardly differ from one another, so there is nothing to judge."
    elif not fit:
        verdict = f"Not fit to diffuse ({about}): {names}."
    else:
        verdict = f"Fit to diffuse ({about})" + (f", but: {names}." if findings else ": nothing is wrong.")
    return Diagnosis(verdict=verdict, fit=fit, score=score, findings=findings, measures=measures)


def all_findings(measures: AutoencoderMeasures) -> Iterator[Finding]:
    if not measures.finite:
        advice = "start again with precision=float32 and a lower autoencoder.learn.learning_rate"
        yield Finding("not finite", "latents or pictures are not finite", math.nan, math.inf, advice, True)
        return
    sure = measures.pictures >= FEWEST_TO_BE_SURE
    for finding in (*channel_findings(measures.channels), *picture_findings(measures)):
        yield replace(finding, grave=finding.grave and sure)


def exceeds(
    name: str, value: float, threshold: float, what: str, advice: str, grave: bool = False
) -> Iterator[Finding]:
    if value > threshold:
        yield Finding(name, what, value, threshold, advice, grave)


def channel_findings(channels: Sequence[Channel]) -> Iterator[Finding]:
    silent, noisy = (
        [channel.signal for channel in channels if channel.signal < least] for least in (LEAST_SIGNAL, EVEN_SIGNAL)
    )
    if len(noisy) > MOST_AFFECTED * len(channels):
        yield Finding(
            "posterior collapse",
            f"the posterior has collapsed: {len(noisy)} of {len(channels)} channels hold more noise than picture",
            median(noisy), EVEN_SIGNAL,
            "lower autoencoder.losses.kl (1e-5 is the default) and train the autoencoder again", True,
        )  # fmt: skip
    else:
        if silent:
            yield Finding(
                "dead channels", f"{len(silent)} of {len(channels)} channels hold nothing of the picture",
                max(silent), LEAST_SIGNAL,
                "take fewer autoencoder.network.channels, or a lower autoencoder.losses.kl", False,
            )  # fmt: skip
        loud = [channel for channel in channels if channel.signal >= LEAST_SIGNAL]
        yield from of_channels(
            "saturated channels", [channel.stuck for channel in loud], MOST_STUCK,
            "do not change with the picture: they are saturated",
            "lower autoencoder.learn.learning_rate, and scale down what comes before the limit",
        )  # fmt: skip
        yield from of_channels(
            "wrong statistics", list(map(statistics_error, loud)), 1.0, f"are off mean 0 by more than "
            f"{FARTHEST_MEAN:g} or off spread 1 by more than {FARTHEST_STD:g} times",
            "measure mean and spread of the latents on the pictures to be trained on",
        )  # fmt: skip
    largest = max(channel.raw_std for channel in channels)
    yield from exceeds(
        "exploding scale", largest, LARGEST_STD, f"the encoder's values spread by {largest:,.0f}; nothing holds their "
        "scale", "set autoencoder.losses.kl above 0 (1e-5 is the default)", largest > LARGEST_STD**2,
    )  # fmt: skip


def of_channels(name: str, values: Sequence[float], threshold: float, what: str, advice: str) -> Iterator[Finding]:
    """One finding on all channels above the threshold, if there are any."""
    if wrong := [value for value in values if value > threshold]:
        grave = len(wrong) > MOST_AFFECTED * len(values)
        yield Finding(
            name, f"{len(wrong)} of {len(values)} channels {what}", max(wrong), threshold, advice, grave
        )  # fmt: skip


def statistics_error(channel: Channel) -> float:
    """Above 1 for a channel whose mean or standard deviation is too far from 0 and 1."""
    spread = math.inf if channel.std <= 0 else abs(math.log(channel.std)) / math.log(FARTHEST_STD)
    return max(abs(channel.mean) / FARTHEST_MEAN, spread)


def picture_findings(measures: AutoencoderMeasures) -> Iterator[Finding]:
    quality, shift = measures.reconstruction, max(map(abs, measures.colour))
    if quality.psnr < quality.blocks - BELOW_BLOCKS:
        yield Finding(
            "poor reconstruction",
            f"reconstructions have {quality.psnr:.1f} dB, less than a mean colour for each place "
            f"({quality.blocks:.1f} dB)",
            quality.psnr, quality.blocks - BELOW_BLOCKS,
            "the decoder has not learned to read these latents: train it longer, or with a lower learning rate",
            quality.psnr < USELESS_PSNR,
        )  # fmt: skip
    yield from exceeds(
        "colour bias", shift, WORST_COLOUR, f"even areas come back {shift * 127.5:.0f} levels of 255 lighter or darker",
        "train the autoencoder longer, on whole pictures (autoencoder.crop=0)",
    )  # fmt: skip
    if measures.mistaken < LEAST_ROBUSTNESS:
        yield Finding(
            "unforgiving decoder",
            f"latents {LATENT_ERROR:g} of their spread apart decode to pictures {measures.mistaken:.1f} dB apart",
            measures.mistaken, LEAST_ROBUSTNESS,
            "train the autoencoder longer, or on fewer channels (autoencoder.network.channels)", False,
        )  # fmt: skip
    if critic := measures.critic:
        yield from exceeds(
            "critic gone wild", min(critic.best, INVISIBLE) - critic.last, MOST_LOST,
            f"held-out reconstructions fell from {critic.best:.1f} to {critic.last:.1f} dB with the critic",
            "lower autoencoder.losses.adversarial, or set it to 0 to do without a critic",
        )  # fmt: skip
        yield from exceeds(
            "critic has won", critic.right, CRITIC_WON,
            f"the critic is right in {critic.right:.0%} of its verdicts: it no longer helps",
            "lower autoencoder.critic_learn.learning_rate, or set autoencoder.losses.adversarial=0",
        )  # fmt: skip


# -- The score ---------------------------------------------------------------------------------------------------------


def fitness(measures: AutoencoderMeasures) -> float:
    """What is left of pictures after noise, the simplest denoiser and the decoder, less what wrong statistics cost.

    1 where nothing is lost, a half where what comes out is as far off as another picture; for pictures of one size.
    """
    lost = mean(measures.developed.values())
    return mean(map(agreement, measures.channels)) / (1 + lost) if math.isfinite(lost) else 0.0


def agreement(channel: Channel) -> float:
    """1 for a channel of mean 0 and standard deviation 1: there, noise of a given sigma means what it should."""
    return min(channel.std, 1 / max(channel.std, 1e-6)) / (1 + channel.mean**2)
