import os
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from analytic import perturbed, silent_parameters, unconditional
from PIL import Image
from small import CASCADE, SETTINGS, Keeper, be_quick, machine, noise_pictures, request, write_pictures

import calotype
from calotype.build import build_conditioned
from calotype.cli import commands
from calotype.cli.commands import train
from calotype.cli.commands.sampling import read_prompts
from calotype.cli.options import EvaluateOptions, SampleOptions, SweepOptions
from calotype.data.folder import read_folder
from calotype.data.sources import PictureSource
from calotype.diffusion.denoiser import Denoiser
from calotype.diffusion.schedules import Flow
from calotype.diffusion.stage import Sampling, Stage, generate
from calotype.evaluation.alignment import retrieval
from calotype.files import read_json
from calotype.nets.dit import DitConfig
from calotype.nets.text import LETTERS, BytesConfig, BytesEncoder, NoText, pieces, text_of, tokens_of
from calotype.nets.unet import UnetConfig
from calotype.planning.make import make_plan
from calotype.recipe import ConditionDropout, OptimizerConfig
from calotype.spaces.pixel import PixelSpace
from calotype.training.loop import TrainProgress, train_step
from calotype.training.objectives import NO_DROPOUT, DenoisingObjective, drop_condition
from calotype.training.state import TrainState
from calotype.types import NULL_LABEL, Batch, Condition, Rng, Text, UserError

CONFIG = BytesConfig(width=16, depth=2, heads=2, words=8)
DIT = DitConfig(width=16, depth=2, heads=2)
UNET = UnetConfig(width=8, multiples=(1, 2), blocks=1)
BACKBONES = {"dit": DIT, "unet": UNET}
backbones = pytest.mark.parametrize("config", BACKBONES.values(), ids=BACKBONES)
SIGMA = torch.tensor([0.1, 0.7, 2.0])
TEXTS = ("a red cat", "", "một con mèo màu đỏ, trên nền vàng")


def denoiser(config, text=CONFIG):
    torch.manual_seed(0)
    return Denoiser(build_conditioned(config, 3, 3, text), config.width, 2, "flow")


def answer(network, texts, noisy=None, sigma=SIGMA):
    count = len(texts) if texts else 3
    noisy = torch.randn(3, 3, 8, 4, generator=torch.Generator().manual_seed(1))[:count] if noisy is None else noisy
    condition = replace(unconditional(count), text=Text(tuple(texts)) if texts else None)
    return network(noisy, sigma[:count], condition)


# -- Bytes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    ["", "one", "Một  người, đội mũ!  ", "日本語のとても長い文章です", "a" * 100, "emoji 👩‍👩‍👧 e\u0301 ½\n\tx", " - "],
)
def test_bytes_go_in_and_come_out(text):
    assert text_of(pieces(text)) == text.lower()
    tokens = tokens_of([text, "x"], 64)
    read = [bytes(letter for letter in word if letter) for word in tokens[0].tolist()]
    assert text_of([word for word in read if word]) == text.lower()
    assert tokens.shape[2] == LETTERS and all(len(word) <= LETTERS for word in pieces(text))


def test_a_word_is_read_alike_wherever_it_stands():
    assert pieces("red cat")[0] == pieces("big red cat")[1] == b"red "


def test_what_is_not_read_of_a_long_text_is_its_rest():
    encoder = BytesEncoder(CONFIG)
    text = "one two three four five six seven eight nine ten"
    assert encoder.truncated(text) == "nine ten" and encoder.truncated("short") == ""
    for one, other in zip(encoder([text]), encoder([text.removesuffix("nine ten")]), strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-6)


def test_order_and_every_letter_count():
    encoder = perturbed(BytesEncoder(CONFIG), 0.2)
    texts = ["red cat blue dog", "blue cat red dog", "red cat blue dot", "red cat", ""]
    assert torch.pdist(encoder(texts).pooled).min() > 1e-3
    assert not encoder([""]).pooled.any() and not encoder([""]).mask.any()


def test_padding_changes_nothing():
    """Neither the words of longer texts in the batch, nor those of empty ones."""
    encoder = perturbed(BytesEncoder(CONFIG), 0.2)
    together = encoder(TEXTS)
    for index, text in enumerate(TEXTS):
        alone, count = encoder([text]), int(together.mask[index].sum())
        assert (
            torch.equal(alone.mask[0, :count], together.mask[index, :count]) and not together.mask[index, count:].any()
        )
        assert torch.allclose(alone.context[0, :count], together.context[index, :count], atol=1e-5)
        assert torch.allclose(alone.pooled[0], together.pooled[index], atol=1e-5)


# -- A denoiser that reads ---------------------------------------------------------------------------------------------


@backbones
def test_a_new_denoiser_that_reads_is_one_that_does_not(config):
    reading, deaf = denoiser(config), denoiser(config, NoText())
    own = {name.removeprefix("backbone."): weight for name, weight in reading.backbone.named_parameters()}
    assert {name for name, _ in deaf.backbone.named_parameters()} < set(own)
    if "through.weight" in own:
        torch.nn.init.zeros_(own["through.weight"])  # it starts faint, not silent, and hangs on the vector
    deaf.backbone.load_state_dict({name: own[name] for name in deaf.backbone.state_dict()})
    rest = {name: value for name, value in reading.state_dict().items() if not name.startswith("backbone.")}
    deaf.load_state_dict(rest, strict=False)
    assert torch.allclose(answer(reading, TEXTS), answer(deaf, None), atol=1e-6)


@backbones
def test_no_text_and_the_null_text_are_equal(config):
    network = perturbed(denoiser(config), 0.1)
    assert torch.allclose(answer(network, ("", "", "")), answer(network, None), atol=1e-5)
    assert torch.allclose(answer(network, TEXTS)[1], answer(network, None)[1], atol=1e-5)
    assert (answer(network, TEXTS) - answer(network, None))[[0, 2]].flatten(1).abs().amax(1).min() > 1e-3


@backbones
def test_permuting_the_batch_permutes_the_output(config):
    network, order, noisy = perturbed(denoiser(config), 0.1), [2, 0, 1], torch.randn(3, 3, 8, 4)
    permuted = answer(network, [TEXTS[index] for index in order], noisy[order], SIGMA[order])
    assert torch.allclose(permuted, answer(network, TEXTS, noisy)[order], atol=1e-4)


@backbones
def test_the_loss_reaches_every_parameter_that_reads(config):
    network = perturbed(denoiser(config), 0.1)
    clean, noise = torch.randn(3, 3, 8, 4), torch.randn(3, 3, 8, 4)
    loss = network.loss(clean, SIGMA, noise, replace(unconditional(3), text=Text(TEXTS))).mean()
    silent = [name for name in silent_parameters(network, loss) if "letters" not in name]  # most bytes are in no text
    assert [name for name in silent if re.search("encoder|text_attention|pooled_projection", name)] == []
    assert network.backbone.encoder.letters.weight.grad.any()


@backbones
def test_bfloat16_reads_alike(config):
    exact = perturbed(denoiser(config), 0.1)
    coarse = Denoiser(build_conditioned(config, 3, 3, CONFIG), config.width, 2, "flow", "bfloat16")
    coarse.load_state_dict(exact.state_dict())
    one, other = (answer(network, TEXTS) for network in (exact, coarse))
    assert 1e-4 < (one - other).norm() / one.norm() < 0.05


def test_null_text_is_what_guidance_leads_away_from():
    plain, against = (Condition(torch.zeros(2).long(), text=Text(("a", "b"), more)) for more in ((), ("x", "y")))
    assert plain.unconditional().text == Text(("", "")) and against.unconditional().text == Text(("x", "y"))
    assert (plain.unconditional().labels == NULL_LABEL).all()


# -- Dropout of label and caption --------------------------------------------------------------------------------------


CASES = {
    "label and caption": (True, True),
    "label": (True, False),
    "caption": (False, True),
    "neither": (False, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("neither", "caption_alone", "label_alone"),
    [
        (0.1, 0.4, 0.1),
        (0.0, 0.4, 0.1),
        (0.0, 0.0, 0.0),
        (0.25, 0.4, 0.1),
        (0.5, 0.3, 0.2),
        (0.2, 0.0, 0.5),
        (1.0, 0.0, 0.0),
    ],
)
def test_dropout_gives_each_case_as_often_as_its_setting_says(case, neither, caption_alone, label_alone):
    """Within four standard deviations of the binomial distribution, whatever the picture has."""
    count, (labelled, captioned) = 20_000, CASES[case]
    batch = Batch(
        torch.zeros(count, 1, 1, 1), torch.full((count,), 2 if labelled else NULL_LABEL),
        text=Text(("a, b" if captioned else "",) * count),
    )  # fmt: skip
    dropout = ConditionDropout(
        label_dropout=neither, caption_alone=caption_alone, label_alone=label_alone, caption_dropout=0.0
    )
    labels, text = drop_condition(batch, dropout, Rng((case, f"{neither}")))
    assert set(labels.tolist()) <= {2, NULL_LABEL} and set(text.prompts) <= {"a, b", ""}
    given = list(zip((labels >= 0).tolist(), map(bool, text.prompts), strict=True))
    expected = dict.fromkeys(CASES.values(), 0.0)
    if labelled and captioned:
        both = 1 - neither - caption_alone - label_alone
        expected |= {(True, True): both, (True, False): label_alone, (False, True): caption_alone}
    else:
        expected[labelled, captioned] = 1 - neither
    expected[False, False] = neither if labelled or captioned else 1.0
    for kind, share in expected.items():
        bound = 4 * (share * (1 - share) / count) ** 0.5
        assert abs(given.count(kind) / count - share) <= bound + 1e-9, kind


def test_what_is_dropped_of_a_picture_does_not_depend_on_the_others():
    """Nor does a batch without captions drop other labels than one whose captions are empty."""
    batch = Batch(torch.zeros(64, 1, 1, 1), torch.arange(64) % 3 - 1, text=Text(("x", "", "y, z", "") * 16))
    labels, text = drop_condition(batch, ConditionDropout(), Rng((0,)))
    more = Batch(torch.zeros(64, 1, 1, 1), batch.labels.clone(), text=Text((*batch.text.prompts[:63], "")))
    again, other = drop_condition(more, ConditionDropout(), Rng((0,)))
    assert torch.equal(labels[:63], again[:63]) and text.prompts[:63] == other.prompts[:63]
    silent, plain = (Batch(batch.clean, batch.labels, text=one) for one in (Text(("",) * 64), None))
    dropped = [drop_condition(one, ConditionDropout(label_dropout=0.4), Rng((0,)))[0] for one in (silent, plain)]
    assert torch.equal(*dropped) and drop_condition(plain, ConditionDropout(), Rng((0,)))[1] is None


def test_without_dropout_everything_is_given():
    batch = Batch(torch.zeros(64, 1, 1, 1), torch.arange(64) % 3, text=Text(("a, b", "c") * 32))
    labels, text = drop_condition(batch, NO_DROPOUT, Rng((0,)))
    assert torch.equal(labels, batch.labels) and text == batch.text


def test_a_caption_that_names_the_colour_is_obeyed():
    """After some training on plain pictures, and told apart from the others."""
    colours = {"đỏ": (0.8, -0.8, -0.8), "green": (-0.8, 0.8, -0.8), "xanh dương": (-0.8, -0.8, 0.8)}
    names = tuple(f"a {name} picture" for name in colours)
    clean = torch.tensor(list(colours.values()))[:, :, None, None].expand(-1, -1, 4, 4)
    network = denoiser(DitConfig(width=32, depth=1, heads=2, patch=2))
    objective = DenoisingObjective(Stage(network, PixelSpace(), Flow(), 4), ConditionDropout(caption_dropout=0.0))
    states, progress = (
        {"denoiser": TrainState(network, OptimizerConfig(learning_rate=4e-3, warmup=0.0))},
        TrainProgress(10**6, 12, 0),
    )
    batch = Batch(clean.repeat(4, 1, 1, 1), torch.full((12,), NULL_LABEL), text=Text(names * 4))
    for _ in range(140):
        train_step(objective, states, batch, progress)
        progress.advance(12)
    stage, sampling = objective.stage, Sampling(steps=8)
    asked = Text(names[::-1], ())
    rngs = [Rng((index,)) for index in range(3)]
    made = generate([stage], torch.full((3,), NULL_LABEL), [sampling], rngs, text=asked)
    assert (made.mean((2, 3)) - clean.flip(0).mean((2, 3))).abs().max() < 0.35
    away = generate([stage], torch.full((3,), NULL_LABEL), [sampling], rngs, text=Text(("",) * 3, (names[0],) * 3))
    assert (torch.cdist(away.mean((2, 3)), clean.mean((2, 3))).argmin(1) != 0).all()
    assert retrieval(stage, clean, names, Rng((5,))).all()
    assert retrieval(stage, clean, names[::-1], Rng((5,))).sum() < 2


# -- Through the commands ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, monkeypatch):
    be_quick(monkeypatch)
    for index, path in enumerate(sorted(write_pictures(tmp_path / "pictures").rglob("*.png"))):
        path.with_suffix(".txt").write_text(f"picture <b>{index}</b>\nbức tranh {index}", encoding="utf-8")
    return tmp_path / "pictures"


@pytest.mark.parametrize("settings", [SETTINGS, CASCADE], ids=["latent", "cascade"])
def test_a_captioned_folder_becomes_a_model_that_reads(folder, tmp_path, settings):
    console = Keeper()
    run = train(request(folder, tmp_path / "run", settings=settings), console)
    (choice,) = [one for one in console.plans[0].choices if one.what == "text"]
    assert choice.value.startswith("bytes") and choice.why.startswith("10 of 10 pictures have captions")
    assert "captions of 10 pictures, from .txt files (10)" in console.plans[0].notes
    asked = read_json(run / "samples" / "samples.json")["prompts"]
    page = (run / "report.html").read_text()
    assert len(asked) == 4 and "picture <b>" not in page and "The prompts, in reading order" in page
    model = calotype.load(run)
    one, other = (model.sample(2, prompt=prompt, seed=3) for prompt in ("bức tranh 1", ["bức tranh 1", "bức tranh 2"]))
    assert all(stage.denoiser.backbone.encoder is not None for stage in model.stages)
    assert_alike(one[0], other[0])
    assert_alike(one[0], model.sample(1, prompt=" Bức tranh 1", seed=3)[0])
    assert model.labels(3, prompt="x") == [NULL_LABEL] * 3 and model.labels(2, "b", "x") == [1, 1]
    with pytest.warns(UserWarning, match="a prompt is cut after '.*w w'"):
        model.sample(1, prompt="w " * 200)
    with pytest.warns(UserWarning, match="a prompt is cut after '.*v v'"):
        model.interpolate(frames=2, prompt="a cat", negative="v " * 200)
    for stage in model.stages:
        perturbed(stage.denoiser)
    frames = model.interpolate((3, 3), 3, prompts=("bức tranh 1", "a cat"), guidance=3.0)
    for frame, prompt in ((frames[0], "bức tranh 1"), (frames[-1], "a cat")):
        assert_alike(frame, model.sample(1, prompt=prompt, seed=3, guidance=3.0)[0])
    assert len({frame.tobytes() for frame in frames}) == 3


def test_a_model_that_reads_is_edited_swept_and_evaluated(folder, tmp_path):
    """The prompt changes the picture, and none of the ways to sample forgets it."""
    run = train(request(folder, tmp_path / "run"), Keeper())
    model = calotype.load(run)
    for stage in model.stages:
        perturbed(stage.denoiser)
    given = Image.new("RGB", (16, 16), "red")
    mask = Image.new("RGB", (16, 16), "white")
    ways = (model.sample, partial(model.redraw, given, 0.9, mask), partial(model.interpolate, frames=2))
    for ask in ways:
        one, other = (ask(prompt=prompt)[0].tobytes() for prompt in ("bức tranh", "a cat"))
        assert one != other
    commands.sweep_run(SweepOptions(run, count=4, steps="2", guidance="1,2"), Keeper())
    assert {cell["guidance"] for cell in read_json(run / "sweep.json")["cells"]} == {1.0, 2.0}
    console = Keeper()
    commands.evaluate(EvaluateOptions(run, count=4, guidance=3.5), console)
    found = read_json(run / "evaluation.json")
    assert any("guidance 3.5, as asked" in note for note in found["notes"])
    assert found["sampling"][0]["guidance"] == 3.5 and found["alignment"]["languages"] == ["captions"]
    why = "it needs 2 test pictures with captions of their own, and there are 1"
    for page in (
        "\n".join(console.printed),
        (run / "report.html").read_text(),
        (run / "model" / "README.md").read_text(),
    ):
        assert why in page and "what these pictures show is not known" in page


def assert_alike(one, other):
    differences = (abs(a - b) for a, b in zip(one.tobytes(), other.tobytes(), strict=True))
    assert isinstance(one, Image.Image) and max(differences) <= 1


def test_without_captions_or_where_they_are_turned_off_nothing_reads(folder, tmp_path):
    run = train(request(folder, tmp_path / "off", "denoiser.text.kind=none"), Keeper())
    assert calotype.load(run).text_encoder is None and "prompts" not in read_json(run / "samples" / "samples.json")
    with pytest.raises(UserError, match="trained without captions, so it reads no prompt") as error:
        commands.sample(SampleOptions(run, 1, out=tmp_path / "out", prompt="a cat"), Keeper())
    assert "\n" not in str(error.value)


def test_a_reader_without_captions_is_refused():
    settings = {**SETTINGS, "denoiser": {**SETTINGS["denoiser"], "text": {"kind": "bytes"}}}
    with pytest.raises(UserError, match="none of the pictures has a caption"):
        make_plan(noise_pictures(), machine(), 1.0, 0.0, settings)


@pytest.mark.parametrize(("content", "message"), [(b"\n \n", "is empty"), (b"a\0b", "NUL"), (b"\xff\xfe", "is empty")])
def test_a_file_that_holds_no_prompts_is_one_line(tmp_path, content, message):
    (tmp_path / "prompts.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_prompts(tmp_path / "prompts.txt")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="is missing"):
        read_prompts(tmp_path / "nothing.txt")
    os.mkfifo(tmp_path / "pipe")
    for path, kind in (tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device"), (tmp_path, "folder"):
        with pytest.raises(UserError, match=f"is a {kind}"):
            read_prompts(path)


def test_sources_hand_out_the_captions_of_their_pictures(folder):
    pictures = read_folder(folder, 16)
    source = PictureSource(pictures, pictures.train_indices, Rng((0,)), torch.device("cpu"), 16, False)
    batch = source.batch(0, 9)
    for image, caption in zip(batch.clean, batch.text.prompts, strict=True):
        row = next(row for row, captions in enumerate(pictures.captions.of) if caption in captions)
        assert torch.equal(image, pictures.pixels[row].float() / 127.5 - 1)
