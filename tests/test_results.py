"""Stored results are read as they were written, those of an earlier format too, and nothing else is."""

from calotype.evaluation.comparison_results import ArmSurvival, Propagation, RunMeasures
from calotype.evaluation.results import EvaluationResult, Measure, Memorisation, SetMeasures, read_result, write_result
from calotype.files import read_json, write_json
from calotype.report.comparison import level_plot
from calotype.report.evaluation import duplicates, evaluation_lines, evaluation_section
from calotype.run import Run

MEASURE = {"value": 0.5, "low": 0.25, "high": 0.75}
SET = {
    "n": [24, 30],
    "fd_lite0": MEASURE,
    "kernel_distance": MEASURE,
    "precision": MEASURE,
    "recall": {"value": None, "reason": "too few"},
}
COLUMNS = {"samples": SET, "floor": SET, "ceiling": SET}
CURRENT = {
    "format": 2, "created": "2026-01-01", "versions": {"calotype": "0.1.0"}, "device": "cpu", "size": 16, "seed": 0,
    "notes": [], "content": "hash", "unseen": True, "pictures": {"train": 8}, "kind": "latent", "count": 24,
    "sampling": [{"steps": 12, "guidance": 1.0}], "measures": COLUMNS, "autoencoder": None,
    "classes": [{"class": "a", "samples": SET, "floor": SET}],
    "features": {
        "network": "Lite0", "distance": "FD-Lite0", "key": "fd_lite0", "weights_sha256": "0" * 64, "preparation": "64",
    },
    "memorisation": {"verdict": "too few to say", "sentence": "few", "duplicates": MEASURE, "n": [24, 3, 8]},
    "alignment": {"reason": "the model was trained without captions"},
    "overfitting": [],
}  # fmt: skip


def earlier():
    """As version 0.1.0 wrote it."""
    renamed = {"alignment": "obedience", "overfitting": "gaps"}
    stored = {renamed.get(name, name): value for name, value in CURRENT.items()} | {"format": 1}
    stored["memorisation"] = dict(CURRENT["memorisation"], twins=MEASURE)
    del stored["memorisation"]["duplicates"]
    return stored


def test_results_are_read_as_they_were_written(tmp_path):
    write_json(tmp_path / "evaluation.json", CURRENT)
    result = read_result(tmp_path / "evaluation.json", EvaluationResult)
    write_result(tmp_path / "again.json", result)
    assert read_json(tmp_path / "again.json") == CURRENT
    assert result.measures.samples.model_extra["fd_lite0"] == Measure(**MEASURE)


def test_an_evaluation_of_version_0_1_0_is_read_under_the_names_of_this_one(tmp_path):
    write_json(tmp_path / "evaluation.json", earlier())
    assert read_result(tmp_path / "evaluation.json", EvaluationResult).stored() == CURRENT
    assert "Near-duplicates among 8 training pictures" in str(evaluation_section(Run(tmp_path)))


def test_a_damaged_or_later_evaluation_is_none_and_the_page_says_so(tmp_path):
    for stored in ({"features": {}}, CURRENT | {"format": 3}, [1]):
        write_json(tmp_path / "evaluation.json", stored)
        assert read_result(tmp_path / "evaluation.json", EvaluationResult) is None
        assert "another version" in str(evaluation_section(Run(tmp_path)))
    assert read_result(tmp_path / "missing.json", EvaluationResult) is None


def test_shares_of_the_judges_of_faces_are_shown(tmp_path):
    share = {"about": "dark skin", "samples": MEASURE, "real": MEASURE, "n": [24, 30], "agrees": False}
    write_json(tmp_path / "evaluation.json", CURRENT | {"shares": [share], "alignment": {
        "languages": ["English"], "retrieval": [{"value": None, "reason": "too few"}],
    }})  # fmt: skip
    assert "dark skin" in str(evaluation_section(Run(tmp_path)))
    lines = "\n".join(evaluation_lines(read_result(tmp_path / "evaluation.json", EvaluationResult)))
    assert "dark skin: 0.5 [0.25, 0.75] of the samples" in lines


def test_measures_have_the_name_of_their_network():
    measures = SetMeasures.of((2, 3), {"fd_colour": Measure(value=1.0)})
    assert measures.stored() == {"n": [2, 3], "fd_colour": {"value": 1.0}}


def test_near_duplicates_are_counted_among_the_evenly_spaced_pictures_alone():
    """Pictures near samples, which are compared as well, would not be a fair part of all."""
    found = {"verdict": "does not copy", "sentence": "none", "duplicates": MEASURE}
    for n, shown in ((20_345, "20,000"), (345, "345")):
        assert f"among {shown} training pictures" in duplicates(Memorisation(**found, n=(24, 24, n)))


def test_errors_in_pixels_are_put_in_at_a_sigma():
    arms = {"matched": ArmSurvival(value=0.5, level=0.3), "1": ArmSurvival(value=0.4, level=1.0)}
    for kind, axis in (("pixels", "sigma of the pixels"), ("cascade", "level of augmentation")):
        run = RunMeasures.model_construct(key="A", kind=kind, propagation=Propagation(arms=arms, points=[]))
        assert axis in level_plot(run).code
