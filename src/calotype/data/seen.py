"""Pictures that an earlier run has seen, by their perceptual hashes: they count as seen in every run after it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Int8
from torch import Tensor

from calotype.data.duplicates import HASH_BYTES, Hashes, OtherHashes, near_duplicates, perceptual_hashes
from calotype.data.folder import Pictures
from calotype.data.split import Split, SplitConfig, SplitRule, split_hashed, stratified_split
from calotype.files import read_tensors, write_tensors
from calotype.types import ByteImages, Labels, UserError

SEEN_FILE, OWN_FILE = "seen.safetensors", "pictures.safetensors"
"""In the folder of a run: hashes of the pictures that earlier runs, or it with other pictures, have seen; and of its
own."""
SET_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class Seen:
    """Hashes of the pictures in each set of earlier runs; those of the test set are seen by none of them."""

    train: Int8[np.ndarray, "train gradients"]
    validation: Int8[np.ndarray, "validation gradients"]
    test: Int8[np.ndarray, "test gradients"]

    def split(self, pixels: ByteImages) -> Split:
        """In which set each picture was, or, of one that was in none, a near-duplicate; all others are in none here."""
        return self.split_hashed(perceptual_hashes(pixels))

    def split_hashed(self, hashes: Hashes) -> Split:
        """As `split`, of pictures with these hashes."""
        sets = [self.train, self.validation, self.test]
        inside = np.stack([_are_among(hashes, others) for others in sets])
        rest = ~inside.any(0)
        inside[:, rest] = [near_duplicates(hashes[rest], others) for others in sets]
        train, validation, test = map(torch.from_numpy, inside)
        return Split(train, validation & ~train, test & ~(train | validation))

    def and_of(self, earlier: Seen | None) -> Seen:
        """Of both; whatever one of them has trained on is no test picture of the other."""
        if earlier is None:
            return self
        joined = (np.concatenate([getattr(self, name), getattr(earlier, name)]) for name in SET_NAMES)
        return Seen(*joined)


def _are_among(hashes: Hashes, others: OtherHashes) -> Bool[np.ndarray, " count"]:
    """Whether each is equal to one of the others."""
    known = {row.tobytes() for row in others}
    return np.array([row.tobytes() in known for row in hashes], bool)


def seen_by(pictures: Pictures) -> Seen:
    """What a run that is trained on these pictures sees."""
    hashes = perceptual_hashes(pictures.pixels)
    return Seen(*(hashes[inside.numpy()] for inside in pictures.split.sets.values()))


def write_seen(folder: Path, seen: Seen, name: str = SEEN_FILE) -> None:
    """Into the folder of a run."""
    write_tensors(folder / name, {name: torch.from_numpy(getattr(seen, name)) for name in SET_NAMES})


def read_seen(folder: Path, name: str = SEEN_FILE) -> Seen | None:
    """Of the folder of a run; None where there are none. Raises `UserError` for a damaged file.

    A run that has started from nothing has no `SEEN_FILE`, but after `resume --data`; one of an earlier version has no
    `OWN_FILE`.
    """
    file = folder / name
    if not os.path.lexists(file):
        return None
    tensors = read_tensors(file)
    sound = all(each.shape[1:] == (HASH_BYTES,) and each.dtype == torch.int8 for each in tensors.values())
    if {*tensors} != {*SET_NAMES} or not sound:
        raise UserError(f"{file} is damaged: expected hashes of the sets {', '.join(SET_NAMES)}; copy it again")
    return Seen(*(tensors[name].numpy() for name in SET_NAMES))


def own_becomes_seen(folder: Path) -> Seen | None:
    """Before a run goes on with other pictures: what it has seen counts from now on as seen by an earlier run.

    Returns all that is known to be seen. A process that is killed on the way may do it again.
    """
    own, seen = read_seen(folder, OWN_FILE), read_seen(folder)
    if own is not None:
        write_seen(folder, seen := own.and_of(seen))
        (folder / OWN_FILE).unlink()
    return seen


def continued_split(seen: Seen | None, config: SplitConfig) -> SplitRule:
    """Pictures that an earlier run has seen stay in the set that they were in; the others are split as always.

    Where it has trained on all of them, or none is left for a set, all are split anew.
    """
    if seen is None:
        return partial(stratified_split, config=config)

    def rule(pixels: ByteImages, labels: Labels, classes: Sequence[str] = (), named: Sequence[str] = ()) -> Split:
        hashes = perceptual_hashes(pixels)
        before = seen.split_hashed(hashes)
        new = ~(before.train | before.validation | before.test)
        if new.all() or {"validation", "test"} & {*named}:
            split = split_hashed(hashes, labels, classes, config, named)
            trained = int(((split.validation | split.test) & before.train).sum())
            note = f"{trained:,} of the held-out pictures were trained on before"
            return replace(split, notes=(*split.notes, note)) if trained else split
        split = with_new(before, new, hashes, labels, classes, config)
        if not (split.train.any() and split.validation.any()):
            note = "all pictures here that could be held out were trained on before"
            again = split_hashed(hashes, labels, classes, config)
            return Split(again.train, again.validation, again.test, (*again.notes, note))
        return split

    return rule


def with_new(
    before: Split, new: Bool[Tensor, " count"], hashes: Hashes, labels: Labels,
    classes: Sequence[str], config: SplitConfig,
) -> Split:  # fmt: skip
    """The sets of before, with the new pictures in them: split where there are enough to hold some out, else trained
    on."""
    rows, sets = new.nonzero().flatten(), {name: inside.clone() for name, inside in before.sets.items()}
    if config.validation * len(rows) < 1:
        sets["train"] |= new
    else:
        for name, inside in split_hashed(hashes[rows.numpy()], labels[rows], classes, config).sets.items():
            sets[name][rows[inside]] = True
    train, validation, test = sets.values()
    known = int((~new).sum())
    note = (
        f"{int(train.sum()):,} pictures to train on, {int(validation.sum()):,} for validation, {int(test.sum()):,} for "
        f"the test; {known:,} of them are in the sets in which they were before"
    )
    return Split(train, validation, test, (note,))
