"""The inspection of an autoencoder before its denoiser is trained: on an unfit one, that would be a waste of time."""

from __future__ import annotations

from collections.abc import Callable

from calotype.data.folder import Pictures
from calotype.evaluation.autoencoder import CriticHealth, measure_autoencoder
from calotype.evaluation.diagnosis import diagnose
from calotype.evaluation.features import Lite0
from calotype.run import Inspection, Run
from calotype.spaces.latent import LatentSpace
from calotype.tables import number, numbers, within
from calotype.training.previews import INSPECTED, validation_first
from calotype.types import UserError


def require_fit(
    run: Run, space: LatentSpace, pictures: Pictures, say: Callable[[str], None], force: bool = False
) -> None:
    """Inspects the autoencoder once. Raises `UserError` where it is unfit to diffuse on, unless `force` is set."""
    inspection = run.state.inspection
    if inspection is None:
        inspection = run.state.inspection = inspect_briefly(run, space, pictures, say)
    if inspection.advice and not force and not inspection.forced:
        raise UserError(
            f"{inspection.verdict} {inspection.advice}. A denoiser on it would be a waste of time, so the run has "
            f"stopped; look closer with: calotype inspect {run.folder}; or go on with: calotype resume {run.folder} "
            f"--force"
        )
    inspection.forced = bool(inspection.advice)
    run.save()


def inspect_briefly(run: Run, space: LatentSpace, pictures: Pictures, say: Callable[[str], None]) -> Inspection:
    """Says and logs what is wrong."""
    images, held_out = validation_first(pictures, INSPECTED.count(pictures.pixels[0].numel()), space.mean.device)
    space.requires_grad_(False)
    lite0, critic = Lite0(images.device), critic_health(Run(run.folder))
    diagnosis = diagnose(measure_autoencoder(space, images, held_out, lite0, thorough=False, critic=critic))
    for line in diagnosis.lines:
        say(line)
    run.log("inspection", **diagnosis.stored())
    advice = "" if diagnosis.fit else diagnosis.advice
    return Inspection(verdict=diagnosis.verdict, score=diagnosis.score, advice=advice)


def critic_health(run: Run) -> CriticHealth | None:
    """Of the critic, by the log; None where there is none, or its loss has not set in yet."""
    terms = within(run.latest("step", "autoencoder"), "terms")
    right, gap = number(terms.get("critic.right")), number(terms.get("critic.gap"))
    checks = (within(event, "measures") for event in run.history("check", "autoencoder"))
    psnrs = [psnr for measures in checks if (psnr := numbers(measures).get("psnr"))]
    if right is None or gap is None or not psnrs or "autoencoder.adversarial" not in terms:
        return None
    guard = run.history("guard", "autoencoder")
    taken_back = sum(bool(check.get("taken_back")) for check in guard)
    trust = number(guard[-1].get("trust")) if guard else None
    return CriticHealth(right, gap, max(psnrs), psnrs[-1], taken_back, 1.0 if trust is None else trust)
