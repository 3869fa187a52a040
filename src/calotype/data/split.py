"""Three sets of pictures: to train on, to choose by (validation), and to report on (test), which nothing else sees.

Each class has its share of each, and near-duplicates lie in one set: otherwise a measure on the test set would reward
a model that knows it by heart (Barz and Denzler, arXiv 1902.00423, found up to 10% such pictures in CIFAR).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from pydantic import Field, model_validator
from torch import Tensor

from calotype.data.images import shown
from calotype.data.prints import Prints, neighbours, prints_of
from calotype.files import read_json
from calotype.types import NULL_LABEL, Config, Labels

VERSION = 1
FILE = "split.json"
MOST_VALIDATION, MOST_TEST = 500, 2000
MOST_BY_OLD_RULE = 1000
LARGEST_GROUP = 64
"""Near-duplicates of one picture that may be kept out of training together."""
AHEAD = 3
"""Links between pictures that look alike that are followed for all candidates at once."""
SPARE = 4
"""Candidates of a class that are looked at beyond twice as many as are wanted."""
TRAIN, VALIDATION, TEST = 0, 1, 2

Counts = Int[np.ndarray, " strata"]


class SplitConfig(Config):
    """Fractions of the pictures; what is left is trained on."""

    validation: float = Field(default=0.05, gt=0, le=0.5)
    """For every choice made in training and by `sweep`; at most 500 pictures."""
    test: float = Field(default=0.1, ge=0, le=0.5)
    """For `evaluate` and `compare` alone; at most 2,000 pictures. 0: the test pictures are in a folder of their own."""

    @model_validator(mode="after")
    def _half(self) -> SplitConfig:
        if self.validation + self.test > 0.5:
            raise ValueError(
                f"validation and test are {self.validation:g} and {self.test:g}, but must be 0.5 at most together, as "
                f"half of every class is trained on; make one of them smaller"
            )
        return self


DEFAULT = SplitConfig()


@dataclass(frozen=True, eq=False)
class Split:
    """Which pictures are in which set. Each is in one of them, but where there are too few (see `shared`)."""

    train: Bool[Tensor, " count"]
    validation: Bool[Tensor, " count"]
    test: Bool[Tensor, " count"]
    notes: tuple[str, ...] = ()  # plain sentences for the plan

    def __len__(self) -> int:
        return len(self.train)

    def at(self, chosen: Int[Tensor, " _"]) -> Split:
        return Split(self.train[chosen], self.validation[chosen], self.test[chosen], self.notes)

    @property
    def sets(self) -> dict[str, Bool[Tensor, " count"]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    @property
    def counts(self) -> dict[str, int]:
        return {name: int(inside.sum()) for name, inside in self.sets.items()}

    def as_json(self) -> dict[str, Any]:
        """The rows of each set, which belong to pictures of the same content."""
        rows = {name: inside.nonzero().flatten().tolist() for name, inside in self.sets.items()}
        return {"version": VERSION, "count": len(self), **rows}


Rule = Callable[[UInt8[Tensor, "count 3 rows columns"], Labels, Sequence[str]], Split]
"""From pixels, labels and classes, in the order of content hashes, to the split."""


def three_sets(
    pixels: UInt8[Tensor, "count 3 rows columns"],
    labels: Labels,
    classes: Sequence[str] = (),
    config: SplitConfig = DEFAULT,
) -> Split:
    """Stratified by class, near-duplicates on one side; within a class by content hash, the order of the rows."""
    strata, count = strata_of(labels), len(labels)
    sizes = np.array([len(rows) for rows in strata])
    room = sizes // 2  # at least half of every class is trained on
    if not room.any():
        return shared(strata, wanted(config, count, 2 * count))
    validation, test = wanted(config, count, int(room.sum()))
    for_test = quotas(sizes, room, test)
    share = {TEST: for_test, VALIDATION: quotas(sizes, room - for_test, validation)}
    sets, apart = drawn(strata, share, prints_of(pixels))
    return split_of_sets(sets, [*count_notes(sets, config), *apart, *class_notes(sets, strata, labels, classes)])


def first_tenth(pixels: UInt8[Tensor, "count 3 rows columns"], labels: Labels, classes: Sequence[str] = ()) -> Split:
    """The rule of runs without a recorded split: what was held out for choices was reported on, too."""
    count = len(labels)
    held_out = torch.arange(count) < min(MOST_BY_OLD_RULE, max(1, count // 10))
    return Split(~held_out if count > 1 else held_out, held_out, held_out)


def recorded(found: dict[str, Any]) -> Rule:
    """The split in a run's `split.json`, as long as its pictures are there; other pictures are split anew."""

    def rule(pixels: UInt8[Tensor, "count 3 rows columns"], labels: Labels, classes: Sequence[str] = ()) -> Split:
        if len(labels) != found["count"]:
            return three_sets(pixels, labels, classes)
        train, validation, test = (rows_set(found[name], len(labels)) for name in ("train", "validation", "test"))
        return Split(train, validation, test)

    return rule


def rule_of(run: Path) -> Rule:
    """That by which the pictures of the run in this folder were split."""
    return recorded(read_json(run / FILE)) if (run / FILE).is_file() else first_tenth


def rows_set(rows: Sequence[int], count: int) -> Bool[Tensor, " count"]:
    return torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.long), True)


def split_of_sets(sets: Int[np.ndarray, " count"], notes: Iterable[str]) -> Split:
    """From TRAIN, VALIDATION or TEST for each picture."""
    of = torch.from_numpy(sets)
    return Split(of == TRAIN, of == VALIDATION, of == TEST, tuple(notes))


def shared(strata: Sequence[Sequence[int]], wanted: tuple[int, int]) -> Split:
    """Where no class has a picture to spare, all are trained on, and some of them are in the other sets as well."""
    sizes = np.array([len(rows) for rows in strata])
    count = int(sizes.sum())

    def first(total: int) -> Bool[Tensor, " count"]:
        pairs = zip(strata, quotas(sizes, sizes, total), strict=True)
        return rows_set([row for rows, number in pairs for row in rows[:number]], count)

    validation, test = map(first, wanted)
    note = "there is only 1 picture: it is trained on, and held out as well"
    if count > 1:
        note = (
            f"no class has more than 1 picture, so all {count} are trained on, and {int((validation | test).sum())} "
            f"of them are held out as well: no measure says how new pictures fare"
        )
    return Split(torch.ones(count, dtype=torch.bool), validation, test, (note,))


# -- How many ----------------------------------------------------------------------------------------------------------


def strata_of(labels: Labels) -> list[list[int]]:
    """The rows of each class, and of the pictures without a label; in the order of their first rows, not of names."""
    strata: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        strata.setdefault(label, []).append(row)
    return list(strata.values())


def wanted(config: SplitConfig, count: int, afforded: int) -> tuple[int, int]:
    """Validation and test pictures: at least one each, as far as `afforded` reaches; one for validation comes first."""
    validation = min(MOST_VALIDATION, max(1, int(config.validation * count + 1e-9)))
    test = min(MOST_TEST, max(1, int(config.test * count + 1e-9))) if config.test else 0
    if validation + test <= afforded:
        return validation, test
    validation = max(1, afforded * validation // (validation + test))
    return validation, min(test, afforded - validation)


def quotas(sizes: Counts, room: Counts, total: int) -> Counts:
    """`total` divided in proportion to `sizes` by largest remainders; no share is larger than its `room`.

    So the sum is `total`, or all of the room. Equal remainders go to the first.
    """
    exact = total * sizes / sizes.sum()
    shares = np.minimum(np.floor(exact).astype(int), room)
    for _ in range(min(total, int(room.sum())) - int(shares.sum())):
        shares[np.where(shares < room, exact - shares, -np.inf).argmax()] += 1
    return shares


# -- Which -------------------------------------------------------------------------------------------------------------


def drawn(
    strata: Sequence[Sequence[int]], share: dict[int, Counts], prints: Prints
) -> tuple[Int[np.ndarray, " count"], list[str]]:
    """The set of each picture, and a note where near-duplicates could not be separated.

    Test pictures are taken from the first of each class, validation from the last, so a picture more or less changes
    little. Most pictures of a series that look alike could never be held out; if that leaves less than half of either
    set, a split that ignores likeness is the better one.
    """
    simple = np.full(len(prints), TRAIN)
    for name, counts in share.items():
        for rows, number in zip(strata, counts, strict=True):
            simple[turned(rows, name)[:number]] = name
    sets = separated(strata, share, prints, np.flatnonzero(simple).tolist())
    if all(2 * (sets == name).sum() >= counts.sum() for name, counts in share.items()):
        return sets, []
    return simple, [
        "so many pictures look alike that near-duplicates could not be kept in one set: validation and test pictures "
        "look like training pictures, and measures on them flatter a model that copies"
    ]


def turned(rows: Sequence[int], name: int) -> Sequence[int]:
    return rows if name == TEST else rows[::-1]


def separated(
    strata: Sequence[Sequence[int]], share: dict[int, Counts], prints: Prints, first: Sequence[int]
) -> Int[np.ndarray, " count"]:
    """The set of each picture, where those that look alike are in the same one; `first` are compared first."""
    total = sum(int(counts.sum()) for counts in share.values())
    groups = Groups(prints, min(LARGEST_GROUP, max(3, total // 2)), limit=1000 + 2 * total)
    groups.learn(first)
    if not groups.are_small(first):
        return np.full(len(prints), TRAIN)
    for _ in range(AHEAD):
        groups.learn_neighbours()
    stratum, sets = np.empty(len(prints), int), np.full(len(prints), TRAIN)
    for place, rows in enumerate(strata):
        stratum[list(rows)] = place
    room = np.bincount(stratum) // 2
    for name, counts in share.items():
        left = counts.copy()
        for place, rows in enumerate(strata):
            for row in turned(rows, name)[: 2 * counts[place] + SPARE]:
                if left[place] <= 0:
                    break
                group = groups.of(row) if sets[row] == TRAIN else None
                if group and ((taken := np.bincount(stratum[group], minlength=len(strata))) <= room).all():
                    sets[group] = name
                    left, room = left - taken, room - taken
    return sets


class Groups:
    """Pictures that look alike, and those that look like these, as far as they are asked for.

    Only pictures that are asked for are compared with all: for 2,500 candidates of 100,000 pictures, 0.2e12
    multiplications. At most about `limit` are; a group of more than `most` counts as none.
    """

    def __init__(self, prints: Prints, most: int, limit: int) -> None:
        self.prints, self.most, self.limit = prints, most, limit
        self.found: dict[int, list[int]] = {}

    def learn(self, rows: Iterable[int]) -> None:
        new = [row for row in rows if row not in self.found]
        if new:
            self.found.update(zip(new, neighbours(self.prints[new], self.prints, self.most), strict=True))

    def are_small(self, rows: Sequence[int]) -> bool:
        """Whether at least a quarter of these have few that look like them; if not, to look for such takes too long."""
        return 4 * sum(len(self.found[row]) <= self.most for row in rows) >= len(rows)

    def learn_neighbours(self) -> None:
        """Of all pictures that have been asked for, at once, which is faster than one by one."""
        self.learn({other for one in self.found.values() if len(one) <= self.most for other in one})

    def of(self, row: int) -> list[int] | None:
        """All that must be in the set of `row`, itself too; None where they are too many, or too many to find."""
        group, waiting = {row}, [row]
        while waiting:
            if len(group) > self.most or len(self.found) > self.limit:
                return None
            self.learn(waiting)
            waiting = sorted({other for one in waiting for other in self.found[one]} - group)
            group.update(waiting)
        return sorted(group)


# -- What the plan says ------------------------------------------------------------------------------------------------


def count_notes(sets: Int[np.ndarray, " count"], config: SplitConfig) -> list[str]:
    train, validation, test = np.bincount(sets, minlength=3).tolist()
    none = "; there are too few for a test set" if config.test and not test else ""
    return [f"{train:,} pictures to train on, {validation:,} for validation, {test:,} for the test{none}"]


def class_notes(
    sets: Int[np.ndarray, " count"], strata: Sequence[Sequence[int]], labels: Labels, classes: Sequence[str]
) -> list[str]:
    """Which classes have no picture in a set that others are in."""
    of_class = {int(labels[rows[0]]): sets[list(rows)] for rows in strata}
    notes = []
    for name, what in ((VALIDATION, "validated"), (TEST, "tested")):
        few = {label: len(own) for label, own in sorted(of_class.items()) if label != NULL_LABEL and name not in own}
        if classes and few and (sets == name).any():
            named = [f"{shown(classes[label])} {number}" for label, number in few.items()]
            more = f" and {len(named) - 20} more" if len(named) > 20 else ""
            subject = "class is" if len(few) == 1 else "classes are"
            notes.append(f"{len(few)} {subject} too small to be {what}: {', '.join(named[:20])}{more}")
    return notes
