"""One file from many: the definitions that a script uses, cut from the modules of Calotype with all that they use.

A public name stands in one module only (`tests/test_language.py`), so that they can stand in one file. Annotations are
not followed: with `from __future__ import annotations` nothing evaluates them.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SOURCE_FOLDER = Path(__file__).resolve().parents[1]
ANNOTATIONS = ("annotation", "returns")


@dataclass(frozen=True)
class Definition:
    """A statement at the top level of a module."""

    module: str
    line: int
    text: str
    uses: frozenset[str]


def with_sources(script: str, provided: Iterable[str] = ()) -> str:
    """The script, which imports from calotype, with the definitions that it uses in the place of these imports.

    `provided` are names that the script defines itself, in place of ours.
    """
    tree, own = ast.parse(script), set(provided)
    imported = [node for node in tree.body if isinstance(node, ast.ImportFrom) and _is_ours(node.module)]
    chosen, outside = dict[tuple[str, int], Definition](), dict[str, str]()
    queue = [(node.module or "", name) for node in imported for _, name in _origins(node)]
    while queue:
        module, name = queue.pop()
        definition = top_level(module)[name]
        if (key := (module, definition.line)) in chosen:
            continue
        chosen[key] = definition
        for used in definition.uses - own:
            if used in top_level(module):
                queue.append((module, used))
            elif used in (ours := our_imports(module)):
                queue.append(ours[used])
            elif used in (others := other_imports(module)):
                outside[used] = others[used]
    order = {module: place for place, module in enumerate(import_order({module for module, _ in chosen}))}
    parts = sorted(chosen.values(), key=lambda each: (order[each.module], each.line))
    return _assembled(script, imported, sorted(set(outside.values())), parts)


def _assembled(script: str, imported: list[ast.ImportFrom], imports: list[str], parts: list[Definition]) -> str:
    lines = script.splitlines()
    first, last = imported[0].lineno - 1, imported[-1].end_lineno or 0
    body, module = list[str](), ""
    for part in parts:
        if part.module != module:
            module = part.module
            body += [f"\n\n# -- {module} " + "-" * (115 - len(module))]
        body += ["", "", part.text] if "\n" in part.text else [part.text]
    return "\n".join([*lines[:first], *imports, *body, "", "", *lines[last:]]) + "\n"


# -- Modules -----------------------------------------------------------------------------------------------------------


def source_file(module: str) -> Path:
    return SOURCE_FOLDER.joinpath(*module.split(".")[1:]).with_suffix(".py")


@cache
def top_level(module: str) -> dict[str, Definition]:
    """By the names that they define."""
    text = source_file(module).read_text("utf-8")
    lines, named = text.splitlines(), dict[str, Definition]()
    for node, following in zip((body := ast.parse(text).body), [*body[1:], None], strict=True):
        if not (names := list(_defined(node))):
            continue
        first = min([node.lineno, *(each.lineno for each in getattr(node, "decorator_list", []))])
        last = node.end_lineno or node.lineno
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):  # the words below a constant
            last = following.end_lineno or last
        definition = Definition(module, first, "\n".join(lines[first - 1 : last]), frozenset(used_names(node)))
        named |= dict.fromkeys(names, definition)
    return named


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (each.id for target in node.targets for each in ast.walk(target) if isinstance(each, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def used_names(node: ast.AST) -> Iterator[str]:
    """All names outside of annotations that are not Python's own."""
    if isinstance(node, ast.Name) and not hasattr(builtins, node.id):
        yield node.id
    for field, value in ast.iter_fields(node):
        if field not in ANNOTATIONS:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from used_names(child)


@cache
def our_imports(module: str) -> dict[str, tuple[str, str]]:
    """Name here -> module of ours and name there, wherever in the module it is imported."""
    nodes = ast.walk(ast.parse(source_file(module).read_text("utf-8")))
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom) and _is_ours(node.module)]
    return {here: (node.module or "", there) for node in froms for here, there in _origins(node)}


@cache
def other_imports(module: str) -> dict[str, str]:
    """Name here -> the statement that imports it from elsewhere."""
    statements = dict[str, str]()
    for node in ast.parse(source_file(module).read_text("utf-8")).body:
        if isinstance(node, ast.Import):
            for each in node.names:
                statements[each.asname or each.name.split(".")[0]] = ast.unparse(ast.Import([each]))
        elif isinstance(node, ast.ImportFrom) and not _is_ours(node.module) and node.module != "__future__":
            for each in node.names:
                statements[each.asname or each.name] = ast.unparse(ast.ImportFrom(node.module, [each], 0))
    return statements


def import_order(modules: set[str]) -> list[str]:
    """Each after those that it imports from."""
    ordered = list[str]()

    def visit(module: str) -> None:
        if module in ordered:
            return
        for below in sorted({below for below, _ in our_imports(module).values() if below != module}):
            visit(below)
        ordered.append(module)

    for module in sorted(modules):
        visit(module)
    return [module for module in ordered if module in modules]


def _is_ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] == SOURCE_FOLDER.name


def _origins(node: ast.ImportFrom) -> Iterator[tuple[str, str]]:
    yield from ((each.asname or each.name, each.name) for each in node.names)
