"""The inspection of an autoencoder before its denoiser is trained: on an unfit one, that would be a waste of time."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from calotype.data.folder import Pictures
from calotype.evaluation.autoencoder import CriticHealth, measure_autoencoder
from calotype.evaluation.diagnosis import Diagnosis, diagnose
from calotype.run import Inspection, Run
from calotype.spaces.latent import LatentSpace
from calotype.tables import number, numbers, within
from calotype.training.previews import inspection_count, validation_first
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
    device = space.mean.device
    count = inspection_count(pictures.pixels[0].numel())
    images, held_out = validation_first(pictures, count, device)
    space.requires_grad_(False)
    measures = measure_autoencoder(space, images, held_out, thorough=False, critic=critic_health(Run(run.folder)))
    diagnosis = diagnose(measures)
    say_diagnosis(diagnosis, say)
    run.log("inspection", **finite({**as_record(diagnosis), "measures": asdict(measures)}))
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


def say_diagnosis(diagnosis: Diagnosis, say: Callable[[str], None]) -> None:
    say(f"autoencoder: {diagnosis.verdict}")
    for finding in diagnosis.findings:
        say(f"- {finding.name}: {finding.what}; {finding.advice}")


def as_record(diagnosis: Diagnosis) -> dict[str, Any]:
    findings = [asdict(finding) for finding in diagnosis.findings]
    return {"verdict": diagnosis.verdict, "fit": diagnosis.fit, "score": diagnosis.score, "findings": findings}


def finite(value: Any) -> Any:
    """The same, with `None` for numbers that are not finite: JSON has no word for them."""
    match value:
        case dict():
            return {key: finite(inner) for key, inner in value.items()}
        case list():
            return [finite(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
    return value
