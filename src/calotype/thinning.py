"""The steps in a log of any length in constant memory: neighbours are merged into buckets with mean, low and high."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from calotype.tables import number, numbers, within

STEPS_KEPT = 4096
"""Steps of a leg that are kept as they are: more than a month of training logs."""
STEP_TABLES = ("terms", "norms")
"""Of numbers, in a step."""


@dataclass
class StepBucket:
    """Lines of a log that follow each other; `event` is the last, which is returned alone where there is no other."""

    place: int
    event: dict[str, Any]
    seen: float
    lines: int = 1
    means: dict[tuple[str, str], float] = field(default_factory=dict)
    lows: dict[tuple[str, str], float] = field(default_factory=dict)
    highs: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def of(cls, place: int, event: dict[str, Any], seen: float) -> StepBucket:
        values = {(key, name): value for key in STEP_TABLES for name, value in numbers(within(event, key)).items()}
        values |= {("", name): value for name, value in numbers(event).items() if name == "images_a_second"}
        return cls(place, event, seen, 1, values, {**values}, {**values})

    def take(self, other: StepBucket) -> None:
        """Grows by the bucket that follows."""
        total = self.lines + other.lines
        for key, value in other.means.items():
            before = self.means.get(key, value)
            self.means[key] = before + (value - before) * other.lines / total
            self.lows[key] = min(other.lows[key], self.lows.get(key, value))
            self.highs[key] = max(other.highs[key], self.highs.get(key, value))
        self.event, self.seen, self.lines = other.event, other.seen, total

    def as_event(self) -> dict[str, Any]:
        """The last step, with means in the place of its numbers, and their extremes under `low` and `high`."""
        if self.lines == 1:
            return self.event
        bounds = {"low": nested(self.lows), "high": nested(self.highs)}
        means = nested(self.means)
        return {**self.event, **means.pop("", {}), **means, **bounds}


def nested(values: dict[tuple[str, str], float]) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for (table, name), value in values.items():
        tables.setdefault(table, {})[name] = value
    return tables


class Thinning:
    """The steps of a leg, in buckets of as many lines: of one, until there are more than `most`, then of two ..."""

    def __init__(self, most: int = STEPS_KEPT) -> None:
        self.buckets: list[StepBucket] = []
        self.most, self.lines = most, 1

    def add(self, place: int, event: dict[str, Any]) -> None:
        """Takes a step of the log, by its place there. One without images seen is left out.

        A run that went back to a checkpoint does steps again: buckets that reach behind it are dropped.
        """
        if (seen := number(event.get("images_seen"))) is None:
            return
        while self.buckets and self.buckets[-1].seen >= seen:
            self.buckets.pop()
        bucket = StepBucket.of(place, event, seen)
        if self.buckets and self.buckets[-1].lines < self.lines:
            self.buckets[-1].take(bucket)
            return
        self.buckets.append(bucket)
        if len(self.buckets) > self.most:
            for first, second in zip(self.buckets[::2], self.buckets[1::2], strict=False):
                first.take(second)
            self.buckets, self.lines = self.buckets[::2], 2 * self.lines

    def events(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Each with its place in the log."""
        return ((bucket.place, bucket.as_event()) for bucket in self.buckets)
