"""The embedded portraits drawn without eyes, eyebrows, nose and mouth: negatives for a judge of faces."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from calotype.demo.describing import Facts, styles_of
from calotype.demo.portraits import drawings, rendered

FACE_ATTRIBUTES = ("eyes", "eyebrows", "brows", "nose", "mouth", "lips", "face")
"""The attributes that make a face, as the six styles name them."""
SHAPE = re.compile(r"<(?:path|circle|ellipse|rect|line|polygon)\b[^>]*/>")
COLOUR = re.compile(r'\s(?:fill|stroke)="#[0-9a-fA-F]{3,8}"')


def without_attributes(
    svgs: Sequence[str], facts: Sequence[Facts], attributes: Sequence[str] = FACE_ATTRIBUTES
) -> list[str]:
    """Drawings of one style (SVG) without the shapes of these attributes.

    The files do not name their shapes, but the attributes are known. A shape belongs to an attribute if it is on all
    drawings with certain values of it, and on no other: eyes that are "variant14" are drawn alike on every face that
    has them. This needs hundreds of drawings of the style.
    """
    shapes = [[(tag, COLOUR.sub("", tag)) for tag in SHAPE.findall(svg)] for svg in svgs]
    rows_of: dict[str, set[int]] = defaultdict(set)
    for row, own in enumerate(shapes):
        for _, shape in own:
            rows_of[shape].add(row)
    values = [_rows_by_value(facts, attribute) for attribute in attributes]
    removed = {shape for shape, rows in rows_of.items() if any(_is_union(rows, by_value) for by_value in values)}
    blank = list(svgs)
    for row, own in enumerate(shapes):
        for tag, shape in own:
            if shape in removed:
                blank[row] = blank[row].replace(tag, "", 1)
    return blank


def _rows_by_value(facts: Sequence[Facts], attribute: str) -> list[set[int]]:
    rows: dict[str, set[int]] = defaultdict(set)
    for row, own in enumerate(facts):
        if attribute in own:
            rows[own[attribute]].add(row)
    return list(rows.values())


def _is_union(rows: set[int], by_value: Sequence[set[int]]) -> bool:
    """Whether these are all drawings with certain values, but not with every one: those shapes are the head's."""
    among = [own for own in by_value if own & rows]
    return 0 < len(among) < len(by_value) and set().union(*among) == rows


def read_featureless(drawn: Sequence[Facts], size: int) -> UInt8[Tensor, "_ 3 _ _"]:
    """The embedded portraits with these facts, at `size` px, without the features of their faces."""
    everything, blank = drawings(), dict[str, bytes]()
    for style in styles_of(drawn):
        names = [name for name, (_, facts) in everything.items() if facts["style"] == style]
        svgs, facts = zip(*(everything[name] for name in names), strict=True)
        without = without_attributes([svg.decode() for svg in svgs], facts)
        blank |= {name: svg.encode() for name, svg in zip(names, without, strict=True)}
    return torch.from_numpy(rendered([blank[f"{facts['style']}/{facts['file_name']}"] for facts in drawn], size))
