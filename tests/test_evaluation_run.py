"""One finished run evaluated: every number beside its floor and ceiling, or the reason why there is none."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from small import Keeper, noise_pictures, noise_pixels, references, write_pictures

from calotype.cli import commands
from calotype.cli.options import EvaluateOptions
from calotype.data.duplicates import perceptual_hashes
from calotype.data.folder import read_folder
from calotype.data.seen import OWN_FILE, Seen, write_seen
from calotype.data.split import SplitConfig, stratified_split
from calotype.evaluation import evaluate as of_evaluation
from calotype.evaluation.candidate import Candidate, open_candidate
from calotype.evaluation.evaluate import EvaluationRequest
from calotype.evaluation.features import FeatureNetwork, Lite0, distance_name, features_key, kept_features
from calotype.evaluation.measures import MEASURES, distance_key, measure_sets
from calotype.evaluation.memorisation import Compared, MemorisationResult
from calotype.evaluation.results import Columns, EvaluationResult, Measure, Memorisation, SetMeasures
from calotype.files import is_whole, read_json, write_json
from calotype.model import load
from calotype.report.card import escaped, write_card
from calotype.report.evaluation import measure_rows
from calotype.types import Text, UserError

LITE0 = Lite0()
HOSTILE = "<script>alert(1)</script> | [a](b) *c* `d`\n# e"


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """A run with a hostile name, evaluated."""
    folder = tmp_path_factory.mktemp("appraised") / "run"
    shutil.copytree(finished, folder)
    write_json(folder / "run.json", {**read_json(folder / "run.json"), "name": HOSTILE})
    evaluate(folder, count=24)
    return folder


@pytest.fixture
def found(run):
    return read_json(run / "evaluation.json")


def evaluate(folder, data=None, count=4, out=None, network=LITE0):
    console = Keeper()
    commands.evaluate(EvaluateOptions(folder, data, count, out=out, device="cpu"), console, network)
    return "\n".join(console.printed)


# -- Measures ----------------------------------------------------------------------------------------------------------


def test_what_so_few_pictures_cannot_give_says_so_and_the_rest_is_there():
    rng = np.random.default_rng(0)
    for count in (1, 10, 20, 50):
        rows = measure_sets(rng.standard_normal((count, 8)), rng.standard_normal((60, 8)), 0, LITE0).stored()
        for name, (fewest, _) in MEASURES.items():
            one = rows[name.replace("frechet", "fd_lite0")]
            assert (one["value"] is not None) == (count >= fewest)
            assert count >= fewest or f"{fewest} pictures" in one["reason"]


class Other:
    """A network of one's own: the mean colour."""

    name, weights, preparation = "Colour", "none", "mean of all pixels"

    def look(self, images):
        return images.mean((2, 3))


def test_only_inception_makes_a_fid():
    assert distance_name(LITE0) == "FD-Lite0"
    assert distance_name(Other()) == "FD-Colour"
    inception = Other()
    inception.name = "Inception"
    assert distance_name(inception) == "FID"
    assert isinstance(inception, FeatureNetwork)
    for fraud in ("FID", "inception", "Inception v4"):
        inception.name = fraud
        assert distance_name(inception) == f"FD-{fraud}"


def test_another_network_takes_the_place_of_the_usual_one(run, tmp_path):
    printed = evaluate(run, count=8, out=tmp_path, network=Other())
    found = read_json(tmp_path / "evaluation.json")
    assert found["features"]["distance"] == "FD-Colour"
    assert distance_key(Other()) in found["measures"]["samples"]
    assert "fd_lite0" not in found["measures"]["samples"]
    assert "features of Colour" in printed


def test_features_are_looked_at_once_and_belong_to_pictures_network_and_size(tmp_path):
    asked = []

    def look(rows):
        asked.extend(rows.tolist())
        return np.stack([rows.double().numpy(), 2 * rows.double().numpy()], 1)

    path = tmp_path / "features.safetensors"
    for wanted in ([3, 1], [1, 2, 3], [2]):
        rows = torch.tensor(wanted)
        assert kept_features(path, rows, look)[:, 1].tolist() == [2.0 * one for one in wanted]
    assert sorted(asked) == [1, 2, 3]
    path.write_bytes(b"damaged")
    assert kept_features(path, torch.tensor([1]), look).tolist() == [[1.0, 2.0]]
    keys = [features_key(*one) for one in ((LITE0, "a", 16), (LITE0, "b", 16), (LITE0, "a", 8), (Other(), "a", 16))]
    assert len(set(keys)) == 4


# -- evaluation.json ---------------------------------------------------------------------------------------------------


def test_numbers_have_what_they_are_to_be_read_with(found):
    assert found["features"]["weights_sha256"] == LITE0.weights
    assert "antialiased" in found["features"]["preparation"]
    for column in ("samples", "floor", "ceiling"):
        assert found["measures"][column]["n"] == [2, 2]  # of ten pictures, one for the test and one for validation
        assert found["autoencoder"][column]["n"] == [2, 2]
    assert [one["class"] for one in found["classes"]] == ["a", "b"]
    assert found["autoencoder"]["samples"]["psnr"]["low"] < found["autoencoder"]["samples"]["psnr"]["value"]
    assert found["memorisation"]["n"] == [24, 8, 8]
    assert found["unseen"] and found["pictures"] == {"train": 8, "validation": 1, "test": 1}
    assert set(found["overfitting"][0]["levels"]) >= {"all"}
    assert any("2 can be held against" in note for note in found["notes"])
    assert found["alignment"] == {"reason": "the model was trained without captions"}


def test_samples_are_those_of_the_sample_command(run, monkeypatch):
    """Picture i depends on the seed, i and its label."""
    from calotype.data.images import images_from_pil
    from calotype.evaluation.evaluate import make_samples
    from calotype.evaluation.memorisation import small_pixels

    model = load(run, "cpu")
    samples = make_samples(model, torch.tensor([0, 1, 0]), None, 5, Other(), lambda *result: None)
    drawn = np.concatenate([small_pixels(images_from_pil(one)) for one in model.sample(3, seed=5)])
    assert samples.pixels == pytest.approx(drawn, abs=1e-6)


def test_the_numbers_are_the_same_the_second_time(run, tmp_path):
    for name in ("one", "two"):
        evaluate(run, count=4, out=tmp_path / name)
    one, two = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    del one["created"], two["created"]
    assert one == two


def test_the_two_reference_sets_have_nothing_in_common(run):
    pictures = write_pictures(run.parent / "many", 21)
    pictures = read_folder(pictures, 16)
    pair = references(pictures, 8)
    assert len(set(pair.chosen.tolist()) | set(pair.others.tolist())) == 4
    assert pair.chosen.tolist() == pictures.test_indices.tolist()


def test_samples_are_held_against_test_pictures_alone_and_the_floor_is_no_test_picture_twice():
    """Others go on with test pictures, then with validation pictures, and the notes say so."""
    pictures = noise_pictures(100)
    pair = references(pictures, 8)
    assert pair.chosen.tolist() == [*range(10, 18)] and pair.others.tolist() == [18, 19, *range(6)]
    assert pair.notes == (
        "of the 8 others that they are held against, as the floor, 6 are validation pictures: too few are held out",
    )
    assert references(pictures, 5).notes == ()


def test_without_a_test_set_validation_pictures_take_its_place():
    split = stratified_split(noise_pixels(100), torch.zeros(100, dtype=torch.long), (), SplitConfig(test=0))
    pair = references(replace(noise_pictures(100), split=split), 5)
    assert split.validation[pair.chosen].all() and split.train[pair.others].all()
    assert pair.notes[0] == "of the 5 real pictures, 5 are validation pictures: too few are held out"


@pytest.mark.parametrize(("kind", "message"), [("test", "saw 1 of the 2"), ("train", "on other real pictures")])
def test_it_says_whether_a_sweep_chose_by_the_same_pictures(run, tmp_path, kind, message):
    shutil.copytree(run, tmp_path / "run")
    content, rows = read_json(run / "run.json")["content"], read_json(run / "split.json")[kind]
    write_json(tmp_path / "run" / "sweep.json", {"stored": True, "content": content, "rows": rows})
    assert message in evaluate(tmp_path / "run", out=tmp_path / "out", count=24)


@pytest.mark.parametrize("kind", ["cascade", "hybrid"])
def test_chains_are_evaluated_too(request, tmp_path, kind):
    folder = shutil.copytree(request.getfixturevalue(f"finished_{kind}"), tmp_path / "run")
    evaluate(folder)
    found = read_json(folder / "evaluation.json")
    assert found["size"] == 16
    assert (found["autoencoder"] is None) == (kind == "cascade")


def test_unseen_data_are_distinguished_and_copies_are_still_sought(run, tmp_path):
    write_pictures(tmp_path / "others", 12, seed=5)
    evaluate(run, tmp_path / "others", count=24, out=tmp_path / "out")
    found = read_json(tmp_path / "out" / "evaluation.json")
    assert found["unseen"]
    note = "of these 12, 0 are in its training set and 0 in its validation set"
    assert any(note in each for each in found["notes"])
    assert found["memorisation"]["n"] == [24, 8, 8] and found["measures"]["samples"]["n"] == [6, 6]


def kind_of(run, kind):
    """The files of a run's pictures in one of its sets."""
    pictures = read_folder(Path(read_json(run / "run.json")["data"]), 16)
    return [pictures.originals[row].path for row in read_json(run / "split.json")[kind]]


def copied(paths, folder):
    """Under other names, as BMP files: equal pixels, other bytes."""
    folder.mkdir()
    for index, path in enumerate(paths):
        Image.open(path).save(folder / f"{index}.bmp")
    return folder


def test_pictures_that_the_run_was_trained_on_are_counted_and_left_out(run, tmp_path):
    trained = kind_of(run, "train")
    data = copied([*trained, *kind_of(run, "validation")], tmp_path / "data")
    write_pictures(data, 4, seed=5, classes=())
    printed = evaluate(run, data, out=tmp_path / "out")
    note = (
        "of these 13, 8 are in its training set and 1 in its validation set (near-duplicates count as equal); "
        "it is measured on the other 4"
    )
    assert any(note in one for one in read_json(tmp_path / "out" / "evaluation.json")["notes"]) and note in printed
    found = read_json(tmp_path / "out" / "evaluation.json")
    assert found["unseen"] and found["measures"]["samples"]["n"] == [4, 4]
    assert found["pictures"] == {"train": 8, "validation": 1, "test": 4}


def test_test_pictures_that_an_earlier_run_was_trained_on_do_not_count_as_unseen(run, tmp_path, monkeypatch):
    """Neither as pictures that samples are held against, nor where copies are sought."""
    shutil.copytree(run, tmp_path / "run")
    split = read_json(run / "split.json")
    rows = sorted([*split["test"], split["train"].pop()])
    write_json(tmp_path / "run" / "split.json", split | {"test": rows})
    pictures = read_folder(Path(read_json(run / "run.json")["data"]), 16)
    hashes = perceptual_hashes(pictures.pixels[rows])
    write_seen(tmp_path / "run", Seen(hashes[:1], hashes[:0], hashes[1:]))
    asked = list[EvaluationRequest]()
    monkeypatch.setattr(commands.evaluating, "evaluate_run", lambda request, out: asked.append(request) or {})
    monkeypatch.setattr(commands.evaluating, "evaluation_lines", lambda result: ())
    evaluate(tmp_path / "run", out=tmp_path / "out")
    for found in (asked[0].pictures, asked[0].trained):
        assert found.split.test.nonzero().flatten().tolist() == rows[1:] and found.split.train[rows[0]]


def test_a_folder_of_training_pictures_alone_says_nothing_of_new_ones(run, tmp_path):
    with pytest.raises(UserError, match="has seen all 8 pictures") as error:
        evaluate(run, copied(kind_of(run, "train"), tmp_path / "data"), out=tmp_path / "out")
    assert "\n" not in str(error.value)


def test_the_runs_own_folder_by_name_is_split_as_the_run_has_it(run, tmp_path):
    evaluate(run, out=tmp_path / "one")
    evaluate(run, Path(read_json(run / "run.json")["data"]), out=tmp_path / "two")
    one, two = (read_json(tmp_path / name / "evaluation.json") for name in ("one", "two"))
    assert one["measures"] == two["measures"] and one["pictures"] == two["pictures"]


@pytest.mark.parametrize("recorded", [True, False])
def test_where_the_folder_has_changed_the_record_says_what_the_run_has_seen(run, tmp_path, recorded):
    """Of a run of an earlier version, which has none, nobody knows it."""
    data = tmp_path / "data"
    shutil.copytree(read_json(run / "run.json")["data"], data)
    shutil.copytree(run, tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {**read_json(run / "run.json"), "data": str(data)})
    write_pictures(data, 2, seed=5)
    if not recorded:
        (tmp_path / "run" / OWN_FILE).unlink()
    printed = evaluate(tmp_path / "run", out=tmp_path / "out")
    assert ("it is not known whether it has seen" in printed) != recorded
    assert ("are in its training set" in printed) == recorded
    assert read_json(tmp_path / "out" / "evaluation.json")["unseen"] is None  # its pictures are not here


@pytest.mark.parametrize(("prompted", "others"), [(True, False), (False, False), (True, True)])
def test_copies_are_sought_with_the_pictures_whose_captions_are_prompts(monkeypatch, tmp_path, prompted, others):
    """Of other pictures than the run's, and without prompts, there are none."""
    pictures, prompts, asked = noise_pictures(100), Text(("a",) * 24) if prompted else None, []
    candidate = object.__new__(Candidate)
    monkeypatch.setattr(Candidate, "size", 16)
    monkeypatch.setattr(Candidate, "text", lambda self, of, rows: prompts)
    trained = replace(pictures, content="another") if others else pictures
    request = EvaluationRequest(candidate, pictures, trained, tmp_path, 24, 0, LITE0, Keeper().bar)
    unknown = MemorisationResult(Memorisation(verdict="too few to say", sentence="few"))
    monkeypatch.setattr(of_evaluation, "memorisation", lambda *parts: asked.extend(parts) or unknown)
    of_evaluation.memorisation_of(request, Compared(np.zeros((24, 0)), np.zeros((24, 3, 32, 32), np.float32)))
    *_, test, labels, sources = asked
    known = prompted and not others
    assert sources.tolist() == (test[torch.arange(24) % len(test)].tolist() if known else [-1] * 24)
    assert labels is trained.labels


def test_without_the_training_pictures_copies_are_not_judged(run, tmp_path):
    write_pictures(tmp_path / "others", 12, seed=5)
    shutil.copytree(run, tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {**read_json(run / "run.json"), "data": str(tmp_path / "gone")})
    printed = evaluate(tmp_path / "run", tmp_path / "others")
    assert "too few to say: the pictures that the run was trained on cannot be read" in printed


@pytest.mark.parametrize(("change", "count", "error"), [
    ({}, 0, "count is 0"), ({"status": "interrupted"}, 4, "must be finished"), ({"data": "/gone"}, 4, "no folder"),
])  # fmt: skip
def test_mistakes_are_one_line(run, tmp_path, change, count, error):
    shutil.copytree(run, tmp_path / "run")
    write_json(tmp_path / "run" / "run.json", {**read_json(run / "run.json"), **change})
    with pytest.raises(UserError, match=error) as caught:
        evaluate(tmp_path / "run", count=count)
    assert "\n" not in str(caught.value)


def test_one_picture_is_too_few(run, tmp_path):
    with pytest.raises(UserError, match="at least 2"):
        evaluate(run, write_pictures(tmp_path / "one", 1, classes=(), seed=5), out=tmp_path / "out")


# -- The card and the page ---------------------------------------------------------------------------------------------


def test_the_model_is_whole_with_its_card_before_and_after(finished, run):
    for folder in (finished, run):
        assert is_whole(folder / "model")
        assert (folder / "model" / "samples.png").is_file()
        assert open_candidate("A", folder, "cpu").model.sample(1)
    assert "Not measured yet" in (finished / "model" / "README.md").read_text()
    assert "Not measured yet" not in (run / "model" / "README.md").read_text()


def test_the_card_says_what_a_stranger_must_know_and_no_file_name(run):
    card = (run / "model" / "README.md").read_text()
    facts = read_json(run / "run.json")
    for fact in ("8 pictures to train on, 1 for validation, 1 for the test", "2 classes: a, b", facts["content"],
                 "license: unknown", "Too few to say", "seed 0", "calotype sample", "PSNR"):  # fmt: skip
        assert fact in card
    assert str(run) not in card
    assert facts["data"] not in card
    assert ".png" not in card.replace("samples.png", "")


def test_text_of_the_user_is_text_in_the_card_and_on_the_page(run):
    card, page = (run / "model" / "README.md").read_text(), (run / "report.html").read_text()
    title = next(line for line in card.splitlines() if line.startswith("# "))
    assert not re.search(r"(?<!\\)[<>|\[\]*`]", title)
    assert title.endswith(r"\# e")
    assert "<script>" not in page
    assert "Evaluation" in page
    assert escaped("a\n\n- b") == "a - b"


def test_a_licence_that_was_written_into_the_card_stays(run):
    path = run / "model" / "README.md"
    path.write_text(path.read_text().replace("license: unknown", "license: cc0-1.0"))
    write_card(run)
    assert "\nlicense: cc0-1.0\n" in path.read_text()


def test_a_damaged_evaluation_costs_the_card_its_numbers_only(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").write_text('{"features": {}}')
    assert "Not measured yet" in write_card(tmp_path / "run").read_text()


def test_a_measure_without_a_name_of_its_own_has_a_row_on_the_page():
    measures = SetMeasures.of((4, 4), {"gaussian_distance": Measure(value=0.25)})
    result = EvaluationResult.model_construct(features=SimpleNamespace(key="fd_lite0", distance="FD-Lite0"),
                                              measures=SimpleNamespace(samples=measures))  # fmt: skip
    columns = Columns(samples=measures, floor=measures, ceiling=measures)
    assert list(measure_rows(result, columns)) == [("gaussian distance", "0.25", "0.25", "0.25")]
