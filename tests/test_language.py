"""One language in the house: the field's words, one file for each public name, short functions and files."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
STANDALONE = ROOT / "src" / "calotype" / "export" / "standalone"
"""Files that are copied elsewhere, and have names of their own."""
EVERYWHERE = [*SOURCES, *sorted((ROOT / "bench").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py"))]
FORBIDDEN = {"told", "untold", "said", "spoilt", "doubt", "wish", "voice", "workshop", "ears"}
FUNCTION_LINES, MEDIAN_LINES, FILE_LINES = 60, 6, 400

Function = ast.FunctionDef | ast.AsyncFunctionDef


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a file defines or uses, with its line; strings and comments are not names."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "name", "asname", "arg", "module", "rest"):
            name = getattr(node, field, None)
            if isinstance(name, str):
                yield name, getattr(node, "lineno", 0)


def parts(identifier: str) -> list[str]:
    """Words of an identifier: `heldOut_asTold` is held, out, as, told."""
    return [part.lower() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", identifier)]


def defined(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and constants that a file defines at its top level, not those that it imports."""
    for node in tree.body:
        if isinstance(node, Function | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign):
            names = [inner.id for target in node.targets for inner in ast.walk(target) if isinstance(inner, ast.Name)]
        elif isinstance(node, ast.AnnAssign):
            target = node.target
            names = [target.id] if isinstance(target, ast.Name) else []
        else:
            names = []
        yield from (name for name in names if not name.startswith("_"))


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield node.name, body_lines(node)


def body_lines(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    assert function.end_lineno is not None
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function, clean=False) is not None and first.end_lineno is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in EVERYWHERE}


@pytest.mark.parametrize("src_alone", [True, False], ids=["src", "bench and tests, too"])
def test_identifiers_use_the_terms_of_the_field(trees: dict[Path, ast.Module], src_alone: bool) -> None:
    wrong = {
        f"{path.relative_to(ROOT)}:{line} {name}"
        for path, tree in trees.items()
        if path in SOURCES or not src_alone
        for name, line in identifiers(tree)
        if FORBIDDEN & set(parts(name))
    }
    assert not wrong, "\n".join(sorted(wrong))


def test_a_public_name_is_defined_in_one_file(trees: dict[Path, ast.Module]) -> None:
    homes = defaultdict(set)
    for path in (path for path in SOURCES if path.parent != STANDALONE):
        for name in defined(trees[path]):
            homes[name].add(str(path.relative_to(ROOT / "src")))
    twice = [f"{name}: {', '.join(sorted(files))}" for name, files in sorted(homes.items()) if len(files) > 1]
    assert not twice, "\n".join(twice)


def test_functions_are_short(trees: dict[Path, ast.Module]) -> None:
    lengths = [(path, name, size) for path in SOURCES for name, size in functions(trees[path])]
    long = [f"{path.relative_to(ROOT)} {name}: {size}" for path, name, size in lengths if size > FUNCTION_LINES]
    assert not long, "\n".join(long)
    assert median(size for _, _, size in lengths) <= MEDIAN_LINES


def test_files_are_short() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    long = [f"{path.relative_to(ROOT)}: {size}" for path, size in sizes.items() if size > FILE_LINES]
    assert not long, "\n".join(long)
