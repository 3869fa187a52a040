"""Nested tables, as TOML and JSON have them: merging, dotted keys, and the line of a key in a file."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

MAX_DEPTH, MAX_DIGITS = 64, 100
"""Brackets and dots in a line of TOML, and digits in a row: beyond them Python itself gives up."""


def merge(*layers: dict[str, Any]) -> dict[str, Any]:
    """Later settings over earlier ones, table by table; a table of another `kind` replaces the whole table."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            before = merged.get(key)
            if isinstance(value, dict) and isinstance(before, dict) and not _changes_kind(before, value):
                merged[key] = merge(before, value)
            else:
                merged[key] = value
    return merged


def _changes_kind(before: dict[str, Any], after: dict[str, Any]) -> bool:
    return "kind" in after and after["kind"] != before.get("kind")


def at_path(path: Sequence[str], value: Any) -> Any:
    """`value` in nested tables: `{"a": {"b": value}}`."""
    return {path[0]: at_path(path[1:], value)} if path else value


def value_at(settings: dict[str, Any], key: str) -> Any:
    """Of a dotted key; None where it is not set."""
    *tables, last = key.split(".")
    return within(settings, *tables).get(last)


def without(settings: dict[str, Any], key: str) -> dict[str, Any]:
    """The settings without a dotted key."""
    first, _, rest = key.partition(".")
    if not rest:
        return {name: value for name, value in settings.items() if name != first}
    inner = settings.get(first)
    return {**settings, first: without(inner, rest)} if isinstance(inner, dict) else settings


def all_keys(settings: dict[str, Any], prefix: str = "") -> list[str]:
    keys = []
    for key, value in settings.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += all_keys(value, f"{prefix}{key}.")
    return keys


def differences(before: dict[str, Any], after: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Old and new value by dotted key; None where a key is not set."""
    changed: dict[str, tuple[Any, Any]] = {}
    for key in {**before, **after}:
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            changed |= differences(old, new, f"{prefix}{key}.")
        elif old != new:
            changed[prefix + key] = old, new
    return changed


def read_value(text: str) -> Any:
    """TOML where it can be read as such, else the text. Raises `ValueError` as `parse_toml` does."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_toml(text: str) -> dict[str, Any]:
    """Raises `tomllib.TOMLDecodeError`, and `ValueError` for what is nested too deeply or has too many digits."""
    key, depth = "the first key", 0
    for line in text.splitlines():
        if depth <= 0 and (assigned := re.match(r"\s*([^=#\[]+?)\s*=", line)):
            key, depth = f"{assigned[1]:.80}", 0
        opened = len(re.findall(r"[\[{]", line))
        if depth + opened + line.partition("=")[0].count(".") > MAX_DEPTH:
            raise ValueError(f"{key} is nested more than {MAX_DEPTH} times; settings are tables")
        if re.search(rf"\d{{{MAX_DIGITS}}}", line):
            raise ValueError(f"{key} has a number of more than {MAX_DIGITS} digits; at most 19 are needed")
        depth += opened - len(re.findall(r"[\]}]", line))
    return tomllib.loads(text)


def clipped_repr(value: Any) -> str:
    """At most 80 letters of how Python writes a value."""
    return repr(value) if len(repr(value)) <= 80 else f"{value!r:.80}..."


def line_of(text: str, key: str) -> int:
    """The line where a dotted key is set: below its table's heading, else wherever its last part stands first."""
    *tables, last = key.split(".")
    heading, lines = ".".join(tables), text.splitlines()
    here = ""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if stripped.startswith("["):
            here = stripped.strip("[] ")
        name = stripped.split("=")[0].strip()
        if (here == heading and name == last) or (not here and name == key) or here == key:
            return number
    return next((number for number, line in enumerate(lines, 1) if last in line), 1)


def within(mapping: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    """The mapping at the end of a path of keys, empty where there is none."""
    for key in keys:
        inner = mapping.get(key)
        mapping = inner if isinstance(inner, dict) else {}
    return dict(mapping)


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    finite = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if finite else None


def numbers(mapping: Mapping[str, Any]) -> dict[str, float]:
    return {key: finite for key, value in mapping.items() if (finite := number(value)) is not None}
