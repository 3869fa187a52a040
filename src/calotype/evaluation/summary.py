"""What an evaluation found, in lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from calotype.report.evaluation import OBEYED, about, about_obedience, obeyed_rows, reasons, rows


def summary(found: dict[str, Any]) -> Iterator[str]:
    """The measures beside their floor and ceiling, those of the autoencoder; does it copy, does it obey."""
    yield about(found)
    yield from lines(("", "samples", "other real pictures", "noise"), rows(found, found["measures"]))
    if through := found["autoencoder"]:
        yield from lines(("", "reconstructions", "other real pictures", "before training"), rows(found, through))
    yield from (*reasons(found), *found["notes"])
    yield f"memorisation: {found['memorisation']['verdict']}: {found['memorisation']['sentence']}"
    if reason := found["obedience"].get("reason"):
        yield f"obedience: not measured: {reason}"
        return
    heads = (title.lower() for title in OBEYED)
    yield from lines(("told", *found["obedience"]["languages"], *heads), obeyed_rows(found["obedience"]))
    yield about_obedience(found["obedience"])


def lines(heads: tuple[str, ...], cells: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Nothing where there is no row: so few pictures give no number."""
    if not (found := list(cells)):
        return
    for name, *rest in (heads, *found):
        yield (f"{name:<28}" + "".join(f"{one:<28}" for one in rest)).rstrip()
