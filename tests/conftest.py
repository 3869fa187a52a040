"""Every test runs with the shapes checked, on one thread, from the same seed."""

import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("calotype", "beartype.beartype")  # before anything of calotype is imported
torch.set_num_threads(1)  # the tensors are tiny: on a busy machine a second thread only waits, 10 times as long


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    torch.manual_seed(0)
