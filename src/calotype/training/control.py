"""Control of a leg: its time budget, early stopping, and the guard against a critic that does harm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from torch import Tensor

from calotype.bounds import MAX_IMAGES
from calotype.files import damage, is_whole, listed, read_tensors, whole_folder, write_tensors
from calotype.priors.prior import load_trained, trained_state
from calotype.run import Losses, Validation
from calotype.training.loop import TrainProgress
from calotype.training.objectives import AdversarialObjective
from calotype.training.state import TrainState
from calotype.types import UserError

CLEARLY = 1.02
"""A held-out loss this many times its best has risen: both are of the same pictures with the same noise."""
HOPELESS = 1.1
"""A denoiser that follows the clock ends once its held-out loss is this many times its best; an autoencoder, whose loss
has no noise, once it has clearly risen."""
MIN_VALIDATION, MIN_RECONSTRUCTED = 32, 4
"""Validation pictures of a denoiser and of an autoencoder; of fewer a rise says little."""
MAX_DROP = 1.0
"""dB. What a critic costs that only sharpens is less; those that diverged cost 3 to 10."""
LOWERED = 0.25
"""Factor on the weight of a critic that has done harm."""
CHECKS = 6
"""Evenly from where the adversarial loss sets in to the end: so at most a twentieth of a run is lost."""
MAX_SEARCHED = 10_000
"""Samples or crops of a search."""
Phases = Annotated[list[tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0)]]], Field(min_length=1)]
"""Up to this fraction of the leg, an image costs so many seconds (or operations)."""

# -- The time budget ---------------------------------------------------------------------------------------------------


class PredictedCosts(BaseModel):
    """What a plan predicts; most by leg. Seconds are of each step, in their order."""

    model_config = ConfigDict(allow_inf_nan=False)
    parameters: dict[str, int] = {}
    images: dict[str, int] = {}
    steps: dict[str, int] = {}
    seconds_a_step: dict[str, float] = {}
    seconds: dict[str, float] = {}
    peak_memory_bytes: int = 0
    disk_bytes: int = 0

    @classmethod
    def check(cls, predicted: dict[str, Any]) -> dict[str, Any]:
        cls.model_validate(predicted)
        return predicted


class TimeBudget(BaseModel):
    """The part of a plan that training needs."""

    model_config = ConfigDict(allow_inf_nan=False)
    budget_seconds: float
    """Time of the whole command."""
    predicted: Annotated[dict[str, Any], AfterValidator(PredictedCosts.check)] = {}
    """See `PredictedCosts`."""
    phases: dict[str, Phases] = {}
    """Seconds of an image in each part of a leg."""
    slices: dict[str, Annotated[int, Field(gt=0, le=4096)]] = {}
    """Slices of a batch that each leg works on at once."""
    compiled: list[str] = []
    """Legs whose network is compiled while it trains."""
    rounds: dict[str, Annotated[int, Field(gt=0, le=2**16)]] = {}
    """Parts of a batch that each leg works on one after the other, since memory is too small for more at once."""
    paced: list[str] = []
    """Legs whose length follows the clock; the others see as many images as the recipe says."""
    guidance_samples: Annotated[int, Field(ge=0, le=MAX_SEARCHED)] = 0
    """Samples by which the guidance scale is searched after training; 0: it stays as in the recipe."""
    guidance_by_user: bool | None = None
    """Whether the user has set guidance or epsilon scaling; None in plans of earlier versions."""
    level_crops: dict[str, Annotated[int, Field(ge=0, le=MAX_SEARCHED)]] = {}
    """Crops on which the augmentation level of each stage that enlarges is searched; 0: it stays as in the recipe."""

    def after(self, step: str) -> float:
        """Predicted seconds of all that comes after a step."""
        seconds, order = self.predicted["seconds"], list(self.predicted["seconds"])
        return float(sum(seconds[later] for later in order[order.index(step) + 1 :]))


@dataclass
class BudgetController:
    """Keeps a leg to its seconds: on a machine faster or slower than measured, the leg sees more or fewer images."""

    phases: Phases
    seconds: float

    def done(self, fraction: float) -> float:
        """The share of the leg's work that lies before this fraction of its images."""
        return mean_cost([(min(end, fraction), cost) for end, cost in self.phases]) / mean_cost(self.phases)

    def __call__(self, progress: TrainProgress) -> None:
        done = self.done(progress.fraction)
        if not 0.02 < done < 0.97:
            return
        ahead = progress.seconds * (1 - done) / done
        stretch = max(0.5, min(2.0, (self.seconds - progress.seconds) / ahead))
        images = progress.images_seen + (progress.total - progress.images_seen) * stretch
        progress.total = max(progress.images_seen + progress.batch, whole_batches(images, progress.batch))


def mean_cost(phases: Phases) -> float:
    """Seconds or operations an image, averaged over the leg."""
    starts = [0.0, *(end for end, _ in phases)]
    return sum((end - start) * cost for start, (end, cost) in zip(starts, phases, strict=False))


def whole_batches(images: float, batch: int) -> int:
    """At least one batch, and at most as many images as a recipe may say."""
    return max(1, math.floor(min(images, MAX_IMAGES) / batch)) * batch


# -- Early stopping ----------------------------------------------------------------------------------------------------


@dataclass
class EarlyStopping:
    """Keeps the averaged weights of the best validation in `folder`: where the validation loss rises while the training
    loss falls, they win.

    `validation` is stored in `run.json`, so a resumed run has it. A leg that is resumed from before its best validation
    comes to that again, with equal weights.
    """

    folder: Path
    states: dict[str, TrainState]
    validation: Validation
    fewest: int = MIN_VALIDATION
    """Validation pictures; those of fewer are passed over."""

    def note(self, images_seen: int, measures: Mapping[str, float]) -> None:
        """To be called at every validation, with its measures; `n` is of how many pictures they are."""
        if measures.get("n", 0) < self.fewest or not math.isfinite(measures.get("held_out_loss", math.nan)):
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

    def forget_lost(self) -> str:
        """Forgets a best validation whose weights are missing or damaged, and says so; else returns an empty text."""
        if self.validation.best is None or not (wrong := damage(self.folder)):
            return ""
        self.validation.best = None
        return f"the weights of its best validation are lost ({self.folder.name}: {wrong}); later ones count from now"

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
            file = listed(self.folder, f"{name}.safetensors")
            load_trained(state.average, read_tensors(file), str(file))
        return (
            f"overfitted: its held-out loss rose by {self.rise - 1:.0%} while the one on trained pictures fell, so "
            f"it ends with its weights of {best.images_seen:,} images seen; more pictures would help"
        )


# -- The critic's guard ------------------------------------------------------------------------------------------------


class GuardCheck(NamedTuple):
    """A check of the guard: its measures, and whether it took the weights back."""

    psnr: float  # held out, in dB
    best: float  # so far
    trust: float  # what is left of the critic's weight
    taken_back: bool

    def __str__(self) -> str:
        return (
            f"reconstructions fell from {self.best:.1f} to {self.psnr:.1f} dB under the adversarial loss: the "
            f"earlier weights were restored, and the critic has {self.trust:.2g} of its former weight"
        )


class CriticGuard:
    """Keeps the network as it was at its best since the adversarial loss set in.

    Pictures that the critic ruins come back, and its loss is weighted down. Saved with a checkpoint as a train
    state is (`steps`, `tensors`, `restore`), so a resumed run goes on in the same way.
    """

    def __init__(self, objective: AdversarialObjective, state: TrainState, psnr: Callable[[], float]) -> None:
        self.objective, self.state, self.psnr = objective, state, psnr
        self.best, self.steps = -math.inf, 0
        self.before: dict[str, Tensor] = {}

    @property
    def fractions(self) -> list[float]:
        """Fractions of the leg after which to check."""
        start = self.objective.adversarial_start
        return [start + (1 - start) * index / (CHECKS - 1) for index in range(CHECKS)]

    def check(self, measured: float | None = None) -> GuardCheck:
        """Keeps the weights where they are the best so far, takes them back where they have become clearly worse.

        `measured` is the PSNR where another rank has measured it.
        """
        psnr, best = self.psnr() if measured is None else measured, self.best
        ruined = bool(self.before) and not psnr >= best - MAX_DROP  # also where it is not a number
        if ruined:
            self.state.restore(copied(self.before), self.steps)
            self.objective.trust *= LOWERED
        elif psnr >= best:
            self.best, self.steps = psnr, self.state.steps
            self.before = copied(self.state.tensors())
        return GuardCheck(psnr, self.best, self.objective.trust, ruined)

    def forget(self) -> None:
        """As before its first check: what it has measured was of other pictures."""
        self.best, self.before = -math.inf, {}

    def tensors(self) -> dict[str, Tensor]:
        about = torch.tensor([self.best, self.objective.trust], dtype=torch.float64).nan_to_num()  # -inf has no file
        return {"about": about, **{f"before.{name}": value for name, value in self.before.items()}}

    def restore(self, tensors: dict[str, Tensor], steps: int) -> None:
        """Raises `UserError` for tensors that are not a guard's."""
        about = tensors.get("about")
        if about is None or about.shape != (2,) or about.isnan().any():
            raise UserError("the guard has no best measure and trust, expected two numbers")
        device = next(self.state.network.parameters()).device
        kept = {name.removeprefix("before."): value.to(device) for name, value in tensors.items() if name != "about"}
        if kept:
            self.state.check(kept)
        self.best, self.objective.trust = about.tolist()
        self.best = self.best if self.best > torch.finfo(torch.float64).min else -math.inf
        self.before, self.steps = kept, steps


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """So that further training does not change what is kept."""
    return {name: value.detach().clone() for name, value in tensors.items()}
