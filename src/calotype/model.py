"""A trained model: the deployable folder of a run, and sampling from it."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from calotype.build import build_enlarger, build_space, build_stage
from calotype.data.captions import clean
from calotype.data.images import images_from_pil, pils_from_images
from calotype.diffusion.gaussian import Mixture
from calotype.files import is_whole, read_json, whole_folder, write_json, write_tensors
from calotype.machine import find_device
from calotype.nets.text import Reading, TextEncoder
from calotype.recipe import Recipe, check, leg_above
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.stage import Sampling, Stage, generate
from calotype.vocabulary import NOT_TOLD, Rng, Text, UserError

FORMAT = 2
CHUNK_VALUES = 2**22
"""Pictures are made a few at a time, so that a thousand need no more memory than these many pixel values at once."""


@dataclass(frozen=True)
class Model:
    """Makes pictures. `load` opens one; `stages` and `samplings` have one entry each for latent diffusion."""

    stages: tuple[Stage, ...]
    samplings: tuple[Sampling, ...]
    classes: tuple[str, ...]
    device: torch.device
    units: tuple[int, ...] = ()
    """What the sides of each stage's pictures must be multiples of."""

    def sample(
        self,
        count: int = 1,
        label: str | None = None,
        seed: int = 0,
        prompt: str | Sequence[str] | None = None,
        negative: str | None = None,
        **changes: Any,
    ) -> list[Image.Image]:
        """`count` pictures; picture i depends on (seed, i, its label and prompt) only, not on those made with it.

        `label` is one of `classes`; without it and without a prompt, picture i has class `i % len(classes)`. `prompt`
        is one for all, or picture i has prompt `i % len(prompt)`; guidance leads away from `negative`. `changes`
        replace settings of `Sampling`: `steps`, `guidance`, `sampler`, `guidance_low`, `guidance_high`.
        Raises `UserError` for an unknown label or setting, and for a prompt to a model that does not read; warns of one
        that is too long.
        """
        for warning in self.cuts(prompt):
            warnings.warn(warning, stacklevel=2)
        return list(self.draw(count, label, seed, prompt, negative, **changes))

    def draw(
        self,
        count: int = 1,
        label: str | None = None,
        seed: int = 0,
        prompt: str | Sequence[str] | None = None,
        negative: str | None = None,
        **changes: Any,
    ) -> Iterator[Image.Image]:
        """The same, one after the other as they are made."""
        labels, text = self.labels(count, label, prompt), self.text(count, prompt, negative)
        samplings = changed_all(self.samplings, changes)
        chunk = max(1, min(32, CHUNK_VALUES // (3 * self.stages[-1].image_size ** 2)))
        for start in range(0, count, chunk):
            indices = range(start, min(start + chunk, count))
            told = torch.tensor([labels[index] for index in indices], device=self.device)
            rngs = [Rng((seed, "sample", index)) for index in indices]
            some = text and Text(text.wanted[start : start + chunk], text.unwanted[start : start + chunk])
            yield from pils_from_images(generate(self.stages, told, samplings, rngs, text=some))

    def enlarge(
        self, picture: Image.Image, size: int | None = None, label: str | None = None, seed: int = 0
    ) -> Image.Image:
        """A picture of any shape, through the stage that makes pictures of `size` px (default: the last one).

        Its sides grow by that stage's factor. Raises `UserError` if no stage looks at a smaller picture.
        """
        index = self.enlarger(size)
        stage, device = self.stages[index], self.device
        images = images_from_pil(picture.convert("RGB")).to(device)
        height, width = images.shape[-2:]
        unit = max(1, self.units[index] // stage.factor)
        images = F.pad(images, [0, -width % unit, 0, -height % unit], mode="replicate")
        told = torch.tensor(self.labels(1, label) if label else [NOT_TOLD], device=device)
        large = generate([stage], told, [self.samplings[index]], [Rng((seed, "enlarge"))], images)
        return pils_from_images(large[:, :, : height * stage.factor, : width * stage.factor])[0]

    def enlarger(self, size: int | None = None) -> int:
        """Which stage enlarges to `size`."""
        able = {stage.image_size: index for index, stage in enumerate(self.stages) if stage.smaller_size}
        if not able:
            raise UserError(
                "this model has one stage, which looks at no smaller picture; to enlarge pictures, train with "
                "--kind cascade"
            )
        if size is not None and size not in able:
            raise UserError(f"no stage of this model enlarges to {size} px; it has {', '.join(map(str, able))}")
        return able[size if size is not None else max(able)]

    def labels(self, count: int, label: str | None = None, prompt: str | Sequence[str] | None = None) -> list[int]:
        """The class of each picture, as an index; NOT_TOLD for a model without classes, or where a prompt says it."""
        if label is not None:
            return [find_label(label, self.classes)] * count
        return [index % len(self.classes) if self.classes and not prompt else NOT_TOLD for index in range(count)]

    def text(self, count: int, prompt: str | Sequence[str] | None = None, negative: str | None = None) -> Text | None:
        """What each picture shows, and what it does not. Raises `UserError` where the model does not read."""
        prompts = as_prompts(prompt)
        if not any(prompts) and not negative:
            return None
        if self.reader is None:
            raise UserError(
                "this model was trained without captions, so it reads no prompt; leave it out, or train on pictures "
                "with captions"
            )
        wanted = tuple(prompts[index % len(prompts)] if prompts else "" for index in range(count))
        return Text(wanted, (clean(negative),) * count if negative else ())

    @property
    def reader(self) -> TextEncoder | None:
        """What reads prompts."""
        backbone = self.stages[0].denoiser.backbone
        return backbone.encoder if isinstance(backbone, Reading) else None

    def cuts(self, prompt: str | Sequence[str] | None) -> list[str]:
        """Warnings of prompts that are too long."""
        if self.reader is None:
            return []
        rests = {one: rest for one in as_prompts(prompt) if (rest := self.reader.rest(one))}
        return [
            f"a prompt is cut after {one[: len(one) - len(rest)].strip()[-30:]!r}: this model reads no more of it"
            for one, rest in rests.items()
        ]


def as_prompts(prompt: str | Sequence[str] | None) -> list[str]:
    """One for all or several, in the letters that captions are read in."""
    return [clean(one) for one in ([prompt] if isinstance(prompt, str) else prompt or [])]


def find_label(label: str, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    if not classes:
        raise UserError(f"label is {label!r}, but this model was trained without labels; leave --label out")
    close = difflib.get_close_matches(label, classes, 1, 0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"label {label!r} is unknown; {hint}this model knows {', '.join(classes)}")


def changed(sampling: Sampling, changes: dict[str, Any]) -> Sampling:
    given = {name: value for name, value in changes.items() if value is not None}
    recipe = check({"sampling": {**sampling.model_dump(), **given}}, lambda key: "sampling")
    return recipe.sampling


def changed_all(samplings: Sequence[Sampling], changes: dict[str, Any]) -> tuple[Sampling, ...]:
    """`steps` and the guidance are the first stage's: those that enlarge need few steps, and follow what they see."""
    shared = {name: value for name, value in changes.items() if name not in FIRST_STAGE}
    return changed(samplings[0], changes), *(changed(sampling, shared) for sampling in samplings[1:])


FIRST_STAGE = ("steps", "guidance", "guidance_low", "guidance_high")


def save_model(folder: Path, recipe: Recipe, stages: Sequence[Stage], classes: Sequence[str]) -> None:
    """Writes all that sampling needs into one folder: a file of weights for each network, and one of settings."""
    with whole_folder(folder) as path:
        if isinstance(stages[0].space, LatentSpace):
            write_tensors(path / "autoencoder.safetensors", stages[0].space.state_dict())
        for stage in stages:
            write_tensors(path / weights_file(stage.image_size, recipe), stage.denoiser.state_dict())
        settings = recipe.model_dump(mode="json")
        write_json(path / "model.json", {"format": FORMAT, "classes": list(classes), "recipe": settings})


def weights_file(size: int, recipe: Recipe) -> str:
    return f"{'denoiser' if size == recipe.chain[0] else leg_above(size)}.safetensors"


def load(path: str | Path, device: str = "auto") -> Model:
    """Opens a run, or the `model` folder in it. Raises `UserError` if there is no finished model or it is damaged."""
    folder = Path(path)
    folder = folder / "model" if (folder / "model").is_dir() else folder
    if not (folder / "model.json").exists():
        hint = f"its training is not finished; try: calotype resume {path}" if (folder / "run.json").exists() else (
            "expected the folder of a run, or the model folder inside it"
        )  # fmt: skip
        raise UserError(f"no model in {path}: {hint}")
    if not is_whole(folder):
        raise UserError(f"the model in {folder} is damaged: its files are not what manifest.json says; copy it again")
    about = read_json(folder / "model.json")
    if about.get("format") != FORMAT:
        raise UserError(
            f"{folder} has format {about.get('format')}, this version of calotype reads {FORMAT}; update one"
        )
    recipe, classes = check(about["recipe"], lambda key: f"{folder}/model.json"), tuple(about["classes"])
    where = find_device(device)
    stages = [load_base(folder, recipe, len(classes), where)]
    for size in recipe.chain[1:]:
        stage = build_enlarger(recipe, size, len(classes))
        stage.denoiser.load_state_dict(load_file(folder / weights_file(size, recipe)))
        stages.append(stage)
    for stage in stages:
        stage.denoiser.to(where).eval().requires_grad_(False)
    return Model(tuple(stages), recipe.samplings, classes, where, recipe.units)


def load_base(folder: Path, recipe: Recipe, classes: int, device: torch.device) -> Stage:
    space: Space = PixelSpace()
    if recipe.kind == "latent":
        latents = build_space(recipe)
        latents.load_state_dict(load_file(folder / "autoencoder.safetensors"))
        space = latents.to(device).eval().requires_grad_(False)
    weights = load_file(folder / weights_file(recipe.chain[0], recipe))
    mixture = Mixture(*weights["mixture.axes"].shape) if recipe.denoiser.start == "gaussian" else None
    stage = build_stage(recipe, space, classes, mixture)
    stage.denoiser.load_state_dict(weights)
    return stage
