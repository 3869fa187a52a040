"""A log of any length is read in one pass and constant memory, and the page that is made from it stays small."""

import json
import tracemalloc

import pytest

from calotype.report.page import write_report
from calotype.report.plot import peaks
from calotype.run import Run, RunState, read_events
from calotype.thinning import STEPS_KEPT, Thinning

MANY, SPIKE = 10_000, 7_777


def step(seen, loss=0.0, leg="denoiser"):
    return {"event": "step", "leg": leg, "images_seen": seen, "terms": {"denoiser.loss": loss}}


def thinned(steps, most):
    thinning = Thinning(most)
    for place, event in enumerate(steps):
        thinning.add(place, event)
    return [event for _, event in thinning.events()]


def write_log(folder, lines):
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return folder / "log.jsonl"


def test_many_steps_give_a_small_page_that_shows_the_highest(tmp_path):
    """A million, with their seconds: tests/proofs/test_long_logs.py."""
    run = Run(tmp_path, RunState(name="run", legs={"denoiser": "training"}))
    run.save()
    write_log(tmp_path, (step(at, 100.0 if at == SPIKE else 1.0) for at in range(1, MANY + 1)))
    page = write_report(tmp_path).read_text()
    steps = Run.open(tmp_path).history("step", "denoiser")
    assert STEPS_KEPT / 2 <= len(steps) <= STEPS_KEPT and steps[-1]["images_seen"] == MANY
    assert max(event["high"]["terms"]["denoiser.loss"] for event in steps) == 100.0
    assert "Denoising loss" in page and len(page) < 200_000


def test_memory_does_not_grow_with_the_log():
    def peak(count):
        tracemalloc.start()
        thinned((step(at) for at in range(1, count + 1)), 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak(64)  # what is compiled by the first call stays
    assert peak(4000) < 1.2 * peak(500)


def test_buckets_have_mean_and_extremes_and_end_where_their_last_line_does():
    events = thinned([step(at, float(at)) for at in range(1, 21)], 8)
    assert [event["images_seen"] for event in events] == [4, 8, 12, 16, 20]
    assert [event["terms"]["denoiser.loss"] for event in events] == [2.5, 6.5, 10.5, 14.5, 18.5]
    assert [event["low"]["terms"]["denoiser.loss"] for event in events] == [1, 5, 9, 13, 17]
    assert [event["high"]["terms"]["denoiser.loss"] for event in events] == [4, 8, 12, 16, 20]


def test_few_steps_stay_as_they_are_and_those_done_again_count_once(tmp_path):
    lines = [step(4), step(8), step(12), {"event": "note", "text": "went on"}, step(8, 1.0), step(12, 1.0)]
    events = read_events(write_log(tmp_path, lines))
    assert events == [lines[0], *lines[3:]]


def test_a_part_is_thinned_by_itself(tmp_path):
    lines = [step(4), {"event": "part", "part": 2}, step(4, 2.0), step(8, 2.0)]
    run = Run(write_log(tmp_path, lines).parent)
    assert run.events == lines and run.history("step", "denoiser") == lines[2:]


@pytest.mark.parametrize(
    "line", ['{"event": "step"', "x" * 2**21, '{"event": "step", "leg": "denoiser", "low": 3}', "7"]
)
def test_lines_that_are_no_steps_are_left_out(line, tmp_path):
    (tmp_path / "log.jsonl").write_text(f"{line}\n{json.dumps(step(4))}\n")
    assert read_events(tmp_path / "log.jsonl") == [step(4)]


def test_a_line_through_many_points_keeps_their_extremes_and_the_last():
    points = [(float(x), 0.0) for x in range(10_001)]
    points[5000], points[7001] = (5000.0, 9.0), (7001.0, -9.0)
    drawn = peaks(points)
    assert len(drawn) <= 303 and {points[5000], points[7001], points[-1]} <= set(drawn)
    assert drawn == sorted(drawn) and peaks(points[:5]) == points[:5]
