"""A finished run that goes on: `calotype resume RUN --budget TIME`.

Its model becomes the start of a next part in the same folder, and stays what it is until the new one is whole. The
switch to the next part is prepared in a folder of its own; whoever then has the lock finishes it, so a process may be
killed at any moment.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from calotype.cli.commands.continuing import Source, check_disk, copy_start, source_of
from calotype.cli.commands.resuming import read_unchanged
from calotype.cli.console import Console
from calotype.cli.options import ResumeOptions
from calotype.data.folder import Pictures
from calotype.files import is_whole, make_folder, read_json, remove, whole_folder, write_json, write_whole
from calotype.machine import Machine, examine
from calotype.planning import Plan, make_plan, of_guidance, searches_level
from calotype.ranks import Ranks, current_job
from calotype.recipe import OptimizerConfig, Recipe
from calotype.report.format import duration
from calotype.run import BEFORE_FOLDER, LevelSearch, Run, RunState, read_state
from calotype.settings import parse_recipe, read_recipe, to_toml
from calotype.tables import merge
from calotype.training.snapshot import SPACE
from calotype.training.warm_start import WarmStart, next_seed
from calotype.types import UserError

NEXT_FOLDER = "next"
ARCHIVED = (
    "recipe.toml", "plan.json", "evaluation.json", "inspection.json", "inspection.html", "sweep.json", "nearest.png",
    "prompted.png", "samples", "previews", "report.html",
)  # fmt: skip
"""What is of one part of a run: kept in `before/PART` when the next one begins."""
OUTDATED = ("checkpoints", f"constants/{SPACE}")
"""What only the legs of one part need: removed with it, or kept with it for its milestones. Its priors are those of the
next part as well: that has the same pictures and latents, and a prior that is fitted again, to other draws, may be
cross-fitted where this one is not, beside which the network has not learned (dev/LOG.md, 2026-12-01)."""


def extend(
    run: Run, options: ResumeOptions, budget: float, console: Console, ranks: Ranks, held: Callable[[], bool]
) -> tuple[Run, Plan, Pictures, Machine]:
    """Plans the next part of a finished run, and switches to it. The caller holds the lock of the run."""
    folder = run.folder
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    pictures = read_unchanged(run, recipe, options.data, console)
    was_read, machine = time.monotonic(), examine(options.device).shared_by(ranks.count)
    source = source_of(run, options.device)
    before = Plan.read(folder / "plan.json", recipe)
    start = replace(source.start, again=settings_again(before, recipe))
    require_same_networks(start, folder)
    plan = make_plan(pictures, machine, budget, options.started, guidance_by_user(before), start)
    console.plan(plan)
    check_disk(folder, plan)
    copy_start(source, folder)
    state = next_state(run.state, source, plan, machine)
    with whole_folder(folder / NEXT_FOLDER) as path:
        write_whole(path / "recipe.toml", to_toml(plan.recipe))
        write_json(path / "plan.json", plan.as_json())
        write_json(path / "run.json", state.model_dump(exclude_none=True))
    switch(folder)
    after = Run.open(folder)
    after.begin(options.started, held)
    after.spend("read", was_read - options.started)
    after.spend("plan", time.monotonic() - was_read)
    console.say(f"part {state.part} of {folder}: {duration(budget)} more")
    return after, plan, pictures, machine


def settings_again(before: Plan, recipe: Recipe) -> dict[str, Any]:
    """The settings of the run for its next part.

    Legs whose length followed the clock follow it again, those with a fixed one see as many images again. Of an
    autoencoder that was trained the decoder is trained further: else it would limit what more time can reach
    (dev/LOG.md, 2026-11-28).
    """
    paced = {leg: 0 for leg in recipe.legs if leg in before.paced}
    warmup = {"learn": {"warmup": OptimizerConfig().warmup}}  # chosen again for the length of the leg
    enlarge = {str(size): warmup for size in recipe.chain[1:]}
    space = {"space": {"kind": "run", "finetune": recipe.trains_space}} if recipe.kind == "latent" else {}
    changes = {"seed": next_seed(recipe), "denoiser": warmup, "enlarge": enlarge, **space}
    return merge(recipe.with_images(paced).model_dump(mode="json"), changes)


def require_same_networks(start: WarmStart, folder: Path) -> None:
    """Raises `UserError` where `recipe.toml` now makes other networks than those that are to be trained further: they
    would start anew, and take the place of the trained ones."""
    recipe, trained = parse_recipe(start.again or {}), start.recipe
    reasons = [start.obstacle(recipe, size) for size in recipe.chain]
    if (recipe.kind, recipe.autoencoder.network) != (trained.kind, trained.autoencoder.network):
        reasons.insert(0, "its kind or autoencoder differs")
    if recipe.denoiser.text != trained.denoiser.text:
        reasons.insert(0, "its text encoder differs")
    if why := next(filter(None, reasons), ""):
        raise UserError(
            f"the networks of {folder / 'recipe.toml'} are not those of the model in {folder} any more ({why}); put "
            f"its settings back, or start a new run"
        )


def guidance_by_user(before: Plan) -> dict[str, Any]:
    """The guidance and epsilon scaling that the user has set, which were then not searched; else nothing."""
    by_user = before.guidance_by_user
    if not by_user if by_user is not None else before.guidance_samples:
        return {}
    return {"sampling": of_guidance(before.recipe.sampling.model_dump(mode="json"))}


def next_state(before: RunState, source: Source, plan: Plan, machine: Machine) -> RunState:
    """What `run.json` says at the start of the next part. What was found of guidance and augmentation levels stays,
    where there is no time to search again, and what is known of the closed forms, which stay, too."""
    kept = {
        "name", "created", "data", "content", "uncaptioned", "labels", "pictures", "split", "classes", "versions",
        "black_and_white", "constants", "outdated",
    }  # fmt: skip
    return RunState(
        **before.model_dump(include=kept),
        status="interrupted",
        legs=dict.fromkeys(plan.recipe.legs, "waiting"),
        threads=machine.threads,
        ranks=machine.ranks,
        job=current_job(),
        settings=plan.recipe.model_dump(mode="json"),
        guidance=None if plan.guidance_samples or plan.guidance_by_user else before.guidance,
        levels=levels_again(before, plan),
        origin=source.origin,
        part=before.part + 1,
    )


def levels_again(before: RunState, plan: Plan) -> dict[str, LevelSearch]:
    """The augmentation levels that were found, of the stages for which they are not searched again, nor set by the
    user."""
    sizes = (size for size in plan.recipe.chain[1:] if searches_level(plan.recipe.enlarging(size)))
    return {
        key: before.levels[key] for key in map(str, sizes) if key in before.levels and not plan.level_crops.get(key)
    }


def switch(folder: Path) -> None:
    """Finishes the switch of a run to its next part, if one has been prepared. The caller holds the lock of the run."""
    prepared = folder / NEXT_FOLDER
    if not is_whole(prepared):
        return
    state = read_state(prepared / "run.json")
    if read_state(folder / "run.json").part < state.part:
        archive(folder, folder / BEFORE_FOLDER / str(state.part - 1))
        for name in OUTDATED:
            remove(folder / name)
        for name in ("recipe.toml", "plan.json"):
            write_whole(folder / name, (prepared / name).read_bytes())
        Run(folder, state).log("part", number=state.part)
        write_json(folder / "run.json", read_json(prepared / "run.json"))
    remove(prepared)


def archive(folder: Path, place: Path) -> None:
    """Moves what is of the part before to `place`, or copies what the next one needs, too; its `run.json` is copied
    last, and says that all is there."""
    if (place / "run.json").exists():
        return
    make_folder(place)
    milestones = (read_state(folder / "run.json").settings or {}).get("milestones")
    for name in (*ARCHIVED, *(["checkpoints"] if milestones else [])):
        if os.path.lexists(folder / name):
            remove(place / name)
            shutil.move(folder / name, place / name)
    if milestones and (constants := folder / "constants").is_dir():
        with whole_folder(place / "constants") as path:
            shutil.copytree(constants, path, dirs_exist_ok=True)
    write_whole(place / "run.json", (folder / "run.json").read_bytes())
