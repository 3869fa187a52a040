"""All legs of a run, then its model, samples and report."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch

from calotype.build import build_frozen
from calotype.cli.commands.inspecting import short_look
from calotype.cli.commands.sampling import sample, show_neighbours
from calotype.cli.commands.talk import unless
from calotype.cli.console import Console, counting
from calotype.data.folder import Pictures
from calotype.data.latents import cache_latents
from calotype.data.shapes import read_forms, shapes_of
from calotype.data.words import cache_words
from calotype.diffusion.stage import Stage
from calotype.evaluation.counting import counter
from calotype.machine import Machine, peak_memory
from calotype.model import save_model
from calotype.nets.frozen import FrozenConfig
from calotype.nets.kl import Autoencoder
from calotype.planning import Plan
from calotype.planning.measurement import count_parameters
from calotype.recipe import ImportedSpace, Recipe, leg_above
from calotype.report import write_report
from calotype.report.card import write_card
from calotype.run import LevelSearch, Run
from calotype.settings import parse_recipe
from calotype.spaces.latent import LatentSpace, about_tiles
from calotype.spaces.pixel import PixelSpace, Space
from calotype.tables import merge
from calotype.training.autoencoder_leg import autoencoder_leg, start_space
from calotype.training.budget import BudgetController
from calotype.training.constants import keep
from calotype.training.denoiser_leg import DenoiserLeg, denoiser_leg
from calotype.training.early_stopping import HOPELESS
from calotype.training.enlarging_leg import enlarger_leg, exposure_leg, search_levels
from calotype.training.examples import Bucket, as_read, crop_examples, latent_examples, picture_examples
from calotype.training.loop import TrainProgress
from calotype.training.previews import held_out_images, held_out_prompts, reconstructions
from calotype.training.run import Interrupted, Leg, go, look, stoppable

SHORT = 60.0
"""Seconds of a leg: previews along the way would take a good part of a shorter one."""
LOOK_SHARE = 0.05
"""Of a leg's time, where the clock decides how long it is: dear previews are made less often."""
NEIGHBOURS_FROM = 300.0
"""Seconds of budget: looking for the nearest training pictures takes a few, which a shorter run does not have."""


def develop(
    run: Run, plan: Plan, pictures: Pictures, machine: Machine, console: Console, force: bool = False,
    *, read_seconds: float = 0.0,
) -> Path:  # fmt: skip
    """All legs of a run, then its model, samples and report. Raises `Interrupted` when asked to stop.

    The caller holds the lock of the run. Without `force` it ends in a `UserError` where an autoencoder has come out
    that is not worth diffusing on.
    """
    run.state.status = "training"
    run.spend("read", read_seconds)
    with stoppable() as stop:
        try:
            _develop(Pipeline(run, plan, as_read(plan.recipe, pictures), machine.device, console, stop, force))
            run.state.status = "finished"
        except (Interrupted, KeyboardInterrupt, SystemExit):  # the latter two: at once, by a second signal
            run.state.status = "interrupted"
            raise Interrupted(str(run.folder), stop.signal_number) from None
        except BaseException:
            run.state.status = "failed"
            raise
        finally:
            run.state.peak_memory_bytes = peak_memory(machine.device)
            run.save()
            write_report(run.folder)
            run.save()  # with the seconds that the report took
    return run.folder


def _develop(workshop: Pipeline) -> None:
    run, plan, recipe = workshop.run, workshop.plan, workshop.recipe
    workshop.words()
    stages = [workshop.base(*workshop.space())]
    for size in recipe.chain[1:]:
        stage = workshop.enlarger(size, stages[-1])
        recipe = workshop.with_best_level(recipe, stages, stage)
        stages.append(stage)
    with run.timing("model"):
        save_model(run.folder / "model", recipe, stages, workshop.pictures.classes)
    with run.timing("samples"):
        device, console = str(workshop.device), workshop.console
        prompts = held_out_prompts(workshop.pictures, plan.final_count)
        sample(run.folder, plan.final_count, None, recipe.seed, run.folder / "samples", device, console, prompt=prompts)
    if plan.budget_seconds >= NEIGHBOURS_FROM:
        with run.timing("neighbours"):
            show_neighbours(run.folder, workshop.pictures)
    write_card(run.folder)


@dataclass(frozen=True)
class Pipeline:
    """What all legs of one run need; its methods make the parts of the model, one after the other."""

    run: Run
    plan: Plan
    pictures: Pictures
    device: torch.device
    console: Console
    stop: threading.Event
    force: bool

    @property
    def recipe(self) -> Recipe:
        return self.plan.recipe

    def words(self) -> None:
        """A frozen text encoder reads all captions, before anything learns from them."""
        text, captions = self.recipe.denoiser.text, self.pictures.captions
        if isinstance(text, FrozenConfig) and captions is not None:
            with self._counting("captions"), self.console.bar("captions") as bar:
                cache_words(build_frozen(text), captions, self.run.folder / "cache", self.device, counting(bar))

    def forms(self, pictures: Pictures) -> Sequence[Pictures]:
        """What the first stage learns from, at its size: these squares, or the pictures in several shapes."""
        recipe = self.recipe
        if recipe.aspect_buckets == 1:
            return [pictures]
        shapes, folder = shapes_of(recipe.aspect_buckets, recipe.size, recipe.unit), self.run.folder / "cache"
        with self.run.timing("read"), self.console.bar("shapes") as bar:
            return read_forms(pictures, shapes, recipe.size // recipe.chain[0], folder, counting(bar))

    def space(self) -> tuple[Space, Sequence[Bucket]]:
        """What the first stage works in, and its training examples in there."""
        pictures = self.pictures.shrunk(self.recipe.chain[0])
        forms = self.forms(pictures)
        if self.recipe.kind == "cascade":
            return PixelSpace(), [Bucket(one, picture_examples(self.recipe, one, self.device)) for one in forms]
        space, folder = LatentSpace(self.autoencoder(pictures)).to(self.device), self.run.folder / "cache"
        with self._counting("latents"), self.console.bar("latents") as bar:
            flip, told = self.recipe.flip, counting(bar)
            caches = [cache_latents(space, one, flip, folder, self.device, told) for one in forms]
            trained = (cache.of(one.train_indices) for one, cache in zip(forms, caches, strict=True))
            space.measure(moments.float().to(self.device) for moments in chain.from_iterable(trained))
            if isinstance(self.recipe.space, ImportedSpace):
                self.run.log("note", text=about_tiles(space, held_out_images(pictures, 1, self.device)))
        with self.run.timing("inspect"):
            short_look(self.run, space, pictures, self.console, self.force)
        pairs = zip(forms, caches, strict=True)
        return space, [Bucket(one, latent_examples(self.recipe, one, cache, self.device)) for one, cache in pairs]

    def autoencoder(self, pictures: Pictures) -> Autoencoder:
        """Trained, or as it was imported."""
        if not self.recipe.trains_space:
            with self.run.timing("prepare"):
                vae = start_space(self.recipe, pictures, self.device).vae.eval().requires_grad_(False)
                shown = reconstructions(pictures, vae, self.device)
                look(self.run, "autoencoder", TrainProgress(1, 1, self.recipe.seed), shown.draw, shown.measure)
            return vae
        with self._counting("prepare"):
            leg = autoencoder_leg(self.recipe, pictures, self.device)
        self._go(leg)
        return leg.vae

    def base(self, space: Space, forms: Sequence[Bucket]) -> Stage:
        with self._counting("fit"):
            leg = denoiser_leg(self.recipe, forms, space, self.device, partial(keep, self.run, "denoiser"))
        return self._diffusion(leg)

    def enlarger(self, size: int, below: Stage) -> Stage:
        with self._counting("prepare"):
            pictures = self.pictures.shrunk(size)
            examples = crop_examples(self.recipe, size, pictures, self.device)
            kept = partial(keep, self.run, leg_above(size))
            leg = enlarger_leg(self.recipe, size, pictures, examples, self.device, kept)
        stage = self._diffusion(leg)
        if not self.recipe.enlarger(size).exposure.images:
            return stage
        with self._counting("prepare"):
            more = exposure_leg(self.recipe, below, stage, pictures, self.device)
        return self._diffusion(more)

    def with_best_level(self, recipe: Recipe, below: Sequence[Stage], stage: Stage) -> Recipe:
        """The recipe with the augmentation that suits what the stages below make; a resumed run has it in its state."""
        size, found = stage.image_size, self.run.state.levels
        crops = self.plan.level_crops.get(str(size), 0)
        if not crops:
            return recipe
        if str(size) not in found:
            name = f"level-{size}"
            with self._counting(name), self.console.bar(name) as bar:
                progress = unless(self.stop, counting(bar))
                search = search_levels(recipe, below, stage, self.pictures.shrunk(size), crops, progress)
            found[str(size)] = LevelSearch.model_validate(search.as_json())
            self.run.log("levels", size=size, **search.as_json())
            self.run.save()
        best = {"sampling": {"augmentation": found[str(size)].best}}
        return parse_recipe(merge(recipe.model_dump(), {"enlarge": {str(size): best}}))

    @contextmanager
    def _counting(self, what: str) -> Iterator[None]:
        """Seconds and floating-point operations, over all sittings, of what is done once: fits, encodings, searches."""
        with self.run.timing(what), counter() as count:
            yield
        operations = self.run.state.operations
        operations[what] = operations.get(what, 0) + count.get_total_flops()

    def _diffusion(self, leg: DenoiserLeg) -> Stage:
        """Its stage; the report shows what the weights make that are not averaged."""
        self._go(leg)
        if not (raw := self.run.folder / "previews" / f"{leg.name}-raw.png").exists():
            with self.run.timing("previews"):
                leg.preview_raw(raw)
        return leg.stage

    def _go(self, leg: Leg) -> None:
        if leg.name in self.plan.paced:
            leg.most_rise, leg.look_share = HOPELESS, LOOK_SHARE
            leg.looks = (1.0,) if self.plan.predicted["seconds"][leg.name] < SHORT else ()
            others = sum(seconds for what, seconds in self.run.state.seconds.items() if what != leg.name)
            leg.pace = BudgetController(
                self.plan.phases[leg.name], self.plan.budget_seconds - others - self.plan.time_budget.after(leg.name)
            )
        with self.console.bar(leg.name) as bar:
            go(self.run, leg, self.stop, bar, self.console.say)
        if told := self.run.state.overfitted.get(leg.name):
            self.console.say(f"{leg.name}: {told}")
        trained = [count_parameters(player.network) for name, player in leg.players.items() if name != "critic"]
        self.run.state.parameters[leg.name] = sum(trained)
