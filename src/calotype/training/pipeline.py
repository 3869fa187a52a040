"""All legs of a run, in order: from pictures to a model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from calotype.build import build_frozen
from calotype.data.buckets import bucket_sizes, larger_pixels, read_buckets
from calotype.data.caches import cache_encodings
from calotype.data.folder import Pictures
from calotype.data.latents import Sides, StoredLatents, cache_latents
from calotype.data.listing import first_names
from calotype.data.views import DECODED_TIMES, Views, draw_boxes
from calotype.diffusion.stage import Stage
from calotype.evaluation.counting import counter
from calotype.evaluation.search import Search
from calotype.machine import choose_threads, peak_memory, release_memory
from calotype.nets.frozen import FrozenEncoder
from calotype.nets.kl import Autoencoder
from calotype.nets.perceptual import pretrained_lite0
from calotype.ranks import ALONE, Ranks
from calotype.recipe import ImportedSpace, Recipe
from calotype.run import LevelSearch, Run
from calotype.spaces.latent import LatentSpace, about_tiles
from calotype.spaces.pixel import PixelSpace, Space
from calotype.store import save_model
from calotype.training.compiling import compiled
from calotype.training.control import CLEARLY, HOPELESS, BudgetController, TimeBudget
from calotype.training.examples import Bucket, crop_examples, latent_examples, picture_examples, reads_larger
from calotype.training.inspection import require_fit
from calotype.training.leg import UNLIMITED, Leg, LegLimits, Result_co, train_leg, validate
from calotype.training.legs import autoencoder_leg, denoiser_leg, enlarger_leg, exposure_leg
from calotype.training.levels import search_guidance, search_levels, with_searched
from calotype.training.loop import NAMED, Division, TrainProgress, every
from calotype.training.previews import autoencoder_validator, validation_images
from calotype.training.process import Interrupted, ProgressBar, Reporter, Stop, StoppableReporter
from calotype.training.snapshot import restore_statistics, write_space
from calotype.training.warm_start import WarmStart, first_space, start_of
from calotype.types import ByteImages, NotFiniteError, Progress, Rng, UserError

SHORT = 60.0
"""Seconds of a leg: previews along the way would take a good part of a shorter one."""
RECHOOSE_SECONDS = 20.0
"""Between two choices of threads, each of which takes some 50 milliseconds."""
VALIDATION_SHARE = 0.05
"""Fraction of the time of a paced leg."""


@contextmanager
def record_status(run: Run, device: torch.device, stop: Stop) -> Iterator[None]:
    """Records the status of a run while it is worked on, and raises `Interrupted` for whatever a signal raised.

    The caller holds the lock of the run.
    """
    run.state.status = "training"
    run.save()
    try:
        yield
        run.state.status = "finished"
    except (Interrupted, KeyboardInterrupt, SystemExit):  # the latter two: at once, by a second signal
        run.state.status = "interrupted"
        raise Interrupted(str(run.folder), stop.signal_number) from None
    except BaseException:
        run.state.status = "failed"
        raise
    finally:
        run.state.peak_memory_bytes = peak_memory(device)
        run.save()


@dataclass(frozen=True)
class Pipeline:
    """The legs of one run; the methods make the parts of the model, one after the other.

    Without `force`, `train` ends in a `UserError` where the autoencoder is unfit to diffuse on. Of several ranks all
    train; the first measures, searches and writes, and the others read what it has written.
    """

    run: Run
    recipe: Recipe
    budget: TimeBudget
    pictures: Pictures
    device: torch.device
    reporter: Reporter
    stop: threading.Event
    force: bool = False
    ranks: Ranks = ALONE

    @cached_property
    def frozen(self) -> FrozenEncoder | None:
        """The text encoder that all stages share; None where it is trained with them, or there is none."""
        return build_frozen(self.recipe.denoiser.text)

    @cached_property
    def start(self) -> WarmStart | None:
        """The finished run that this one starts from; None where it starts from nothing."""
        return start_of(self.run, self.device)

    @property
    def _stoppable(self) -> StoppableReporter:
        """Its bars end a step at once when asked to stop; a leg does not use it, since it must save first."""
        return StoppableReporter(self.reporter, self.stop)

    def train(self) -> None:
        """All legs, and the folder of the model. Raises `Interrupted`, after saving, when asked to stop."""
        self.encode_captions()
        stages = [self.first_stage(*self.space())]
        self.choose_guidance(stages[0])
        for size in self.recipe.chain[1:]:
            stage = self.enlarger(size, stages[-1])
            self.choose_level(stages, stage)
            stages.append(stage)
        if self.ranks.first:
            with self.run.timing("model"):
                release_memory(self.device)
                save_model(self.run.folder / "model", self.searched, stages, self.pictures.classes)

    def encode_captions(self) -> None:
        """Encodes all captions by the frozen text encoder, before anything is trained on them."""
        captions = self.pictures.captions
        if self.frozen is not None and captions is not None:
            with self.ranks.in_turn(), self._counting("captions"), self._stoppable.bar("captions") as bar:
                cache_encodings(self.frozen, captions, self.run.folder / "cache", self.device, bar)

    def buckets(self, pictures: Pictures) -> Sequence[Pictures]:
        """The pictures of the first stage, at its size: squares, or a set for each aspect ratio."""
        recipe = self.recipe
        if recipe.aspect_buckets == 1:
            return [pictures]
        sizes, folder = bucket_sizes(recipe.aspect_buckets, recipe.size, recipe.unit), self.run.folder / "cache"
        with self.ranks.in_turn(), self.run.timing("read"), self._stoppable.bar("aspect buckets") as bar:
            return read_buckets(pictures, sizes, recipe.size // recipe.chain[0], folder, bar)

    def space(self) -> tuple[Space, Sequence[Bucket]]:
        """The space of the first stage, pixels or latents of an autoencoder, and its training examples."""
        pictures = self.pictures.shrunk(self.recipe.chain[0])
        buckets = self.buckets(pictures)
        if self.recipe.kind == "cascade":
            return PixelSpace(), [Bucket(each, picture_examples(self.recipe, each, self.device)) for each in buckets]
        space, folder = LatentSpace(self.autoencoder(pictures)).to(self.device), self.run.folder / "cache"
        with self.ranks.in_turn(), self._counting("latents"), self._stoppable.bar("latents") as bar:
            caches = [self._latents(space, each, folder, bar) for each in buckets]
            if not restore_statistics(self.run, space):
                trained = (cache.of(each.train_indices) for each, cache in zip(buckets, caches, strict=True))
                space.measure(moments.float().to(self.device) for moments in chain.from_iterable(trained))
        self.ranks.say(lambda: self._inspect(space, pictures))
        pairs = zip(buckets, caches, strict=True)
        return space, [Bucket(each, latent_examples(self.recipe, each, cache, self.device)) for each, cache in pairs]

    def _view_source(self, pictures: Pictures) -> ByteImages:
        """Pixels from which views of these pictures of the first stage are cut."""
        if not reads_larger(self.recipe):
            return self.pictures.pixels
        return larger_pixels(pictures, DECODED_TIMES, self.run.folder / "cache")

    def _inspect(self, space: LatentSpace, pictures: Pictures) -> None:
        write_space(self.run, space)
        with self.run.timing("inspect"):
            if isinstance(self.recipe.space, ImportedSpace) and space.image_side is None:
                self.run.log("note", text=about_tiles(space, validation_images(pictures, 1, self.device)))
            require_fit(self.run, space, pictures, self.reporter.say, self.force)

    def _latents(self, space: LatentSpace, pictures: Pictures, folder: Path, bar: ProgressBar) -> StoredLatents:
        views = None
        if count := self.recipe.denoiser.views:
            boxes = draw_boxes(Rng((self.recipe.seed, "views")), count, len(pictures))
            views = Views(boxes, partial(self._view_source, pictures))
        sides = Sides(self.recipe.flip, views)
        try:
            return cache_latents(space, pictures.pixels, pictures.content, sides, folder, self.device, bar)
        except NotFiniteError as error:
            names = first_names(map(pictures.file, error.rows), NAMED)
            raise UserError(
                f"the latents of {names} are not finite: the autoencoder has "
                f"diverged; start a new run with a lower autoencoder.learn.learning_rate, or with precision float32"
            ) from None

    def autoencoder(self, pictures: Pictures) -> Autoencoder:
        """Trained, or as it is where it is there already."""
        if self.recipe.trains_space:
            with self._counting("prepare"):
                leg = autoencoder_leg(self.recipe, pictures, self.device, self.start)
            return self._train(leg)
        with self.run.timing("prepare"):
            vae = first_space(self.recipe, pictures, self.device, self.start).vae.eval().requires_grad_(False)
            if self.ranks.first:
                progress = TrainProgress(1, 1, self.recipe.seed)
                features, losses = pretrained_lite0(self.device), self.recipe.autoencoder.losses
                validator = autoencoder_validator(pictures, vae, features, losses, self.device)
                validate(self.run, "autoencoder", progress, validator)
        return vae

    def first_stage(self, space: Space, buckets: Sequence[Bucket]) -> Stage:
        with self.ranks.in_turn(), self._counting("fit"):
            leg = denoiser_leg(self.recipe, buckets, space, self.device, self.run, self.frozen, self.start)
        return self._train(leg)

    def enlarger(self, size: int, below: Stage) -> Stage:
        """A stage above the first, after exposure fine-tuning where the recipe asks for it."""
        with self.ranks.in_turn(), self._counting("prepare"):
            pictures = self.pictures.shrunk(size)
            examples = crop_examples(self.recipe, size, pictures, self.device)
            leg = enlarger_leg(self.recipe, size, pictures, examples, self.device, self.run, self.frozen, self.start)
        stage = self._train(leg)
        if not self.recipe.enlarging(size).exposure.images:
            return stage
        with self._counting("prepare"):
            fine_tuning = exposure_leg(self.searched, below, stage, pictures, self.device)
        return self._train(fine_tuning)

    @property
    def searched(self) -> Recipe:
        """The recipe with what was found by searches so far."""
        return with_searched(self.recipe, self.run.state)

    def choose_guidance(self, stage: Stage) -> None:
        """Records the guidance scale that suits the first stage; a resumed run has it in its state."""
        if (count := self.budget.guidance_samples) and self.run.state.guidance is None:
            pictures = self.pictures.shrunk(stage.image_size)
            search = partial(search_guidance, self.recipe, stage, pictures, count)
            self.run.state.guidance = self._found("guidance", search, "guidance")
            self.run.save()

    def choose_level(self, below: Sequence[Stage], stage: Stage) -> None:
        """Records the augmentation that suits what the stages below make; a resumed run has it in its state."""
        size, levels = str(stage.image_size), self.run.state.levels
        if (crops := self.budget.level_crops.get(size, 0)) and size not in levels:
            pictures = self.pictures.shrunk(stage.image_size)
            search = partial(search_levels, self.searched, below, stage, pictures, crops)
            levels[size] = self._found(f"level-{size}", search, "levels", size=stage.image_size)
            self.run.save()

    def _found(self, step: str, search: Callable[[Progress], Search], event: str, **facts: int) -> LevelSearch:
        """What the search of the first rank finds; logged."""

        def found() -> dict[str, Any]:
            with self._counting(step), self._stoppable.bar(step) as bar:
                return search(bar).as_json()

        result = self.ranks.say(found)
        self.run.log(event, **facts, **result)
        return LevelSearch.model_validate(result)

    @contextmanager
    def _counting(self, step: str) -> Iterator[None]:
        """Seconds and operations, over all sessions, of what is done once: fits, encodings, searches."""
        with self.run.timing(step), counter() as count:
            release_memory(self.device)
            yield
        operations = self.run.state.operations
        operations[step] = operations.get(step, 0) + count.get_total_flops()

    def _train(self, leg: Leg[Result_co]) -> Result_co:
        release_memory(self.device)
        with self.reporter.bar(leg.name) as bar:
            slices = self.budget.slices.get(leg.name, 1) if self.device.type == "cpu" else 1
            try:
                division = Division(slices, self.budget.rounds.get(leg.name, 1), self.ranks)
                prepare = partial(self._compile, leg, division)
                train_leg(self.run, leg, self.stop, bar, self.reporter.say, self._limits(leg.name), division, prepare)
            finally:
                if self.run.state.threads is not None:  # a leg that follows the clock may have changed them
                    torch.set_num_threads(self.run.state.threads)
        return leg.trained

    def _compile(self, leg: Leg[object], division: Division) -> None:
        """The network of a leg, where the plan found that worth it."""
        if leg.name in self.budget.compiled:
            with self.run.timing("compile"):
                first = leg.source.batch(leg.progress.images_seen, leg.progress.batch)
                compiled(leg.objective, leg.states, first, leg.progress, division, self.reporter.say)

    def _limits(self, leg: str) -> LegLimits:
        """A leg without a fixed length gets what the other steps leave of the budget."""
        budget, milestones = self.budget, self.recipe.milestones if leg != "autoencoder" else 0
        if leg not in budget.paced:
            return replace(UNLIMITED, milestones=milestones)
        threads_due = every(RECHOOSE_SECONDS)  # other jobs come and go

        def control(progress: TrainProgress) -> None:
            others = sum(seconds for step, seconds in self.run.state.seconds.items() if step != leg)  # grows: compile
            BudgetController(budget.phases[leg], budget.budget_seconds - others - budget.after(leg))(progress)
            free = self.device.type == "cpu" and leg not in budget.compiled  # compiled code is for so many threads
            if free and threads_due(progress):
                torch.set_num_threads(choose_threads())

        previews_at = (1.0,) if budget.predicted["seconds"][leg] < SHORT else ()
        max_rise = CLEARLY if leg == "autoencoder" else HOPELESS
        return LegLimits(control, previews_at, VALIDATION_SHARE, max_rise, milestones)
