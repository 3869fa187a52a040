"""A trained model: samples, variations of pictures, interpolations, and enlarged pictures."""

from __future__ import annotations

import difflib
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image, ImageChops

from calotype.data.captions import as_prompts, clean
from calotype.data.images import cut, images_from_pil, pils_from_images, shown
from calotype.data.listing import MOST_NAMED, first_names, normal_form
from calotype.diffusion.init import (
    Between,
    Mask,
    State,
    canvas,
    condition_switch,
    feathered,
    image_to_image,
    inpainting,
    recorded,
)
from calotype.diffusion.stage import (
    Initializer,
    Initializers,
    Sampling,
    Stage,
    for_all,
    from_noise,
    generate,
    generate_in_turn,
)
from calotype.machine import find_device
from calotype.nets.text import TextConditioned, TextEncoder
from calotype.recipe import Recipe
from calotype.settings import parse_recipe
from calotype.store import read_model
from calotype.types import NULL_LABEL, Images, OtherImages, Randomness, Rng, Text, UserError

MOST_TIMES = 8
"""How many times wider or higher than in training samples may be."""
INPAINTING = {"sampler": "ancestral"}
"""Sampling settings of inpainting: fresh noise lets what is new agree with what is known."""
FIRST_STAGE = (
    "steps", "guide", "guidance", "guidance_slope", "prior_guidance", "guidance_low", "guidance_high",
    "epsilon_scaling", "final_denoising",
)  # fmt: skip
"""Settings of the first stage alone: stages that enlarge need few steps, and follow the low-resolution picture."""

ALL_ROWS = slice(None)
Size = tuple[int, int]  # width and height in pixels
Prompt = str | Sequence[str] | None  # one for all samples, or several in turn


def load(path: str | Path, device: str = "auto") -> Model:
    """Opens a run, or the `model` folder in it. Raises `UserError` if there is no finished model or it is damaged."""
    torch_device = find_device(device)
    recipe, stages, classes = read_model(Path(path), torch_device)
    return Model(recipe, stages, recipe.samplings, classes, torch_device)


@dataclass(frozen=True)
class Model:
    """`load` opens one. `stages` and `samplings` have one entry each for latent diffusion, several for a cascade."""

    recipe: Recipe
    stages: tuple[Stage, ...]
    samplings: tuple[Sampling, ...]
    classes: tuple[str, ...]
    device: torch.device

    # -- Pictures ------------------------------------------------------------------------------------------------------

    def sample(
        self, count: int = 1, label: str | None = None, seed: int = 0, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`count` pictures; picture i depends on (seed, i, its label, prompt and size) only, not on its batch.

        `label` is one of `classes`; without it and without a prompt, picture i has class `i % len(classes)`. `prompt`
        is one for all pictures, or picture i has prompt `i % len(prompt)`. Guidance leads away from `negative`, which
        has no effect at a scale of 1. `size` is (width, height) in pixels, by default that of training.
        `changes` replace settings of `Sampling`: `steps`, `sampler`, `guide`, `guidance`, `guidance_slope`,
        `prior_guidance`, `guidance_low`, `guidance_high`, `epsilon_scaling`, `final_denoising`.
        Raises `UserError` for an unknown label or setting, for an impossible size, and for a prompt to a model
        without text conditioning; warns if a prompt is truncated.
        """
        self._warn(prompt, negative)
        return list(self.draw(count, label, seed, size, prompt=prompt, negative=negative, **changes))

    def redraw(
        self, picture: Image.Image, strength: float | None = None, mask: Image.Image | None = None,
        label: str | None = None, seed: int = 0, count: int = 1, size: Size | None = None,
        *, prompt: Prompt = None, negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`count` variations of a picture: of all of it, or only where `mask`, a picture of the same size, is white.

        The largest central part with the shape of `size` is taken and resized to it. `strength`, above 0
        and up to 1, is the share of the sampler's steps: little changes near 0, and at 1 the picture is forgotten.
        It is 0.6 by default. With a mask it is 1, the sampler is `ancestral`, and the steps are 5.5 times as many.
        Pixels further from the white than `reach` stay bit-identical. Without a `label` it is unconditional.
        Raises `UserError` as `sample` does, and for an impossible strength or mask.
        """
        self._warn(prompt, negative)
        changes = {"prompt": prompt, "negative": negative, **changes}
        return list(self.draw(count, label, seed, size, picture=picture, strength=strength, mask=mask, **changes))

    def draw(
        self, count: int = 1, label: str | None = None, seed: int = 0, size: Size | None = None,
        *, picture: Image.Image | None = None, strength: float | None = None, mask: Image.Image | None = None,
        prompt: Prompt = None, negative: str | None = None, rows: slice = ALL_ROWS, **changes: Any,
    ) -> Iterator[Image.Image]:  # fmt: skip
        """The pictures of `sample`, or of `redraw` where there is a `picture`, each as soon as it is finished.

        With `rows`, only these of the `count` pictures.
        """
        text, samplings = self.text(count, prompt, negative), self.settings(changes, mask is not None)
        if picture is None:
            labels, start, finish = self.labels(count, label, prompt), self.canvas(size), lambda images: images
        else:
            labels = self.labels(count, label) if label else [NULL_LABEL] * count
            start, finish = self._edit(picture, strength, mask, size)
        rngs = self.rngs(count, seed)[rows]
        parts = self._generate(labels[rows], text and text.at(rows), rngs, samplings, size, for_all(start))
        return (picture for images in parts for picture in pils_from_images(finish(images)))

    def interpolate(
        self, seeds: tuple[int, int] = (0, 1), frames: int = 12, labels: tuple[str, str] | None = None,
        size: Size | None = None, *, prompts: tuple[str, str] | None = None, prompt: str | None = None,
        negative: str | None = None, **changes: Any,
    ) -> list[Image.Image]:  # fmt: skip
        """`frames` pictures, at least 2, from the first picture of one seed to the first of another.

        With two `labels` or two `prompts` they also go from the first to the second; `prompt` is the same all the way.
        Raises `UserError` as `sample` does.
        """
        if prompts and prompt is not None:
            raise UserError("prompt is the same all the way, prompts are its two ends; leave one out")
        if frames < 2:
            raise UserError(f"frames is {frames}, but there must be at least 2: the first and the last")
        self._warn(prompts or prompt, negative)
        ends, shares = prompts or (prompt, prompt), torch.linspace(0, 1, frames, dtype=torch.float64).tolist()
        first, last = (Rng((seed, "sample", 0)) for seed in seeds)
        before, after = (self.labels(1, *end)[0] for end in zip(labels or (None, None), ends, strict=True))
        text, text_after = (self.text(frames, end, negative) for end in ends)
        start = self.canvas(size)

        def switch(part: slice) -> Initializer:
            if not (labels or prompts):
                return start
            share = torch.tensor(shares[part], device=self.device, dtype=torch.float32)
            text = text_after and text_after.at(part)
            return condition_switch(torch.full((len(share),), after, device=self.device), text, share, start)

        rngs = [Between(first, last, share) for share in shares]
        parts = self._generate([before] * frames, text, rngs, self.settings(changes), size, switch)
        return [picture for images in parts for picture in pils_from_images(images)]

    def estimates(
        self, label: str | None = None, seed: int = 0, size: Size | None = None, *, prompt: str | None = None,
        negative: str | None = None, **changes: Any,
    ) -> list[tuple[Image.Image, Image.Image]]:  # fmt: skip
        """Of the first sample of a seed, each call of the denoiser: the noisy picture, divided by sqrt(1 + sigma^2) so
        that it can be seen, and the estimate of the clean one; from noise to the picture that `sample` returns.

        Raises `UserError` as `sample` does.
        """
        labels, text, states = self.labels(1, label, prompt), self.text(1, prompt, negative), list[State]()
        start = recorded(states, self.canvas(size))
        deque(self._generate(labels, text, self.rngs(1, seed), self.settings(changes), size, for_all(start)), maxlen=0)
        pairs = [
            state.stage.space.decode(torch.cat([state.noisy / (1 + state.sigma**2) ** 0.5, state.estimate]))
            for state in states
        ]
        return [(before, after) for before, after in map(pils_from_images, pairs)]

    def enlarge(
        self, picture: Image.Image, size: int | None = None, label: str | None = None, seed: int = 0,
        *, prompt: str | None = None,
    ) -> Image.Image:  # fmt: skip
        """A picture of any shape, through the stage that makes pictures of `size` px (default: the last one).

        Its sides grow by that stage's factor. Label and prompt say what it shows; without them it is unconditional.
        Raises `UserError` if no stage is conditioned on low resolution, and as `sample` does for label and prompt.
        """
        self._warn(prompt)
        index = self.enlarging_index(size)
        stage = self.stages[index]
        images = images_from_pil(picture.convert("RGB")).to(self.device)
        height, width = images.shape[-2:]
        unit = max(1, self.recipe.units[index] // stage.factor)
        images = F.pad(images, [0, -width % unit, 0, -height % unit], mode="replicate")
        labels = torch.tensor(self.labels(1, label) if label else [NULL_LABEL], device=self.device)
        whole = self.samplings[index].model_copy(update={"conditioning": "whole", "augmentation": 0.0})  # it is clean
        text, rng = self.text(1, prompt), Rng((seed, "enlarge"))
        large = generate([stage], labels, [whole], [rng], images, text=text)
        return pils_from_images(large[:, :, : height * stage.factor, : width * stage.factor])[0]

    # -- What a request means for this model ---------------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        return self.stages[-1].image_size

    @property
    def reach(self) -> int:
        """How far around a mask pictures may change, in pixels: one latent of the first stage."""
        return self.stages[0].space.reduction * (self.image_size // self.stages[0].image_size)

    @property
    def least_side(self) -> int:
        """The smallest side of samples, in pixels: the window of the prior."""
        space, prior = self.stages[0].space, self.stages[0].denoiser.prior
        return 0 if prior is None else prior.side(space.channels) * self.reach

    @property
    def text_encoder(self) -> TextEncoder | None:
        backbone = self.stages[0].denoiser.backbone
        return backbone.encoder if isinstance(backbone, TextConditioned) else None

    def rngs(self, count: int, seed: int) -> list[Rng]:
        return [Rng((seed, "sample", index)) for index in range(count)]

    def labels(self, count: int, label: str | None = None, prompt: Prompt = None) -> list[int]:
        """The class of each picture, as an index; `NULL_LABEL` for a model without classes, or with a prompt alone."""
        if label is not None:
            return [find_label(label, self.classes)] * count
        return [index % len(self.classes) if self.classes and not prompt else NULL_LABEL for index in range(count)]

    def text(self, count: int, prompt: Prompt = None, negative: str | None = None) -> Text | None:
        """Prompt and negative prompt of each picture. Raises `UserError` for a model without text conditioning."""
        prompts, negative = as_prompts(prompt), clean(negative or "")
        if not any(prompts) and not negative:
            return None
        if self.text_encoder is None:
            raise UserError(
                "this model was trained without captions, so it reads no prompt; leave it out, or train on pictures "
                "with captions"
            )
        in_order = tuple(prompts[index % len(prompts)] if prompts else "" for index in range(count))
        return Text(in_order, (negative,) * count if negative else ())

    def truncations(self, *prompts: Prompt) -> list[str]:
        """Warnings of prompts that are too long, negative ones among them."""
        if self.text_encoder is None:
            return []
        texts = chain.from_iterable(map(as_prompts, prompts))
        rests = {text: rest for text in texts if (rest := self.text_encoder.truncated(text))}
        return [
            f"a prompt is cut after {text[: len(text) - len(rest)].strip()[-30:]!r}: this model reads no more of it"
            for text, rest in rests.items()
        ]

    def settings(self, changes: dict[str, Any], inpaint: bool = False) -> tuple[Sampling, ...]:
        """Sampling settings of each stage with these changes, of which None is none. Raises `UserError`."""
        changes = {name: value for name, value in changes.items() if value is not None}
        first = {**INPAINTING, **changes} if inpaint else changes
        if first.get("epsilon_scaling"):  # final denoising takes more of the amplitude
            first = {"final_denoising": 0.0, **first}
        others = {name: value for name, value in first.items() if name not in FIRST_STAGE}
        return tuple(
            parse_recipe({"sampling": sampling.model_dump() | new}, lambda key: "sampling").sampling
            for sampling, new in zip(self.samplings, [first, *[others] * len(self.samplings[1:])], strict=True)
        )

    def canvas(self, size: Size | None) -> Initializer:
        """Noise of the training size, or of (width, height) in pixels. Raises `UserError`."""
        full = self.image_size
        if size is None or size == (full, full):
            return from_noise
        (width, height), unit = size, self.recipe.unit
        least, most = max(unit, self.least_side), MOST_TIMES * full
        if width % unit or height % unit or not least <= min(size) <= max(size) <= most:
            raise UserError(
                f"size is {width}x{height}, but the sides of this model's pictures must be multiples of {unit} "
                f"from {least} to {most}"
            )
        return canvas(height, width, full)

    def enlarging_index(self, size: int | None = None) -> int:
        """Index of the stage that enlarges to `size`."""
        sizes = {stage.image_size: index for index, stage in enumerate(self.stages) if stage.low_res_size}
        if not sizes:
            raise UserError(
                "this model has one stage, which is not conditioned on low resolution; to enlarge pictures, train with "
                "--kind cascade"
            )
        if size is not None and size not in sizes:
            raise UserError(f"no stage of this model enlarges to {size} px; it has {', '.join(map(str, sizes))}")
        return sizes[size if size is not None else max(sizes)]

    # -- Steps of the above --------------------------------------------------------------------------------------------

    def _generate(
        self, labels: Sequence[int], text: Text | None, rngs: Sequence[Randomness], samplings: Sequence[Sampling],
        size: Size | None, starts: Initializers,
    ) -> Iterator[OtherImages]:  # fmt: skip
        """Images in parts that fit into memory. Raises `UserError` at once for a guide that the model has not."""
        if samplings[0].guide == "prior" and self.stages[0].denoiser.prior is None:
            raise UserError(
                "guide is prior, but this model has no closed form (denoiser.prior is none); set guide to unconditional"
            )
        own, sides = torch.tensor(labels, device=self.device), size and size[::-1]
        return generate_in_turn(self.stages, own, samplings, rngs, starts=starts, text=text, sides=sides)

    def _edit(
        self, picture: Image.Image, strength: float | None, mask: Image.Image | None, size: Size | None
    ) -> tuple[Initializer, Callable[[Images], Images]]:
        """Where the sampling of variations starts, and what puts the known pixels back into them."""
        strength = (0.6 if mask is None else 1.0) if strength is None else strength
        if not 0 < strength <= 1:
            raise UserError(f"strength is {strength}, but must be above 0 and at most 1; try 0.6")
        start, full = self.canvas(size), self.image_size
        given = images_from_pil(cut(picture.convert("RGB"), *(size or (full, full)))).to(self.device)
        start = image_to_image(given, full, strength, start)
        if mask is None:
            return start, lambda images: images
        white = white_of(mask, picture, given)
        weight = feathered(white, self.reach)
        return inpainting(given, white, full, start), lambda images: torch.lerp(given, images, weight)

    def _warn(self, *prompts: Prompt) -> None:
        for warning in self.truncations(*prompts):
            warnings.warn(warning, stacklevel=3)


def find_label(label: str, classes: Sequence[str]) -> int:
    """Index of a class. Raises `UserError` with the closest one."""
    if label in classes:
        return classes.index(label)
    if (form := normal_form(label)) in (forms := [normal_form(name) for name in classes]):
        return forms.index(form)
    if not classes:
        raise UserError(f"label is {label!r}, but this model was trained without labels; leave --label out")
    close = difflib.get_close_matches(label, classes, 1, 0.4)
    hint = f"did you mean {shown(close[0])}? " if close else ""
    raise UserError(f"label {label!r} is unknown; {hint}this model knows {first_names(classes, MOST_NAMED)}")


def white_of(mask: Image.Image, picture: Image.Image, given: Images) -> Mask:
    """1 where the mask is white and opaque, at the size of the picture as it is `given` to the stages.

    Raises `UserError` where the sizes differ, and where there is no white.
    """
    if mask.size != picture.size:
        raise UserError(
            f"the mask is {mask.width}x{mask.height}, but the picture is {picture.width}x{picture.height}; "
            "make them the same size"
        )
    height, width = given.shape[-2:]
    flat = mask.convert("RGB")
    if mask.has_transparency_data:
        flat = ImageChops.multiply(flat, mask.convert("RGBA").getchannel("A").convert("RGB"))
    white = (images_from_pil(cut(flat, width, height)).mean(1, keepdim=True) > 0).float().to(given)
    if not white.any():
        raise UserError(
            "the mask has no white, so nothing would change; paint opaque white over what is to be repainted"
        )
    return white
