"""Bounds of all numbers in recipes, in stored files and on the command line, as annotated types.

They are generous: days on eight large GPUs, denoisers of a billion parameters, pictures of 8,192 px. Beyond them is a
slip of the pen, or a file that is meant to do harm. What products of such numbers need is up to the plan.
"""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field

LARGEST_SIDE, MAX_SAMPLES, MAX_FRAMES, MAX_SAMPLING_STEPS, LARGEST_SEED = 8192, 10**6, 10_000, 10_000, 2**62
LONGEST_BUDGET = 366 * 24 * 3600
"""Seconds."""
BUDGET_PATTERN = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m(?:in)?)?(?:(\d{1,9})s)?")


def seconds_in(text: str) -> int:
    """A time such as `90`, `20s`, `10m`, `1h30m` or `2d`, above 0. Raises `ValueError`."""
    short = text.strip().lower()
    match = BUDGET_PATTERN.fullmatch(f"{short}s" if short.isdigit() else short)
    days, hours, minutes, rest = (int(part or 0) for part in match.groups()) if match else (0, 0, 0, 0)
    if not 1 <= (total := ((24 * days + hours) * 60 + minutes) * 60 + rest) <= LONGEST_BUDGET:
        raise ValueError(f"{text!r:.40} is not a time such as 20s, 10m or 1h30m, of at most a year")
    return total


# -- Pictures ----------------------------------------------------------------------------------------------------------

Side = Annotated[int, Field(strict=True, gt=0, le=LARGEST_SIDE)]
"""Of pictures, in pixels."""
CropSide = Annotated[int, Field(strict=True, ge=0, le=LARGEST_SIDE)]
"""The same; 0 stands for whole pictures."""
PatchSide = Annotated[int, Field(strict=True, gt=0, le=LARGEST_SIDE)]
MAX_IMAGES = 10**13
ImageCount = Annotated[int, Field(strict=True, ge=0, le=MAX_IMAGES)]
"""Of pictures seen in training, repeats counted."""
ViewCount = Annotated[int, Field(strict=True, ge=0, le=64)]
"""Of crops of each picture."""
PictureCount = Annotated[int, Field(strict=True, gt=0, le=10**6)]
BatchSize = Annotated[int, Field(strict=True, gt=0, le=2**16)]
MAX_STAGES = 8
BucketCount = Annotated[int, Field(strict=True, gt=0, le=64)]

# -- Networks ----------------------------------------------------------------------------------------------------------

Channels = Annotated[int, Field(strict=True, gt=0, le=2**14)]
"""Of a layer: its width."""
Depth = Annotated[int, Field(strict=True, gt=0, le=256)]
"""Layers of a transformer."""
BlockCount = Annotated[int, Field(strict=True, gt=0, le=32)]
"""At each level of a convolutional network."""
HeadCount = Annotated[int, Field(strict=True, gt=0, le=256)]
WidthMultiple = Annotated[int, Field(strict=True, gt=0, le=64)]
Expansion = Annotated[float, Field(strict=True, gt=0, le=64)]
DropoutRate = Annotated[float, Field(strict=True, ge=0, lt=1)]
MAX_LEVELS = 8
"""Resolutions of a network: each halves the one before."""
Level = Annotated[int, Field(strict=True, ge=0, lt=MAX_LEVELS)]

# -- Training ----------------------------------------------------------------------------------------------------------

Fraction = Annotated[float, Field(strict=True, ge=0, le=1)]
PositiveFraction = Annotated[float, Field(strict=True, gt=0, le=1)]
OpenFraction = Annotated[float, Field(strict=True, gt=0, lt=1)]
LossWeight = Annotated[float, Field(strict=True, ge=0, le=1e6)]
ChannelWeighting = Annotated[float, Field(strict=True, ge=0, le=4)]
"""An exponent."""
LearningRate = Annotated[float, Field(strict=True, gt=0, le=10)]
WeightDecay = Annotated[float, Field(strict=True, ge=0, le=100)]
GradientNorm = Annotated[float, Field(strict=True, gt=0, le=1e9)]
SeedNumber = Annotated[int, Field(strict=True, ge=-LARGEST_SEED, le=LARGEST_SEED)]

# -- Noise and sampling ------------------------------------------------------------------------------------------------

Sigma = Annotated[float, Field(strict=True, gt=0, le=1e9)]
LogSigma = Annotated[float, Field(strict=True, ge=-20, le=20)]
LogDeviation = Annotated[float, Field(strict=True, gt=0, le=20)]
SigmaShift = Annotated[float, Field(strict=True, ge=1e-4, le=1e4)]
SigmaData = Annotated[float, Field(strict=True, gt=0, le=1e3)]
AugmentationLevel = Annotated[float, Field(strict=True, ge=0, le=64)]
PositiveLevel = Annotated[float, Field(strict=True, gt=0, le=64)]
SamplingSteps = Annotated[int, Field(strict=True, gt=0, le=MAX_SAMPLING_STEPS)]
GuidanceScale = Annotated[float, Field(strict=True, ge=0, le=1e3)]
