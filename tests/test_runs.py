"""Lists of runs, and one page of several."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from small import Keeper, second_leg
from test_report import Page, facts, fake_run, flat

from calotype.cli.commands import list_runs, report
from calotype.cli.options import ReportOptions, RunsOptions
from calotype.files import write_json
from calotype.report import summarize_all, write_report
from calotype.report.folder import read_run
from calotype.report.format import sample_sizes
from calotype.report.runs import summarize_folder
from calotype.types import UserError

EVIL = '<script>alert("[red]&\x1b[31m\n")</script>'
NEAR = {"value": 0.5, "low": 0.25, "high": 0.75}
CELL = {
    "steps": 8, "guidance": 1.5, "calls": 16, "fd_lite0": {"value": 512.0, "low": 500.0, "high": 524.0},
    "kernel_distance": NEAR, "behind": NEAR, "sampling": {"steps": 8, "guidance": 1.5},
}  # fmt: skip
SWEEP = {  # as one of an earlier version: no cell names its guide
    "format": 1, "content": "hash", "rows": [0, 1], "before": {"steps": 12, "guidance": 2.0}, "notes": [], "data": "x",
    "cells": [CELL, {**CELL, "steps": 16, "fd_lite0": {"value": 520.0}}], "best": CELL, "stored": True, "n": 60,
    "size": 64, "seed": 0,
    "floor": {"fd_lite0": {"value": 151.0}, "kernel_distance": NEAR, "n": [60, 60]}, "why": "Best are 8 steps.",
}  # fmt: skip


@pytest.fixture
def two(tmp_path):
    """An older run and a newer one."""
    older = fake_run(tmp_path / "older", flat)
    newer = fake_run(tmp_path / "newer", flat)
    write_json(newer / "run.json", facts(name="newer", created="2026-11-23T00:00:00+00:00"))
    return [older, newer]


def test_runs_are_listed_newest_first_with_their_figures(two, tmp_path):
    write_json(two[0] / "sweep.json", SWEEP)
    write_json(two[1] / "evaluation.json", {"measures": {"samples": {"fd_lite0": {"value": 498.7}, "n": [60, 61]}}})
    console = Keeper()
    list_runs(RunsOptions(tmp_path), console)
    assert "FD-Lite0 499 (n = 60, 61)" in console.printed[0]
    assert console.printed[0].startswith("newer  finished  latent 64 px  portraits  9 min 41 s  PSNR 28.8 dB")
    assert console.printed[1].startswith("older") and "FD-Lite0 512 (n = 60)" in console.printed[1]


def test_json_lines_hold_the_same(two, tmp_path):
    console = Keeper()
    found = list_runs(RunsOptions(tmp_path, as_json=True), console)
    listed = [json.loads(line) for line in console.printed]
    assert [(one["name"], one["psnr"]) for one in listed] == [(one.name, one.psnr) for one in found]


def test_runs_side_by_side_have_their_distance_with_interval_n_floor_and_ceiling(two):
    """Of an evaluation; of a sweep without the ceiling, which it has not measured."""
    write_json(two[0] / "sweep.json", SWEEP)
    measures = {"samples": {"fd_lite0": {"value": 498.0, "low": 490.0, "high": 507.0}, "n": [60, 61]},
                "floor": {"fd_lite0": {"value": 150.0}}, "ceiling": {"fd_lite0": {"value": 2900.0}}}  # fmt: skip
    write_json(two[1] / "evaluation.json", {"measures": measures})
    swept, evaluated = map(summarize_folder, two)
    assert (swept.fd_low, swept.fd_high, swept.fd_floor, swept.fd_ceiling) == (500.0, 524.0, 151.0, None)
    assert (evaluated.fd_low, evaluated.fd_high, evaluated.fd_floor, evaluated.fd_ceiling) == (490, 507, 150, 2900)
    text = Page(report(ReportOptions(two), Keeper())).text.replace("\xa0", " ").replace("\u2009", " ")
    for words in ("512 [500, 524] (n = 60)", "498 [490, 507] (n = 60, 61)", "150", "2,900"):
        assert words in text, words


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"legs": 5, "seconds": [1], "created": 3, "name": {"a": 1}}'])
def test_a_broken_run_is_one_line_among_the_others(two, tmp_path, content):
    (two[0] / "run.json").write_text(content)
    console = Keeper()
    list_runs(RunsOptions(tmp_path), console)
    assert len(console.printed) == 2 and "finished" in console.printed[0] + console.printed[1]


def test_names_from_outside_stay_one_printable_line(two, tmp_path):
    write_json(two[0] / "run.json", facts(data=EVIL, created=EVIL))
    console = Keeper()
    list_runs(RunsOptions(tmp_path), console)
    assert len(console.printed) == 2 and all(line.isprintable() for line in console.printed)


def test_a_run_whose_process_is_gone_was_killed(two):
    write_json(two[0] / "run.json", facts(status="training"))
    (two[0] / "lock").write_text("999999999")
    assert summarize_folder(two[0]).state == "killed"
    (two[0] / "lock").write_text(str(os.getpid()))
    assert summarize_folder(two[0]).state == "training"


def test_without_runs_it_says_where_it_looked(tmp_path):
    with pytest.raises(UserError, match="no run in"):
        summarize_all(tmp_path)
    with pytest.raises(UserError, match="is not a run"):
        report(ReportOptions([tmp_path]), Keeper())


def test_several_runs_share_one_page_and_its_plots(two):
    page = Page(report(ReportOptions(two), Keeper()))
    assert "2 runs" in page.text and "older" in page.text and "newer" in page.text
    assert len(page.all("svg")) == 4 and len(page.all("img")) == 2  # PSNR and loss, over images and over minutes
    assert not {"script", "link"} & {name for name, _ in page.elements}


def test_a_run_has_the_same_style_in_every_plot(two, tmp_path):
    """Also where it is the only one that has such a leg."""
    lines = [line.replace('"denoiser"', '"enlarge-64"') for line in (two[1] / "log.jsonl").read_text().splitlines()]
    (two[1] / "log.jsonl").write_text("\n".join(lines))
    drawn = Page(report(ReportOptions(two), Keeper())).source.partition("enlarges to 64 px")[2]
    assert 'class="name s1">B' in drawn and "s0" not in drawn.partition("</svg>")[0]


def test_markup_in_runs_side_by_side_stays_text(two):
    write_json(two[1] / "run.json", facts(name=EVIL, data=EVIL, created=EVIL))
    shutil.rmtree(two[1] / "previews")
    page = Page(report(ReportOptions(two, two[0] / "both.html"), Keeper()))
    assert not page.all("script") and page.source.count("&lt;script&gt;") >= 3


def test_a_page_of_several_stays_below_5_mb(tmp_path):
    grain = Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 500, 3), dtype=np.uint8))
    folders = [fake_run(tmp_path / str(number), flat) for number in range(3)]
    for folder in folders:
        grain.save(folder / "samples" / "grid.png")
    page = Page(report(ReportOptions(folders), Keeper()))
    assert len(page.all("img")) == 3 and len(page.source.encode()) < 5_000_000


def test_the_sweep_shows_every_cell_with_its_n_and_marks_the_chosen(two):
    write_json(two[0] / "sweep.json", SWEEP)
    text = Page(write_report(two[0])).text
    assert "512 [500, 524]\xa0✓" in text.replace("\u2009", " ") or "512 [500, 524] ✓" in text
    assert "n = 60 pictures" in text and "come to 151" in text and "520" in text


@pytest.mark.parametrize("sweep", [{"cells": [{}]}, {"cells": 5}, {"cells": [CELL], "best": 3}, {"cells": [EVIL]}])
def test_an_odd_sweep_does_not_break_the_page(two, sweep):
    write_json(two[0] / "sweep.json", sweep)
    assert "Plan" in Page(write_report(two[0])).text


def test_a_number_of_pictures_is_one_or_one_a_side():
    assert sample_sizes(None) == "" and sample_sizes([5, "x"]) == "5"


def test_a_run_keeps_what_its_raw_weights_make_and_how_many_pictures_measured_them(finished):
    assert (finished / "previews" / "denoiser-raw.png").is_file()
    last = read_run(finished).latest("check", "denoiser")["measures"]
    assert last["n"] == 1 and last["raw_held_out_loss"] > 0
    first = read_run(finished).latest("check", "autoencoder")["measures"]
    shown = summarize_folder(finished).held_out_loss
    assert shown == last["held_out_loss"] != first["held_out_loss"]  # that of denoising
    shapes = read_run(finished).state.parameters
    assert shapes == read_run(finished).plan["predicted"]["parameters"]


def test_raw_weights_are_measured_as_the_average_is_and_go_on_learning():
    """Before the first step both are the same network, so both have the same loss, dropout or not."""
    leg = second_leg()
    measures = leg.validator.measure()
    assert measures["raw_held_out_loss"] == measures["held_out_loss"]
    assert leg.states["denoiser"].network.training and not leg.trained.denoiser.training
