"""All legs of a run, then its model, samples and report."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from calotype.commands.sampling import sample
from calotype.commands.talk import Voice, counting, unless
from calotype.data.folder import Pictures
from calotype.data.latents import cache_latents
from calotype.learning.run import Interrupted, Leg, Run, go, stoppable
from calotype.legs import (
    Examples,
    as_read,
    autoencoder_leg,
    crop_examples,
    denoiser_leg,
    enlarger_leg,
    held_out_prompts,
    latent_examples,
    mistakes_leg,
    picture_examples,
    search_levels,
)
from calotype.machine import Machine, peak_memory
from calotype.model import save_model
from calotype.plan import Pace, Plan
from calotype.recipe import Recipe, check, merge
from calotype.report import write_report
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.stage import Stage


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
    pictures = as_read(plan.recipe, pictures)
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
        where, prompts = run.folder / "samples", held_out_prompts(pictures, plan.final_count)
        sample(run.folder, plan.final_count, None, recipe.seed, where, str(device), voice, prompt=prompts)


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
            cache = cache_latents(space, pictures, self.recipe.flip, folder, self.device, counting(bar))
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
                progress = unless(self.stop, counting(bar))
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
