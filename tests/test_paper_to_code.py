"""Every function that docs/paper-to-code.md names exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = sorted(set(re.findall(r"`([a-z0-9_/]+\.py(?::[\w.]+)?)`", (ROOT / "docs" / "paper-to-code.md").read_text())))


def names_in(path: Path) -> set[str]:
    tree, names = ast.parse(path.read_text()), set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_the_document_names_code():
    assert len(NAMED) > 50


@pytest.mark.parametrize("place", NAMED)
def test_the_named_function_exists(place):
    path, _, name = place.partition(":")
    assert not name or name in names_in(ROOT / "src" / "calotype" / path)
    assert (ROOT / "src" / "calotype" / path).is_file()
