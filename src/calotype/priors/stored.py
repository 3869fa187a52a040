"""Kinds of priors by the names under which files hold them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from calotype.nets.blocks import rename_keys
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import WINDOW_SIDE, PatchPrior
from calotype.priors.prior import Prior

PRIORS: dict[str, tuple[type[Prior], Callable[..., Prior]]] = {
    "mixture": (GaussianMixture, GaussianMixture),
    "conditional mixture": (CaptionedMixture, CaptionedMixture.sized),
    "local Gaussians": (PatchPrior, PatchPrior),
}
"""Class of each kind, and what makes an empty prior of its sizes."""
PREFIXES = ("prior.", "mixture.", "local.")
"""Of a prior's tensors among those of a denoiser: now, and in version 0.1."""


def description(prior: Prior) -> dict[str, Any]:
    """Kind and shape of a prior, as `constants.json` and `model.json` have them."""
    kind = next(kind for kind, (cls, _) in PRIORS.items() if isinstance(prior, cls))
    return {"kind": kind, "shape": prior.shape}


def described(about: Mapping[str, Any]) -> Prior:
    """An empty prior of this kind and shape."""
    shape = {"words" if name == "heard" else name: count for name, count in about["shape"].items()}  # of version 0.1
    return PRIORS[about["kind"]][1](**shape)


def prior_in(tensors: Mapping[str, Tensor], denoiser: str = "") -> Prior | None:
    """The prior among the tensors of a denoiser, whose names start with `denoiser`; None where there is none.

    For files that do not store its kind and shape: the names and shapes of the tensors imply them.
    """
    own: dict[str, Tensor] = {}
    for prefix in (denoiser + name for name in PREFIXES):
        own |= {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not own:
        return None
    rename_keys(own, "", CaptionedMixture.old_names)
    prior = _empty_like(own)
    prior.load_state_dict(own)
    return prior


def _empty_like(tensors: Mapping[str, Tensor]) -> Prior:
    if "weights" in tensors:
        _, neighbours, values = tensors["weights"].shape
        channels = neighbours // WINDOW_SIDE**2
        return PatchPrior(round((values // channels) ** 0.5), channels)
    if "vocabulary" in tensors:
        return CaptionedMixture(GaussianMixture(*tensors["mixture.axes"].shape), *tensors["regression_in"].shape)
    return GaussianMixture(*tensors["axes"].shape)
