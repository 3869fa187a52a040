"""Early stopping: where the validation loss rises while the training loss falls, the best weights win."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from calotype.files import is_whole, whole_folder, write_tensors
from calotype.priors.prior import load_trained, trained_state
from calotype.run import Losses, Validation
from calotype.training.state import TrainState

CLEARLY = 1.02
"""A held-out loss this many times its best has risen: both are of the same pictures with the same noise."""
HOPELESS = 1.1
"""A leg that may be cut short is, when it has risen this many times."""
MIN_VALIDATION = 32
"""Validation pictures; of fewer a rise says little."""


@dataclass
class EarlyStopping:
    """Keeps the averaged weights of the best validation in `folder`.

    `validation` is stored in `run.json`, so a resumed run has it. A leg that went back behind its best validation
    comes by it again, with equal weights.
    """

    folder: Path
    states: dict[str, TrainState]
    validation: Validation

    def note(self, images_seen: int, measures: Mapping[str, float]) -> None:
        """To be called at every validation, with its measures; `n` is of how many pictures they are."""
        if measures.get("n", 0) < MIN_VALIDATION or "held_out_loss" not in measures:
            return
        held_out, train = measures["held_out_loss"], measures["train_loss"]
        last = Losses(images_seen=images_seen, held_out_loss=held_out, train_loss=train)
        best = self.validation.best
        if best is None or last.held_out_loss < best.held_out_loss:
            with whole_folder(self.folder) as path:
                for name, state in self.states.items():
                    write_tensors(path / f"{name}.safetensors", trained_state(state.average))
            self.validation.best = last
        self.validation.last = last

    @property
    def rise(self) -> float:
        """The last held-out loss by the best one, if the loss on training pictures has fallen since; else 1."""
        best, last = self.validation.best, self.validation.last
        if not best or not last or last.train_loss >= best.train_loss:
            return 1.0
        return last.held_out_loss / best.held_out_loss

    def restore_best(self) -> str:
        """Puts the best averaged weights in the place of overfitted ones, and says so; else returns an empty text."""
        best = self.validation.best
        if best is None or not self.rise > CLEARLY or not is_whole(self.folder):
            return ""
        for name, state in self.states.items():
            load_trained(state.average, load_file(self.folder / f"{name}.safetensors"))
        return (
            f"overfitted: its held-out loss rose by {self.rise - 1:.0%} while the one on trained pictures fell, so "
            f"it ends with its weights of {best.images_seen:,} images seen; more pictures would help"
        )
