"""The cost of training on this machine, measured on one real step of every kind with the real networks."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, partial

import torch

from calotype.build import initial_space
from calotype.data.caches import encode_on
from calotype.data.folder import Pictures
from calotype.data.images import images_from_pixels
from calotype.data.latents import LatentCache, encoded_at_once
from calotype.data.sources import LatentSource, draw_captions
from calotype.data.split import evenly
from calotype.diffusion.stage import generate, in_turn
from calotype.evaluation.autoencoder import measure_autoencoder
from calotype.evaluation.counting import counted
from calotype.evaluation.features import Lite0, features
from calotype.machine import Machine, best_time, cores, held_memory, peak_memory, release_memory
from calotype.nets.frozen import PretrainedEncoder
from calotype.planning.costs import Costs, StepCost, build_stages, fit_flops
from calotype.planning.memory import derived_bytes, fit_memory, pixel_bytes, validation_bytes
from calotype.recipe import Recipe, exposure_above, leg_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.threads import in_slices
from calotype.training.compiling import WORTH, compiled
from calotype.training.examples import crop_examples, picture_examples, picture_source, without_unread_captions
from calotype.training.legs import autoencoder_objective, enlarging_objective
from calotype.training.loop import BatchSource, Division, TrainProgress, train_step
from calotype.training.objectives import DenoisingObjective, Objective
from calotype.training.previews import each_class, evaluating
from calotype.training.state import TrainState
from calotype.types import Images, Labels, Rng, Text

SAMPLES = 8
"""Pictures on which sampling is timed, or as many as are sampled together."""
MATRIX_SIDE = 1024
"""Side of the matrices whose product measures how fast a prior is fitted."""


CLEARLY_SLOWER = 1.1
"""Slices wait for each other once a step, whole batches in each operation: another job on a core harms slices less, so
slices are taken where they are not clearly slower while the plan is made."""


class Measurement(Costs):
    """Runs one real step of each kind, with the real networks. Seconds are those of one image, if nothing else is said.

    `pictures` are all pictures; steps are timed on a few of them. The networks of the legs in `compiling` are compiled,
    if that makes them faster.
    """

    def __init__(
        self, recipe: Recipe, pictures: Pictures, machine: Machine, rounds: Mapping[str, int],
        compiling: Collection[str] = (),
    ) -> None:  # fmt: skip
        super().__init__(recipe, pictures, machine.memory, rounds)
        self.compiling, self.notes, classes = compiling, list[str](), len(pictures.classes)
        self.rng, self.ranks, self.device = Rng((recipe.seed, "plan")), machine.ranks, machine.device
        sampled = pictures.sampled_from is not None
        self.unread = max(0, pixel_bytes(pictures, machine.memory) - pictures.pixels.nbytes) if sampled else 0
        most = max(64, 2**25 // pictures.pixels[0].numel())  # the autoencoder's closed-form start is fitted to them
        few = without_unread_captions(recipe, pictures).first(min(len(pictures), most))
        self.pictures = {size: few.shrunk(size) for size in recipe.chain}
        self.space: Space = PixelSpace()
        if recipe.kind == "latent":
            self.space = initial_space(recipe, self.pictures[recipe.chain[0]], self.device)
        self.stages = build_stages(recipe, self.space, pictures.total, classes, self.frozen)
        for stage in self.stages:
            stage.denoiser.to(self.device)

    # -- Training ------------------------------------------------------------------------------------------------------

    @cached_property
    def steps(self) -> dict[str, list[StepCost]]:
        """The costs of every leg; exposure fine-tuning has the steps of its stage."""
        recipe, steps = self.recipe, {}
        if recipe.trains_space:
            steps["autoencoder"] = self._autoencoder()
        denoising = DenoisingObjective(self.stages[0], recipe.denoiser)
        steps["denoiser"] = [self._step("denoiser", denoising, self._first_source())]
        for stage in self.stages[1:]:
            size = stage.image_size
            pictures = self.pictures[size]
            source = crop_examples(recipe, size, pictures, self.device)(pictures.train_indices)
            config = recipe.enlarging(size)
            objective, ends = enlarging_objective(stage, config, self.device), [1.0]
            if config.objective == "one_step":
                ends = config.losses.phase_ends
            cost = [self._step(leg_above(size), objective, source, end) for end in ends]
            steps[leg_above(size)] = steps[exposure_above(size)] = cost
        return {leg: steps[leg] for leg in recipe.legs}

    def _autoencoder(self) -> list[StepCost]:
        """Steps cost more once the perceptual loss, the critic, and the adversarial loss set in."""
        assert isinstance(self.space, LatentSpace)
        config, objective = self.recipe.autoencoder, autoencoder_objective(self.recipe, self.space.vae, self.device)
        objective.critic.to(self.device)
        source = picture_source(self.recipe, self.pictures[self.recipe.chain[0]], self.device)
        return [self._step("autoencoder", objective, source, end) for end in config.losses.phase_ends]

    def _first_source(self) -> BatchSource:
        """Batches of pictures for the first stage, or of latents: those of one picture, with labels and captions of as
        many as a batch has, so that the prior works on as many classes as in training."""
        pictures = self.pictures[self.recipe.chain[0]]
        if not isinstance(self.space, LatentSpace):
            return picture_examples(self.recipe, pictures, self.device)(pictures.train_indices)
        moments = self.space.moments(self._images(1)).half().cpu()
        rows = evenly(torch.arange(len(pictures)), self.recipe.denoiser.batch)
        cache = LatentCache(moments[:1][None].expand(1, len(rows), *moments.shape[1:]))
        labels, captions = pictures.labels[rows], pictures.captions and pictures.captions.at(rows.tolist())
        return LatentSource(cache, labels, torch.arange(len(rows)), self.rng, self.device, captions)

    def _step(self, leg: str, objective: Objective, source: BatchSource, end: float = 1.0) -> StepCost:
        """The cost of the steps just before this fraction of the leg, by the part of a batch that one rank works on."""
        batch, rounds = math.ceil(self.recipe.legs[leg].batch / self.ranks), self.rounds.get(leg, 1)
        release_memory(self.device)
        states = dict[str, TrainState]()
        for name, network in objective.networks.items():
            # what is measured must not move the weights
            standing = self.recipe.learning(leg, name).model_copy(update={"learning_rate": 1e-12})
            states[name] = TrainState(network, standing, self.recipe.precision)
        progress = TrainProgress(10**6, batch, 0, images_seen=int(end * 10**6) - 1)

        def step(slices: int = 1) -> object:
            return train_step(objective, states, source.batch(0, batch), progress, Division(slices, rounds))

        flops, seconds = counted(step), best_time(step, self.device, 2)
        most = cores() if self.device.type == "cpu" else 1
        parts = len(objective.slices(source.batch(0, batch), progress.fraction, progress.rng(), most))
        slices = 1
        if parts > 1:
            at_once = best_time(partial(step, parts), self.device, 2)
            slices, seconds = (parts, at_once) if at_once < CLEARLY_SLOWER * seconds else (1, seconds)
        images = self.recipe.legs[leg].images
        alone = parts > 1 or torch.get_num_threads() == 1 or self.device.type == "cuda"
        worth = leg in self.compiling and (not images or images / batch * seconds >= WORTH)
        if is_compiled := worth and self.ranks == 1 and alone:
            division = Division(parts, rounds)
            is_compiled = compiled(objective, states, source.batch(0, batch), progress, division, self.notes.append)
        if is_compiled:  # in slices, also where those were not faster before
            at_once = best_time(partial(step, parts), self.device, 3)
            if is_compiled := at_once < seconds / CLEARLY_SLOWER:
                slices, seconds = parts, at_once
        return StepCost(end, seconds / (batch * self.ranks), flops / batch, slices, is_compiled)

    # -- Between the legs ----------------------------------------------------------------------------------------------

    def encode(self) -> float:
        if isinstance(self.space, PixelSpace):
            return 0.0
        images = self._images(encoded_at_once(3 * self.recipe.chain[0] ** 2))
        return best_time(lambda: in_slices(self.space.moments, images), self.device, 2) / len(images)

    def encode_texts(self, pretrained: PretrainedEncoder, texts: Sequence[str]) -> float:
        return best_time(lambda: encode_on(pretrained, texts, self.device), self.device, 1)

    def inspect(self) -> float:
        if not isinstance(space := self.space, LatentSpace):
            return 0.0
        images = self._images(8)
        lite0 = Lite0(self.device)
        seconds = best_time(lambda: measure_autoencoder(space, images, 0, lite0, thorough=False), self.device, 1)
        return seconds / len(images) * self.inspected

    def fit(self, count: int) -> float:
        if not (flops := fit_flops(self.stages[0], count)):
            return 0.0
        matrix = torch.ones(MATRIX_SIDE, MATRIX_SIDE, device=self.device)
        return flops * best_time(lambda: matrix @ matrix, self.device) / (2 * MATRIX_SIDE**3)

    @cached_property
    def sampling(self) -> list[float]:
        return [self._sample_stage(index) for index in range(len(self.stages))]

    @torch.no_grad()
    def _sample_stage(self, index: int) -> float:
        """Extrapolated from one or two steps of the sampler that has one call a step."""
        stage, sampling = self.stages[index], self.recipe.samplings[index]
        steps = 2 if index == 0 else 1
        few_steps = sampling.model_copy(update={"steps": steps, "sampler": "euler", "conditioning": "whole"})
        count = min(SAMPLES, in_turn(SAMPLES, stage.image_size, stage.image_size)[0].stop)
        labels, text = self._conditions(count)
        rngs = [self.rng.at(place) for place in range(count)]
        side = stage.low_res_size
        low_res = torch.zeros(count, 3, side, side, device=self.device) if side else None
        latents = torch.zeros(count, *stage.shape, device=self.device)
        with evaluating(stage.denoiser):
            total = best_time(lambda: generate([stage], labels, [few_steps], rngs, low_res, text=text), self.device, 1)
        decode = best_time(lambda: stage.space.decode(latents), self.device, 1)
        return (max(0.0, total - decode) / few_steps.calls() * sampling.calls() + decode) / count

    def _conditions(self, count: int) -> tuple[Labels, Text | None]:
        """Labels, and captions where the model reads them."""
        pictures = self.pictures[self.recipe.chain[0]]
        captions = pictures.captions if self.recipe.denoiser.text.kind != "none" else None
        text = draw_captions(captions, torch.arange(count) % len(pictures), self.rng)
        return each_class(count, len(pictures.classes), self.device), text

    @cached_property
    def feature(self) -> float:
        images, network = self._images(4), Lite0(self.device)
        return best_time(lambda: features([images], network), self.device, 1) / len(images)

    def _images(self, count: int) -> Images:
        pixels = self.pictures[self.recipe.chain[0]].pixels
        images = images_from_pixels(pixels[torch.arange(count) % len(pixels)])
        return images.to(self.device).contiguous(memory_format=torch.channels_last)

    def peak_memory(self, sets: Sequence[int]) -> int:
        """Training steps, encoding and sampling have been tried: their peak is that of the process so far, and
        validation pictures, pixels that are not read yet and what is made of all pixels come to it. The fits are not
        tried: they are predicted, above what the process holds then."""
        tried = peak_memory(self.device) + validation_bytes(self.recipe)
        release_memory(self.device)
        few = sum(pictures.pixels.nbytes for pictures in self.pictures.values())
        tensors = (tensor for stage in self.stages for tensor in stage.denoiser.state_dict().values())
        kept = held_memory(self.device) - few - sum(tensor.nbytes for tensor in tensors)
        fits = fit_memory(self.recipe, self.stages[0], *self.counts).values()
        pictures = 0  # in the memory of a GPU
        if self.device.type != "cuda":
            pictures = self.unread + derived_bytes(self.recipe, sets, self.memory)
        return max(tried, kept + max(fits, default=0)) + pictures
