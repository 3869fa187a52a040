"""What is fitted in closed form: shared, kept once, never fitted again, and no part of what training changes."""

import copy
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from small import (
    CASCADE,
    LEGS,
    SETTINGS,
    Keeper,
    be_quick,
    fingerprint,
    request,
    second_leg,
    train_small,
    write_pictures,
)
from test_checkpoint import go_on
from test_train import interrupted_at, products, resume

from calotype.cli import commands
from calotype.files import read_json, sha256
from calotype.model import load
from calotype.priors import fit
from calotype.priors.captions import CaptionedMixture
from calotype.priors.gaussian import GaussianMixture
from calotype.priors.patches import PatchPrior
from calotype.priors.prior import Prior, constant_count, trained_state
from calotype.priors.stored import PriorDescription, described, prior_in
from calotype.training import fitting, legs
from calotype.training.process import Interrupted
from calotype.training.snapshot import SPACE
from calotype.types import Rng, UserError

LEG_OF = {"latent": ("denoiser", SETTINGS), "cascade": ("enlarge-16", CASCADE)}
kinds = pytest.mark.parametrize("kind", LEG_OF)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    be_quick(monkeypatch)


def filled(form):
    for name, value in form.state_dict().items():
        value.copy_(
            Rng((name,)).integers(9, *value.shape)
            if not value.is_floating_point()
            else Rng((name,)).normal(*value.shape)
        )
    return form


FORMS = {
    "mixture": lambda: filled(GaussianMixture(3, 2, 12)),
    "conditional mixture": lambda: filled(CaptionedMixture(GaussianMixture(4, 2, 12), 2, 5, 3)),
    "local Gaussians": lambda: filled(PatchPrior(2)),
}
forms = pytest.mark.parametrize("form", FORMS)


def interrupted(folder, kind):
    """A run stopped while it draws the batch after 20 images of the leg whose closed form is looked at."""
    leg, settings = LEG_OF[kind]
    write_pictures(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        interrupted_at(patch, [(leg, 20)])
        with pytest.raises(Interrupted):
            commands.train(request(folder / "pictures", folder / "run", settings=settings), Keeper())
    return folder / "run"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Of each kind, such a run. For reading only."""
    with pytest.MonkeyPatch.context() as patch:
        be_quick(patch)
        return {kind: interrupted(tmp_path_factory.mktemp(f"stopped {kind}"), kind) for kind in LEG_OF}


@pytest.fixture
def stopped_copy(stopped, tmp_path):
    """Of a kind: a copy of it, and the name of the leg."""
    return lambda kind: (shutil.copytree(stopped[kind], tmp_path / "run"), LEG_OF[kind][0])


@pytest.fixture
def whole(finished, finished_cascade):
    """Of each kind, a run that was never stopped."""
    return {"latent": finished, "cascade": finished_cascade}


def never_fitted(monkeypatch):
    for name in ("fit_mixture", "fit_patches"):
        monkeypatch.setattr(legs, name, lambda *given: pytest.fail("fitted again"))


# -- Shared ------------------------------------------------------------------------------------------------------------


@forms
def test_a_copy_of_a_network_has_the_same_closed_form(form):
    network = torch.nn.ModuleDict({"form": FORMS[form](), "trained": torch.nn.Linear(2, 2)})
    other = copy.deepcopy(network)
    assert other["form"] is network["form"] and other["trained"] is not network["trained"]
    assert set(trained_state(network)) == {"trained.weight", "trained.bias"}
    assert constant_count(network) == sum(value.numel() for value in network["form"].state_dict().values())


def test_a_step_copies_no_constant_and_a_checkpoint_holds_none(monkeypatch):
    leg = second_leg()
    train_state = leg.states["denoiser"]
    assert isinstance(train_state.network.prior, Prior) and train_state.average.prior is train_state.network.prior
    assert not any("prior" in name for name in train_state.tensors())
    fitted = {id(value) for value in train_state.network.prior.buffers()}
    real = torch.Tensor.copy_
    monkeypatch.setattr(
        torch.Tensor, "copy_", lambda to, *given: pytest.fail("copied") if id(to) in fitted else real(to, *given)
    )
    go_on(leg, 8)


# -- Kept --------------------------------------------------------------------------------------------------------------


@forms
def test_what_is_read_is_what_was_written(form, tmp_path):
    fitting.write_constants(tmp_path / "kept", {"mixture": FORMS[form]()})
    found = fitting.read_constants(tmp_path / "kept")["mixture"]
    assert type(found) is type(FORMS[form]()) and found.shape == FORMS[form]().shape
    for name, value in FORMS[form]().state_dict().items():
        assert torch.equal(found.state_dict()[name], value) and found.state_dict()[name].dtype == value.dtype
    assert json.loads((tmp_path / "kept" / "constants.json").read_text())["mixture"]["kind"] == form


@forms
@pytest.mark.parametrize("place", ["prior", "mixture", "local"])
def test_a_prior_without_kind_and_shape_is_recognised_by_its_tensors(form, place):
    tensors = {f"{place}.{name}": value for name, value in FORMS[form]().state_dict().items()}
    found = prior_in({**tensors, "other": torch.zeros(1)})
    assert found.shape == FORMS[form]().shape
    assert all(torch.equal(value, tensors[f"{place}.{name}"]) for name, value in found.state_dict().items())
    assert prior_in({"other": torch.zeros(1)}) is None


def test_a_captioned_mixture_opens_under_the_names_of_version_0_1():
    new = FORMS["conditional mixture"]()
    old_names = {now: before for before, now in CaptionedMixture.old_names.items()}
    tensors = {f"mixture.{old_names.get(name, name)}": value for name, value in new.state_dict().items()}
    found = prior_in(tensors)
    assert "mixture.vote" in tensors and "gate" in found.state_dict()
    shape = {"heard" if name == "words" else name: count for name, count in new.shape.items()}
    assert described(PriorDescription(kind="conditional mixture", shape=shape)).shape == new.shape
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in new.state_dict().items())


@kinds
def test_an_interrupted_leg_goes_on_with_what_was_fitted(stopped_copy, monkeypatch, whole, kind):
    """With dropout of 0.5 and a closed form: to the bit, and nothing is fitted a second time."""
    run, leg = stopped_copy(kind)
    (path,) = (run / "checkpoints").glob(f"{leg}-*")
    assert not any("prior." in name for name in load_file(path / "denoiser.safetensors"))
    never_fitted(monkeypatch)
    resume(run)
    assert products(run) == products(whole[kind])


def test_what_stands_in_for_the_closed_form_in_training_is_kept_too(tmp_path, monkeypatch):
    """Of few pictures: the mixtures of the folds."""
    monkeypatch.setattr(fit, "FEWEST_TO_FOLD", 1)
    monkeypatch.setattr(fit, "OPTIMISTIC", 0.0)
    straight = train_small(tmp_path / "straight")
    run = interrupted(tmp_path, "latent")
    assert set(read_json(run / "constants" / "denoiser" / "constants.json")) == {"mixture", "unseen-0", "unseen-1"}
    never_fitted(monkeypatch)
    resume(run)
    assert products(run) == products(straight)


def damage(folder, how):
    if how == "missing":
        shutil.rmtree(folder)
    elif how == "damaged":
        file = next(folder.glob("*.safetensors"))
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    else:
        kept = fitting.read_constants(folder)
        name, form = next(iter(kept.items()))
        fitting.write_constants(folder, {**kept, name: filled(form)})


HOW = pytest.mark.parametrize("how", ["missing", "damaged", "another one"])


@kinds
@HOW
def test_constants_that_checkpoints_need_are_not_fitted_again(stopped_copy, monkeypatch, kind, how):
    run, leg = stopped_copy(kind)
    damage(run / "constants" / leg, how)
    never_fitted(monkeypatch)
    with pytest.raises(
        UserError, match=f"constants/{leg} is missing or damaged.*put it back.*checkpoints/{leg}-"
    ) as error:
        resume(run)
    assert "\n" not in str(error.value)


@HOW
def test_constants_that_no_checkpoint_needs_are_fitted_again(stopped_copy, whole, how):
    run, leg = stopped_copy("latent")
    for path in (run / "checkpoints").glob(f"{leg}-*"):
        shutil.rmtree(path)
    damage(run / "constants" / leg, how)
    resume(run)
    assert products(run) == products(whole["latent"])
    notes = [json.loads(line).get("text", "") for line in (run / "log.jsonl").read_text().splitlines()]
    assert sum(f"constants/{leg} was missing or damaged" in note for note in notes) == 1


def test_without_a_checkpoint_the_weights_start_the_same_beside_what_was_kept(stopped_copy, monkeypatch, whole):
    run, leg = stopped_copy("latent")
    for path in (run / "checkpoints").glob(f"{leg}-*"):
        shutil.rmtree(path)
    never_fitted(monkeypatch)
    resume(run)
    assert products(run) == products(whole["latent"])


def test_the_hash_of_the_constants_is_in_the_run(whole):
    for run in whole.values():
        hashes, kept = read_json(run / "run.json")["constants"], {*(run / "constants").iterdir()}
        fitted = kept - {run / "constants" / SPACE}  # what previews need is computed again
        assert hashes == {path.name: sha256(path / "manifest.json") for path in fitted}


@kinds
def test_a_model_folder_holds_its_closed_form_once(whole, kind):
    leg, _ = LEG_OF[kind]
    kept = fitting.read_constants(whole[kind] / "constants" / leg)[
        "mixture" if kind == "latent" else "local"
    ].state_dict()
    tensors = load_file(whole[kind] / "model" / f"{leg}.safetensors")
    for name, value in kept.items():
        assert [key for key in tensors if key.endswith(f".{name}")] == [f"prior.{name}"]
        assert torch.equal(tensors[f"prior.{name}"], value)
    assert read_json(whole[kind] / "model" / "model.json")["format"] == 6 and load(whole[kind]).sample(1)


def tensor_bytes(folder):
    values = (value for path in folder.rglob("*.safetensors") for value in load_file(path).values())
    return sum(value.numel() * value.element_size() for value in values)


@kinds
def test_the_disk_that_is_planned_is_enough_and_not_much_more(whole, kind):
    """A leg of a minute or more has a second checkpoint; and what is written stands beside what it replaces."""
    run = whole[kind]
    legs = [tensor_bytes(path) for path in (run / "checkpoints").iterdir()]
    most = tensor_bytes(run) + sum(legs) + max(tensor_bytes(run / "model"), 1.25 * max(legs))
    assert most <= read_json(run / "plan.json")["predicted"]["disk_bytes"] <= 1.1 * most


# -- The caller's randomness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leg", LEGS)
def test_training_leaves_the_callers_generator_alone(leg):
    """And hangs on nothing that was drawn from it."""
    ends = []
    for seed in (1, 2):
        trained = LEGS[leg]()
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        ends.append(fingerprint(go_on(trained, 8).states))
        assert torch.equal(torch.get_rng_state(), before)
    assert ends[0] == ends[1]
