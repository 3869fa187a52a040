"""Writes the pages of reference that are made from the code: `python docs/reference/generate.py`.

tests/test_documents.py says where they are not what it writes.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import calotype
from calotype.cli.options import app, data_app
from calotype.nets.deterministic import ImportedNetwork
from calotype.recipe import EnlargeRecipe, Recipe
from calotype.types import Config

HERE = Path(__file__).parent
NOTE = "<!-- Written by docs/reference/generate.py. -->\n\n"


# -- Command line ------------------------------------------------------------------------------------------------------


def command_line() -> str:
    """Every command with its arguments and options."""
    parts = [NOTE, "# Command line\n\n", EXIT_CODES]
    for name, options in commands():
        known = [described(field, hint) for field, hint in annotated(options)]
        usage = " ".join([name, *(written for is_argument, written, _ in known if is_argument), "[OPTIONS]"])
        parts.append(f"## {name}\n\n{one_line(options.__doc__)}\n\n```text\n{usage}\n```\n\n")
        parts.append("| | |\n| --- | --- |\n")
        parts += [f"| `{name}` | {text} |\n" for _, name, text in known]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


EXIT_CODES = """\
`calotype COMMAND --help` shows the same. Exit codes: 0 success; 1 an error in Calotype (its traceback is in a file);
2 an error of the user, explained in one line; 130, 143 or 129 stopped by Ctrl-C, SIGTERM or SIGHUP, after training was
saved. `calotype --install-completion` installs completion of commands and options for bash, zsh, fish and PowerShell.

"""


def commands() -> Iterator[tuple[str, type]]:
    for group, path in ((app, "calotype"), (data_app, "calotype data")):
        yield from ((f"{path} {command.name}", command.callback) for command in group.registered_commands)


def annotated(options: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields that come from the command line, with their types; arguments first, as typer has them."""
    hints = typing.get_type_hints(options, include_extras=True)
    given = [(field, hints[field.name]) for field in dataclasses.fields(options) if field.init]
    yield from sorted(given, key=lambda pair: not isinstance(pair[1].__metadata__[0], typer.models.ArgumentInfo))


def described(field: dataclasses.Field[Any], hint: Any) -> tuple[bool, str, str]:
    """Whether it is an argument, how it is written, and its help with the default."""
    (info,), required = hint.__metadata__, field.default is dataclasses.MISSING
    plain = (
        isinstance(field.default, str | int | float | Path)
        and not isinstance(field.default, bool)
        and info.show_default
    )
    text = one_line(info.help) + (f" [default: {field.default}]" if plain else "")
    if isinstance(info, typer.models.ArgumentInfo):
        name = info.metavar or field.name.upper()
        return True, name if required else f"[{name}]", text
    inner = next(each for each in members(hint) if each is not type(None))
    choices = typing.get_args(inner) if typing.get_origin(inner) is typing.Literal else ()
    value = "" if inner is bool else " " + (" or ".join(choices) or info.metavar or VALUES.get(inner, "TEXT"))
    first = [info.default] if isinstance(info.default, str) else []  # typer.Option("--set") has it there
    names = [*first, *(info.param_decls or ())] or [f"--{field.name.replace('_', '-')}"]
    return False, f"{names[0]}{value}", text + " [required]" * required


VALUES = {Path: "PATH", int: "NUMBER", float: "NUMBER"}


def one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


# -- Recipe ------------------------------------------------------------------------------------------------------------


def recipe() -> str:
    """Every key of a recipe, with its type, its default and what it does."""
    parts = [NOTE, RECIPE_INTRODUCTION]
    for title, path, model in [
        ("Recipe", "", Recipe),
        ("A stage that enlarges: enlarge.SIZE", "enlarge.256.", EnlargeRecipe),
    ]:
        parts.append(f"## {title}\n\n| key | values | default | |\n| --- | --- | --- | --- |\n")
        parts += [
            f"| `{key}` | {values} | {default} | {about} |\n" for key, values, default, about in rows(model, path)
        ]
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


RECIPE_INTRODUCTION = """# Recipe keys

Set each key in a TOML file (`--recipe`), or with `--set key=value`. The defaults are those of the schema. The plan
chooses most settings by [its laws](../plan.md), and the `recipe.toml` of a run has all of them. A key that is marked
with a `kind` exists only with that kind. A leg is the training of one network: the autoencoder with its critic, the
denoiser, or a stage that enlarges.

"""


def rows(
    model: type[BaseModel], prefix: str, kind: str = "", given: object = None
) -> Iterator[tuple[str, str, str, str]]:
    """Key, values, default and text of each field; `given` has the defaults where the settings above replace them."""
    documented = docstrings(model)
    for name, field in model.model_fields.items():
        key, about = prefix + name, documented.get(name) or field.description or ""
        default = getattr(given, name) if isinstance(given, model) else default_of(field)
        models = [each for each in members(field.annotation) if isinstance(each, type) and issubclass(each, Config)]
        if name == "enlarge" or (name == "kind" and len(typing.get_args(field.annotation)) == 1):
            continue
        if not models:
            only = f"(`{kind}`) " if kind else ""
            value = "required" if field.is_required() else f"`{json.dumps(default, default=str)}`"
            yield key, values_of(field), value, (only + about).strip()
            continue
        if len(models) > 1:
            yield (
                f"{key}.kind",
                " or ".join(f"`{kind_of(each)}`" for each in models),
                f"`{kind_of(type(default))}`",
                about,
            )
        for each in models:
            if issubclass(each, ImportedNetwork):  # their settings are read from a folder
                continue
            yield from rows(each, f"{key}.", kind_of(each) if len(models) > 1 else kind, default)


def members(annotation: Any) -> list[Any]:
    """The types of a union, or the one type."""
    if typing.get_origin(annotation) is typing.Annotated:
        return members(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [inner for each in typing.get_args(annotation) for inner in members(each)]
    return [annotation]


def kind_of(model: type[BaseModel]) -> str:
    return str(model.model_fields["kind"].default) if "kind" in model.model_fields else model.__name__


def values_of(field: Any) -> str:
    annotation = field.annotation
    if typing.get_origin(annotation) is typing.Literal:
        return " or ".join(f"`{value}`" for value in typing.get_args(annotation))
    return str(getattr(annotation, "__name__", annotation)).replace("typing.", "").replace("|", "or")


def default_of(field: Any) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The text below each field, of the class and of those that it is made from."""
    found: dict[str, str] = {}
    for owner in reversed(model.__mro__):
        if owner.__module__.startswith("calotype") and owner is not Config:
            body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
            for field, text in pairwise(body):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(text, ast.Expr)
                    and isinstance(text.value, ast.Constant)
                ):
                    found[field.target.id] = one_line(str(text.value.value))
    return found


# -- Python ------------------------------------------------------------------------------------------------------------


def python() -> str:
    """`load`, and the public methods of a model."""
    model = calotype.Model
    functions = [("calotype.load", calotype.load)]
    functions += [
        (f"Model.{name}", getattr(model, name)) for name in ("sample", "draw", "redraw", "interpolate", "enlarge")
    ]
    parts = [NOTE, PYTHON_INTRODUCTION]
    for name, function in functions:
        signature = inspect.signature(function)
        given = ", ".join(argument(each) for each in signature.parameters.values() if each.name != "self")
        result = f"{name}({given}) -> {signature.return_annotation}"
        parts.append(f"## {name}\n\n```text\n{result}\n```\n\n{inspect.getdoc(function)}\n\n")
    return "".join(parts).rstrip() + "\n"


def argument(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return f"**{parameter.name}"
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {parameter.annotation}{default}"


PYTHON_INTRODUCTION = """# Python

`calotype.load` opens a run, or a model folder that was copied out of a run; nothing else of the run is needed. Pictures
are Pillow images. An error that the user can correct is a `calotype.UserError` with a message of one line.

"""
PAGES = {"command-line.md": command_line, "recipe.md": recipe, "python.md": python}

if __name__ == "__main__":
    for name, write in PAGES.items():
        (HERE / name).write_text(write(), encoding="utf-8")
