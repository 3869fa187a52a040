"""Which of the pictures that runs are judged by they have seen: trained on, or chosen something by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from calotype.data.duplicates import near_duplicates, perceptual_hashes
from calotype.data.folder import Pictures
from calotype.data.split import Split, split_rule
from calotype.evaluation.candidate import Candidate
from calotype.types import UserError

ReadOwn = Callable[[Candidate], Pictures | None]
"""The pictures of a run with its split; None where they cannot be read or have changed."""


def split_by(one: Candidate, pictures: Pictures, read_own: ReadOwn) -> Split | None:
    """How a run has used these pictures; the `test` set are those that it has not seen. None: not known.

    Of pictures that are not the run's own, it has seen those that are equal or near-duplicates of its own.
    """
    if is_own(one, pictures):
        return split_rule(one.run.folder)(pictures.pixels, pictures.labels, pictures.classes)
    if (own := read_own(one)) is None:
        return None
    prints = perceptual_hashes(pictures.pixels)
    train, validation = (
        torch.from_numpy(near_duplicates(prints, perceptual_hashes(own.pixels[rows])))
        for rows in (own.train_indices, own.validation_indices)
    )
    return Split(train, validation & ~train, ~(train | validation))


def is_own(one: Candidate, pictures: Pictures) -> bool:
    return pictures.content == one.run.state.content


def unseen_by_all(splits: Sequence[Split | None], count: int) -> Split:
    """As test set, the pictures that no run has trained on or chosen by, as far as that is known."""
    none = torch.zeros(count, dtype=torch.bool)
    known = [split for split in splits if split is not None]
    train = torch.stack([none, *(split.train for split in known)]).any(0)
    validation = torch.stack([none, *(split.validation for split in known)]).any(0)
    return Split(train, validation & ~train, torch.stack([~none, *(split.test for split in known)]).all(0))


def judged_by(one: Candidate, pictures: Pictures, trained: Pictures | None) -> tuple[Pictures, list[str]]:
    """The pictures, with those in their test set that the run has not seen, and notes on that.

    Raises `UserError` where it has seen all of them.
    """
    split = split_by(one, pictures, lambda _: trained)
    unseen = unseen_by_all([None], len(pictures)) if split is None else split
    if not is_own(one, pictures) and not unseen.test.any():
        raise UserError(
            f"the run has seen all {len(pictures):,} pictures in training, so they say nothing of how it does on new "
            f"ones; give pictures that are not among its training pictures, or leave --data out"
        )
    return replace(pictures, split=unseen), [f"the run {note}" for note in notes_of(one, split, pictures)]


def notes_of(one: Candidate, split: Split | None, pictures: Pictures) -> list[str]:
    """What follows "the run" where it was trained on other pictures, or by an older rule."""
    if is_own(one, pictures):
        old = "was made by an earlier version, without a validation set: it has made choices by its held-out pictures"
        return [old] if one.run.state.split is None else []
    if split is None:
        unknown = "was trained on other pictures, which cannot be read or have changed"
        return [f"{unknown}, so it is not known whether it has seen those that samples are held against"]
    trained, chosen_by, rest = (int(rows.sum()) for rows in (split.train, split.validation, split.test))
    return [
        f"was trained on other pictures: of these {len(split):,}, {trained:,} are in its training set and "
        f"{chosen_by:,} in its validation set (near-duplicates count as equal); it is measured on the other {rest:,}"
    ]
