"""Plan, train, resume: from a request to a finished run."""

from __future__ import annotations

import datetime
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from calotype.cli.commands.continuing import Source, check_disk, copy_start, open_source, require_fitting
from calotype.cli.commands.extending import extend, switch
from calotype.cli.commands.following import follow, lead
from calotype.cli.commands.reading import name_that_fits, place_of, read, unused_path
from calotype.cli.commands.resuming import labels_hash, note_captions, note_changes, read_again, uncaptioned
from calotype.cli.commands.sampling import write_samples
from calotype.cli.commands.serving import page_beside, require_extra
from calotype.cli.console import Console
from calotype.cli.options import PlanOptions, ResumeOptions, SampleOptions, TrainingOptions, TrainOptions
from calotype.data.folder import Pictures
from calotype.data.remote import absolute, remote_address
from calotype.data.seen import OWN_FILE, SEEN_FILE, continued_split, seen_by, write_seen
from calotype.data.shard_sets import LIST
from calotype.data.shards import SHARD
from calotype.data.split import SPLIT_FILE, SPLIT_VERSION, write_split
from calotype.evaluation.neighbours import write_neighbours
from calotype.files import UNFINISHED, make_folder, remove, sha256, write_json, write_whole
from calotype.interop import minilm, transformers
from calotype.interop.autoencoders import read_autoencoder_config
from calotype.interop.diffusers import weights_file
from calotype.machine import Machine, describe_machine, examine, release_memory
from calotype.planning import Plan, make_plan
from calotype.planning.memory import rounds_of
from calotype.ranks import Ranks, joined_ranks, restarted
from calotype.recipe import ImportedSpace, Recipe
from calotype.report import write_report
from calotype.report.card import write_card
from calotype.run import PORTRAITS, Run, RunState, SplitRecord, lost
from calotype.settings import parse_recipe, parse_split, read_overrides, read_recipe, to_toml
from calotype.tables import merge
from calotype.training.checkpoint import rename_legs
from calotype.training.examples import without_unread_captions
from calotype.training.pipeline import Pipeline, record_status
from calotype.training.previews import held_out_prompts
from calotype.training.process import StoppableReporter, locked, stoppable
from calotype.training.tensorboard import EVENTS_FOLDER, begin_events, events_beside, require_writer
from calotype.training.warm_start import START_FOLDER
from calotype.types import UserError

DEFAULT_SIZE = 64
FORBIDDEN = re.compile(r'[<>:"|?*\\]+')
"""Letters that Windows allows in no name of a folder."""
BEFORE_STATE = ("cache", "recipe.toml", "plan.json", SPLIT_FILE, SEEN_FILE, START_FOLDER)
"""What is in the folder of a new run before there is a run.json, beside the lock."""
FEWEST_PLANNED, MOST_PLANNED, PLANNED_VALUES = 2**12, 2**14, 2**30
"""Pictures that `plan` reads of a large set, and values of their pixels."""
NEIGHBOURS_FROM = 300.0
"""Seconds of budget: the search for nearest training pictures takes a few, which a shorter run does not have."""


def requested_settings(options: TrainingOptions, source: Source | None = None) -> dict[str, Any]:
    """Of the recipe file and the overrides, with the size: the option's, else theirs, else that of the run to start
    from, else 64."""
    from_file = read_recipe(options.recipe) if options.recipe else {}
    given = {name: value for name in ("size", "kind") if (value := getattr(options, name)) is not None}
    below = merge(from_file, read_space(options.space))
    kinds = merge(source.start.settings(below, captioned=True), below) if source else below
    settings = with_paths(merge(below, read_overrides(options.overrides or (), kinds), given))
    stages = settings.get("stages") or [source.start.recipe.size if source else DEFAULT_SIZE]
    return {"size": stages[-1], **settings}


def read_space(text: str | None) -> dict[str, Any]:
    """What `--space` says, as settings."""
    if text is None:
        return {}
    kind, _, path = text.partition(":")
    if text != "own" and (kind != "diffusers" or not path):
        raise UserError(f"--space is {text!r}, but must be own, or diffusers:PATH with the folder of an autoencoder")
    return {"space": {"kind": kind, "path": path} if path else {"kind": "own"}}


def with_paths(settings: dict[str, Any]) -> dict[str, Any]:
    """With the resolved paths of an imported autoencoder and of a frozen text encoder, and the hash of the latter.

    They are opened here, since reading the pictures takes long; the hash keeps another encoder from taking its place.
    """
    changes: dict[str, Any] = {}
    text = settings.get("denoiser", {}).get("text", {})
    if (path := settings.get("space", {}).get("path")) is not None:
        folder = place_of(path)
        read_autoencoder_config(folder)
        weights_file(folder)
        changes["space"] = {"path": str(folder)}
    if text.get("kind") == "minilm":
        minilm.minilm_folder()
    elif text.get("kind") == "folder" and "path" in text:
        folder = place_of(text["path"])
        transformers.read_encoder_config(folder)
        digest = text.get("digest") or transformers.digest_of(folder)
        changes["denoiser"] = {"text": {"path": str(folder), "digest": digest}}
    return merge(settings, changes)


def plan(options: TrainingOptions, console: Console) -> Plan:
    settings, source = request(options, console)
    return read_and_plan(options, settings, source, None, console, Ranks())[0]


def request(options: TrainingOptions, console: Console) -> tuple[dict[str, Any], Source | None]:
    """The settings that the user wants, and the run to start from."""
    if options.source is None:
        return requested_settings(options), None
    described = isinstance(options, PlanOptions) and options.flops is not None  # a machine that is not here
    source = open_source(options.source, "cpu" if described else options.device, console)
    settings = requested_settings(options, source)
    require_fitting(source, settings)
    return settings, source


def read_and_plan(
    options: TrainingOptions, settings: dict[str, Any], source: Source | None, cache: Path | None, console: Console,
    ranks: Ranks,
) -> tuple[Plan, Pictures, Machine, float]:  # fmt: skip
    """The plan, the pictures and the machine that it is for, and when the pictures were read."""
    rule = continued_split(source.seen if source else None, parse_split(settings))
    most = None if cache else max(FEWEST_PLANNED, min(MOST_PLANNED, PLANNED_VALUES // (3 * settings["size"] ** 2)))
    levels = source.run.state.black_and_white if source else None
    pictures = read(options.folder, settings["size"], cache, console, rule, most=most, levels=levels)
    was_read, machine = time.monotonic(), machine_of(options, ranks)
    start = source.start if source else None
    planned = make_plan(pictures, machine, options.budget, options.started, settings, start)
    planned.notes += source.notes if source else []
    release_memory(machine.device)
    console.plan(planned)
    return planned, pictures, machine, was_read


def machine_of(options: TrainingOptions, ranks: Ranks) -> Machine:
    """The machine that is here, examined, of so many ranks; or the one that the options of `plan` describe.

    Raises `UserError` where only one of both options is set.
    """
    if not isinstance(options, PlanOptions) or options.flops is options.memory is None:
        return examine(options.device).shared_by(ranks.count)
    if options.flops is None or options.memory is None:
        there, missing = ("--memory", "--flops") if options.flops is None else ("--flops", "--memory")
        raise UserError(f"{there} is set without {missing}; both describe a machine that is not here: set both or none")
    return describe_machine(options.device, options.flops, options.memory)


def train(options: TrainOptions, console: Console) -> Path:
    """From a folder of pictures to a model, its samples and a report. Returns the folder of the run."""
    if options.serve:
        require_extra()
    if options.tensorboard:
        require_writer()
    with joined_ranks(options.device) as ranks:
        if not ranks.first:
            return follow(ranks, options.device, options.force)
        if restarted() and options.out is not None and (options.out / "run.json").exists():
            return _resume(ResumeOptions(options.out, options.device, options.force), console, ranks)
        return _train(options, console, ranks)


def _train(options: TrainOptions, console: Console, ranks: Ranks) -> Path:
    settings, source = request(options, console)
    with claimed(options, settings["size"]) as (folder, held):
        cache = folder / "cache"
        planned, pictures, machine, was_read = read_and_plan(options, settings, source, cache, console, ranks)
        if not held():
            raise UserError(lost(folder))
        check_disk(folder, planned)
        console.say(f"the run is in {folder}")
        write_whole(folder / "recipe.toml", to_toml(planned.recipe))
        write_json(folder / "plan.json", planned.as_json())
        state = initial_state(options, folder, pictures, planned.recipe, machine)
        write_split(folder, pictures.split, state.uncaptioned or state.content)
        if source is not None:
            start_from(source, folder, state)
        run = Run(folder, state)
        run.begin(options.started, held)
        run.spend("read", was_read - options.started)  # writes run.json, after all that resuming needs
        run.spend("plan", time.monotonic() - was_read)
        begin_events(folder, options.tensorboard)
        with page_beside(folder.parent, options.device) if options.serve else nullcontext():
            return produce(run, planned, pictures, machine, console, options.force, ranks)


def start_from(source: Source, folder: Path, state: RunState) -> None:
    """Puts into the folder of a new run what it needs of the one that it starts from, which may then be gone."""
    copy_start(source, folder)
    if source.seen is not None:
        write_seen(folder, source.seen)
    state.origin = source.origin


def produce(
    run: Run, plan: Plan, pictures: Pictures, machine: Machine, console: Console, force: bool, ranks: Ranks
) -> Path:
    """The model of a run, its samples, its card and its report. Raises `Interrupted` when asked to stop.

    The caller holds the lock of the run. The report is written also of what was interrupted, or has failed.
    """
    recipe, folder, device = plan.recipe, run.folder, machine.device
    pictures = without_unread_captions(recipe, pictures)
    lead(ranks, run)
    with stoppable() as stop:
        try:
            with record_status(run, device, stop), events_beside(run, console.say):
                if not (folder / OWN_FILE).exists():  # nor in a run of an earlier version
                    with run.timing("read"):
                        write_seen(folder, seen_by(pictures), OWN_FILE)
                Pipeline(run, recipe, plan, pictures, device, console, stop, force, ranks).train()
                with run.timing("samples"):
                    release_memory(device)
                    prompts, count = held_out_prompts(pictures, plan.final_count), plan.final_count
                    chosen = SampleOptions(folder, seed=recipe.seed, out=folder / "samples", device=str(device))
                    write_samples(chosen, count, prompts, StoppableReporter(console, stop))
                if plan.budget_seconds >= NEIGHBOURS_FROM:
                    with run.timing("neighbours"):
                        write_neighbours(folder, pictures)
                write_card(folder)
            remove(folder / START_FOLDER)
        finally:
            run.require_lock()
            write_report(folder)
            run.save()  # with the seconds that the report took
    console.say(f"done: look at {folder / 'report.html'} and {folder / 'samples' / 'grid.png'}")
    console.say(f"more pictures: calotype sample {folder} --count 16")
    return folder


def resume(options: ResumeOptions, console: Console) -> Path:
    """Goes on with a run that was stopped, wherever it was; or with a finished one, where there is a budget for it."""
    with joined_ranks(options.device) as ranks:
        return _resume(options, console, ranks) if ranks.first else follow(ranks, options.device, options.force)


def _resume(options: ResumeOptions, console: Console, ranks: Ranks) -> Path:
    folder = options.run
    Run.open(folder)  # so that no lock is put into a folder that is no run
    with locked(folder) as held:
        switch(folder)
        begin_events(folder, options.tensorboard)
        run = Run.open(folder)  # as the owner before has left it
        budget = None if restarted(run.state.job) else options.budget  # this job has begun the part already
        if run.state.status != "finished":
            require_no_budget(run, budget)
            return _go_on(run, options, console, ranks, held)
        if budget is not None:
            return produce(*extend(run, options, budget, console, ranks, held), console, options.force, ranks)
        if options.tensorboard:
            with events_beside(run, console.say):
                console.say(f"the TensorBoard events of its log are in {folder / EVENTS_FOLDER}")
    console.say(f"{folder} is finished already; its report is {folder / 'report.html'}")
    return folder


def require_no_budget(run: Run, budget: float | None) -> None:
    """Raises `UserError`: what is not finished has a plan, and its legs end when that says."""
    if budget is not None:
        raise UserError(
            f"{run.folder} is {run.state.status}, and --budget is more time for a finished run; finish it first, "
            f"within the budget that it has, with: calotype resume {run.folder}"
        )


def _go_on(run: Run, options: ResumeOptions, console: Console, ranks: Ranks, held: Callable[[], bool]) -> Path:
    folder = run.folder
    recipe = parse_recipe(read_recipe(folder / "recipe.toml"))
    planned = Plan.read(folder / "plan.json", recipe)
    pictures = read_again(run, recipe, options.data, console)
    if content_of(recipe) != run.state.imported_weights:
        raise UserError(
            f"the imported autoencoder has changed since {folder} was started; put it back, or start a new run"
        )
    rename_legs(folder / "checkpoints")
    threads = run.state.threads if run.state.ranks == ranks.count else None
    machine = examine(options.device, threads).shared_by(ranks.count)
    note_changes(run, recipe, planned.device, machine, console)
    note_captions(run, recipe, pictures)
    rounds_of(recipe, machine)  # refuses what does not fit
    run.begin(options.started, held)
    run.spend("read", time.monotonic() - options.started)
    return produce(run, planned, pictures, machine, console, options.force, ranks)


def content_of(recipe: Recipe) -> str | None:
    """A hash of the weights that are imported, where there are any."""
    return sha256(weights_file(Path(recipe.space.path))) if isinstance(recipe.space, ImportedSpace) else None


@contextmanager
def claimed(options: TrainOptions, size: int) -> Iterator[tuple[Path, Callable[[], bool]]]:
    """The folder of a new run, which no other process has or gets, and whether its lock is still held; removed again if
    no run came of it."""
    folder, missing = claim(options, size)
    try:
        with locked(folder) as held:
            require_empty_out(options)  # once more: another process may have had the lock meanwhile
            try:
                yield folder, held
            finally:
                if held() and not (folder / "run.json").exists():
                    for name in BEFORE_STATE:
                        remove(folder / name)
    finally:
        remove_empty(missing)


def remove_empty(folders: Sequence[Path]) -> None:
    """Those that have nothing in them, one after the other."""
    for path in folders:
        with suppress(OSError):  # not empty, or not there
            path.rmdir()


def claim(options: TrainOptions, size: int) -> tuple[Path, list[Path]]:
    """Makes the folder of a run, with the folders above that were missing, too (deepest first).

    Two processes that ask at the same time for `runs/NAME-SIZE-N` get different ones: making a folder is one step.
    """
    while True:
        folder = run_folder(options, size)
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        try:
            make_folder(folder if options.out is not None else folder.parent)
            if options.out is None:
                folder.mkdir()
            return folder, missing
        except FileExistsError:
            if options.out is not None or not os.path.lexists(folder):
                raise
        except BaseException:
            remove_empty(missing)
            raise


def run_folder(options: TrainOptions, size: int) -> Path:
    """`--out`, or the first free `runs/NAME-SIZE-N`. Raises `UserError` if `--out` has something in it."""
    if options.folder is not None and (options.out or Path("runs")).resolve().is_relative_to(options.folder.resolve()):
        raise UserError(f"the run would lie inside the pictures in {options.folder}; choose another place with --out")
    if options.out is not None:
        require_empty_out(options)
        return options.out
    name = set_name(options.folder) if options.folder else PORTRAITS
    kind = f"-{options.kind}" if options.kind == "cascade" else ""
    return unused_path(Path("runs") / f"{name}-{size}{kind}")


def set_name(pictures: Path) -> str:
    """Of a folder its name, of a list of shards or one shard the name without suffix; it can be that of a folder."""
    path = pictures.resolve()
    name = path.stem if path.suffix.lower() in (LIST, SHARD) and not path.is_dir() else path.name
    return name_that_fits(name) if remote_address(pictures) is None else FORBIDDEN.sub("-", name)


def require_empty_out(options: TrainOptions) -> None:
    """Raises `UserError` if `--out` has something in it, but for what a process that was killed while it planned left.

    Such a process leaves its lock, and what is beside that it wrote.
    """
    out = options.out
    if out is None or not out.exists():
        return
    names = {path.name for path in out.iterdir() if not UNFINISHED.fullmatch(path.name)} if out.is_dir() else {""}
    if names and not ("lock" in names and names <= {"lock", *BEFORE_STATE}):
        hint = f"go on with: calotype resume {out}" if "run.json" in names else "choose another"
        raise UserError(f"--out {out} is not an empty folder; {hint}")


def initial_state(
    options: TrainOptions, folder: Path, pictures: Pictures, recipe: Recipe, machine: Machine
) -> RunState:
    """What `run.json` says at the start."""
    return RunState(
        name=folder.name,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        data=absolute(options.folder) if options.folder else PORTRAITS,
        content=pictures.content,
        uncaptioned=uncaptioned(pictures, recipe),
        labels=labels_hash(pictures),
        imported_weights=content_of(recipe),
        pictures=pictures.split.counts,
        split=SplitRecord(version=SPLIT_VERSION, **recipe.split.model_dump()),
        classes=list(pictures.classes),
        black_and_white=dict(pictures.levels),
        status="training",
        legs=dict.fromkeys(recipe.legs, "waiting"),
        versions={name: version(name) for name in ("calotype", "torch")} | {"python": platform.python_version()},
        threads=machine.threads,
        ranks=machine.ranks,
        settings=recipe.model_dump(mode="json"),
    )
