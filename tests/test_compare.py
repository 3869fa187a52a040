"""Two tiny runs side by side: every number is there, the verdicts are honest, and the page holds what it must."""

import json
import math
import re
import shutil
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from small import CASCADE, SETTINGS, Keeper, be_quick, noise_pictures, noise_pixels, references, request, write_pictures

from calotype.cli import commands
from calotype.cli.options import CompareOptions
from calotype.data.folder import read_folder
from calotype.data.split import Split, stratified_split
from calotype.evaluation import candidate, cost, quality
from calotype.evaluation.candidate import open_candidate, unseen_by_all
from calotype.evaluation.compare import equal_seeds
from calotype.evaluation.comparison_results import ComparisonResult
from calotype.evaluation.cost import too_much
from calotype.evaluation.counting import counter
from calotype.evaluation.features import Lite0
from calotype.evaluation.history import detrended_spread, leg_gaps
from calotype.evaluation.propagation import CORRUPTIONS, STRENGTHS
from calotype.evaluation.references import FeatureStore, reference_set
from calotype.evaluation.verdicts import CLAIMS, UNDECIDED, claim_verdicts
from calotype.files import read_json, write_json
from calotype.report.comparison import comparison_page
from calotype.settings import parse_recipe
from calotype.types import UserError

COUNT = 4
NAME = "<b>cascade & co</b>"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of pictures, and a finished run of each kind on them. For reading only."""
    folder = tmp_path_factory.mktemp("compared")
    write_pictures(folder / "pictures", 40)
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        for name, settings in (("latent", SETTINGS), ("cascade", CASCADE)):
            start = time.perf_counter()
            commands.train(request(folder / "pictures", folder / name, settings=settings), Keeper())
            write_json(folder / f"{name}.json", time.perf_counter() - start)
    facts = read_json(folder / "cascade" / "run.json")
    write_json(folder / "cascade" / "run.json", {**facts, "name": NAME})
    return folder


@pytest.fixture(scope="module")
def out(home):
    return compare(home, "latent", "cascade")


@pytest.fixture
def found(out):
    return read_json(out / "compare.json")


@pytest.fixture
def clocked(home):
    """Seconds of each run, by a clock outside of it."""
    return {name: read_json(home / f"{name}.json") for name in ("latent", "cascade")}


def compare(home, *names, out="out", count=COUNT, data=None, cost_of=None):
    """Samples are timed in processes of their own, or taken for those of the comparison `cost_of`."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        if cost_of is not None:
            stored = ComparisonResult.model_validate(read_json(cost_of / "compare.json"))
            known = {run.name: run.cost.sampling for run in stored.runs}
            patch.setattr(cost, "sampling_cost", lambda one: known[one.run.name])
        return commands.compare_runs(
            CompareOptions([home / name for name in names], home / out, data, count, device="cpu"), Keeper()
        )


def everything(value, path=()):
    """All that is in nested dictionaries and lists, with where it is and the dictionary around it."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in pairs:
        if isinstance(one, dict | list):
            yield from everything(one, (*path, key))
        else:
            yield (*path, key), one, value


# -- compare.json ------------------------------------------------------------------------------------------------------


def test_every_number_is_finite_or_has_a_reason(found):
    for path, value, around in everything(found):
        if value is None:
            assert isinstance(around, dict), path
            assert around["reason"], path
        if isinstance(value, float):
            assert math.isfinite(value), path


def test_every_run_has_every_field(found):
    one, other = found["runs"]
    assert set(one) == set(other)
    for name in ("deployment", "cost", "overfitting"):
        assert set(one[name]) == set(other[name])
    for run in found["runs"]:
        assert [row["count"] for row in run["cost"]["sampling"]["counts"]] == [1, 4, 16]
        assert all(row["bytes"] > 1e7 for row in run["cost"]["sampling"]["counts"])
        assert run["quality"]["whole"]["n"] == [COUNT, COUNT]
        arms = run["propagation"]["arms"]
        for thorough in {"none", "augmentation", "matched"} & set(arms):
            points = [
                (one["corruption"], one["strength"]) for one in run["propagation"]["points"] if one["arm"] == thorough
            ]
            assert points == [(kind, strength) for kind in CORRUPTIONS for strength in STRENGTHS]


def test_what_is_deployed_is_what_lies_in_the_folder(found, home):
    for run in found["runs"]:
        files = list((home / run["folder"] / "model").iterdir())
        assert run["deployment"]["bytes"] == sum(file.stat().st_size for file in files)
        for kind, number in run["deployment"]["parameters"].items():
            assert number == sum(network[kind] for network in run["deployment"]["networks"].values())


def test_training_is_counted_for_every_leg_and_for_what_is_done_once(found, home):
    latent, cascade = (run["cost"]["training"] for run in found["runs"])
    assert [row["part"] for row in latent["parts"]] == ["autoencoder", "denoiser", "prepare", "latents", "fit"]
    assert [row["part"] for row in cascade["parts"]] == ["denoiser", "enlarge-16", "fit", "prepare"]
    for run, training in zip(found["runs"], (latent, cascade), strict=True):
        flops = read_json(home / run["folder"] / "plan.json")["flops"]
        for row in training["parts"]:
            assert row["flops"] > 0 and row["seconds"] > 0
            if "images_seen" in row:
                assert row["images_seen"] == 32 and row["flops"] == 32 * flops[row["part"]]
        assert training["flops"] == sum(row["flops"] for row in training["parts"])
        assert training["seconds"] == sum(row["seconds"] for row in training["parts"])


def test_stages_are_measured_on_real_and_on_sampled_pictures(found):
    latent, cascade = (run["quality"] for run in found["runs"])
    assert [sorted(stage) for stage in cascade["stages"]] == [["sampled", "size"], ["given_real", "sampled", "size"]]
    assert cascade["whole"] == cascade["stages"][-1]["sampled"]
    assert "autoencoder" in latent
    assert [one["size"] for one in found["floor"]] == [8, 16]


def test_equal_seeds_give_equal_results(found, home, out):
    again = read_json(compare(home, "latent", "cascade", out="again", cost_of=out) / "compare.json")
    for one, other in zip(found["runs"], again["runs"], strict=True):
        assert one["quality"] == other["quality"]
        assert one["propagation"] == other["propagation"]
        assert one["cost"]["flops_a_picture"] == other["cost"]["flops_a_picture"]


# -- The page ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.parts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.parts.append(data)


def test_the_page_is_offline_small_and_begins_with_the_verdicts(out, found):
    text = (out / "compare.html").read_text()
    page, shown = Page(text), re.sub(r"\s+", " ", text)
    assert len(text) < 5e6
    assert all(link.startswith("data:") for link in page.links)
    assert len(page.links) == 2
    assert "script" not in page.tags
    assert (
        shown.index("claims")
        < shown.index(">Samples<")
        < shown.index(">Error propagation<")
        < shown.index(">Stability<")
    )
    assert all(one["claim"] in shown for one in found["verdicts"])
    assert "nan" not in " ".join(page.parts).lower()


def test_markup_in_a_name_is_text(out):
    text = (out / "compare.html").read_text()
    assert NAME not in text
    assert NAME in "".join(Page(text).parts)


def test_whatever_could_not_be_measured_is_left_out_of_the_page(out, found):
    for run in found["runs"]:
        run["propagation"] = {"arms": {}, "points": [], "reason": "odd"}
        for row in run["cost"]["sampling"]["counts"]:
            row |= {"seconds_a_picture": None, "bytes": None, "reason": "left out: so slow"}
    result = ComparisonResult.model_validate(found)
    assert "left out: so slow" in comparison_page(out, result)
    assert claim_verdicts(result.runs)[0].verdict == UNDECIDED


def test_the_page_has_a_verdict_on_every_claim_with_its_time(out, found):
    text = (out / "compare.html").read_text()
    assert [row["claim"] for row in found["verdicts"]] == [claim.text for claim in CLAIMS]
    assert {row["setting"] for row in found["verdicts"]} == {"with a prior"}
    assert "Runs with a prior" in text and "at equal budget (ours)" in text and "3:32" in text


# -- The parts ---------------------------------------------------------------------------------------------------------


def test_reals_are_test_pictures_and_others_are_disjoint():
    pictures = noise_pictures(600)
    reals = references(pictures, 30)
    assert len(reals) == len(reals.others) == 30
    assert pictures.split.test[torch.cat([reals.chosen, reals.others])].all()
    assert not np.isin(reals.chosen, reals.others).any()
    assert not reals.notes


@pytest.mark.parametrize("name", ["latent", "cascade"])
def test_samples_are_looked_at_in_the_8_bits_that_real_pictures_have(home, name, monkeypatch, tmp_path):
    looked_at = []
    monkeypatch.setattr(quality, "features", lambda parts, network: looked_at.extend(parts) or np.zeros((1, 1)))
    one, pictures = open_candidate("A", home / name, "cpu"), read_folder(home / "pictures", 16)
    store = FeatureStore(pictures, Lite0(), tmp_path, Keeper().bar, "real")
    quality.sample_stages(one, reference_set(store, 2), 0, 1, lambda *step: None)
    assert len(looked_at) == 2 + (name == "cascade")
    for images in looked_at:
        levels = (images + 1) * 127.5
        assert torch.allclose(levels, levels.round(), atol=1e-3) and levels.unique().numel() > 3


def test_with_few_test_pictures_the_floor_has_others_and_the_notes_say_so():
    pictures = noise_pictures(30)
    reals = references(pictures, 60)
    assert len(reals) == len(reals.others) == 3
    assert pictures.split.test[reals.chosen].all() and pictures.split.validation[reals.others].all()
    assert len(reals.notes) == 2
    with pytest.raises(UserError, match="at least 4"):
        references(noise_pictures(3), 60, fewest=2)


def test_pictures_are_unseen_where_no_run_has_trained_on_them_or_chosen_by_them():
    one, two = (stratified_split(noise_pixels(100, seed=seed), torch.zeros(100, dtype=torch.long)) for seed in (0, 1))
    both = unseen_by_all([one, Split(*(inside.flip(0) for inside in two.sets.values())), None], 100)
    assert torch.equal(both.test, one.test & two.test.flip(0))
    assert torch.equal(both.train, one.train | two.train.flip(0))
    assert not (both.test & (one.validation | two.validation.flip(0) | both.train)).any()
    assert torch.equal(unseen_by_all([one], 100).validation, one.validation)
    assert unseen_by_all([None], 100).test.all()


def test_other_pictures_are_compared_without_those_that_a_run_has_seen(home, out):
    """As BMP files, so of other content, beside new ones."""
    pictures = read_folder(home / "pictures", 16)
    trained = read_json(home / "latent" / "split.json")["train"]
    (home / "mixed").mkdir()
    for row in trained[:5]:
        path = pictures.originals[row].path
        Image.open(path).save(home / "mixed" / f"{path.stem}.bmp")
    write_pictures(home / "mixed", 6, classes=(), seed=9)
    seen = compare(home, "latent", "cascade", out="seen", data=home / "mixed", cost_of=out)
    found = read_json(seen / "compare.json")
    assert found["count"] == 4 and sum("of these 11, 5 are in its training set" in note for note in found["notes"]) == 2


def test_a_gap_is_by_the_train_loss_and_its_growth_from_look_to_look():
    looks = [
        {"images_seen": seen, "measures": {"held_out_loss": held_out, "train_loss": 0.5}}
        for seen, held_out in ((10, 0.55), (20, 0.75))
    ]
    found = leg_gaps("denoiser", looks)
    assert [one.gap for one in found.levels["all"]] == pytest.approx([0.1, 0.5])
    assert found.growth == pytest.approx(0.4) and list(found.levels) == ["all"]
    assert leg_gaps("autoencoder", [{"images_seen": 10, "measures": {"psnr": 20.0}}]) is None


def test_a_trend_is_no_unrest_and_few_lines_say_nothing():
    rng = np.random.default_rng(0)
    line = 5 - 0.01 * np.arange(200)
    assert detrended_spread(line.tolist()) < 1e-3
    assert detrended_spread((3 + 0.3 * rng.standard_normal(400)).tolist()) == pytest.approx(0.1, rel=0.25)
    assert detrended_spread([1.0] * 10) is None


def test_runs_of_a_kind_with_equal_seeds_are_noted(home, tmp_path):
    names = {"A": "latent", "B": "cascade", "C": "cascade"}
    runs = [open_candidate(key, home / name, "cpu") for key, name in names.items()]
    (note,) = equal_seeds(runs)
    assert "runs B and C" in note
    model = replace(runs[2].model, recipe=runs[2].recipe.model_copy(update={"seed": 5}))
    assert not equal_seeds([*runs[:2], replace(runs[2], model=model)])


def test_what_would_take_too_long_or_too_much_is_left_out_with_a_reason():
    assert too_much(16, 1.0, 0, 10**9) == ""
    assert "80 s at 5.0 s" in too_much(16, 5.0, 0, 10**9)
    assert "16.0 GB" in too_much(16, 1.0, 10**9, 10**9)


# -- What the user gets wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("names", "settings", "message"), [
    (["latent"], {}, "1 run, but needs at least 2"),
    (["latent", "pictures"], {}, "no run.json"),
    (["latent", "cascade"], {"count": 1}, "count is 1, but must be at least 2"),
    (["latent", "cascade"], {"out": "pictures"}, "not an empty folder"),
])  # fmt: skip
def test_wrong_inputs_are_reported_in_one_line(names, settings, message, home):
    with pytest.raises(UserError, match=message) as error:
        compare(home, *names, **{"out": "wrong", **settings})
    assert "\n" not in str(error.value)


def test_an_unfinished_run_and_another_size_are_refused(home, tmp_path):
    for name in ("latent", "cascade"):
        (tmp_path / name).mkdir()
        for part in ("run.json", "log.jsonl"):
            (tmp_path / name / part).write_text((home / name / part).read_text())
    facts = json.loads((tmp_path / "latent" / "run.json").read_text())
    write_json(tmp_path / "latent" / "run.json", {**facts, "status": "interrupted"})
    with pytest.raises(UserError, match="is interrupted, but must be finished; try: calotype resume"):
        compare(tmp_path, "latent", "cascade")


def test_runs_of_different_sizes_are_refused(home, monkeypatch):
    real = candidate.open_candidate

    def low_res(key, folder, device):
        one = real(key, folder, device)
        return one if key == "A" else replace(one, key=key, model=replace(one.model, recipe=parse_recipe({"size": 8})))

    monkeypatch.setattr(candidate, "open_candidate", low_res)
    with pytest.raises(UserError, match=r"different sizes \(.* has 16 px, .* has 8 px\)"):
        compare(home, "latent", "cascade", out="sizes")


def test_too_few_pictures_are_reported(home, tmp_path):
    with pytest.raises(UserError, match="3 pictures, but a comparison needs at least 4"):
        compare(home, "latent", "cascade", out="few", data=write_pictures(tmp_path / "few", 3))


# -- Nothing is left out -----------------------------------------------------------------------------------------------


def test_the_numbers_that_are_counted_are_those_in_the_folder(found, home):
    """Four bytes each; the few whole numbers (labels, groups) have eight."""
    for run in found["runs"]:
        files = (home / run["folder"] / "model").glob("*.safetensors")
        values = [value for path in files for value in load_file(path).values()]
        there = sum(value.numel() * value.element_size() for value in values)
        whole = sum(value.numel() for value in values if not value.is_floating_point())
        numbers = run["deployment"]["parameters"]
        assert there - 4 * whole == 4 * (numbers["trained"] + numbers["fitted"])
        assert numbers["fitted"] > 0 and numbers["text_encoder"] == 0
        assert numbers["sum"] == numbers["trained"] + numbers["fitted"]


def test_trained_numbers_are_those_that_a_checkpoint_holds(found, home):
    """But for the linear path of the autoencoder, which is a principal component analysis."""
    for run in found["runs"]:
        folder = home / run["folder"] / "checkpoints"
        for leg, network in (("autoencoder", "autoencoder"), ("denoiser", "denoiser"), ("enlarge-16", "denoiser")):
            if leg in run["deployment"]["networks"]:
                tensors = load_file(next(folder.glob(f"{leg}-*")) / f"{network}.safetensors")
                own = (
                    value for name, value in tensors.items() if name.startswith("network.") and "linear_" not in name
                )
                assert run["deployment"]["networks"][leg]["trained"] == sum(value.numel() for value in own)


def test_the_parts_of_the_clock_and_the_rest_are_the_whole(found, clocked):
    """By a clock around the whole command; and no second is counted twice, or the rest would be below 0."""
    for run in found["runs"]:
        clock = run["cost"]["clock"]
        assert sum(clock["parts"].values()) + clock["other"] == pytest.approx(clock["seconds"], rel=1e-6)
        assert clock["seconds"] == pytest.approx(clocked[run["kind"]], rel=0.02)
        assert 0 <= clock["other"] < 0.2 * clock["seconds"]


def test_a_run_that_counted_no_operations_of_its_closed_forms_wins_nothing_by_it(home, tmp_path, out):
    """One of an earlier version, which also has no clock of the whole."""
    shutil.copytree(home / "latent", tmp_path / "latent")
    shutil.copytree(home / "cascade", tmp_path / "cascade")
    shutil.copytree(home / "pictures", tmp_path / "pictures")
    state = read_json(tmp_path / "latent" / "run.json")
    write_json(
        tmp_path / "latent" / "run.json",
        {name: value for name, value in state.items() if name not in ("operations", "wall_seconds")},
    )
    found = read_json(compare(tmp_path, "latent", "cascade", cost_of=out) / "compare.json")
    latent = found["runs"][0]["cost"]
    assert latent["training"]["flops"] is None and "an earlier version" in latent["training"]["reason"]
    assert latent["clock"]["seconds"] is None and latent["clock"]["reason"]
    claim = next(row for row in found["verdicts"] if row["claim"].endswith("computation to train"))
    assert claim["verdict"] == UNDECIDED and "not counted" in claim["sentence"]
    test_every_number_is_finite_or_has_a_reason(found)
    assert "Wall-clock time" in (tmp_path / "out" / "compare.html").read_text()


def test_the_operations_of_solvers_are_counted():
    points = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    square = torch.eye(20)
    with counter() as count:
        torch.linalg.qr(points), torch.linalg.eigh(square), torch.cdist(points, points[:4])
        torch.linalg.solve(square, square[:, :3])
    qr, eigh, distances, solve = 4 * 50 * 20**2 - 4 * 20**3 // 3, 9 * 20**3, 2 * 50 * 4 * 20, 2 * 20**3 // 3 + 2400
    assert count.get_total_flops() == pytest.approx(qr + eigh + distances + solve, rel=1e-3)
