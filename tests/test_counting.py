import pytest
import torch
import torch.nn.functional as F
from small import second_leg
from torch import nn

from calotype.diffusion.stage import Sampling, generate
from calotype.evaluation.counting import counted, most_memory
from calotype.nets.dit import Dit, DitConfig
from calotype.nets.perceptual import STAGES
from calotype.planning.count import lite0_flops
from calotype.types import Rng


def test_a_multiply_add_counts_two():
    linear, convolution = nn.Linear(5, 7), nn.Conv2d(3, 4, 3, padding=1)
    assert counted(lambda: linear(torch.zeros(2, 5))) == 2 * 2 * 5 * 7
    assert counted(lambda: convolution(torch.zeros(2, 3, 8, 8))) == 2 * 2 * 8 * 8 * 3 * 4 * 9


def test_attention_is_counted_on_every_device():
    """Two products of `tokens x tokens x width` a head: the fused one of the CPU would count 0."""
    query = torch.zeros(1, 2, 16, 8)
    assert counted(lambda: F.scaled_dot_product_attention(query, query, query)) == 2 * 2 * 2 * 16 * 16 * 8


def test_backward_costs_twice_forward():
    linear, image = nn.Linear(5, 7), torch.zeros(2, 5, requires_grad=True)
    forward = counted(lambda: linear(image))
    assert counted(lambda: linear(image).sum().backward()) == 3 * forward


def test_a_transformer_recounted_by_hand():
    """4 x 4 places of 3 channels, width 16, 1 layer, 2 heads."""
    config = DitConfig(width=16, depth=1, heads=2, patch=1)
    network, inner = Dit(config, 3, 3), 64  # 2.6667 * 16 = 42.7, up to a multiple of 32
    tokens, width = 16, 16
    expected = 2 * sum([
        tokens * 3 * width,  # in
        tokens * 32 * width,  # places
        width * 6 * width,  # modulation
        tokens * width * 3 * width,  # query, key, value
        2 * tokens * tokens * width,  # attention
        tokens * width * width,  # its output
        tokens * width * 2 * inner + tokens * inner * width,  # feed-forward
        width * 2 * width,  # last modulation
        tokens * width * 3,  # out
    ])  # fmt: skip
    with torch.no_grad():
        assert counted(lambda: network(torch.zeros(1, 3, 4, 4), torch.zeros(1, width))) == expected


def test_guidance_and_steps_multiply_the_cost_of_the_denoiser():
    stage = second_leg().trained
    decode = counted(lambda: stage.space.decode(torch.zeros(1, *stage.shape)))

    def of(steps, guidance):
        sampling = Sampling(steps=steps, guidance=guidance)
        return counted(lambda: generate([stage], torch.tensor([0]), [sampling], [Rng((0,))])) - decode

    assert of(4, 1.0) == 4 * of(1, 1.0)
    assert of(4, 2.0) == pytest.approx(2 * of(4, 1.0), rel=1e-3)  # a product in the prior counts otherwise by twos


def test_memory_is_that_of_this_process():
    before = most_memory(torch.device("cpu"))
    held = torch.ones(2**24)  # 64 MiB
    assert most_memory(torch.device("cpu")) >= max(before, 4 * held.numel())


def test_features_of_the_smallest_crop_are_counted():
    """At 8 px their last map is one pixel, of which no batch norm in training takes the variance."""
    assert 0 < lite0_flops(8, STAGES) < lite0_flops(16, STAGES)
