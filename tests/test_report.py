import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from calotype.files import write_json
from calotype.report import write_report
from calotype.report.folder import read_run
from calotype.report.format import UNKNOWN, date, difference, duration, final_denoising, guidance, scaled
from calotype.report.html import encodings, tag
from calotype.report.page import cost_rows
from calotype.report.plot import (
    BOTTOM,
    LEFT,
    PLOT_HEIGHT,
    PLOT_WIDTH,
    RIGHT,
    TOP,
    Frame,
    Series,
    axis_around,
    axis_from_zero,
    plot,
    smoothed,
    spread,
    thinned,
)  # fmt: skip

STYLES = ["adventurer", "lorelei", "micah", "notionists", "open-peeps", "personas"]
SECONDS = {"plan": 5.1, "autoencoder": 151.0, "latents": 9.0, "denoiser": 402.0, "samples": 14.0}
PREVIEWS = (0.05, 0.15, 0.3, 0.5, 0.75, 1.0)


def plan(**changes):
    choices = [
        {
            "what": "autoencoder",
            "value": "f8, 32 channels",
            "why": "latents of 8 × 8: the fewest that keep lines sharp",
        },
        {"what": "budget", "value": "10 minutes", "why": "given"},
    ]
    predicted = {
        "parameters": {"autoencoder": 3_700_000, "denoiser": 9_100_000},
        "peak_memory_bytes": 2_100_000_000,
        "seconds_a_step": {"autoencoder": 0.2, "denoiser": 0.5},
        "seconds": {"autoencoder": 148.0, "latents": 10.0, "denoiser": 410.0, "samples": 15.0},
        "disk_bytes": 600_000_000,
    }
    plan = {"kind": "latent", "size": 64, "budget_seconds": 600.0, "device": "cpu (AMD EPYC, 2 threads, 22 GB free)"}
    return {**plan, "choices": choices, "predicted": predicted, "notes": ["9,000 pictures in 6 classes"], **changes}


def facts(**changes):
    facts = {
        "format": 1, "name": "portraits-64", "created": "2026-11-22T17:00:00+00:00", "data": "portraits",
        "pictures": {"train": 8872, "held_out": 128}, "classes": STYLES, "status": "finished",
        "legs": {"autoencoder": "finished", "denoiser": "finished"}, "seconds": SECONDS,
        "peak_memory_bytes": 2_300_000_000, "versions": {"calotype": "0.1.0", "torch": "2.13.0", "python": "3.11"},
    }  # fmt: skip
    return {**facts, **changes}


def autoencoder_terms(progress, noise):
    names = {"l1": 0.3, "edges": 0.2, "perceptual": 0.08, "kl": 0.012}
    terms = {f"autoencoder.{name}": (0.15 + math.exp(-8 * progress)) * size * noise() for name, size in names.items()}
    if progress > 0.6:
        terms |= {"critic.hinge": 0.8 * noise(), "critic.right": 0.7 * noise(), "critic.gap": 0.9 * noise()}
    return terms | ({"autoencoder.adversarial": -0.02 * noise()} if progress > 0.75 else {})


def denoiser_terms(progress, noise):
    return {"denoiser.loss": (0.62 + 0.9 * math.exp(-12 * progress)) * noise()}


def log(leg, terms, measures, images, steps):
    rng = np.random.default_rng(0)
    for step in range(1, steps + 1):
        where = {"leg": leg, "images_seen": images * step // steps, "seconds": SECONDS[leg] * step / steps}
        progress = step / steps
        found = terms(progress, lambda: 1 + 0.06 * rng.standard_normal())
        norms = {
            network: 1.5 * 0.3**progress * (1 + 0.2 * rng.random())
            for network in {name.split(".")[0] for name in found}
        }
        speed = {"images_a_second": images / SECONDS[leg] * (1 + 0.02 * rng.standard_normal())}
        yield {"event": "step", **where, "progress": progress, "terms": found, "norms": norms, **speed}
        if any(step == round(place * steps) for place in PREVIEWS):
            yield {"event": "preview", **where, "file": f"previews/{leg}-{where['images_seen']:010d}.png"}
            yield {"event": "check", **where, "progress": progress, "measures": measures(progress)}


def fake_run(folder, picture, steps=60):
    """A finished run, with `picture(what, progress)` for its pictures."""
    write_json(folder / "plan.json", plan())
    write_json(folder / "run.json", facts())
    (folder / "recipe.toml").write_text('kind = "latent"\nsize = 64\n\n[autoencoder]\nimages = 80_000\n')
    events = [
        *log("autoencoder", autoencoder_terms, lambda p: {"psnr": 29 - 8 * 0.02**p, "perceptual": 0.1}, 76800, steps),
        *log("denoiser", denoiser_terms, lambda p: {"held_out_loss": 0.66 + 0.5 * math.exp(-9 * p)}, 201600, steps),
        {"event": "note", "text": "denoiser: went on from denoiser-0000100800"},
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "previews").mkdir()
    for event in events:
        if event["event"] == "preview":
            picture(event["leg"], event["images_seen"]).save(folder / event["file"])
    (folder / "samples").mkdir()
    picture("samples", math.inf).save(folder / "samples" / "grid.png")
    sampling = {"sampler": "dpm_solver", "steps": 24, "guidance": 2.0}
    write_json(folder / "samples" / "samples.json", {"labels": STYLES * 8, "seed": 0, "sampling": sampling})
    return folder


def flat(what, images_seen):
    return Image.new("RGB", (30, 20), (150, 90, 40))


@pytest.fixture
def run(tmp_path):
    return fake_run(tmp_path / "portraits-64", flat)


class Page(HTMLParser):
    """Elements, attributes and text; fails where an element is closed that is not open."""

    def __init__(self, path):
        super().__init__()
        self.open, self.elements, self.words = [], [], []
        self.source = path.read_text()
        self.feed(self.source)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]


def test_the_page_is_whole_and_shows_every_part(run):
    path = write_report(run)
    page = Page(path)
    assert path == run / "report.html" and [file.name for file in run.glob(".*")] == []
    assert len(page.all("h1")) == 1
    for words in (
        "portraits-64", "latent diffusion", "64 × 64 px", "22 November 2026, 17:00 UTC", "Finished after 9 min 41 s;",
        "8,872 for training, 128 held out", "sampler dpm solver, steps 24, guidance 2",
        "Labels in turn: adventurer, lorelei", "Plan", "Training curves", "Reconstructions", "Time",
        "the fewest that keep lines sharp", "Samples during training",
        "PSNR 28.8 dB", "perceptual distance 0.1", "201,600", "2 min 31 s", "+2 %", "2.3 GB", "10 min 00 s",
        "images seen", "log scale", "held out", "recipe.toml", "images = 80_000", "9,000 pictures", "went on from",
    ):  # fmt: skip
        assert words in page.text, words
    assert len(page.all("img")) == 1 + 2 + len(PREVIEWS) and len(page.all("svg")) == 6


def test_the_page_fetches_nothing_and_runs_nothing(run):
    page = Page(write_report(run))
    assert not {"script", "link", "iframe", "object", "embed"} & {name for name, _ in page.elements}
    links = [attrs[key] for _, attrs in page.elements for key in ("src", "href", "srcset", "data") if key in attrs]
    assert links and all(link.startswith("data:image/") for link in links)
    assert not re.search(r"https?:|@import|url\(", page.source)
    assert any("default-src 'none'" in attrs.get("content", "") for attrs in page.all("meta"))


def test_markup_from_outside_stays_text(run):
    evil = '<script>alert("&\'1")</script>'
    write_json(run / "run.json", facts(name=evil, data=evil, classes=[evil], created=evil, versions={evil: evil}))
    choice = {"what": evil, "value": evil, "why": evil}
    write_json(run / "plan.json", plan(kind=evil, device=evil, notes=[evil], choices=[choice]))
    write_json(run / "samples" / "samples.json", {"labels": [evil], "seed": evil, "sampling": {evil: evil}})
    (run / "recipe.toml").write_text(evil)
    event = {
        "event": "step",
        "leg": evil,
        "images_seen": 5,
        "progress": 0.5,
        "terms": {f"{evil}.{evil}": 1.0},
        "norms": {evil: 1},
    }
    check = {"event": "check", "leg": evil, "images_seen": 5, "measures": {evil: 1.0}}
    with (run / "log.jsonl").open("a") as file:
        file.writelines(json.dumps(one) + "\n" for one in (event, check, {"event": "note", "text": evil}))
    page = Page(write_report(run))
    assert "<script" not in page.source and not page.all("script")
    assert page.text.count(evil) >= 12


@pytest.mark.parametrize(
    "missing",
    ["run.json", "plan.json", "recipe.toml", "log.jsonl", "samples/samples.json", "samples/grid.png", "previews"],
)
def test_a_missing_piece_is_left_out(run, missing):
    path = run / missing
    path.rename(run.parent / "elsewhere")
    page = Page(write_report(run))
    assert "cannot be shown" not in page.text and "portraits-64" in page.text


def test_of_an_empty_folder_the_name_is_shown(tmp_path):
    page = Page(write_report(tmp_path))
    assert page.text.startswith(f"{tmp_path.name} · Calotype") and not page.all("section")


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "null", '{"seconds": 3, "legs": [], "classes": 5, "choices": 7}', "\x00\xff"]
)
def test_broken_files_do_not_break_the_page(run, content):
    for name in ("run.json", "plan.json", "samples/samples.json", "log.jsonl", "samples/grid.png", "recipe.toml"):
        (run / name).write_text(content)
    Page(write_report(run))


def test_a_run_that_was_stopped_says_how_far_it_came(run):
    states = {"autoencoder": "finished", "denoiser": "training"}
    write_json(run / "run.json", facts(status="interrupted", legs=states))
    (run / "samples" / "grid.png").unlink()
    lines = (run / "log.jsonl").read_text().splitlines()
    short = [
        line
        for line in lines
        if json.loads(line).get("leg") == "autoencoder" or json.loads(line).get("progress", 0) <= 0.5
    ]
    (run / "log.jsonl").write_text("\n".join(short) + '\n{"event": "step", "leg": "denois')
    page = Page(write_report(run))
    assert "Interrupted after 9 min 41 s, the denoiser at 50 %;" in page.text
    assert "the run has no samples yet" in page.text


def test_costs_of_what_is_not_finished_are_not_held_against_their_predictions(run):
    write_json(run / "run.json", facts(status="training", legs={"autoencoder": "finished", "denoiser": "training"}))
    measured = {name: (value, apart) for name, _, value, apart in cost_rows(read_run(run))}
    assert measured["whole run, against its budget"] == measured["denoiser"] == (UNKNOWN, UNKNOWN)
    assert UNKNOWN not in measured["autoencoder"]


def test_what_a_resumed_run_did_again_is_counted_once(run):
    def step(seen, loss):
        return json.dumps({"event": "step", "leg": "denoiser", "images_seen": seen, "terms": {"denoiser.loss": loss}})

    (run / "log.jsonl").write_text("\n".join([step(10, 5), step(20, 4), step(30, 9), step(20, 4), step(40, 3)]))
    assert [event["images_seen"] for event in read_run(run).history("step", "denoiser")] == [10, 20, 40]


def test_pictures_from_outside_the_run_are_not_taken(run):
    flat("", 0).save(run.parent / "private.png")
    (run / "samples" / "grid.png").unlink()
    for file in ("../private.png", str(run.parent / "private.png")):
        event = {"event": "preview", "leg": "denoiser", "images_seen": 5, "seconds": 1, "file": file}
        (run / "log.jsonl").write_text(json.dumps(event))
        assert not Page(write_report(run)).all("img")


def test_pages_with_large_pictures_stay_below_5_mb(tmp_path):
    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 1000, 3), dtype=np.uint8))
    run = fake_run(tmp_path / "run", lambda what, seen: grain)
    for file in ("previews/denoiser-raw.png", "previews/nearest.png"):
        grain.save(run / file)
    page = Page(write_report(run))
    assert len(page.all("img")) == 11 and len(page.source.encode()) < 5_000_000


def test_small_pictures_are_kept_as_they_are():
    kind, content, size = next(encodings(flat("", 0)))
    assert kind == "png" and size == (30, 20) and len(content) < 500


def test_a_point_lands_where_its_axes_say():
    """The plot is 400 x 244, with 40, 88, 24 and 48 left of, right of, above and below the data."""
    drawn = plot("", "", [Series("one", [(0.0, 1.0), (50.0, 10.0), (100.0, 100.0)], marked=True)]).code
    assert (PLOT_WIDTH, PLOT_HEIGHT, LEFT, RIGHT, TOP, BOTTOM) == (400, 244, 40, 88, 24, 48)
    assert 'points="40,196 176,110 312,24"' in drawn
    assert 'cx="176.0" cy="110.0"' in drawn and "log scale" in drawn


def test_a_line_of_one_point_is_marked():
    assert [plot("", "", [Series("one", [(float(step), 1.0) for step in range(count)])]).code.count("<circle")
            for count in (1, 2)] == [1, 0]  # fmt: skip


def test_a_linear_axis_is_even_and_a_value_beyond_it_sticks_to_its_edge():
    frame = Frame(axis_from_zero(200.0), axis_around([0.0, 8.0]))
    assert [frame.y_at(value) for value in (0.0, 4.0, 8.0, 99.0)] == [196, 110, 24, 24]
    assert [frame.x_at(value) for value in (0.0, 100.0, 200.0, -5.0)] == [40, 176, 312, 40]


@pytest.mark.parametrize(
    "values", [[0.61, 1.5], [3.0, 3.0], [0.0, 0.0], [-2.0, 7.0], [1e-7, 2e-7], [0.013, 0.4], [1e-9, 1e6]]
)
def test_ticks_enclose_the_values_and_are_few_and_round(values):
    axis = axis_around(values)
    assert axis.low == axis.ticks[0] <= min(values) and max(values) <= axis.ticks[-1] == axis.high
    assert 2 <= len(axis.ticks) <= (7 if max(values) < 1e6 else 17)
    assert all(tick == float(f"{tick:.1e}") for tick in axis.ticks)


@pytest.mark.parametrize("high", [0.5, 7.0, 1000.0, 76_800.0, 201_600.0, 3e6])
def test_images_seen_start_at_0_and_end_where_the_leg_ends(high):
    axis = axis_from_zero(high)
    assert axis.ticks[0] == axis.low == 0 and axis.high >= high and 2 <= len(axis.ticks) <= 6


def test_running_means_keep_constants_and_calm_noise():
    points = [(float(x), 1.0 + (-1) ** x) for x in range(400)]
    assert smoothed([(x, 3.0) for x, _ in points]) == [(x, 3.0) for x, _ in points]
    assert max(abs(y - 1) for _, y in smoothed(points)[20:]) < 0.1
    assert smoothed(points)[0] == points[0] and smoothed(points[:1]) == points[:1]


def test_long_lines_are_thinned_and_keep_their_ends():
    points = [(float(x), 0.0) for x in range(10_001)]
    assert len(thinned(points)) <= 302 and thinned(points)[0] == points[0] and thinned(points)[-1] == points[-1]
    assert thinned(points[:1]) == points[:1] and thinned(points[:5]) == points[:5]


def test_labels_keep_their_order_and_apart():
    placed = spread([195.0, 100.0, 194.0, 101.0], 13.0, 196.0)
    assert placed == [196, 100, 183, 113]
    assert spread([50.0], 13.0, 196.0) == [50]


def test_tags_escape_text_and_attributes():
    assert tag("p", "a < b", tag("b", "&"), None, class_='"').code == '<p class="&quot;">a &lt; b<b>&amp;</b></p>'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (duration(4.23), "4.2 s"),
        (duration(59.4), "59 s"),
        (duration(59.6), "1 min 00 s"),
        (duration(61.0), "1 min 01 s"),
        (duration(3599.6), "1 h 00 min"),
        (duration(7500.0), "2 h 05 min"),
        (duration(None), "–"),
        (scaled(3.7e6), "3.7 M"),
        (scaled(999.0), "999"),
        (scaled(2.1e9, "B"), "2.1 GB"),
        (difference(100.0, 97.0), "−3 %"),
        (difference(None, 97.0), "–"),
        (date("soon"), "soon"),
    ],
)
def test_numbers_in_words(text, expected):
    assert text == expected


@pytest.mark.parametrize(
    ("sampling", "text"),
    [
        ({"guidance": 1.0}, "no guidance"),
        ({"guidance": 2.0, "guide": "unconditional"}, "guidance 2"),
        (
            {"guidance": 3.0, "guide": "prior", "guidance_slope": 0.5, "prior_guidance": 0.0, "final_denoising": 0.06},
            "guidance 3 by the prior, slope 0.5, denoised once more at sigma 0.06",
        ),
    ],
)
def test_sampling_is_described_in_words(sampling, text):
    assert guidance(sampling) + final_denoising(sampling) == text
