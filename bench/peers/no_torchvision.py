"""Import this before a package that imports torchvision, of which there is no build for a CPU torch, and uses none."""

import sys
from unittest.mock import MagicMock

for name in ("", ".datasets", ".models", ".transforms", ".utils"):
    sys.modules.setdefault(f"torchvision{name}", MagicMock())
