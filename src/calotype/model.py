"""A trained model: the deployable folder of a run, and sampling from it."""

from __future__ import annotations

import difflib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

from calotype.build import build_enlarger, build_space, build_stage
from calotype.data.captions import as_prompts, clean
from calotype.data.images import cut, images_from_pil, pils_from_images
from calotype.diffusion.init import Between, Mask, canvas, condition_switch, feathered, image_to_image, inpainting
from calotype.diffusion.samplers import SamplerName
from calotype.diffusion.stage import Initializer, Sampling, Stage, from_noise, generate, in_turn
from calotype.files import is_whole, read_json, whole_folder, write_json, write_tensors, write_whole
from calotype.interop.transformers import at_hand
from calotype.machine import find_device
from calotype.nets.text import TextConditioned, TextEncoder
from calotype.priors.stored import described, description, prior_in
from calotype.recipe import ImportedSpace, Recipe, leg_above
from calotype.settings import parse_recipe, upgraded
from calotype.spaces.latent import LatentSpace
from calotype.spaces.pixel import PixelSpace, Space
from calotype.types import NULL_LABEL, Images, OtherImages, Randomness, Rng, Text, UserError

FORMAT, READABLE = 6, (5, 6)
"""Of `model.json`. Format 5, of version 0.1, has other names in its recipe: see `upgraded`."""
AUTOENCODER = "autoencoder.safetensors"

MOST_TIMES = 8
"""How many times wider or higher than what was learned pictures may be."""

SEAMLESS: SamplerName = "ancestral"
"""For inpainting: its fresh noise lets what is new agree with what is known."""

Size = tuple[int, int]  # width and height in pixels
Prompt = str | Sequence[str] | None  # one for all pictures, or several in turn


@dataclass(frozen=True)
class Model:
    """Makes pictures. `load` opens one; `stages` and `samplings` have one entry each for latent diffusion."""

    stages: tuple[Stage, ...]
    samplings: tuple[Sampling, ...]
    classes: tuple[str, ...]
    device: torch.device
    units: tuple[int, ...] = ()
    """What the sides of each stage's pictures must be multiples of."""

    @property
    def image_size(self) -> int:
        return self.stages[-1].image_size

    def sample(
        self, count: int = 1, label: str | None = None, seed: int = 0, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`count` pictures; picture i depends on (seed, i, its label, prompt and size) only, not on those made with it.

        `label` is one of `classes`; without it and without a prompt, picture i has class `i % len(classes)`. `prompt`
        is one for all, or picture i has prompt `i % len(prompt)`; guidance leads away from `negative`. `size` is
        (width, height) in pixels, by default what was learned.
        `changes` replace settings of `Sampling`: `steps`, `sampler`, `guide`, `guidance`, `guidance_slope`,
        `guidance_low`, `guidance_high`.
        Raises `UserError` for an unknown label or setting, for a size that cannot be, and for a prompt to a model that
        does not read; warns of one that is too long.
        """
        self._warn(prompt)
        return list(self.draw(count, label, seed, size, prompt=prompt, negative=negative, **changes))

    def draw(
        self, count: int = 1, label: str | None = None, seed: int = 0, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> Iterator[Image.Image]:  # fmt: skip
        """The same, one after the other as they are made."""
        start, rngs = self.canvas(size), self.rngs(count, seed)
        labels, text = self.labels(count, label, prompt), self.text(count, prompt, negative)
        for images in self._develop(labels, text, rngs, changes, size, lambda part: start):
            yield from pils_from_images(images)

    def redraw(
        self, picture: Image.Image, strength: float | None = None, mask: Image.Image | None = None,
        label: str | None = None, seed: int = 0, count: int = 1, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`count` new versions of a picture, all of it, or only where `mask`, a picture of the same size, is white.

        The largest part in the middle that has the shape of `size` is taken, and resized to that. `strength`, above 0
        and up to 1, is the share of the sampler's steps: little is changed near 0, and at 1 the picture is forgotten.
        It is 0.6 by default, and 1 with a mask, where the sampler is `ancestral`, with 5.5 times the steps.
        Pixels further from the white than `reach` are kept to the bit. Without a `label` it is unconditional.
        Raises `UserError` as `sample` does, and for a strength or a mask that cannot be.
        """
        self._warn(prompt)
        wanted = {"prompt": prompt, "negative": negative, **changes}
        return list(self.draw_again(picture, strength, mask, label, seed, count, size, **wanted))

    def draw_again(
        self, picture: Image.Image, strength: float | None = None, mask: Image.Image | None = None,
        label: str | None = None, seed: int = 0, count: int = 1, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> Iterator[Image.Image]:  # fmt: skip
        """The same, one after the other as they are made."""
        strength = (0.6 if mask is None else 1.0) if strength is None else strength
        if not 0 < strength <= 1:
            raise UserError(f"strength is {strength}, but must be above 0 and at most 1; try 0.6")
        plain, full = self.canvas(size), self.image_size
        given = images_from_pil(cut(picture.convert("RGB"), *(size or (full, full)))).to(self.device)
        start, white = image_to_image(given, full, strength, plain), torch.ones_like(given[:, :1])
        if mask is not None:
            white = white_of(mask, picture, given)
            start, changes = inpainting(given, white, full, start), seamless(changes)
        labels = self.labels(count, label) if label else [NULL_LABEL] * count
        text, rngs = self.text(count, prompt, negative), self.rngs(count, seed)
        for images in self._develop(labels, text, rngs, changes, size, lambda part: start):
            yield from pils_from_images(torch.lerp(given, images, feathered(white, self.reach)))

    @property
    def reach(self) -> int:
        """How far around a mask pictures may change, in pixels: the width of what the first stage sees as one."""
        return self.stages[0].space.reduction * (self.image_size // self.stages[0].image_size)

    def interpolate(
        self, seeds: tuple[int, int] = (0, 1), frames: int = 12, labels: tuple[str, str] | None = None,
        size: Size | None = None, *, prompts: tuple[str, str] | None = None, prompt: str | None = None,
        negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`frames` pictures, at least 2, from the first picture of one seed to that of another.

        With two `labels` or two `prompts` they also go from the one to the other; `prompt` is the same all the way.
        Raises `UserError` as `sample` does.
        """
        if prompts and prompt is not None:
            raise UserError("prompt is the same all the way, prompts are its two ends; leave one out")
        self._warn(prompts or prompt)
        if frames < 2:
            raise UserError(f"frames is {frames}, but there must be at least 2: the first and the last")
        ends, shares = prompts or (prompt, prompt), torch.linspace(0, 1, frames, dtype=torch.float64).tolist()
        first, last = ((Rng((seed, "sample", 0))) for seed in seeds)
        rngs = [Between(first, last, share) for share in shares]
        classes = [self.labels(1, label, end)[0] for label, end in zip(labels or (None, None), ends, strict=True)]
        texts, start = [self.text(frames, end, negative) for end in ends], self.canvas(size)

        def mixing(part: slice) -> Initializer:
            some = torch.tensor(shares[part], device=self.device, dtype=torch.float32)
            last = torch.full((len(some),), classes[1], device=self.device)
            text = texts[1] and texts[1].at(range(frames)[part])
            return condition_switch(last, text, some, start) if labels or prompts else start

        made = self._develop([classes[0]] * frames, texts[0], rngs, changes, size, mixing)
        return [picture for images in made for picture in pils_from_images(images)]

    def canvas(self, size: Size | None) -> Initializer:
        """From noise of the size that was learned, or of another one (width, height). Raises `UserError`."""
        full = self.image_size
        if size is None or size == (full, full):
            return from_noise
        width, height = size
        unit = math.lcm(*(full // stage.image_size * unit for stage, unit in zip(self.stages, self.units, strict=True)))
        least, most = max(unit, self.least), MOST_TIMES * full
        if width % unit or height % unit or not least <= min(size) <= max(size) <= most:
            raise UserError(
                f"size is {width}x{height}, but the sides of this model's pictures must be multiples of {unit} "
                f"from {least} to {most}"
            )
        return canvas(height, width, full)

    @property
    def least(self) -> int:
        """What the sides of pictures must be at least, in pixels: the window of the prior."""
        space, prior = self.stages[0].space, self.stages[0].denoiser.prior
        return 0 if prior is None else prior.side(space.channels) * self.reach

    def rngs(self, count: int, seed: int) -> list[Rng]:
        return [Rng((seed, "sample", index)) for index in range(count)]

    def _develop(
        self,
        labels: Sequence[int],
        text: Text | None,
        rngs: Sequence[Randomness],
        changes: dict[str, Any],
        size: Size | None,
        start: Callable[[slice], Initializer],
    ) -> Iterator[OtherImages]:
        """A few at a time; `start` may be another one for each part."""
        samplings = changed_all(self.samplings, changes)
        check_guide(samplings[0], self.stages[0])
        width, height = size or (self.image_size, self.image_size)
        for part in in_turn(len(labels), height, width):
            own = torch.tensor(labels[part], device=self.device)
            some = text and text.at(range(len(labels))[part])
            yield generate(self.stages, own, samplings, rngs[part], start=start(part), text=some)

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
        labels = torch.tensor(self.labels(1, label) if label else [NULL_LABEL], device=device)
        large = generate([stage], labels, [self.samplings[index]], [Rng((seed, "enlarge"))], images)
        return pils_from_images(large[:, :, : height * stage.factor, : width * stage.factor])[0]

    def enlarger(self, size: int | None = None) -> int:
        """Which stage enlarges to `size`."""
        able = {stage.image_size: index for index, stage in enumerate(self.stages) if stage.low_res_size}
        if not able:
            raise UserError(
                "this model has one stage, which looks at no smaller picture; to enlarge pictures, train with "
                "--kind cascade"
            )
        if size is not None and size not in able:
            raise UserError(f"no stage of this model enlarges to {size} px; it has {', '.join(map(str, able))}")
        return able[size if size is not None else max(able)]

    def labels(self, count: int, label: str | None = None, prompt: Prompt = None) -> list[int]:
        """The class of each picture, as an index; NOT_TOLD for a model without classes, or where a prompt says it."""
        if label is not None:
            return [find_label(label, self.classes)] * count
        return [index % len(self.classes) if self.classes and not prompt else NULL_LABEL for index in range(count)]

    def text(self, count: int, prompt: Prompt = None, negative: str | None = None) -> Text | None:
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
        return backbone.encoder if isinstance(backbone, TextConditioned) else None

    def cuts(self, prompt: Prompt) -> list[str]:
        """Warnings of prompts that are too long."""
        if self.reader is None:
            return []
        rests = {one: rest for one in as_prompts(prompt) if (rest := self.reader.truncated(one))}
        return [
            f"a prompt is cut after {one[: len(one) - len(rest)].strip()[-30:]!r}: this model reads no more of it"
            for one, rest in rests.items()
        ]

    def _warn(self, prompt: Prompt) -> None:
        for warning in self.cuts(prompt):
            warnings.warn(warning, stacklevel=3)


def find_label(label: str, classes: Sequence[str]) -> int:
    if label in classes:
        return classes.index(label)
    if not classes:
        raise UserError(f"label is {label!r}, but this model was trained without labels; leave --label out")
    close = difflib.get_close_matches(label, classes, 1, 0.4)
    hint = f"did you mean {close[0]}? " if close else ""
    raise UserError(f"label {label!r} is unknown; {hint}this model knows {', '.join(classes)}")


def white_of(mask: Image.Image, picture: Image.Image, given: Images) -> Mask:
    """1 where the mask is white, at the size of the picture as it is `given` to the stages."""
    if mask.size != picture.size:
        raise UserError(
            f"the mask is {mask.width}x{mask.height}, but the picture is {picture.width}x{picture.height}; "
            "make them the same size"
        )
    height, width = given.shape[-2:]
    white = (images_from_pil(cut(mask.convert("RGB"), width, height)).mean(1, keepdim=True) > 0).float().to(given)
    if not white.any():
        raise UserError("the mask has no white, so nothing would be made anew; paint white what is to change")
    return white


def changed(sampling: Sampling, changes: dict[str, Any]) -> Sampling:
    """Raises `UserError` for a wrong value."""
    recipe = parse_recipe({"sampling": {**sampling.model_dump(), **without_none(changes)}}, lambda key: "sampling")
    return recipe.sampling


def check_guide(sampling: Sampling, stage: Stage) -> None:
    if sampling.guide == "prior" and not stage.denoiser.has_prior:
        raise UserError(
            "guide is prior, but this model has no closed form (denoiser.prior is none); set guide to unconditional"
        )


def seamless(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, with the sampler for inpainting where none is asked for."""
    return {"sampler": SEAMLESS, **without_none(changes)}


def without_none(changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in changes.items() if value is not None}


def changed_all(samplings: Sequence[Sampling], changes: dict[str, Any]) -> tuple[Sampling, ...]:
    """`steps` and the guidance are the first stage's: those that enlarge need few steps, and follow what they see."""
    shared = {name: value for name, value in changes.items() if name not in FIRST_STAGE}
    return changed(samplings[0], changes), *(changed(sampling, shared) for sampling in samplings[1:])


FIRST_STAGE = ("steps", "guide", "guidance", "guidance_slope", "guidance_low", "guidance_high")


def save_model(folder: Path, recipe: Recipe, stages: Sequence[Stage], classes: Sequence[str]) -> None:
    """Writes all that sampling needs into one folder: a file of weights for each network, and one of settings."""
    with whole_folder(folder) as path:
        if isinstance(stages[0].space, LatentSpace):
            write_tensors(path / AUTOENCODER, stages[0].space.state_dict())
        for stage in stages:
            write_tensors(path / weights_file(stage.image_size, recipe), stage.denoiser.state_dict())
        about: dict[str, Any] = {"format": FORMAT, "classes": list(classes)}
        about["priors"] = {
            str(stage.image_size): description(prior) for stage in stages if (prior := stage.denoiser.prior)
        }
        write_json(path / "model.json", {**about, "recipe": deployed(recipe).model_dump(mode="json")})


def deployed(recipe: Recipe) -> Recipe:
    """An imported autoencoder lies in the model's folder now, which knows of no other place."""
    if not isinstance(recipe.space, ImportedSpace):
        return recipe
    return recipe.model_copy(update={"space": recipe.space.model_copy(update={"path": AUTOENCODER})})


def store_sampling(folder: Path, sampling: Sampling) -> None:
    """Makes this the first stage's sampling in a model folder, which is replaced as a whole; the rest comes along."""
    about, own = read_json(folder / "model.json"), {*read_json(folder / "manifest.json"), "manifest.json"}
    about["recipe"]["sampling"] = sampling.model_dump(mode="json")
    beside = {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file() and file.name not in own}

    def left_out(place: str, names: list[str]) -> set[str]:
        return {*beside, "manifest.json"} if Path(place) == folder else set()

    with whole_folder(folder) as path:
        shutil.copytree(folder, path, symlinks=True, ignore=left_out, dirs_exist_ok=True)
        write_json(path / "model.json", about)
    for name, content in beside.items():
        write_whole(folder / name, content)


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
    if about.get("format") not in READABLE:
        raise UserError(
            f"{folder} has format {about.get('format')}, but this version of calotype reads "
            f"{' and '.join(map(str, READABLE))}; update one of the two"
        )
    about["recipe"]["denoiser"]["text"] = at_hand(folder, about["recipe"]["denoiser"]["text"])
    recipe, classes = (
        parse_recipe(upgraded(about["recipe"]), lambda key: f"{folder}/model.json"),
        tuple(about["classes"]),
    )
    where = find_device(device)
    stages = [load_base(folder, recipe, len(classes), where, about.get("priors"))]
    for size in recipe.chain[1:]:
        stage = build_enlarger(recipe, size, len(classes))
        stage.denoiser.load_state_dict(load_file(folder / weights_file(size, recipe)))
        stages.append(stage)
    for stage in stages:
        stage.denoiser.to(where).eval().requires_grad_(False)
    return Model(tuple(stages), recipe.samplings, classes, where, recipe.units)


def load_base(
    folder: Path, recipe: Recipe, classes: int, device: torch.device, priors: dict[str, Any] | None = None
) -> Stage:
    """The first stage; `priors` are the kinds and shapes in `model.json`, which those of version 0.1 lack."""
    space: Space = PixelSpace()
    if recipe.kind == "latent":
        latents = build_space(recipe)
        latents.load_state_dict(load_file(folder / AUTOENCODER))
        space = latents.to(device).eval().requires_grad_(False)
    weights = load_file(folder / weights_file(recipe.chain[0], recipe))
    if priors is None:
        prior = prior_in(weights)
    else:
        prior = described(priors[size]) if (size := str(recipe.chain[0])) in priors else None
    stage = build_stage(recipe, space, classes, prior)
    stage.denoiser.load_state_dict(weights)
    return stage
