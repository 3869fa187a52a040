"""Networks of other papers: Inception against a second writing of it, DINOv2 and CLIP against transformers."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from small import Keeper

from calotype.cli.commands import evaluating
from calotype.cli.options import EvaluateOptions
from calotype.evaluation.features import FeatureNetwork, distance_name, features
from calotype.evaluation.networks import InceptionFeatures, VisionFeatures, open_features
from calotype.nets.inception import Inception
from calotype.types import Rng, UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inception():
    """Random weights under which no activation dies out."""
    torch.manual_seed(0)
    network = Inception().eval().requires_grad_(False)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
        if isinstance(part, torch.nn.BatchNorm2d):
            for value, low in (
                (part.running_mean, -0.2),
                (part.running_var, 0.5),
                (part.weight, 0.8),
                (part.bias, -0.1),
            ):
                value.uniform_(low, low + 0.4)
    return network


@pytest.fixture(scope="module")
def file(inception, tmp_path_factory):
    """Without the counters of batches, which some files have."""
    path = tmp_path_factory.mktemp("inception") / "inception.safetensors"
    state = {name: value for name, value in inception.state_dict().items() if not name.endswith("num_batches_tracked")}
    save_file(state, path)
    return path


def written_again(state, image):
    """Szegedy et al., arXiv 1512.00567, with the averages of 2015: every block spelt out."""

    def conv(name, x, stride=1, padding=0):
        x = F.conv2d(x, state[f"{name}.conv.weight"], None, stride, padding)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, var, state[f"{name}.bn.weight"], state[f"{name}.bn.bias"], eps=1e-3))

    def chain(x, *steps):
        for name, padding in steps:
            x = conv(name, x, 1, padding)
        return x

    def average(x):
        ones = F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1) / ones

    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", image, 2)), 1, 1)
    x = conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, 2)))
    x = F.max_pool2d(x, 3, 2)
    for b in ("Mixed_5b.", "Mixed_5c.", "Mixed_5d."):
        five = chain(x, (b + "branch5x5_1", 0), (b + "branch5x5_2", 2))
        three = chain(x, (b + "branch3x3dbl_1", 0), (b + "branch3x3dbl_2", 1), (b + "branch3x3dbl_3", 1))
        x = torch.cat([conv(b + "branch1x1", x), five, three, conv(b + "branch_pool", average(x))], 1)
    b = "Mixed_6a."
    three = conv(b + "branch3x3dbl_3", chain(x, (b + "branch3x3dbl_1", 0), (b + "branch3x3dbl_2", 1)), 2)
    x = torch.cat([conv(b + "branch3x3", x, 2), three, F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_6b.", "Mixed_6c.", "Mixed_6d.", "Mixed_6e."):
        seven = chain(x, (b + "branch7x7_1", 0), (b + "branch7x7_2", (0, 3)), (b + "branch7x7_3", (3, 0)))
        steps = [(f"{b}branch7x7dbl_{n}", ((3, 0), (0, 3))[n % 2]) for n in (2, 3, 4, 5)]
        twice = chain(x, (b + "branch7x7dbl_1", 0), *steps)
        x = torch.cat([conv(b + "branch1x1", x), seven, twice, conv(b + "branch_pool", average(x))], 1)
    b = "Mixed_7a."
    three = conv(b + "branch3x3_2", conv(b + "branch3x3_1", x), 2)
    seven = chain(x, (b + "branch7x7x3_1", 0), (b + "branch7x7x3_2", (0, 3)), (b + "branch7x7x3_3", (3, 0)))
    x = torch.cat([three, conv(b + "branch7x7x3_4", seven, 2), F.max_pool2d(x, 3, 2)], 1)
    for b, pool in (("Mixed_7b.", average), ("Mixed_7c.", lambda x: F.max_pool2d(x, 3, 1, 1))):
        three = conv(b + "branch3x3_1", x)
        twice = chain(x, (b + "branch3x3dbl_1", 0), (b + "branch3x3dbl_2", 1))
        halves = [(three, "branch3x3_2a", (0, 1)), (three, "branch3x3_2b", (1, 0))]
        halves += [(twice, "branch3x3dbl_3a", (0, 1)), (twice, "branch3x3dbl_3b", (1, 0))]
        sides = [conv(b + name, y, 1, padding) for y, name, padding in halves]
        x = torch.cat([conv(b + "branch1x1", x), *sides, conv(b + "branch_pool", pool(x))], 1)
    return x.mean((2, 3))


def test_inception_is_the_network_of_the_paper(inception):
    images = Rng(("inception",)).normal(2, 3, 107, 91)
    expected = written_again(inception.state_dict(), images)
    assert torch.allclose(inception.pooled(images), expected, atol=1e-5 * float(expected.max()))
    assert expected.std(0).mean() > 1e-3 * expected.abs().mean()  # the pictures are told apart
    assert (
        sum(value.numel() for value in inception.parameters()) == 23_834_568 + 8 * 2049
    )  # torchvision's, 8 more classes


def test_features_of_inception_are_of_299_px(inception, file):
    network = open_features("inception", file, CPU)
    assert isinstance(network, FeatureNetwork) and distance_name(network) == "FID" and len(network.weights) == 64
    image = Rng(("inception",)).normal(1, 3, 32, 32).clamp(-1, 1)
    large = F.interpolate(image, size=(299, 299), mode="bilinear")
    rows = features([image], network)
    assert rows.shape == (1, 2048) and np.allclose(rows, inception.pooled(large).numpy(), rtol=1e-3, atol=1e-3)


def test_other_weights_than_those_of_fid_are_refused(inception, file, tmp_path):
    state = inception.state_dict()
    thousand = {"fc.weight": torch.zeros(1000, 2048), "fc.bias": torch.zeros(1000)}
    for name, given, message in (
        ("torchvision", state | thousand, r"fc\.(weight|bias) is \[1000.*, but its settings make it \[1008"),
        ("less", {key: value for key, value in state.items() if "Mixed_7c" not in key}, "has no Mixed_7c"),
    ):
        save_file(given, tmp_path / name)
        with pytest.raises(UserError, match=message):
            InceptionFeatures(tmp_path / name)
    (tmp_path / "pickle.pth").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match="not safetensors"):
        InceptionFeatures(tmp_path / "pickle.pth")


@pytest.mark.parametrize(
    ("name", "weights", "message"),
    [
        ("inception", None, "needs a safetensors file: --features-weights"),
        ("clip", None, "needs a folder of transformers: --features-weights"),
        ("lite0", "weights", "without --features"),
        ("inception", "nowhere", "nowhere"),
    ],
)
def test_weights_that_are_missing_are_named(tmp_path, name, weights, message):
    with pytest.raises(UserError, match=message):
        open_features(name, weights and tmp_path / weights, CPU)


def test_the_command_line_opens_the_network_that_it_names(monkeypatch, tmp_path):
    def opened(name, weights, device):
        raise UserError(f"{name} {weights.name} {device}")

    monkeypatch.setattr(evaluating, "open_features", opened)
    options = EvaluateOptions(tmp_path, features="dinov2", features_weights=tmp_path / "large", device="cpu")
    with pytest.raises(UserError, match="dinov2 large cpu"):
        evaluating.evaluate(options, Keeper())


def test_without_transformers_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "calotype\[transformers\]"'):
        open_features("dinov2", tmp_path, CPU)


# -- With transformers -------------------------------------------------------------------------------------------------

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 14, "image_size": 56}


def saved(kind, folder):
    """A small encoder of transformers, and it in a folder."""
    import transformers

    torch.manual_seed(0)
    if kind == "dinov2":
        network = transformers.Dinov2Model(transformers.Dinov2Config(**SMALL))
    elif kind == "clip":
        both = {
            "text_config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
            "projection_dim": 8,
        }
        network = transformers.CLIPModel(transformers.CLIPConfig(vision_config=SMALL | {"projection_dim": 8}, **both))
    else:
        config = transformers.CLIPVisionConfig(**SMALL, projection_dim=8)
        network = transformers.CLIPVisionModelWithProjection(config)
    network.eval().save_pretrained(folder)
    return network


@pytest.mark.parametrize("kind", ["dinov2", "clip", "clip_vision_model"])
def test_features_are_those_of_transformers(kind, tmp_path):
    pytest.importorskip("transformers")
    theirs = saved(kind, tmp_path)
    ours = open_features("dinov2" if kind == "dinov2" else "clip", tmp_path, CPU)
    images = Rng(("encoders",)).normal(3, 3, 48, 40).clamp(-1, 1)
    pixels = ours.prepared(images)
    with torch.no_grad():
        if kind == "dinov2":
            expected = theirs(pixel_values=pixels).last_hidden_state[:, 0]
        elif kind == "clip":
            expected = theirs.visual_projection(theirs.vision_model(pixel_values=pixels).pooler_output)
        else:
            expected = theirs(pixel_values=pixels).image_embeds
    assert np.allclose(features([images], ours), expected.numpy(), atol=1e-5)
    assert ours.name == ("DINOv2-32x14" if kind == "dinov2" else "CLIP-32x14")
    assert distance_name(ours) == f"FD-{ours.name}"


def test_pixels_have_the_colours_that_the_network_knows(tmp_path):
    """White is (1 - mean) / deviation, as processors of transformers have it."""
    pytest.importorskip("transformers")
    saved("clip", tmp_path)
    white = VisionFeatures("clip", tmp_path).prepared(torch.ones(1, 3, 20, 30))
    assert white.shape == (1, 3, 56, 56)
    expected = torch.tensor(
        [(1 - 0.48145466) / 0.26862954, (1 - 0.4578275) / 0.26130258, (1 - 0.40821073) / 0.27577711]
    )
    assert torch.allclose(white[0, :, 7, 7], expected, atol=1e-5)


def test_a_folder_of_something_else_is_refused(tmp_path):
    pytest.importorskip("transformers")
    saved("clip", tmp_path)
    with pytest.raises(UserError, match="model_type is 'clip', but --features dinov2 needs"):
        open_features("dinov2", tmp_path, CPU)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="is a pickle, which can run code"):
        open_features("clip", tmp_path, CPU)
