"""Three sets of pictures: to train on, to choose by (validation), and to report on (test), which nothing else uses.

They are stratified by class, and near-duplicates are in one set: otherwise a measure on the test set would reward a
model that memorises (Barz and Denzler, arXiv 1902.00423, found up to 10% such pictures in CIFAR).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from pydantic import BaseModel, Field, model_validator
from torch import Tensor

from calotype.data.duplicates import Hashes, near_duplicates, perceptual_hashes, similar_indices
from calotype.data.images import shown
from calotype.files import read_as, write_json
from calotype.types import NULL_LABEL, ByteImages, Config, Labels, UserError

SPLIT_FILE, SPLIT_VERSION = "split.json", 1
MAX_VALIDATION, MAX_TEST = 500, 2000
MAX_SPLIT_BYTES = 2**31
"""Of `split.json`: 11 bytes a picture."""
MAX_GROUP = 64
"""Near-duplicates of one picture that may be kept out of training together."""
LINKS = 3
"""Links between near-duplicates that are followed for all candidates at once."""
SPARE_CANDIDATES = 4
"""Candidates of a class beyond twice as many as are needed."""
TRAIN, VALIDATION, TEST = 0, 1, 2

Counts = Int[np.ndarray, " strata"]
Sets = Int[np.ndarray, " count"]  # TRAIN, VALIDATION or TEST of each picture
RowIndex = Annotated[int, Field(ge=0)]
Strata = Sequence[Sequence[int]]  # the rows of each class


class SplitConfig(Config):
    """Fractions of the pictures; the rest is trained on."""

    validation: float = Field(default=0.05, strict=True, gt=0, le=0.5)
    """Share of pictures for every choice made in training and by `sweep`; at most 500 pictures."""
    test: float = Field(default=0.1, strict=True, ge=0, le=0.5)
    """Share of pictures only for `evaluate` and `compare`; at most 2,000. 0: test pictures are in a separate folder."""

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
    """Which pictures are in which set. Each is in one of them, except in an `overlapping_split`."""

    train: Bool[Tensor, " count"]
    validation: Bool[Tensor, " count"]
    test: Bool[Tensor, " count"]
    notes: tuple[str, ...] = ()  # sentences for the plan

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
        return {"version": SPLIT_VERSION, "count": len(self), **rows}


SplitRule = Callable[..., Split]
"""From pixels, labels, classes, and the sets that subfolders name ("" for none), in the order of content hashes: see
`stratified_split`."""


def stratified_split(
    pixels: ByteImages, labels: Labels, classes: Sequence[str] = (), config: SplitConfig = DEFAULT,
    named: Sequence[str] = (),
) -> Split:  # fmt: skip
    """Stratified by class, near-duplicates in one set; within a class by content hash, the order of the rows.

    Pictures that subfolders put into the validation or the test set are that set.
    """
    return split_hashed(perceptual_hashes(pixels), labels, classes, config, named)


def split_hashed(
    hashes: Hashes, labels: Labels, classes: Sequence[str] = (), config: SplitConfig = DEFAULT,
    named: Sequence[str] = (),
) -> Split:  # fmt: skip
    """The same of pictures with these perceptual hashes: so of a part of a large set no pixels are copied."""
    if {"validation", "test"} & set(named) and {"", "train"} & set(named):
        return _named_split(hashes, labels, classes, named, config)
    strata, count = _strata(labels), len(labels)
    sizes = np.array([len(rows) for rows in strata])
    room = sizes // 2  # at least half of every class is trained on
    if not room.any():
        return overlapping_split(strata, set_sizes(config, count, 2 * count))
    validation, test = set_sizes(config, count, int(room.sum()))
    test_quotas = quotas(sizes, room, test)
    shares = {TEST: test_quotas, VALIDATION: quotas(sizes, room - test_quotas, validation)}
    sets, mixed = _assign(strata, shares, hashes)
    train, validation, test = np.bincount(sets, minlength=3).tolist()
    none = "; there are too few for a test set" if config.test and not test else ""
    notes = [f"{train:,} pictures to train on, {validation:,} for validation, {test:,} for the test{none}", *mixed]
    notes += _small_classes(sets, strata, labels, classes)
    of = torch.from_numpy(sets)
    return Split(of == TRAIN, of == VALIDATION, of == TEST, tuple(notes))


def _named_split(
    hashes: Hashes, labels: Labels, classes: Sequence[str], named: Sequence[str], config: SplitConfig
) -> Split:
    """A set that no subfolder names is taken from the training pictures."""
    of = np.array(named)
    free = torch.from_numpy(np.flatnonzero((of == "train") | (of == "")))
    inner = split_hashed(hashes[free.numpy()], labels[free], classes, config)
    train, masks = free[inner.train].tolist(), list[Bool[Tensor, " count"]]()
    for name, most in (("validation", MAX_VALIDATION), ("test", MAX_TEST)):
        rows, own = np.flatnonzero(of == name)[:most].tolist(), free[inner.sets[name]].tolist()
        train += own if rows else []
        masks.append(_mask(rows or own, len(named)))
    split = Split(_mask(train, len(named)), masks[0], masks[1])
    return replace(split, notes=(*_named_notes(split, named), *_alike_notes(split, hashes)))


def _named_notes(split: Split, named: Sequence[str]) -> list[str]:
    counts, used = split.counts, split.train | split.validation | split.test
    why = " and ".join(name for name in ("validation", "test") if name in named)
    unused = f"; {int((~used).sum()):,} are more than are used of a set" if not used.all() else ""
    return [
        f"{counts['train']:,} pictures to train on, {counts['validation']:,} for validation, {counts['test']:,} for "
        f"the test; {why} as the subfolders say{unused}"
    ]


def _alike_notes(split: Split, hashes: Hashes) -> list[str]:
    """Where held-out pictures look like training pictures."""
    held_out = (split.validation | split.test) & ~split.train
    alike = near_duplicates(hashes[held_out.numpy()], hashes[split.train.numpy()])
    if not (count := int(alike.sum())):
        return []
    return [f"{count:,} of the held-out pictures look like training pictures: measures flatter a model that copies"]


def overlapping_split(strata: Strata, counts: tuple[int, int]) -> Split:
    """For classes of one picture: all pictures are trained on, and some of them are in the other sets as well."""
    sizes = np.array([len(rows) for rows in strata])
    count = int(sizes.sum())

    def first(total: int) -> Bool[Tensor, " count"]:
        pairs = zip(strata, quotas(sizes, sizes, total), strict=True)
        return _mask([row for rows, number in pairs for row in rows[:number]], count)

    validation, test = map(first, counts)
    note = "there is only 1 picture: it is trained on, and held out as well"
    if count > 1:
        note = (
            f"no class has more than 1 picture, so all {count} are trained on, and {int((validation | test).sum())} "
            f"of them are held out as well: no measure says how well the model generalises"
        )
    return Split(torch.ones(count, dtype=torch.bool), validation, test, (note,))


class SplitFile(BaseModel):
    """`split.json`: the rows of each set, and the hash of the content whose rows they are."""

    count: Annotated[int, Field(gt=0)]
    content: str | None = None
    """None where an earlier version has written the file."""
    train: Annotated[list[RowIndex], Field(min_length=1)]
    validation: Annotated[list[RowIndex], Field(min_length=1)]
    test: list[RowIndex]

    @model_validator(mode="after")
    def _rows(self) -> SplitFile:
        if (last := max(*self.train, *self.validation, *self.test)) >= self.count:
            raise ValueError(f"row {last} is in a set, but there are {self.count} pictures")
        return self


def recorded_split(record: SplitFile) -> SplitRule:
    """The split in a run's `split.json`; pictures of another number are split again."""

    def rule(pixels: ByteImages, labels: Labels, classes: Sequence[str] = (), named: Sequence[str] = ()) -> Split:
        if len(labels) != record.count:
            return stratified_split(pixels, labels, classes, named=named)
        train, validation, test = (_mask(rows, len(labels)) for rows in (record.train, record.validation, record.test))
        return Split(train, validation, test)

    return rule


def split_rule(run: Path) -> SplitRule:
    """The rule by which the pictures of the run in this folder were split. Raises `UserError` as `read_split`."""
    return recorded_split(read_split(run))


def read_split(run: Path) -> SplitFile:
    """Raises `UserError` where the file is missing or damaged."""
    file = run / SPLIT_FILE
    if not os.path.lexists(file):
        missing = f"{file} is missing, which says on which pictures the run is trained and which are held out"
        raise UserError(f"{missing}; put it back from a copy, or start a new run")
    record: SplitFile = read_as(file, SplitFile, MAX_SPLIT_BYTES)
    return record


def write_split(run: Path, split: Split, content: str) -> None:
    """Of pictures with this hash of their content."""
    write_json(run / SPLIT_FILE, {**split.as_json(), "content": content})


def is_split_of(run: Path, contents: Collection[str], count: int) -> bool:
    """Whether the split that a run has recorded is of pictures with one of these hashes of their content."""
    record = read_split(run)
    return record.count == count and record.content in (None, *contents)


def _mask(rows: Sequence[int], count: int) -> Bool[Tensor, " count"]:
    return torch.zeros(count, dtype=torch.bool).index_fill(0, torch.tensor(rows, dtype=torch.long), True)


# -- Sizes of the sets -------------------------------------------------------------------------------------------------


def _strata(labels: Labels) -> list[list[int]]:
    """The rows of each class, and of the pictures without a label; in the order of their first rows, not of names."""
    strata: dict[int, list[int]] = {}
    for row, label in enumerate(labels.tolist()):
        strata.setdefault(label, []).append(row)
    return list(strata.values())


def evenly(rows: Int[Tensor, " _"], most: int) -> Int[Tensor, " some"]:
    """At most so many of the rows, evenly spaced.

    The first validation pictures need not be like all: near-duplicates move pictures of some classes to later rows.
    """
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


def set_sizes(config: SplitConfig, count: int, available: int) -> tuple[int, int]:
    """Validation and test pictures: at least one each, as far as `available` reaches; validation comes first."""
    validation = min(MAX_VALIDATION, max(1, int(config.validation * count + 1e-9)))
    test = min(MAX_TEST, max(1, int(config.test * count + 1e-9))) if config.test else 0
    if validation + test <= available:
        return validation, test
    validation = max(1, available * validation // (validation + test))
    return validation, min(test, available - validation)


def quotas(sizes: Counts, room: Counts, total: int) -> Counts:
    """`total` divided in proportion to `sizes` by largest remainders; no quota is larger than its `room`.

    So the sum is `total`, or all of the room. Equal remainders go to the first.
    """
    exact = total * sizes / sizes.sum()
    shares = np.minimum(np.floor(exact).astype(int), room)
    for _ in range(min(total, int(room.sum())) - int(shares.sum())):
        shares[np.where(shares < room, exact - shares, -np.inf).argmax()] += 1
    return shares


# -- Assignment --------------------------------------------------------------------------------------------------------


def _assign(strata: Strata, shares: dict[int, Counts], hashes: Hashes) -> tuple[Sets, list[str]]:
    """The set of each picture, and a note where near-duplicates could not be separated.

    Test pictures are taken from the first of each class, validation from the last, so an added picture changes little.
    Most pictures of a series that look alike could never be held out; if that leaves less than half of either set,
    near-duplicates are ignored.
    """
    simple = np.full(len(hashes), TRAIN)
    for name, counts in shares.items():
        for rows, number in zip(strata, counts, strict=True):
            simple[_in_order(rows, name)[:number]] = name
    sets = _separated(strata, shares, hashes, np.flatnonzero(simple).tolist())
    if all(2 * (sets == name).sum() >= counts.sum() for name, counts in shares.items()):
        return sets, []
    return simple, [
        "so many pictures look alike that near-duplicates could not be kept in one set: validation and test pictures "
        "look like training pictures, and measures on them flatter a model that copies"
    ]


def _in_order(rows: Sequence[int], name: int) -> Sequence[int]:
    return rows if name == TEST else rows[::-1]


def _separated(strata: Strata, shares: dict[int, Counts], hashes: Hashes, first: Sequence[int]) -> Sets:
    """The set of each picture, with near-duplicates in one set; the candidates `first` are compared first."""
    total = sum(int(counts.sum()) for counts in shares.values())
    groups = Groups(hashes, min(MAX_GROUP, max(3, total // 2)), limit=1000 + 2 * total)
    groups.learn(first)
    if not groups.are_small(first):
        return np.full(len(hashes), TRAIN)
    for _ in range(LINKS):
        groups.learn_neighbours()
    stratum, sets = np.empty(len(hashes), int), np.full(len(hashes), TRAIN)
    for index, rows in enumerate(strata):
        stratum[list(rows)] = index
    room = np.bincount(stratum) // 2
    for name, counts in shares.items():
        left = counts.copy()
        for index, rows in enumerate(strata):
            for row in _in_order(rows, name)[: 2 * counts[index] + SPARE_CANDIDATES]:
                if left[index] <= 0:
                    break
                group = groups.of(row) if sets[row] == TRAIN else None
                if group and ((taken := np.bincount(stratum[group], minlength=len(strata))) <= room).all():
                    sets[group] = name
                    left, room = left - taken, room - taken
    return sets


class Groups:
    """Near-duplicates, their near-duplicates, and so on.

    Only the pictures in question are compared with all: for 2,500 candidates of 100,000 pictures, 0.2e12
    multiplications. At most about `limit` are compared; a group of more than `most` counts as none.
    """

    def __init__(self, hashes: Hashes, most: int, limit: int) -> None:
        self.hashes, self.most, self.limit = hashes, most, limit
        self.similar: dict[int, list[int]] = {}

    def learn(self, rows: Iterable[int]) -> None:
        new = [row for row in rows if row not in self.similar]
        if new:
            self.similar.update(zip(new, similar_indices(self.hashes[new], self.hashes, self.most), strict=True))

    def are_small(self, rows: Sequence[int]) -> bool:
        """Whether at least a quarter of these have few near-duplicates; else the search for them takes too long."""
        return 4 * sum(len(self.similar[row]) <= self.most for row in rows) >= len(rows)

    def learn_neighbours(self) -> None:
        """Of all pictures that have been compared, at once, which is faster."""
        self.learn({other for others in self.similar.values() if len(others) <= self.most for other in others})

    def of(self, row: int) -> list[int] | None:
        """All that must be in the set of `row`, itself too; None where they are too many, or too many to compare."""
        group, waiting = {row}, [row]
        while waiting:
            if len(group) > self.most or len(self.similar) > self.limit:
                return None
            self.learn(waiting)
            waiting = sorted({other for near in waiting for other in self.similar[near]} - group)
            group.update(waiting)
        return sorted(group)


def _small_classes(sets: Sets, strata: Strata, labels: Labels, classes: Sequence[str]) -> list[str]:
    """Notes on classes without a picture in a set that others are in."""
    of_class = {int(labels[rows[0]]): sets[list(rows)] for rows in strata}
    notes = []
    for name, verb in ((VALIDATION, "validated"), (TEST, "tested")):
        small = {label: len(own) for label, own in sorted(of_class.items()) if label != NULL_LABEL and name not in own}
        if classes and small and (sets == name).any():
            named = [f"{shown(classes[label])} {number}" for label, number in small.items()]
            more = f" and {len(named) - 20} more" if len(named) > 20 else ""
            subject = "class is" if len(small) == 1 else "classes are"
            notes.append(f"{len(small)} {subject} too small to be {verb}: {', '.join(named[:20])}{more}")
    return notes
