"""Which pictures the runs that are judged by them have seen: trained on, or chosen something by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from calotype.data.folder import Pictures
from calotype.data.prints import near_duplicates, prints_of
from calotype.data.split import Split, rule_of
from calotype.evaluation.candidate import Candidate
from calotype.types import UserError

Own = Callable[[Candidate], Pictures | None]
"""The pictures of a run with its split; None where they cannot be read or have changed."""


def split_by(one: Candidate, pictures: Pictures, own: Own) -> Split | None:
    """How a run has used these pictures; its `test` set are those that it has not seen. None: nobody knows.

    Of pictures that are not those of the run, it has seen those that are equal or near-duplicates of its own.
    """
    if is_own(one, pictures):
        return rule_of(one.run.folder)(pictures.pixels, pictures.labels, pictures.classes)
    if (known := own(one)) is None:
        return None
    prints = prints_of(pictures.pixels)
    train, validation = (
        torch.from_numpy(near_duplicates(prints, prints_of(known.pixels[rows])))
        for rows in (known.train_indices, known.validation_indices)
    )
    return Split(train, validation & ~train, ~(train | validation))


def is_own(one: Candidate, pictures: Pictures) -> bool:
    return bool(pictures.content == one.run.facts.get("content"))


def has_three_sets(one: Candidate) -> bool:
    """Runs of earlier versions say nothing of a split: the pictures that they chose by are their test pictures."""
    return "split" in one.run.facts


def unseen_by_all(splits: Sequence[Split | None], count: int) -> Split:
    """As test set, the pictures that no run has trained on or chosen by, as far as that is known."""
    known = [split for split in splits if split is not None]
    none, every = torch.zeros(count, dtype=torch.bool), torch.ones(count, dtype=torch.bool)
    train = torch.stack([none, *(split.train for split in known)]).any(0)
    validation = torch.stack([none, *(split.validation for split in known)]).any(0)
    return Split(train, validation & ~train, torch.stack([every, *(split.test for split in known)]).all(0))


def judged_by(one: Candidate, pictures: Pictures, trained: Pictures | None) -> tuple[Pictures, list[str]]:
    """The pictures, with those in their test set that the run has not seen; and what is to be said of that.

    Raises `UserError` where it has seen all of them.
    """
    split = split_by(one, pictures, lambda _: trained)
    if is_own(one, pictures):
        assert split is not None
        return replace(pictures, split=split), [] if has_three_sets(one) else [
            "the run was made by an earlier version, without a validation set: the held-out pictures that samples are "
            "held against were also used for choices in training"
        ]
    if split is None:
        return replace(pictures, split=unseen_by_all([None], len(pictures))), [
            "the pictures that the run was trained on cannot be read, or have changed, so it is not known whether it "
            "has seen those that samples are held against"
        ]
    if not split.test.any():
        raise UserError(
            f"the run has seen all {len(pictures):,} pictures in training, so they say nothing of how it does on new "
            f"ones; give pictures that are not among its training pictures, or leave --data out"
        )
    return replace(pictures, split=split), [of_other_pictures(split)]


def of_other_pictures(split: Split) -> str:
    trained, chosen_by, rest = (int(one.sum()) for one in (split.train, split.validation, split.test))
    if not trained and not chosen_by:
        return f"none of the {len(split):,} pictures was in the training set, nor is like one of it"
    and_validation = f" and {chosen_by:,} in the validation set" if chosen_by else ""
    was = "was" if trained == 1 else "were"
    return (
        f"{trained:,} of {len(split):,} pictures {was} in the training set{and_validation}; measured on the other "
        f"{rest:,} (near-duplicates count as equal)"
    )


def notes_of(runs: Sequence[Candidate], splits: Sequence[Split | None], pictures: Pictures, data: str) -> list[str]:
    """Of runs for which other pictures than these, or an older rule, make a difference."""
    notes = []
    for one, split in zip(runs, splits, strict=True):
        if is_own(one, pictures):
            if not has_three_sets(one):
                notes.append(f"run {one.key} was made by an earlier version, and has chosen by its held-out pictures")
            continue
        other = f"run {one.key} was trained on other pictures than those in {data}"
        if split is None:
            notes.append(f"{other}, and they cannot be read or have changed, so it may have seen some of these")
        else:
            seen = len(split) - int(split.test.sum())
            notes.append(f"{other}; it has seen {seen:,} of these {len(split):,}, near-duplicates counted")
    return notes
