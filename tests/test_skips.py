"""Under `FAIL_ON_SKIP`, which `make proofs` sets, nobody takes a test for passed that could not run."""

from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize("reason, fails", [
    ("Skipped: needs chromium", True), ("needs the extra onnx", True), ("Skipped: could not import 'onnx': none", True),
    ("Skipped: names have fewer letters there", False),
])  # fmt: skip
@pytest.mark.parametrize("strict", ["", "1"])
def test_a_skip_for_want_of_a_package_fails_where_that_is_asked(reason, fails, strict, request, monkeypatch):
    conftest = request.config.pluginmanager.get_plugin(str(Path(__file__).with_name("conftest.py")))
    monkeypatch.setenv("FAIL_ON_SKIP", strict)
    report = conftest.failed_if_lacking(SimpleNamespace(outcome="skipped", skipped=True, longrepr=("file", 1, reason)))
    assert report.outcome == ("failed" if fails and strict else "skipped")
