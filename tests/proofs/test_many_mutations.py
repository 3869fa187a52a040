"""As `tests/test_mutations.py`, with 10,000 changed pictures; MUTATIONS sets another number."""

import os
import sys
from pathlib import Path

os.environ.setdefault("MUTATIONS", "10000")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from test_mutations import *  # noqa: F403
