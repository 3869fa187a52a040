"""What can be asked of Calotype. Whoever talks to people calls these functions, and they talk through a `Voice`."""

from __future__ import annotations

import datetime
import platform
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from calotype import comparison
from calotype.data.folder import Pictures, list_pictures, read_folder
from calotype.data.images import UnreadableError, grid, read_image
from calotype.data.latents import cache_latents
from calotype.data.portraits import read_portraits, write_portraits
from calotype.files import read_json, write_json, write_whole
from calotype.learning.run import Interrupted, Leg, Run, go, stoppable
from calotype.legs import (
    Examples,
    autoencoder_leg,
    crop_examples,
    denoiser_leg,
    enlarger_leg,
    latent_examples,
    mistakes_leg,
    picture_examples,
    search_levels,
)
from calotype.machine import Machine, examine, peak_memory
from calotype.model import changed_all, load, save_model
from calotype.plan import Pace, Plan, make_plan
from calotype.recipe import Recipe, check, merge, read_overrides, read_recipe, to_toml
from calotype.report import write_report
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.stage import Stage
from calotype.vocabulary import NOT_TOLD, UserError

PORTRAITS = "portraits"
SIZE = 64
Progress = Callable[[int, int, str], None]


@runtime_checkable
class Voice(Protocol):
    """How a command talks: lines, and bars for what takes long."""

    def say(self, text: str) -> None: ...

    def bar(self, what: str) -> AbstractContextManager[Progress]: ...

    def plan(self, plan: Plan) -> None: ...


@dataclass(frozen=True)
class Wish:
    """What the user asked for."""

    folder: Path | None
    """None: the embedded portraits."""
    size: int | None
    budget: float
    """Seconds."""
    out: Path | None = None
    recipe: Path | None = None
    overrides: Sequence[str] = ()
    device: str = "auto"
    kind: str | None = None
    """`latent` or `cascade`; None: the recipe's, else latent."""
    started: float = field(default_factory=time.time)
    """When the budget began to run, in seconds since the epoch."""

    def settings(self) -> dict[str, Any]:
        """Of the recipe file and the overrides, with the size: the option's, else theirs, else 64."""
        from_file = read_recipe(self.recipe) if self.recipe else {}
        given = {name: value for name in ("size", "kind") if (value := getattr(self, name)) is not None}
        settings = merge(from_file, read_overrides(self.overrides, from_file), given)
        stages = settings.get("stages") or [SIZE]
        return {"size": stages[-1], **settings}


def plan(wish: Wish, voice: Voice) -> Plan:
    """The plan alone."""
    settings = wish.settings()
    pictures = read(wish.folder, settings["size"], None, voice)
    made = _plan(wish, settings, pictures, examine(wish.device))
    voice.plan(made)
    return made


def train(wish: Wish, voice: Voice) -> Path:
    """From a folder of pictures to a model, its samples and a report. Returns the folder of the run."""
    settings = wish.settings()
    folder = run_folder(wish, settings["size"])
    pictures = read(wish.folder, settings["size"], folder / "cache", voice)
    was_read = time.time()
    machine = examine(wish.device)
    made = _plan(wish, settings, pictures, machine)
    voice.plan(made)
    check_disk(folder, made)
    voice.say(f"the run is in {folder}")
    run = Run(folder, {**about(wish, folder, pictures, made.recipe), "threads": machine.threads})
    run.spend("read", was_read - wish.started)
    run.spend("plan", time.time() - was_read)
    write_whole(folder / "recipe.toml", to_toml(made.recipe))
    write_json(folder / "plan.json", made.as_json())
    return develop(run, made, pictures, machine, voice)


def resume(folder: Path, device: str, voice: Voice) -> Path:
    """Goes on with a run that was stopped, wherever it was."""
    run = Run.open(folder)
    if run.state["state"] == "finished":
        voice.say(f"{folder} is finished already; its report is {folder / 'report.html'}")
        return folder
    recipe = check(read_recipe(folder / "recipe.toml"))
    made = Plan.from_json(recipe, read_json(folder / "plan.json"))
    source = None if run.state["data"] == PORTRAITS else Path(run.state["data"])
    pictures = read(source, recipe.size, folder / "cache", voice)
    if pictures.content != run.state["content"]:
        raise UserError(
            f"the pictures in {source} have changed since {folder} was started; put them back, or start a new run"
        )
    return develop(run, made, pictures, examine(device, run.state.get("threads")), voice)


def sample(
    folder: Path, count: int, label: str | None, seed: int, out: Path | None, device: str, voice: Voice, **changes: Any
) -> Path:
    """Writes `count` pictures, one PNG each, and a grid of them."""
    if count < 1:
        raise UserError(f"count is {count}, but must be at least 1")
    model = load(folder, device)
    names = [model.classes[index] if index != NOT_TOLD else "picture" for index in model.labels(count, label)]
    out = out or free(folder / "samples")
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[Image.Image] = []
    with voice.bar("samples") as progress:
        for index, picture in enumerate(model.draw(count, label, seed, **changes)):
            picture.save(out / f"{seed}-{index:04d}-{safe(names[index])}.png")
            pictures.append(picture)
            progress(index + 1, count, "")
    grid(pictures, columns(count)).save(out / "grid.png")
    first, *above = (one.model_dump(mode="json") for one in changed_all(model.samplings, changes))
    write_json(out / "samples.json", {"labels": names, "seed": seed, "sampling": first, "enlarge": above})
    return out


def compare(
    runs: Sequence[Path], data: Path | None, out: Path, count: int, seed: int, device: str, voice: Voice
) -> Path:
    """What the lecture claims of latent diffusion and cascades, measured on finished runs."""

    def pictures(name: str, size: int) -> Pictures:
        embedded = name == PORTRAITS and not (data and data.exists())
        return read(None if embedded else Path(name), size, out / "cache", voice)

    where = str(examine(device).device)
    return comparison.compare(runs, data, out, count, seed, where, pictures, voice.bar)


def enlarge(
    folder: Path, pictures: Path, size: int | None, label: str | None, seed: int, out: Path, device: str, voice: Voice
) -> int:
    """Writes every picture enlarged, as PNG; those that cannot be read are named and left out. Returns how many."""
    model, paths = load(folder, device), list_pictures(pictures)
    model.enlarger(size)
    model.labels(1, label)
    check_empty(out)
    out.mkdir(parents=True, exist_ok=True)
    written = 0
    with voice.bar("enlarge") as progress:
        for index, path in enumerate(paths):
            try:
                model.enlarge(read_image(path), size, label, seed).save(out / f"{index:04d}-{safe(path.stem)}.png")
                written += 1
            except UnreadableError as error:
                voice.say(str(error))
            progress(index + 1, len(paths), path.name)
    if not written:
        raise UserError(f"no picture in {pictures} could be read, so none was enlarged")
    return written


def check_empty(out: Path) -> None:
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out} is not an empty folder; choose another")


def write_data(size: int, count: int | None, out: Path, voice: Voice) -> None:
    """The embedded portraits as PNG files in class folders."""
    with voice.bar("portraits") as progress:
        write_portraits(size, count, out, lambda done, total: progress(done, total, ""))


def develop(run: Run, plan: Plan, pictures: Pictures, machine: Machine, voice: Voice) -> Path:
    """All legs of a run, then its model, samples and report. Raises `Interrupted` when asked to stop."""
    with run.locked():
        run.state["state"] = "training"
        run.save()
        try:
            with stoppable() as stop:
                _develop(run, plan, pictures, machine.device, voice, stop)
            run.state["state"] = "finished"
        except (Interrupted, KeyboardInterrupt):
            run.state["state"] = "interrupted"
            raise Interrupted(str(run.folder)) from None
        except BaseException:
            run.state["state"] = "failed"
            raise
        finally:
            run.state["peak_memory_bytes"] = peak_memory(machine.device)
            run.save()
            write_report(run.folder)
    return run.folder


def _develop(
    run: Run, plan: Plan, pictures: Pictures, device: torch.device, voice: Voice, stop: threading.Event
) -> None:
    workshop = Workshop(run, plan, pictures, device, voice, stop)
    space, examples = workshop.space()
    stages = [workshop.base(space, examples)]
    recipe = plan.recipe
    for size in recipe.chain[1:]:
        stage = workshop.enlarger(size, stages[-1])
        recipe = workshop.with_best_level(recipe, stages, stage)
        stages.append(stage)
    save_model(run.folder / "model", recipe, stages, pictures.classes)
    with run.timing("samples"):
        sample(run.folder, plan.final_count, None, recipe.seed, run.folder / "samples", str(device), voice)


@dataclass(frozen=True)
class Workshop:
    """What all legs of one run need; its methods make the parts of the model, one after the other."""

    run: Run
    plan: Plan
    pictures: Pictures
    device: torch.device
    voice: Voice
    stop: threading.Event

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def space(self) -> tuple[Space, Examples]:
        """What the first stage works in, and its training examples in there."""
        pictures = self.pictures.shrunk(self.recipe.chain[0])
        if self.recipe.kind == "cascade":
            return PixelSpace(), picture_examples(self.recipe, pictures, self.device)
        with self.run.timing("prepare"):
            leg = autoencoder_leg(self.recipe, pictures, self.device)
        self._go(leg)
        space, folder = LatentSpace(leg.vae).to(self.device), self.run.folder / "cache"
        with self.run.timing("latents"), self.voice.bar("latents") as bar:
            cache = cache_latents(space, pictures, self.recipe.flip, folder, self.device, told(bar))
            space.measure(moments.float().to(self.device) for moments in cache.of(pictures.train_indices))
        return space, latent_examples(self.recipe, pictures, cache, self.device)

    def base(self, space: Space, examples: Examples) -> Stage:
        with self.run.timing("prepare"):
            leg = denoiser_leg(self.recipe, self.pictures, space, examples, self.device)
        self._go(leg)
        return leg.stage

    def enlarger(self, size: int, below: Stage) -> Stage:
        with self.run.timing("prepare"):
            pictures = self.pictures.shrunk(size)
            examples = crop_examples(self.recipe, size, pictures, self.device)
            leg = enlarger_leg(self.recipe, size, pictures, examples, self.device)
        self._go(leg)
        if not self.recipe.enlarger(size).mistakes.images:
            return leg.stage
        with self.run.timing("prepare"):
            more = mistakes_leg(self.recipe, below, leg.stage, pictures, self.device)
        self._go(more)
        return more.stage

    def with_best_level(self, recipe: Recipe, below: Sequence[Stage], stage: Stage) -> Recipe:
        """The recipe with the augmentation that suits what the stages below make; a resumed run has it in its state."""
        size, found = stage.image_size, self.run.state.setdefault("levels", {})
        crops = self.plan.level_crops.get(str(size), 0)
        if not crops:
            return recipe
        if str(size) not in found:
            name = f"level-{size}"
            with self.run.timing(name), self.voice.bar(name) as bar:
                progress = unless(self.stop, told(bar))
                search = search_levels(recipe, below, stage, self.pictures.shrunk(size), crops, progress)
            found[str(size)] = {"best": search.best, "tried": [list(pair) for pair in search.tried.items()]}
            self.run.log("levels", size=size, **found[str(size)])
            self.run.save()
        best = {"sampling": {"augmentation": found[str(size)]["best"]}}
        return check(merge(recipe.model_dump(), {"enlarge": {str(size): best}}))

    def _go(self, leg: Leg) -> None:
        if leg.name in self.plan.paced:
            others = sum(seconds for what, seconds in self.run.state["seconds"].items() if what != leg.name)
            leg.pace = Pace(self.plan.phases[leg.name], self.plan.budget_seconds - others - self.plan.after(leg.name))
        with self.voice.bar(leg.name) as bar:
            go(self.run, leg, self.stop, bar)


def unless(stop: threading.Event, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """As `progress`, but raises `Interrupted` once `stop` is set."""

    def heard(done: int, total: int) -> None:
        if stop.is_set():
            raise Interrupted
        progress(done, total)

    return heard


def told(bar: Progress) -> Callable[[int, int], None]:
    return lambda done, total: bar(done, total, "")


def _plan(wish: Wish, settings: dict[str, Any], pictures: Pictures, machine: Machine) -> Plan:
    return make_plan(pictures, machine, wish.budget, wish.started, settings)


def read(folder: Path | None, size: int, cache: Path | None, voice: Voice) -> Pictures:
    with voice.bar("pictures") as progress:
        if folder is None:
            return read_portraits(size, progress=lambda done, total: progress(done, total, ""))
        return read_folder(folder, size, cache, lambda done, total: progress(done, total, ""))


def run_folder(wish: Wish, size: int) -> Path:
    """`--out`, or the first free `runs/NAME-SIZE-N`. Raises `UserError` if `--out` has something in it."""
    if wish.folder is not None and (wish.out or Path("runs")).resolve().is_relative_to(wish.folder.resolve()):
        raise UserError(f"the run would lie inside the pictures in {wish.folder}; choose another place with --out")
    if wish.out is not None:
        if wish.out.exists() and (wish.out.is_file() or any(wish.out.iterdir())):
            hint = f"go on with: calotype resume {wish.out}" if (wish.out / "run.json").exists() else "choose another"
            raise UserError(f"--out {wish.out} is not an empty folder; {hint}")
        return wish.out
    name = wish.folder.resolve().name if wish.folder else PORTRAITS
    kind = f"-{wish.kind}" if wish.kind == "cascade" else ""
    return free(Path("runs") / f"{name}-{size}{kind}")


def free(path: Path) -> Path:
    """The path with the first number behind it that is not taken."""
    numbers = iter(range(1, 1 << 30))
    return next(one for number in numbers if not (one := path.with_name(f"{path.name}-{number}")).exists())


def about(wish: Wish, folder: Path, pictures: Pictures, recipe: Recipe) -> dict[str, Any]:
    """What `run.json` says at the start."""
    versions = {name: version(name) for name in ("calotype", "torch")} | {"python": platform.python_version()}
    return {
        "format": 1,
        "name": folder.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data": str(wish.folder.resolve()) if wish.folder else PORTRAITS,
        "content": pictures.content,
        "pictures": {"train": len(pictures.train_indices), "held_out": len(pictures.held_out_indices)},
        "classes": list(pictures.classes),
        "state": "training",
        "legs": dict.fromkeys(recipe.legs, "waiting"),
        "seconds": {},
        "versions": versions,
    }


def check_disk(folder: Path, plan: Plan) -> None:
    """Raises `UserError` before hours of training rather than after."""
    folder.mkdir(parents=True, exist_ok=True)
    needed, free = plan.predicted["disk_bytes"], shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"the run needs about {needed / 1e6:,.0f} MB in {folder}, but {free / 1e6:,.0f} MB are free; "
            f"free some space, or choose another place with --out"
        )


def safe(name: str) -> str:
    """A label as part of a file name."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in name)[:60]


def columns(count: int) -> int:
    """Of a grid: 6 where that fills it, else about square."""
    return 6 if count > 6 and count % 6 == 0 else max(1, round(count**0.5))
