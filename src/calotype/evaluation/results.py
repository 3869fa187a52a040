"""The stored results of `evaluate` and `sweep`, and the measures that they share with `compare`'s.

A measure is a value with its 95 % interval, or no value and the reason. What is stored is checked against these models
when it is written and when it is read, so the pages need no defaults of their own.
"""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calotype.evaluation.intervals import Estimate
from calotype.files import write_json
from calotype.machine import device_name
from calotype.run import read_mapping
from calotype.tables import within

EVALUATION_FILE, COMPARISON_FILE, SWEEP_FILE = "evaluation.json", "compare.json", "sweep.json"
PAIRS_FILE, PROMPTED_FILE = "nearest.png", "prompted.png"
Json = dict[str, Any]
CopyVerdict = Literal["copies", "does not copy", "too few to say"]


class MissingError(ValueError):
    """A measure that is needed was not taken; the message says why."""


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)

    def stored(self) -> Json:
        """As JSON: only what was set, and null for numbers that are not finite."""
        return dict(json.loads(self.model_dump_json(by_alias=True, exclude_unset=True)))


# -- Measures ----------------------------------------------------------------------------------------------------------


class Measure(Schema):
    """`low` and `high` are the ends of the 95 % interval.

    They are None where one value has no spread, and of precision, recall, density and coverage, which have no interval.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    reason: str | None = None
    """Why there is no value, or no interval."""

    @property
    def estimate(self) -> Estimate:
        """Without an interval it is as wide as can be. Raises `MissingError` where there is no value."""
        if self.value is None:
            raise MissingError(f"It was not measured: {self.reason or 'there is no value'}.")
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        return Estimate(self.value, low, high)


class SetMeasures(Schema):
    """Distances and overlaps of two sets of pictures by name; the Fréchet distance by its network: `fd_lite0`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Measure]
    n: tuple[int, int]
    """How many samples, and how many real pictures."""
    size: int | None = None

    @classmethod
    def of(cls, n: tuple[int, int], measures: Mapping[str, Measure]) -> SetMeasures:
        return cls.model_validate({"n": n, **measures})

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.__pydantic_extra__ or {})

    def get(self, name: str) -> Measure:
        """Without a value where it was not measured."""
        return (self.__pydantic_extra__ or {}).get(name) or Measure(value=None, reason=f"there is no {name}")


class Columns(Schema):
    """Samples (or reconstructions) beside the floor, other real pictures, and the ceiling, noise (or no training)."""

    samples: SetMeasures
    floor: SetMeasures
    ceiling: SetMeasures


class ClassMeasures(Schema):
    name: str = Field(alias="class")
    samples: SetMeasures
    floor: SetMeasures


class FeatureInfo(Schema):
    network: str
    distance: str
    """`FID` of Inception alone, else `FD-` and the network's name."""
    key: str
    weights_sha256: str
    preparation: str


class Copies(Schema):
    """Of one set against the training pictures; distances are medians, see `memorisation.Nearest`."""

    copies: Measure
    ratio_median: float
    apart_median: float
    feature_distance_median: float


class AgainstTest(Schema):
    """Samples among training and test pictures together: see `memorisation.Found`."""

    of_training: int
    of_test: int
    """Samples that look like copies of training and of test pictures."""
    chance: float
    """How often a picture that looks copied is a test picture by chance; `chance_of_nearest`: the nearest is."""
    chance_of_nearest: float
    memorised: Measure
    nearest_is_training: Measure


class Memorisation(Schema):
    verdict: CopyVerdict
    sentence: str
    samples: Copies | None = None
    real: Copies | None = None
    real_are: str = ""
    among_test: AgainstTest | None = None
    duplicates: Measure | None = None
    """Share of training pictures with a near-duplicate among the others."""
    n: tuple[int, int, int] | None = None
    """Samples, real pictures, training pictures."""
    note: str = ""


class Retrieval(Measure):
    """How often a test picture has the smallest denoising loss with its own caption among `candidates`."""

    n: int | None = None
    candidates: int | None = None
    chance: float | None = None
    levels: int | None = None
    stage_size: int | None = None


class Accuracy(Measure):
    n: int
    chance: float


class Attribute(Schema):
    """How often an attribute of the prompt is in the sample, by language, and in real pictures of that caption."""

    about: str
    samples: list[Measure]
    n: int
    chance: float
    real: Accuracy


class PropertyShare(Schema):
    """How many of the samples of prompts, and of real test pictures, show something."""

    about: str
    samples: Measure
    real: Measure
    n: tuple[int, int]
    agrees: bool
    """Whether 0 lies in the interval of the difference."""


class Alignment(Schema):
    """Of prompts with samples. `reason`: why it was not measured."""

    reason: str | None = None
    languages: list[str] = []
    retrieval: list[Retrieval] = []
    attributes: list[Attribute] = []
    left_out: list[str] = []
    prompts: list[str] = []


class Gap(Schema):
    images_seen: float
    held_out: float
    train: float
    gap: float


class LegGaps(Schema):
    """Held-out loss relative to train loss, less 1, over a leg; by noise level."""

    leg: str
    growth: float
    levels: dict[str, list[Gap]]


class Nearness(Schema):
    """How near samples lie to training pictures in feature space; `nearer`: than 95 % of held-out pictures."""

    samples_median: float | None
    held_out_median: float | None
    nearer: Measure | None
    reason: str = ""
    n: tuple[int, int, int]


# -- Files -------------------------------------------------------------------------------------------------------------


class StoredResult(Schema):
    """One file: what it was measured with, and the measures."""

    format: int
    created: str
    versions: dict[str, str]
    device: str
    size: int
    seed: int
    notes: list[str]


class EvaluationResult(StoredResult):
    format: Literal[2]
    content: str
    unseen: bool | None
    """Whether the run has trained on none of the real pictures; None: not known."""
    pictures: dict[str, int]
    kind: str
    count: int
    sampling: list[dict[str, Any]]
    features: FeatureInfo
    measures: Columns
    classes: list[ClassMeasures]
    autoencoder: Columns | None
    memorisation: Memorisation
    alignment: Alignment
    overfitting: list[LegGaps]
    shares: list[PropertyShare] = []


class Cell(Schema):
    """One sampling of a grid, and the distances of its pictures from real ones."""

    steps: int
    guidance: float
    guide: str = "unconditional"
    calls: int
    """Of the network, for a picture."""
    fd_lite0: Measure
    kernel_distance: Measure
    behind: Measure
    """FD-Lite0 less that of the smallest cell: paired by seed, so its interval is narrower than either's."""
    sampling: Json


class SweepResult(Schema):
    """Sampling settings of the first stage, tried against validation pictures."""

    format: Literal[1]
    size: int
    n: int
    seed: int
    content: str
    rows: list[int]
    """The real pictures it chose by."""
    cells: list[Cell]
    best: Cell
    stored_with_model: bool = Field(alias="stored")
    before: dict[str, Any]
    floor: SetMeasures
    why: str
    notes: list[str]
    data: str


Results = TypeVar("Results", bound=Schema)


def measured_with(device: torch.device) -> Json:
    """When, with what and where a result was measured."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"calotype": version("calotype"), "torch": version("torch")},
        "device": f"{device.type} ({device_name(device)}, {torch.get_num_threads()} threads)",
    }


def write_result(path: Path, result: Schema) -> None:
    write_json(path, result.stored())


def read_result(path: Path, schema: type[Results]) -> Results | None:
    """None where there is no file, a damaged one, or one of a format that cannot be read."""
    try:
        return schema.model_validate(upgraded_evaluation(read_mapping(path)))
    except ValidationError:
        return None


def upgraded_evaluation(stored: Json) -> Json:
    """An evaluation of format 1, with the names of format 2; all else as it is."""
    if stored.get("format") != 1 or "obedience" not in stored:
        return stored
    names = {"obedience": "alignment", "gaps": "overfitting"}
    renamed = {names.get(name, name): value for name, value in stored.items()}
    copies = {
        "duplicates" if name == "twins" else name: value for name, value in within(stored, "memorisation").items()
    }
    return {**renamed, "format": 2, "memorisation": copies}
