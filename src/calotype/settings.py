"""Settings in TOML files and in `--set`: read, brought up to date, laid over the defaults, and parsed into a recipe."""

from __future__ import annotations

import difflib
import re
import tomllib
import warnings
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from calotype.data.split import SplitConfig
from calotype.files import read_bytes
from calotype.nets.dit import DitConfig
from calotype.nets.frozen import FolderConfig
from calotype.nets.text import BytesConfig
from calotype.nets.unet import UnetConfig
from calotype.recipe import ConditionDropout, EnlargeRecipe, Recipe
from calotype.tables import MAX_DEPTH, all_keys, clipped_repr, line_of, merge, parse_toml, read_value, value_at, without
from calotype.types import UserError

Where = Callable[[str], str]
"""From a dotted key to the place where it is set, for error messages."""

MAX_RECIPE = 2**20
"""Bytes of its file."""
UNION_TAGS = (
    "dit", "unet", "flow", "ddpm", "cosine", "karras", "noise", "blur", "vae", "kl", "tiny", "dc", "rae", "own",
    "diffusers", "run", "bytes", "minilm", "folder", "none",
)  # fmt: skip
"""Values of `kind`, which pydantic puts into the location of an error; they are no part of a key."""
UNIONS = ("backbone", "schedule", "augmentation", "network", "space", "text")
"""The tables that have a `kind`."""

REMOVED = {
    "joint": "the same time in the legs before it makes better pictures",
    "autoencoder.losses.equivariance": "it cost 1.6 dB of the reconstruction and gained nothing",
    "autoencoder.losses.latent_noise": "it cost detail and made no better samples",
}
"""Keys of version 0.1 that measurement did not bear out. They changed no network, so the weights still load."""

_STAGE = r"(denoiser|enlarge\.[^.]+)"
RENAMED = {
    r"shapes": "aspect_buckets",
    rf"{_STAGE}\.start": r"\1.prior",
    rf"{_STAGE}\.spread": r"\1.sigma_data",
    rf"{_STAGE}\.schedule\.spread": r"\1.schedule.std",
    rf"{_STAGE}\.phrase_dropout": r"\1.caption_dropout",
    rf"{_STAGE}\.mistakes": r"\1.exposure",
}
"""Keys of version 0.1 as patterns, and their names now. A prior of `"nothing"` is `"none"` now."""


def to_toml(recipe: Recipe) -> str:
    """All settings; those of the autoencoder are left out of a cascade."""
    latent = {"autoencoder", "space"}
    return tomli_w.dumps(recipe.model_dump(mode="json", exclude=latent if recipe.kind == "cascade" else set()))


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, checked against the schema. Raises `UserError` with file and line.

    Files of version 0.1 are read, too. Warns where one uses what was removed.
    """
    if not path.exists():
        raise UserError(f"recipe {path} does not exist")
    content = read_bytes(path, MAX_RECIPE)
    try:
        text = content.decode("utf-8-sig")  # Windows puts a byte order mark in front
        settings = parse_toml(text)
    except UnicodeDecodeError as error:
        raise UserError(f"recipe {path} is not TOML in UTF-8 ({error}); save it again in UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"\(at line (\d+)", str(error))
        line = [*text.splitlines(), ""][int(at[1]) - 1 if at else -2 if text else -1]
        raise UserError(f"recipe {path} is not TOML: {error}: {line.strip():.80}") from None
    except ValueError as error:
        raise UserError(f"recipe {path}: {error}") from None
    for key, reason in REMOVED.items():
        value = value_at(settings, key)
        if value.get("images") if isinstance(value, dict) else value:  # a leg of 0 images did nothing
            warnings.warn(f"{path} sets {key}, but it is gone: {reason}; it is left out", stacklevel=2)
    settings = upgraded(settings)
    check_keys(settings, {}, lambda key: f"{path}, line {line_of(text, key)}")
    return settings


def read_overrides(overrides: Iterable[str], below: dict[str, Any] | None = None) -> dict[str, Any]:
    """`["a.b=1", "a.c=x"]` as nested settings; values are TOML where they can be read as such, else text.

    `below` are the settings under them, which decide the kind of backbone and schedule. Raises `UserError`.
    """
    settings: dict[str, Any] = {}
    for text in overrides:
        (key, equals, value), override = text.partition("="), f"{text:.80}"  # the latter is for messages
        if not equals or not key.strip():
            raise UserError(f"--set {override}: expected key=value, as in --set denoiser.backbone.width=384")
        if (new := new_key(key.strip())) != key.strip():
            raise UserError(f"--set {override}: {key.strip()} has another name now; set {new}")
        *tables, last = key.strip().split(".")
        table = settings
        for name in tables[:MAX_DEPTH]:
            table = table.setdefault(name, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {override}: {name} has been given a value already")
        try:
            table[last] = read_value(value)
        except ValueError as error:
            raise UserError(f"--set {key.strip()}: {error}") from None
    check_keys(settings, below or {}, lambda key: f"--set {key}")
    return settings


def parse_recipe(settings: dict[str, Any], where: Where = lambda key: f"recipe: {key}") -> Recipe:
    """The settings over the defaults, as a recipe. Raises `UserError`: where, what is wrong, what was expected."""
    try:
        return Recipe.model_validate(over_defaults(settings))
    except ValidationError as error:
        raise settings_error(error.errors()[0], where) from None


def parse_split(settings: dict[str, Any]) -> SplitConfig:
    """The split into training, validation and test pictures, which is needed before the plan completes the recipe."""
    return parse_recipe({"split": settings.get("split", {})}).split


def check_keys(settings: dict[str, Any], below: dict[str, Any], where: Where) -> None:
    """Raises `UserError` for an unknown key or a wrong value; whether values fit together `parse_recipe` finds out."""
    try:
        Recipe.model_validate(over_defaults(merge(below, settings)))
    except ValidationError as error:
        for detail in error.errors():
            if detail["type"] != "value_error":
                raise settings_error(detail, where) from None


def over_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    stages = settings.get("enlarge")
    defaults = EnlargeRecipe().model_dump()
    enlarge = dict.fromkeys(stages, defaults) if isinstance(stages, dict) else {}
    return merge(Recipe().model_dump(), {"enlarge": enlarge}, settings)


# -- Settings of version 0.1 -------------------------------------------------------------------------------------------


def upgraded(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of version 0.1 as this version has them; others stay as they are.

    What was removed is left out. The shares of a caption or a label alone, which had no keys, shrink to what
    `label_dropout` leaves.
    """
    for key in REMOVED:
        settings = without(settings, key)
    settings = with_new_keys(settings)
    if isinstance(denoiser := settings.get("denoiser"), dict):
        settings["denoiser"] = with_shares(denoiser)
    if isinstance(stages := settings.get("enlarge"), dict):
        settings["enlarge"] = {
            size: with_shares(stage) if isinstance(stage, dict) else stage for size, stage in stages.items()
        }
    return settings


def new_key(key: str) -> str:
    """`enlarge.64.mistakes.images` is `enlarge.64.exposure.images` now."""
    for old, new in RENAMED.items():
        key = re.sub(rf"^{old}(?![^.])", new, key)
    return key


def with_new_keys(settings: dict[str, Any], table: str = "") -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for name, value in settings.items():
        key = new_key(f"{table}{name}")
        inner = with_new_keys(value, f"{key}.") if isinstance(value, dict) else value
        changed[key.removeprefix(table)] = "none" if (name, value) == ("start", "nothing") else inner
    return changed


def with_shares(stage: dict[str, Any]) -> dict[str, Any]:
    dropped, default = stage.get("label_dropout"), ConditionDropout()
    if not isinstance(dropped, float | int) or not 0 <= dropped <= 1 or {"caption_alone", "label_alone"} & {*stage}:
        return stage
    caption = min(default.caption_alone, 1 - dropped)
    label = min(default.label_alone, max(0.0, 1 - dropped - caption))
    return {**stage, "caption_alone": caption, "label_alone": label}


# -- Errors ------------------------------------------------------------------------------------------------------------


def settings_error(detail: Any, where: Where) -> UserError:
    """An error of one line, from the details of pydantic's validation error."""
    steps = pairwise(["", *(f"{part!s:.60}" for part in detail["loc"])])
    key = ".".join(part for above, part in steps if above not in UNIONS or part not in UNION_TAGS)
    problem = " ".join(detail["msg"].removeprefix("Value error, ").split())  # it may quote a value of several lines
    if not detail["loc"]:  # the recipe as a whole
        return UserError(f"{where('').rstrip(': ')}: {problem}")
    if key in REMOVED:
        return UserError(f"{where(key)}: {key} is gone: {REMOVED[key]}; leave it out")
    if detail["type"] == "extra_forbidden":
        return UserError(f"{where(key)}: {unknown_key(key)}")
    got, place = detail.get("input"), where(key)
    named = place if place.endswith(key) else f"{place}: {key}"
    if not isinstance(got, dict):
        return UserError(f"{named}: {problem:.300} (got {clipped_repr(got)})")
    rule = detail["type"] == "value_error"  # of several settings, which it names
    return UserError(f"{named}: {problem:.300}{'' if rule else ' (got a table)'}")


def unknown_key(key: str) -> str:
    """With the known key that is most like it."""
    known = known_keys(key)
    table, _, last = key.rpartition(".")
    if key in known:
        return f"{key} belongs to another kind; set {table}.kind with it"
    lasts = difflib.get_close_matches(last, {name.rpartition(".")[2] for name in known}, 1, 0.6)
    same_last = [name for name in known if name.rpartition(".")[2] in lasts]
    close = (
        difflib.get_close_matches(key, known, 1, 0.75)
        or difflib.get_close_matches(key, same_last, 1, 0.0)
        or difflib.get_close_matches(key, known, 1, 0.5)
    )
    return f"unknown key {key}" + (f"; did you mean {close[0]}?" if close else "")


def known_keys(key: str) -> list[str]:
    """All keys of a recipe, with those of every backbone and text encoder; those of stages only where `key` is one."""
    known = all_keys(Recipe().model_dump())
    known += [f"denoiser.backbone.{name}" for kind in (UnetConfig, DitConfig) for name in kind.model_fields]
    known += [f"denoiser.text.{name}" for kind in (BytesConfig, FolderConfig) for name in kind.model_fields]
    if (stage := re.match(r"enlarge\.\d+\.", key)) is not None:
        known += all_keys(EnlargeRecipe().model_dump(), stage[0])
    return sorted({*known})
