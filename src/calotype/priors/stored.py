"""All closed forms by their names, so that a file that says which one it holds can be opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from calotype.priors.captioned import CaptionedMixture, closed_form_like
from calotype.priors.fitted import Fitted
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import PatchPrior

KINDS: dict[str, Callable[..., Fitted]] = {
    "mixture": GaussianMixture, "conditional mixture": CaptionedMixture.sized, "local Gaussians": PatchPrior,
}  # fmt: skip


def kind_of(form: Fitted) -> str:
    match form:
        case GaussianMixture():
            return "mixture"
        case CaptionedMixture():
            return "conditional mixture"
        case PatchPrior():
            return "local Gaussians"
    raise TypeError(f"{type(form).__name__} is no closed form; expected one of {', '.join(KINDS)}")


def within(tensors: Mapping[str, Tensor], prefix: str) -> Fitted | None:
    """The closed form among tensors that do not say which one they are; None where there is none."""
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not own:
        return None
    form = PatchPrior(*sizes(own["weights"])) if "weights" in own else closed_form_like(own, "")
    form.load_state_dict(own)
    return form


def sizes(weights: Tensor) -> tuple[int, int]:
    """Factor and channels of `PatchPrior`."""
    _, neighbours, values = weights.shape
    channels = neighbours // PatchPrior.neighbours(1)
    return round((values // channels) ** 0.5), channels
