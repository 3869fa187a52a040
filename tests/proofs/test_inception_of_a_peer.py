"""Inception against that of torch-fidelity, an independent conversion of the network of TensorFlow.

It runs where that is installed: `pip install --no-deps torch-fidelity`.
"""

import importlib
import importlib.util
import sys
import types

import pytest
import torch

from calotype.nets.inception import Inception


@pytest.fixture
def peer(monkeypatch):
    """The one module of torch-fidelity; its package imports torchvision."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None:
        pytest.skip("needs torch-fidelity")
    package = types.ModuleType("torch_fidelity")
    package.__path__ = spec.submodule_search_locations
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    return importlib.import_module("torch_fidelity.feature_extractor_inceptionv3").FeatureExtractorInceptionV3


def test_equal_weights_give_equal_features(peer, tmp_path):
    network = Inception().eval().requires_grad_(False)
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight)
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1)
            part.running_var.uniform_(0.5, 1.5)
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    theirs = peer("inception", ["2048"], feature_extractor_weights_path=str(tmp_path / "weights.pth"))
    images = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8)
    ours = network.pooled((images.float() - 128) / 128)  # its scale of colours, which pytorch-fid has not
    assert torch.allclose(theirs(images)[0], ours, atol=1e-5 * float(ours.max()))
