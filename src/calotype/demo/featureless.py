"""The embedded portraits drawn without eyes, eyebrows, nose and mouth: true negatives for a judge of faces."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from calotype.demo.describing import Facts, styles_of
from calotype.demo.portraits import drawings, rendered

FACE_PARTS = ("eyes", "eyebrows", "brows", "nose", "mouth", "lips", "face")
"""The attributes that make a face, as the six styles name them."""
SHAPE = re.compile(r"<(?:path|circle|ellipse|rect|line|polygon)\b[^>]*/>")
COLOUR = re.compile(r'\s(?:fill|stroke)="#[0-9a-fA-F]{3,8}"')


def without_parts(svgs: Sequence[str], facts: Sequence[Facts], parts: Sequence[str] = FACE_PARTS) -> list[str]:
    """Drawings of one style (SVG) without the shapes of these parts.

    The files do not name their shapes, but what is drawn on them is known. A shape belongs to a part if it is on all
    drawings whose part has certain values, and on no other: eyes that are "variant14" are so drawn on every face that
    has them. The more drawings of the style, the surer: hundreds are needed.
    """
    shapes = [[(tag, COLOUR.sub("", tag)) for tag in SHAPE.findall(drawing)] for drawing in svgs]
    on: dict[str, set[int]] = defaultdict(set)
    for row, found in enumerate(shapes):
        for _, shape in found:
            on[shape].add(row)
    having = {part: _rows_by_value(facts, part) for part in parts}
    owned = {shape for shape, rows in on.items() if any(_is_union(rows, values) for values in having.values())}
    return [_removed(drawing, [tag for tag, shape in found if shape in owned])
            for drawing, found in zip(svgs, shapes, strict=True)]  # fmt: skip


def _rows_by_value(facts: Sequence[Facts], part: str) -> dict[str, set[int]]:
    rows: dict[str, set[int]] = defaultdict(set)
    for row, fact in enumerate(facts):
        if part in fact:
            rows[fact[part]].add(row)
    return rows


def _is_union(rows: set[int], values: Mapping[str, set[int]]) -> bool:
    """Whether these are all drawings with some of the values, but not with every one: those shapes are the head's."""
    among = [own for own in values.values() if own & rows]
    return 0 < len(among) < len(values) and set().union(*among) == rows


def _removed(drawing: str, tags: Sequence[str]) -> str:
    for tag in tags:
        drawing = drawing.replace(tag, "", 1)
    return drawing


def read_featureless(drawn: Sequence[Facts], size: int, parts: Sequence[str] = FACE_PARTS) -> UInt8[Tensor, "_ 3 _ _"]:
    """The embedded portraits with these facts, at `size` px, without the features of their faces."""
    everything, blank = drawings(), dict[str, bytes]()
    for style in styles_of(drawn):
        own = {name: one for name, one in everything.items() if one[1]["style"] == style}
        without = without_parts([one[0].decode() for one in own.values()], [one[1] for one in own.values()], parts)
        blank |= {name: drawing.encode() for name, drawing in zip(own, without, strict=True)}
    return torch.from_numpy(rendered([blank[f"{facts['style']}/{facts['file_name']}"] for facts in drawn], size))
