"""What the proofs of the page share, so that `pytest tests/proofs -k serve` runs them together."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from serving import chromium


@pytest.fixture(scope="module")
def browser():
    """One for each file: while it is open, no other event loop runs in this process."""
    with chromium() as browser:
        yield browser
