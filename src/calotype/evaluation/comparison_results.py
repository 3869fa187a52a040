"""The schema of `compare.json`: the measures of all runs, and a verdict on each of the lecture's claims."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from calotype.evaluation.results import LegGaps, Measure, Nearness, Schema, SetMeasures, StoredResult

# -- Cost --------------------------------------------------------------------------------------------------------------


class ParameterCounts(Schema):
    """`trained` here, `fitted` in closed form, or of a frozen `text_encoder`."""

    trained: int
    fitted: int
    text_encoder: int
    sum: int


class Deployment(Schema):
    """All that must be set up to make pictures, a text encoder outside of the model's folder too."""

    networks: dict[str, ParameterCounts]
    count: int
    """Of networks."""
    parameters: ParameterCounts
    widths_by_user: bool
    """Whether no denoiser has the width that the plan would choose."""
    resident_bytes: int
    sequential_bytes: int
    """Of the largest network: each can be loaded when its turn has come."""
    bytes: int
    files: list[str]


class BatchCost(Schema):
    """Time and peak memory of sampling `count` pictures at once."""

    count: int
    seconds_a_picture: float | None
    bytes: int | None
    reason: str | None = None


class SamplingCost(Schema):
    loaded_bytes: int | None
    """Memory of the process before it samples."""
    counts: list[BatchCost]
    reason: str | None = None


class PartCost(Schema):
    """One leg of training, forward and backward, or what is done once."""

    part: str
    flops: float | None
    seconds: float
    reason: str | None = None
    images_seen: float | None = None


class TrainingCost(Schema):
    parts: list[PartCost]
    seconds: float
    flops: float | None
    reason: str | None = None


class WallClock(Schema):
    """Seconds of a run by part; `other` is what no part has: starts, reports, work that was lost."""

    parts: dict[str, float]
    seconds: float | None
    other: float | None
    reason: str | None = None


class Cost(Schema):
    flops_a_picture: int
    sampling: SamplingCost
    training: TrainingCost
    clock: WallClock


# -- Quality -----------------------------------------------------------------------------------------------------------


class StageQuality(Schema):
    size: int
    sampled: SetMeasures
    given_real: SetMeasures | None = None
    """Of pictures enlarged from real ones."""


class Quality(Schema):
    whole: SetMeasures
    stages: list[StageQuality]
    autoencoder: SetMeasures | None = None


# -- Learning ----------------------------------------------------------------------------------------------------------


class Overfitting(Schema):
    legs: list[LegGaps]
    nearest: Nearness


class LogSpread(Schema):
    """Relative standard deviation of a network's loss and gradient norm from line to line of the log of a leg."""

    leg: str
    network: str
    steps_a_line: float
    loss_spread: float | None
    norm_spread: float | None
    clip: float
    clipped: float
    """Share of the lines whose gradient norm is above `clip`."""
    lines: int
    reason: str | None = None


# -- Error propagation -------------------------------------------------------------------------------------------------


class ArmSurvival(Measure):
    """Of all corruptions at the middle strength, one way to go on from them."""

    level: float
    """Of augmentation in a cascade; sigma in latents."""


class SurvivalPoint(Schema):
    """Of one corruption at one strength, over `n` pictures. `survival`: norm of the error left by that of the added."""

    arm: str
    level: float
    corruption: str
    strength: float
    survival: Measure
    psnr: float
    """In dB, of the final pictures with and without the error."""
    perceptual: float
    n: int


class Propagation(Schema):
    """Survival of errors by arm; `own` is the arm with which the model is sampled. `reason`: why there is none."""

    size: int = 0
    n: int = 0
    strength: float = 0.0
    arms: dict[str, ArmSurvival]
    points: list[SurvivalPoint]
    effects: dict[str, Measure] = Field(default={})
    """By how much more survives in an arm than without a mechanism, paired by picture."""
    own: str = "none"
    exposure: bool = False
    """Whether a stage that enlarges had exposure fine-tuning."""
    autoencoder_error: Measure | None = None
    reason: str | None = None


# -- The file ----------------------------------------------------------------------------------------------------------


class RunMeasures(Schema):
    key: str
    name: str
    folder: str
    kind: str
    prior: bool
    chain: list[int]
    seed: int
    grid: str
    deployment: Deployment
    cost: Cost
    quality: Quality
    overfitting: Overfitting
    stability: list[LogSpread]
    propagation: Propagation


class ClaimVerdict(Schema):
    """What the runs of one setting say about one claim of the lecture."""

    time: str
    claim: str
    ours: bool
    """Not in the lecture: a reading of ours."""
    setting: str
    verdict: str
    sentence: str


class ComparisonResult(StoredResult):
    format: Literal[4]
    data: str
    classes: list[str]
    count: int
    matched_sigma: float
    """Noise at which errors are put into latents."""
    runs: list[RunMeasures]
    floor: list[SetMeasures]
    verdicts: list[ClaimVerdict]
