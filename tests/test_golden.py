"""Models and a stopped run of version 0.1.0: what they made then, they make now, to a level of 8 bits.

Processors with other vector units add in another order: there one value in a thousand may be a few levels off.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calotype import load
from calotype.cli.app import main
from calotype.demo.portraits import write_portraits

GOLDEN = Path(__file__).parent / "golden"
STYLES = ("adventurer", "micah")
"""The two classes, 400 pictures each, that all of these were trained on."""


def picture(name: str) -> Image.Image:
    return Image.open(GOLDEN / f"{name}.png").convert("RGB")


def white_right_half(side: int) -> Image.Image:
    mask = Image.new("L", (side, side))
    mask.paste(255, (side // 2, 0, side, side))
    return mask


MADE = {
    "labels": lambda: load(GOLDEN / "labels", "cpu").sample(4, seed=1),
    "labels-classifier-free": lambda: load(GOLDEN / "labels", "cpu").sample(
        4, seed=1, guide="unconditional", guidance=2.0, steps=8, sampler="heun"
    ),
    "labels-wide": lambda: load(GOLDEN / "labels", "cpu").sample(2, seed=2, size=(24, 16)),
    "captions": lambda: load(GOLDEN / "captions", "cpu").sample(
        4, seed=1, prompt=["a woman with glasses", "red hair"], negative="a beard"
    ),
    "captions-between": lambda: load(GOLDEN / "captions", "cpu").interpolate(
        (0, 1), 3, prompts=("blue background", "green background")
    ),
    "cascade": lambda: load(GOLDEN / "cascade", "cpu").sample(4, seed=1),
    "enlarged": lambda: [load(GOLDEN / "cascade", "cpu").enlarge(picture("given").resize((16, 16)))],
    "inpainted": lambda: load(GOLDEN / "labels", "cpu").redraw(
        picture("given"), mask=white_right_half(16), seed=3, count=2, label="micah"
    ),
    "image-to-image": lambda: load(GOLDEN / "labels", "cpu").redraw(picture("given"), 0.5, seed=3, count=2),
}


@pytest.mark.parametrize("name", MADE)
def test_the_same_pictures_as_before(name):
    made = np.concatenate([np.asarray(one, dtype=int) for one in MADE[name]()], 1)
    before = np.asarray(picture(name), dtype=int)
    assert made.shape == before.shape
    off = np.abs(made - before)
    assert (off > 1).mean() < 1e-3 and off.max() <= 4


@pytest.mark.parametrize("negative", [None, "white"])
@pytest.mark.parametrize("changes", [
    {"guide": "prior"}, {"guide": "unconditional"}, {"guidance": 1.0}, {"sampler": "euler", "steps": 3},
    {"sampler": "ancestral", "guide": "prior", "final_denoising": 0.1},
    {"sampler": "heun", "steps": 4, "guide": "unconditional"},
], ids=str)  # fmt: skip
def test_costs_count_the_calls_of_the_network_that_sampling_makes(changes, negative):
    model, calls = load(GOLDEN / "captions", "cpu"), []
    model.stages[0].denoiser.backbone.register_forward_pre_hook(lambda *inputs: calls.append(inputs))
    (sampling,) = model.settings(changes)
    model.sample(prompt="black", negative=negative, **changes)
    counted = sampling.calls(negative is not None)
    last = counted // (2 * sampling.steps) if sampling.sampler == "heun" else 0  # to sigma 0 it takes Euler's step
    assert len(calls) == counted - last


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    whole, chosen = tmp_path_factory.mktemp("whole") / "portraits", tmp_path_factory.mktemp("chosen")
    write_portraits(16, 2400, whole)
    for style in STYLES:
        shutil.copytree(whole / style, chosen / style)
    return chosen


def test_a_stopped_run_goes_on(tmp_path, faces, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(GOLDEN / "stopped-run", run)
    state = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(state | {"data": str(faces)}))
    with pytest.raises(SystemExit) as ended:
        monkeypatch.setattr("sys.argv", ["calotype", "resume", str(run), "--device", "cpu"])
        main()
    assert not ended.value.code
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "check"][-1]
    expected = json.loads((GOLDEN / "resumed.json").read_text())
    assert last["images_seen"] == expected["images_seen"]
    assert last["measures"]["held_out_loss"] == pytest.approx(expected["held_out_loss"], rel=0.05)
    assert len(load(run, "cpu").sample(2)) == 2
