"""The site of the documents builds without a warning and fetches nothing; runs where the extra docs is installed."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FETCHED = re.compile(r'<(?:script|link|img|iframe)\b[^>]*(?:src|href)="((?:https?:)?//[^"]+)"')


def test_the_site_builds_and_fetches_nothing(tmp_path):
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", ROOT / "docs", tmp_path],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert len(pages) > 40
    assert not {address for text in pages.values() for address in FETCHED.findall(text)}
    styles = [style.read_text(encoding="utf-8") for style in (tmp_path / "_static").rglob("*.css")]
    assert styles and not any(re.search(r"url\(['\"]?(?:https?:)?//", style) for style in styles)
