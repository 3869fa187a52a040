"""Prompt alignment: whether captions have the smallest denoising loss with their own pictures, and samples of prompts
what the prompts say, where a judge of the pictures is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor

from calotype.diffusion.stage import Stage
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.intervals import share_estimate
from calotype.evaluation.measures import as_measure
from calotype.evaluation.references import FeatureStore
from calotype.evaluation.results import Alignment, Attribute, PropertyShare, Retrieval
from calotype.types import NULL_LABEL, Condition, Latents, Rng, Text

LEVELS = 4
"""Noise levels of caption retrieval: quantiles of sigma in training, evenly spaced."""
CANDIDATES, MOST_RETRIEVED = 32, 64
"""Captions among which a picture's own is sought, and of how many pictures at most."""


@dataclass(frozen=True)
class Judged:
    """What samples of prompts show, by a judge."""

    attributes: list[Attribute] = field(default_factory=list)
    shares: list[PropertyShare] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    """The first of each language, in the order of the plate."""
    plate: Image.Image | None = None


@runtime_checkable
class PromptJudge(Protocol):
    """Knows what is to be seen in the run's pictures; handed in by the command."""

    @property
    def languages(self) -> tuple[str, ...]: ...

    def judge(self, candidate: Candidate, store: FeatureStore, count: int, seed: int) -> Judged: ...


def alignment(
    candidate: Candidate, store: FeatureStore, judge: PromptJudge | None, count: int, seed: int
) -> tuple[Alignment, Judged]:
    """Of a model that is conditioned on text, and what the `judge` has seen; `store` holds the pictures that it knows,
    if there is any."""
    if candidate.model.text_encoder is None:
        return Alignment(reason="the model was trained without captions"), Judged()
    languages = ("captions",) if judge is None else judge.languages
    measures = Alignment(
        languages=list(languages),
        retrieval=[caption_retrieval(candidate, store, place, count, seed) for place in range(len(languages))],
    )
    if judge is None:
        measures.left_out = ["colours and attributes: what these pictures show is not known"]
        return measures, Judged()
    judged = judge.judge(candidate, store, count, seed)
    measures.attributes, measures.left_out, measures.prompts = judged.attributes, judged.left_out, judged.prompts
    return measures, judged


# -- Caption retrieval -------------------------------------------------------------------------------------------------


def caption_retrieval(candidate: Candidate, store: FeatureStore, place: int, count: int, seed: int) -> Retrieval:
    """Of test pictures, with the caption at `place` where a picture has several."""
    own = own_captions(store, place)
    choices = min(CANDIDATES, len(own))
    if choices < 2:
        reason = f"it needs 2 test pictures with captions of their own, and there are {choices}"
        return Retrieval(value=None, reason=reason)
    stage, rows = candidate.model.stages[0], list(own)[: len(own) // choices * choices]
    few, hits = min(count, MOST_RETRIEVED, len(rows)), list[bool]()
    with store.bar("captions") as progress:
        for start in range(0, few, choices):
            chosen = rows[start : start + choices]
            images = store.images(torch.tensor(chosen[: few - start]), stage.image_size)
            clean = stage.space.encode(images.to(candidate.model.device))
            hits += retrieval(stage, clean, [own[row] for row in chosen], Rng((seed, "captions", start))).tolist()
            progress(len(hits), few)
    return Retrieval(
        **as_measure(share_estimate(sum(hits), few)).stored(),
        n=few, candidates=choices, chance=1 / choices, levels=LEVELS, stage_size=stage.image_size,
    )  # fmt: skip


def own_captions(store: FeatureStore, place: int) -> dict[int, str]:
    """Of test pictures, no two with the same."""
    captions, row_of = store.pictures.captions, dict[str, int]()
    for row in store.pictures.test_indices.tolist():
        if captions is not None and (own := captions.of[row][place : place + 1] or captions.of[row][:1]):
            row_of.setdefault(own[0], row)
    return {row: caption for caption, row in row_of.items()}


@torch.no_grad()
def retrieval(stage: Stage, clean: Latents, captions: Sequence[str], rng: Rng) -> Bool[Tensor, " batch"]:
    """Whether each picture is denoised best with its own caption, at its place, among all n (arXiv 2303.16203).

    By chance, that is 1 in n. All captions meet the same noise, at `LEVELS` levels of what the stage has trained on.
    """
    count = len(captions)
    condition = Condition(torch.full((count,), NULL_LABEL, device=clean.device), text=Text(tuple(captions)))
    cuts = torch.arange(1, LEVELS + 1) / (LEVELS + 1)
    levels = stage.schedule.sample(4096, rng.at("levels")).quantile(cuts).tolist()
    right = []
    for index, picture in enumerate(clean):
        same = picture.expand(count, -1, -1, -1)
        error = torch.zeros(count, device=clean.device)
        for place, level in enumerate(levels):
            noise = rng.at(index, place).normal(*picture.shape).to(clean).expand_as(same)
            error += stage.denoiser.loss(same, torch.full_like(error, level), noise, condition)
        right.append(int(error.argmin()) == index)
    return torch.tensor(right)
