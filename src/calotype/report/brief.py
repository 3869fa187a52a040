"""The figures of a run that fit on one line, with `None` for what is not known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from calotype.files import read_json
from calotype.report.findings import how_many
from calotype.report.folder import Run, read_run
from calotype.tables import number, numbers, within
from calotype.training.lock import owner_of
from calotype.types import UserError


@dataclass(frozen=True)
class Brief:
    """What `calotype runs` and the page of several runs say of each."""

    folder: Path
    name: str
    state: str
    kind: str = ""
    chain: str = ""  # sides of the pictures after each stage
    data: str = ""
    created: str = ""
    seconds: float | None = None
    parameters: float | None = None
    psnr: float | None = None
    held_out_loss: float | None = None
    fd_lite0: float | None = None
    fd_n: str = ""
    problem: str = ""


def brief(run: Run) -> Brief:
    facts, measures = run.facts, last_measures(run)
    return Brief(
        run.folder,
        run.name,
        state_of(run),
        str(run.plan.get("kind") or ""),
        " → ".join(map(str, run.chain)),
        Path(str(facts.get("data") or "")).name,
        str(facts.get("created") or ""),
        sum(numbers(within(facts, "seconds")).values()) or None,
        sum(numbers(within(run.plan, "predicted", "parameters")).values()) or None,
        measures.get("psnr"),
        measures.get("held_out_loss"),
        *fd_lite0(run),
    )


def all_briefs(folder: Path) -> list[Brief]:
    """Of every run in a folder, newest first; one that cannot be read says why.

    Raises `UserError` where there is no run.
    """
    found = [path.parent for path in folder.glob("*/run.json")] if folder.is_dir() else []
    if not found:
        raise UserError(f"no run in {folder}: no folder in it has a run.json; train one, or name another folder")
    return sorted(map(brief_of, found), key=lambda one: (one.created, one.name), reverse=True)


def brief_of(folder: Path) -> Brief:
    try:
        if not isinstance(read_json(folder / "run.json"), dict):
            raise UserError("run.json holds no settings")
        return brief(read_run(folder))
    except Exception as problem:  # whatever a damaged folder holds, the other runs are listed
        return Brief(folder, folder.name, "damaged", problem=str(problem))


def state_of(run: Run) -> str:
    """A run that says it trains while no process works on it was killed."""
    state = str(run.facts.get("status") or "unknown")
    return "killed" if state == "training" and owner_of(run.folder) is None else state


def last_measures(run: Run) -> dict[str, float]:
    """Of the last look of each leg; of what several legs measure, the first stage's counts."""
    found: dict[str, float] = {}
    for leg in reversed(run.legs):
        found |= numbers(within(run.latest("check", leg), "measures"))
    return found


def fd_lite0(run: Run) -> tuple[float | None, str]:
    """With its n: of `calotype evaluate`, else of the best cell of a sweep that was stored."""
    evaluated = within(run.evaluation, "measures", "samples")
    best = within(run.sweep, "best") if run.sweep.get("stored") else {}
    for found, n in ((evaluated, evaluated.get("n")), (best, run.sweep.get("n"))):
        if (value := number(within(found, "fd_lite0").get("value"))) is not None:
            return value, how_many(n)
    return None, ""
