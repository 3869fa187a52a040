"""What a run has cost beside its legs: closed forms, captions that are read, and searches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch

from calotype.data.folder import Pictures
from calotype.data.words import distinct
from calotype.diffusion.init import sdedit
from calotype.diffusion.stage import Sampling, Stage, generate
from calotype.evaluation.candidate import Candidate, seconds_of, usual_text
from calotype.evaluation.counting import counted
from calotype.evaluation.features import features
from calotype.nets.frozen import Frozen, Projected
from calotype.recipe import exposure_above
from calotype.tables import number, within
from calotype.types import NULL_LABEL, Rng

NO_RECORD = "the run was made by a version that did not count what its closed forms take; train it again"


def preparations(one: Candidate, pictures: Pictures) -> Iterator[dict[str, Any]]:
    """Of each that was done: what, floating-point operations (None with a reason where unknown), and seconds."""
    spent = seconds_of(one.run)
    for part, flops in preparation_flops(one, pictures).items():
        row: dict[str, Any] = {"part": part, "flops": flops, "seconds": spent.get(part, 0.0)}
        yield row if flops is not None else {**row, "reason": NO_RECORD}


def preparation_flops(one: Candidate, pictures: Pictures) -> dict[str, float | None]:
    recipe, recorded, found = one.recipe, within(one.run.facts, "operations"), dict[str, float | None]()
    if (frozen := frozen_encoder(one)) is not None and pictures.captions is not None:
        found["captions"] = reading_flops(frozen, distinct(pictures.captions))
    redrawing = sum(redrawing_flops(one, size) for size in recipe.chain[1:] if exposure_above(size) in recipe.legs)
    for part in ("prepare", "fit"):
        if part in seconds_of(one.run):
            counted_then = number(recorded.get(part))
            found[part] = None if counted_then is None else counted_then + (redrawing if part == "prepare" else 0)
    for size in recipe.chain[1:]:
        if str(size) in within(one.run.facts, "levels"):
            found[f"level-{size}"] = search_flops(one, size)
    return found


def frozen_encoder(one: Candidate) -> Frozen | None:
    """What reads captions and prompts and is not trained."""
    reader = one.model.reader
    return reader.frozen if isinstance(reader, Projected) else None


def reading_flops(frozen: Frozen, texts: list[str]) -> float:
    """Texts of equally many tokens take equally many operations."""
    lengths = Counter(len(frozen.reader.spell(text).tokens) for text in texts)
    tokens = (torch.zeros(1, length, dtype=torch.long) for length in lengths if length)
    each = {one.shape[1]: counted(lambda one=one: frozen.reader.say(one)) for one in tokens}  # type: ignore[misc]
    return float(sum(count * each.get(length, 0) for length, count in lengths.items()))


def sampling_flops(one: Candidate, stages: tuple[Stage, ...], samplings: tuple[Sampling, ...], side: int = 0) -> int:
    """Of one picture through these stages, a prompt read before; from a smaller one of `side` pixels if above 0."""
    device, text = one.model.device, usual_text(one.model, 1)
    if text is not None and (frozen := frozen_encoder(one)) is not None:
        for prompt in text.prompts:
            frozen.of(prompt)
    label = torch.tensor([0 if one.model.classes else NULL_LABEL], device=device)
    low_res = torch.zeros(1, 3, side, side, device=device) if side else None
    return counted(lambda: generate(stages, label, samplings, [Rng(("cost",))], low_res, text=text))


def redrawing_flops(one: Candidate, size: int) -> float:
    """Of the pictures that the stage below has redrawn, for its mistakes."""
    index, device = one.recipe.chain.index(size) - 1, one.model.device
    below, config, sampling = one.model.stages[index], one.recipe.enlarger(size).exposure, one.recipe.samplings[index]
    image = torch.zeros(1, 3, below.image_size, below.image_size, device=device)
    label, rngs = torch.full((1,), NULL_LABEL, device=device), [Rng(("cost",))]
    each = counted(lambda: sdedit(below, image, label, sampling, config.share, rngs, usual_text(one.model, 1)))
    return float(each) * min(config.pictures, trained_on(one))


def trained_on(one: Candidate) -> float:
    return number(within(one.run.facts, "pictures").get("train")) or 0.0


def search_flops(one: Candidate, size: int) -> float:
    """Of the search for a level of augmentation: each crop is made once by the stages below, then once a level."""
    index, config = one.recipe.chain.index(size), one.recipe.enlarger(size)
    crops = number(within(one.run.plan, "level_crops").get(str(size))) or 0.0
    tried = len(within(one.run.facts, "levels", str(size)).get("tried") or [])
    stage, side = one.model.stages[index], config.crop or size
    image = torch.zeros(1, 3, side, side, device=one.model.device)
    looked = counted(lambda: features([image]))
    below = sampling_flops(one, one.model.stages[:index], one.model.samplings[:index])
    level = sampling_flops(one, (stage,), (config.sampling,), side // stage.factor)
    return crops * (below + looked + tried * (level + looked))
