"""A finished run that is evaluated or takes part in a comparison, and which pictures it has seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase

import torch

from calotype.data.duplicates import near_duplicates, perceptual_hashes
from calotype.data.folder import Pictures
from calotype.data.seen import OWN_FILE, read_seen, seen_by
from calotype.data.split import Split, split_rule
from calotype.model import Model, load
from calotype.recipe import Recipe
from calotype.run import Run
from calotype.types import NULL_LABEL, Labels, Text, UserError

PROMPT = "a person with short dark hair and a red shirt, smiling"


@dataclass(frozen=True)
class Candidate:
    key: str
    """A, B, C ... in the order in which they were given."""
    run: Run
    model: Model

    @property
    def recipe(self) -> Recipe:
        return self.model.recipe

    @property
    def size(self) -> int:
        return self.recipe.size

    @property
    def kind(self) -> str:
        """`latent`, `cascade`, `hybrid` (latents, then pixels) or `pixels` (a cascade of one stage)."""
        if len(self.recipe.chain) == 1:
            return "latent" if self.recipe.kind == "latent" else "pixels"
        return "hybrid" if self.recipe.kind == "latent" else "cascade"

    @property
    def has_prior(self) -> bool:
        return any(stage.denoiser.prior is not None for stage in self.model.stages)

    def labels(self, pictures: Pictures, chosen: torch.Tensor) -> Labels:
        """The classes of these pictures; null labels for a model that was trained with other classes."""
        known = self.model.classes == pictures.classes
        labels = pictures.labels[chosen] if known else torch.full((len(chosen),), NULL_LABEL)
        return labels.to(self.model.device)

    def text(self, pictures: Pictures, chosen: torch.Tensor) -> Text | None:
        """The captions of these pictures, for a model that is conditioned on text."""
        if self.model.text_encoder is None or pictures.captions is None:
            return None
        return pictures.captions.first(chosen.tolist())


def usual_text(model: Model, count: int) -> Text | None:
    """A prompt of usual length, with which costs are counted."""
    return None if model.text_encoder is None else model.text(count, PROMPT)


def open_candidates(folders: Sequence[Path], device: str) -> list[Candidate]:
    """Raises `UserError` for fewer than two, for a run that is not finished, and for sizes that differ."""
    if not 2 <= len(folders) <= len(ascii_uppercase):
        raise UserError(
            f"compare got {len(folders)} {'run' if len(folders) == 1 else 'runs'}, but needs at least 2 and takes at "
            f"most {len(ascii_uppercase)}; try: calotype compare RUN_A RUN_B"
        )
    runs = [open_candidate(key, folder, device) for key, folder in zip(ascii_uppercase, folders, strict=False)]
    if len({run.size for run in runs}) > 1:
        shown = ", ".join(f"{run.run.folder} has {run.size} px" for run in runs)
        raise UserError(f"the runs make pictures of different sizes ({shown}); compare runs of one size")
    return runs


def open_candidate(key: str, folder: Path, device: str) -> Candidate:
    """Raises `UserError` for a run that is not finished."""
    run = Run.open(folder)
    if run.state.status != "finished":
        raise UserError(f"{folder} is {run.state.status}, but must be finished; try: calotype resume {folder}")
    return Candidate(key, run, load(folder, device))


# -- Pictures that it has seen -----------------------------------------------------------------------------------------


ReadOwn = Callable[[Candidate], Pictures | None]
"""The pictures of a run with its split; None where they cannot be read or have changed."""


def split_by(candidate: Candidate, pictures: Pictures, read_own: ReadOwn) -> Split | None:
    """How a run has used these pictures; the `test` set are those that it has not seen. None: not known.

    Of pictures that are not the run's own, it has seen those that are equal or near-duplicates of its own; and it has
    seen what the runs before it have seen, from whose networks it has started.
    """
    split = split_by_itself(candidate, pictures, read_own)
    seen = read_seen(candidate.run.folder)
    if split is None or seen is None:
        return split
    before = seen.split(pictures.pixels)
    train = split.train | before.train
    validation = (split.validation | before.validation) & ~train
    return Split(train, validation, split.test & ~(train | validation))


def split_by_itself(candidate: Candidate, pictures: Pictures, read_own: ReadOwn) -> Split | None:
    """As `split_by`, without what earlier runs have seen, from whose networks this one has started."""
    if candidate.run.state.is_of(pictures):
        return split_rule(candidate.run.folder)(pictures.pixels, pictures.labels, pictures.classes)
    if (own := read_seen(candidate.run.folder, OWN_FILE)) is None:
        if (trained := read_own(candidate)) is None:
            return None
        own = seen_by(trained)
    hashes = perceptual_hashes(pictures.pixels)
    train, validation = (torch.from_numpy(near_duplicates(hashes, others)) for others in (own.train, own.validation))
    return Split(train, validation & ~train, ~(train | validation))


def unseen_by_all(splits: Sequence[Split | None], count: int) -> Split:
    """As test set, the pictures that no run has trained on or chosen by, as far as that is known."""
    none = torch.zeros(count, dtype=torch.bool)
    known = [split for split in splits if split is not None]
    train = torch.stack([none, *(split.train for split in known)]).any(0)
    validation = torch.stack([none, *(split.validation for split in known)]).any(0)
    return Split(train, validation & ~train, torch.stack([~none, *(split.test for split in known)]).all(0))


def with_unseen(candidate: Candidate, pictures: Pictures, trained: Pictures | None) -> tuple[Pictures, list[str]]:
    """The pictures, with those in their test set that the run has not seen, and notes on that.

    Raises `UserError` where it has seen all of them.
    """
    split = split_by(candidate, pictures, lambda _: trained)
    unseen = unseen_by_all([None], len(pictures)) if split is None else split
    if not unseen.test.any() and (not candidate.run.state.is_of(pictures) or pictures.split.test.any()):
        raise UserError(
            f"the run has seen all {len(pictures):,} pictures in training, so they say nothing of how it does on new "
            f"ones; give pictures that are not among its training pictures, or leave --data out"
        )
    return replace(pictures, split=unseen), notes_on_split("the run", candidate, split, pictures)


def notes_on_split(name: str, candidate: Candidate, split: Split | None, pictures: Pictures) -> list[str]:
    """What the run, which the notes call `name`, has seen of the pictures, and whether it was trained on others."""
    return [*_origin_notes(name, candidate, split, pictures), *_own_notes(name, candidate, split, pictures)]


def _origin_notes(name: str, candidate: Candidate, split: Split | None, pictures: Pictures) -> list[str]:
    """What it, before it got these pictures, or the run that it has started from had seen of its test pictures."""
    origin = candidate.run.state.origin
    if origin is not None and not origin.seen:
        return [f"{name} has started from {origin.run}, and not all of what that was trained on is known"]
    left_out = int((pictures.split.test & ~split.test).sum()) if split and candidate.run.state.is_of(pictures) else 0
    if not left_out:
        return []
    if origin is None:
        return [f"{name} had other pictures before, and had seen {left_out:,} of its test pictures: they are left out"]
    return [
        f"{name} has started from {origin.run}, which had seen {left_out:,} of its test pictures: they are left out"
    ]


def _own_notes(name: str, candidate: Candidate, split: Split | None, pictures: Pictures) -> list[str]:
    if candidate.run.state.is_of(pictures):
        return []
    if split is None:
        unknown = "was trained on other pictures, which cannot be read or have changed"
        return [f"{name} {unknown}, so it is not known whether it has seen those that samples are compared with"]
    trained, chosen_by, rest = (int(rows.sum()) for rows in (split.train, split.validation, split.test))
    return [
        f"{name} was trained on other pictures: of these {len(split):,}, {trained:,} are in its training set and "
        f"{chosen_by:,} in its validation set (near-duplicates count as equal); it is measured on the other {rest:,}"
    ]
