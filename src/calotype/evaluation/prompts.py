"""Whether a model that reads shows what it is told: on portraits, whose truth is known, and by captions alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image

from calotype.data.images import grid, images_from_pil, pils_from_images
from calotype.demo.describing import LANGUAGES, Facts, describe, unseen
from calotype.demo.judges import (
    LARGEST,
    OF_ALL,
    About,
    Tallies,
    learn_judges,
    looked_at,
    see,
    small,
    tallies,
)
from calotype.evaluation.alignment import LEVELS, Tally, retrieval
from calotype.evaluation.candidate import Candidate
from calotype.evaluation.intervals import share_estimate
from calotype.evaluation.measures import Measure, as_json, too_few
from calotype.evaluation.references import Bar, Library
from calotype.types import Images, Rng

SKILL = 0.5
"""What a judge must have on real portraits to be heard: of what guessing gets wrong, it gets half right."""
CANDIDATES, MOST_SOUGHT = 32, 64
"""Captions among which a picture's own is sought, and of how many pictures at most."""
SHOWN = 12
"""Pictures of each language that are shown with their prompts."""

Found = dict[str, Any]


@dataclass(frozen=True)
class Obedience:
    found: Found
    plate: Image.Image | None = None


def obedience(one: Candidate, library: Library, drawn: Sequence[Facts], count: int, seed: int) -> Obedience:
    """Of a model that reads; `drawn` is what the library's portraits show, and nothing for other pictures."""
    if one.model.reader is None:
        return Obedience({"reason": "the model was trained without captions"})
    languages = LANGUAGES if drawn else ("captions",)
    sought = [seek(one, library, place, count, seed) for place in range(len(languages))]
    found = {"languages": list(languages), "retrieval": sought}
    if not drawn:
        return Obedience({**found, "left_out": ["colours and attributes: what these pictures show is not known"]})
    asked, plate = ask(one, library, drawn, count, seed)
    return Obedience({**found, **asked}, plate)


# -- The right caption among others ------------------------------------------------------------------------------------


def seek(one: Candidate, library: Library, place: int, count: int, seed: int) -> Measure:
    """How often a test picture is denoised best with its own caption, the one at `place` where it has several."""
    own = own_captions(library, place)
    among = min(CANDIDATES, len(own))
    if among < 2:
        return too_few(f"it needs 2 test pictures with captions of their own, and there are {among}")
    stage, rows = one.model.stages[0], list(own)[: len(own) // among * among]
    few, hits = min(count, MOST_SOUGHT, len(rows)), []
    with library.bar("captions") as told:
        for start in range(0, few, among):
            chosen = rows[start : start + among]
            images = library.images(torch.tensor(chosen[: few - start]), stage.image_size)
            clean = stage.space.encode(images.to(one.model.device))
            hits += retrieval(stage, clean, [own[row] for row in chosen], Rng((seed, "captions", start))).tolist()
            told(len(hits), few, "")
    sizes = {"n": few, "candidates": among, "chance": 1 / among, "levels": LEVELS, "stage_size": stage.image_size}
    return as_json(share_estimate(sum(hits), few)) | sizes


def own_captions(library: Library, place: int) -> dict[int, str]:
    """Of test pictures, no two with the same."""
    captions, found = library.pictures.captions, dict[str, int]()
    for row in library.pictures.test_indices.tolist():
        if captions is not None and (said := captions.of[row][place : place + 1] or captions.of[row][:1]):
            found.setdefault(said[0], row)
    return {row: caption for caption, row in found.items()}


# -- Portraits ---------------------------------------------------------------------------------------------------------


def ask(
    one: Candidate, library: Library, drawn: Sequence[Facts], count: int, seed: int
) -> tuple[Found, Image.Image | None]:
    """Samples of prompts that no training caption says, in each language, judged as test portraits are."""
    wanted = unseen([drawn[row] for row in library.pictures.train_indices.tolist()], count)
    others = library.pictures.test_indices.tolist()
    if not wanted or not others:
        return {"left_out": ["attributes: too few portraits for prompts that no caption says"]}, None
    with library.bar("judges") as told:
        judges = learn_judges(library, drawn, one.size, told)
    facts = [drawn[row] for row in others]
    real = tallies(judges, see(judges, looked_at(library, others, one.size, LARGEST), facts), facts)
    sampled, plates, prompts = [], [], []
    for place, language in enumerate(LANGUAGES):
        asked = [describe(one)[place] for one in wanted]
        images = made(one, asked, seed, library.bar, f"prompts in {language}")
        sampled.append(tallies(judges, see(judges, images, wanted), wanted))
        plates += pils_from_images(images[:SHOWN])
        prompts += asked[:SHOWN]
    heard = {told for told, one in real.items() if one.skill >= SKILL}
    table = [measure(about, sampled, real, heard) for about in abouts(heard & set(sampled[0]))]
    deaf = ", ".join(f"{about}{f' ({style})' if style else ''}" for style, about in sorted(set(real) - heard))
    left = [f"{deaf}: on real portraits the judge is hardly better than guessing"] if deaf else []
    return {"attributes": table, "left_out": left, "prompts": prompts}, grid(plates, SHOWN)


def measure(about: str, sampled: Sequence[Tallies], real: Tallies, heard: set[About]) -> Found:
    """How many show what they are told, of samples in each language, and of real portraits by their own captions."""

    def together(found: Tallies) -> Tally:
        return sum((one for told, one in found.items() if told in heard and told[1] == about), Tally(0, 0, 0))

    samples, own = [together(one) for one in sampled], together(real)
    return {
        "about": about,
        "samples": [as_json(share_estimate(one.hits, one.count)) for one in samples],
        "n": samples[0].count,
        "chance": samples[0].chance,
        "real": as_json(share_estimate(own.hits, own.count)) | {"n": own.count, "chance": own.chance},
    }


def abouts(heard: set[About]) -> list[str]:
    """In the order in which they are shown."""
    known = {about for _, about in heard}
    first = [about for about in (*OF_ALL, "clothes") if about in known]
    return first + sorted(known - set(first))


def made(one: Candidate, prompts: Sequence[str], seed: int, bar: Bar, what: str) -> Images:
    """Those that `calotype sample --prompts` makes, small."""
    images = []
    with bar(what) as told:
        for picture in one.model.draw(len(prompts), seed=seed, prompt=prompts):
            images.append(small(images_from_pil(picture), LARGEST))
            told(len(images), len(prompts), "")
    return torch.cat(images)
