"""The sweep over steps and guidance: what it picks, on features whose distances are known, and what it stores."""

import shutil

import numpy as np
import pytest
import torch
from small import Keeper, be_quick, noise_pictures, references, request, write_pictures

from calotype.cli import commands
from calotype.cli.commands import sweeping
from calotype.cli.commands.sweeping import numbers_in
from calotype.cli.options import SweepOptions
from calotype.diffusion.stage import Sampling
from calotype.evaluation.distances import frechet_distance, frechet_estimate, frechet_of_rows
from calotype.evaluation.features import Lite0
from calotype.evaluation.intervals import within_standard_error
from calotype.evaluation.results import Cell, Measure
from calotype.evaluation.search import Grid, cheapest, sampled_features, sweep
from calotype.files import is_whole, read_json
from calotype.model import load
from calotype.store import store_sampling
from calotype.types import UserError

REAL = np.random.default_rng(0).standard_normal((60, 8))
IMAGES = torch.zeros(2, 3, 16, 16)
NOISE = np.random.default_rng(1).standard_normal((60, 8))


def cell(steps, guidance, value, behind=0.0, reach=0.0):
    sampling, estimate = Sampling(steps=steps, guidance=guidance), Measure(value=value, low=value, high=value)
    return Cell(
        steps=steps, guidance=guidance, calls=sampling.calls(), fd_lite0=estimate, kernel_distance=estimate,
        behind=Measure(value=behind, low=behind - reach, high=behind + reach), sampling=sampling.model_dump(),
    )  # fmt: skip


def is_level(one):
    return within_standard_error(one.behind.estimate)


def tried(shifts):
    """Cells whose pictures differ from real ones by a shift of the mean: FD grows by its square."""
    samplings = [Sampling(steps=steps, guidance=1.0) for steps in shifts]
    return sweep(samplings, lambda sampling: NOISE + shifts[sampling.steps], REAL, lambda done, total: None)


def test_each_cell_has_its_distance():
    shifts = {8: 0.5, 16: 0.1, 32: 0.0}
    for one in tried(shifts):
        expected = frechet_distance(NOISE + shifts[one.steps], REAL)
        assert one.fd_lite0.value == pytest.approx(expected, rel=1e-9)


def test_a_difference_on_equal_seeds_is_surer_than_the_distances():
    """A shift that changes the distance by less than its own interval is told apart from none all the same."""
    small, none = tried({8: 0.35, 16: 0.0})
    assert none.fd_lite0.high > small.fd_lite0.low  # apart, the two cannot be told
    assert small.behind.low > 0 and not is_level(small)
    assert cheapest([small, none]) is none


def test_equal_cells_are_level_and_the_cheaper_wins():
    cells = tried({8: 0.0, 16: 0.0, 32: 0.0})
    assert all(map(is_level, cells)) and cheapest(cells).steps == 8


def test_guidance_costs_as_much_as_twice_the_steps():
    assert [cell(8, 2.0, 1.0).calls, cell(16, 1.0, 1.0).calls, cell(8, 1.0, 1.0).calls] == [16, 16, 8]
    assert Sampling(steps=8, guide="prior").calls() == 8
    assert cheapest([cell(8, 2.0, 5.0), cell(16, 1.0, 4.0)]).fd_lite0.value == 4.0  # as dear, and nearer


def test_a_cheaper_cell_loses_where_it_is_further_than_a_standard_error():
    near, far = cell(32, 1.0, 10.0), cell(8, 1.0, 11.0, behind=1.0, reach=1.9)
    assert cheapest([near, far]) is near
    assert cheapest([near, cell(8, 1.0, 11.0, behind=1.0, reach=2.0)]).steps == 8


def test_distances_of_rows_are_those_of_the_sets_that_they_make():
    rows = np.arange(60)
    assert frechet_of_rows(NOISE, REAL)(rows, rows) == pytest.approx(frechet_distance(NOISE, REAL), rel=1e-9)
    some, others = np.random.default_rng(2).integers(60, size=(2, 60))  # with repeats
    expected = frechet_distance(NOISE[some], REAL[others])
    assert frechet_of_rows(NOISE, REAL)(some, others) == pytest.approx(expected, rel=1e-9)
    low, high = frechet_estimate(NOISE, REAL, np.random.default_rng(0))[1:]
    assert low < frechet_distance(NOISE, REAL) < high


def test_without_labels_there_is_nothing_to_guide_away_from():
    cells = Grid().samplings(Sampling(guidance=2.5), conditional=False, has_prior=False)
    assert {one.guidance for one in cells} == {2.5} and [one.steps for one in cells] == [8, 12, 24]


def test_every_guide_that_there_is_is_tried():
    def guides(conditional, has_prior, **some):
        cells = Grid(steps=(8,), **some).samplings(Sampling(guide="prior"), conditional, has_prior)
        return [(one.guide, one.guidance) for one in cells]

    prior = [("prior", scale) for scale in (1.0, 2.0, 3.0, 4.0)]
    unconditional = [("unconditional", scale) for scale in (1.5, 2.0, 3.0)]
    assert guides(conditional=False, has_prior=True) == prior
    assert guides(conditional=True, has_prior=True) == prior + unconditional  # a scale of 1 is tried once
    assert guides(True, True, guides=("unconditional",), guidance=(2.0,)) == [("unconditional", 2.0)]
    slopes = Grid((8,), (3.0,), ("prior",), (0.0, 0.5)).samplings(Sampling(), conditional=True, has_prior=True)
    assert [one.guidance_slope for one in slopes] == [0.0, 0.5]


@pytest.mark.parametrize("text", ["", "8,", "a", "-1", "0", "8.5", "nan", "1e9", "8;16"])
def test_wrong_steps_are_reported_in_one_line(text):
    with pytest.raises(UserError, match="between commas"):
        numbers_in("steps", text, 1)


def test_numbers_between_commas():
    assert numbers_in("guidance", " 3, 1.5,1,1", 0) == [1.0, 1.5, 3.0]


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    return shutil.copytree(finished, tmp_path_factory.mktemp("swept") / "run")


def test_storing_a_sampling_changes_it_and_nothing_else(run):
    before, model = load(run), run / "model"
    settings = read_json(model / "model.json")
    store_sampling(model, before.samplings[0].model_copy(update={"steps": 5, "guidance": 1.5}))
    assert is_whole(model) and list(run.glob(".model*")) == []
    settings["recipe"]["sampling"] |= {"steps": 5, "guidance": 1.5}
    assert read_json(model / "model.json") == settings
    same = {"steps": before.samplings[0].steps, "guidance": before.samplings[0].guidance}
    assert load(run).sample(seed=3, **same)[0].tobytes() == before.sample(seed=3)[0].tobytes()


def test_the_card_may_still_be_written_by_hand_after_a_sampling_was_stored(run):
    model = run / "model"
    store_sampling(model, load(run).samplings[0])
    card = (model / "README.md").read_text()
    (model / "README.md").write_text(card + "licence: mine")
    assert is_whole(model) and (model / "samples.png").exists()
    store_sampling(model, load(run).samplings[0])
    assert (model / "README.md").read_text() == card + "licence: mine"


def test_a_sweep_chooses_by_validation_pictures_and_sees_no_test_picture():
    for count in (2000, 300, 20):
        pictures = noise_pictures(count)
        reals = references(pictures, 90, by_validation=True)
        assert pictures.split.validation[reals.chosen].all() and len(reals) == min(90, count // 10) == len(reals.others)
        seen = torch.cat([reals.chosen, reals.others])
        assert not pictures.split.test[seen].any() and len(seen.unique()) == len(seen)
        judged = references(pictures, 90)
        assert not set(reals.chosen.tolist()) & set(judged.chosen.tolist())


def test_a_sweep_has_other_seeds_than_samples(run, monkeypatch):
    drawn = []

    def made(stages, labels, samplings, rngs, *rest):
        drawn.extend(rngs)
        return IMAGES

    monkeypatch.setattr("calotype.diffusion.stage.generate", made)
    sampled_features(load(run).stages[0], torch.zeros(2, dtype=torch.long), None, 0, Lite0())(Sampling())
    assert not set(drawn) & set(load(run).rngs(100, 0))


def test_guidance_that_changes_nothing_is_reported_in_one_line(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    write_pictures(tmp_path / "pictures", classes=())
    run, console = (
        commands.train(request(tmp_path / "pictures", tmp_path / "run", "denoiser.prior=none"), Keeper()),
        Keeper(),
    )
    why = commands.sweep_run(SweepOptions(run, count=4, steps="1", device="cpu"), console)
    assert console.printed == [sweeping.UNGUIDED, why] and sweeping.UNGUIDED in (run / "report.html").read_text()


def test_a_sweep_is_kept_and_its_best_cell_becomes_the_models_own(run, monkeypatch):
    monkeypatch.setattr(sweeping, "FEWEST_TO_CHOOSE", 4)
    printed = commands.sweep_run(SweepOptions(run, count=4, steps="1,2", guidance="1,2", device="cpu"), Keeper())
    found = read_json(run / "sweep.json")
    assert len(found["cells"]) == 6 and found["n"] == 4 and found["floor"]["n"] == [4, 4] and printed == found["why"]
    sampling = load(run).samplings[0]
    assert (sampling.steps, sampling.guidance) == (found["best"]["steps"], found["best"]["guidance"])
    assert found["why"] in (run / "report.html").read_text()


def test_too_few_pictures_change_nothing(run):
    before = read_json(run / "model" / "manifest.json")
    assert "not stored" in commands.sweep_run(SweepOptions(run, count=4, steps="1", guidance="1"), Keeper())
    assert read_json(run / "model" / "manifest.json") == before
    with pytest.raises(UserError, match="--count is 3"):
        commands.sweep_run(SweepOptions(run, count=3), Keeper())
