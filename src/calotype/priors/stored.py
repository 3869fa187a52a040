"""Kinds of priors by the names under which files hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field
from torch import Tensor

from calotype.nets.blocks import rename_keys
from calotype.nets.weights import ShapesOnly, check_weights, load_weights
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import WINDOW_SIDE, PatchPrior
from calotype.priors.prior import Prior
from calotype.types import UserError

PRIORS: dict[str, tuple[type[Prior], Callable[..., Prior]]] = {
    "mixture": (GaussianMixture, GaussianMixture),
    "conditional mixture": (CaptionedMixture, CaptionedMixture.sized),
    "local Gaussians": (PatchPrior, PatchPrior),
}
"""Class of each kind, and what makes an empty prior of its sizes."""
PREFIXES = ("prior.", "mixture.", "local.")
"""Of a prior's tensors among those of a denoiser: now, and in version 0.1."""


class PriorDescription(BaseModel):
    """Kind and shape of a prior, as `constants.json` and `model.json` have them."""

    kind: Literal["mixture", "conditional mixture", "local Gaussians"]
    shape: dict[str, Annotated[int, Field(ge=0, le=2**24)]]


def description(prior: Prior) -> dict[str, Any]:
    """Kind and shape of a prior, as `constants.json` and `model.json` have them."""
    kind = next(kind for kind, (cls, _) in PRIORS.items() if isinstance(prior, cls))
    return {"kind": kind, "shape": prior.shape}


def described(about: PriorDescription, source: str = "the file") -> Prior:
    """An empty prior of this kind and shape. Raises `UserError` where there is none; `source` is for its message."""
    shape = {"words" if name == "heard" else name: count for name, count in about.shape.items()}  # of version 0.1
    try:
        return PRIORS[about.kind][1](**shape)
    except (TypeError, ValueError, RuntimeError):
        raise UserError(f"{source}: no prior of kind {about.kind} has the shape {shape!r:.80}; copy it again") from None


def prior_in(tensors: Mapping[str, Tensor], source: str = "the denoiser") -> Prior | None:
    """The prior among the tensors of a denoiser; None where there is none.

    For files that do not store its kind and shape: the names and shapes of the tensors imply them. Raises `UserError`
    where they do not; `source` is for its message.
    """
    own: dict[str, Tensor] = {}
    for prefix in PREFIXES:
        own |= {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not own:
        return None
    rename_keys(own, "", CaptionedMixture.old_names)
    try:
        with ShapesOnly():
            empty = _empty_like(own)
    except (KeyError, ValueError, TypeError, RuntimeError, ZeroDivisionError):
        raise UserError(f"{source} has {min(own):.80}, but no closed form has such tensors; copy it again") from None
    check_weights(empty, own, source)  # no memory is taken before names and shapes agree
    prior = _empty_like(own)
    load_weights(prior, own, source)
    return prior


def _empty_like(tensors: Mapping[str, Tensor]) -> Prior:
    if "weights" in tensors:
        _, neighbours, values = tensors["weights"].shape
        channels = neighbours // WINDOW_SIDE**2
        return PatchPrior(round((values // channels) ** 0.5), channels)
    if "vocabulary" in tensors:
        return CaptionedMixture(_empty_mixture(tensors, "mixture."), *tensors["regression_in"].shape)
    return _empty_mixture(tensors)


def _empty_mixture(tensors: Mapping[str, Tensor], prefix: str = "") -> GaussianMixture:
    sizes = tensors[f"{prefix}rotations"].shape[1:3] if f"{prefix}rotations" in tensors else ()
    return GaussianMixture(*tensors[f"{prefix}axes"].shape, *sizes)
