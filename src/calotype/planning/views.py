"""Whether few pictures are also trained on in crops: see `data.views`."""

from __future__ import annotations

from statistics import median

from calotype.data.buckets import some_sizes
from calotype.data.folder import Pictures
from calotype.planning.laws import FEW_PICTURES, MOST_VIEWS, SEEN_BY_VIEW

LEAST_CROPPED = 1.5
"""Median of the smaller sides of the pictures, in units of the first stage's: crops of smaller ones, enlarged, were no
gain (dev/LOG.md, 2026-11-30)."""


def choose_views(pictures: Pictures, kind: str, size: int, imported: bool, captioned: bool) -> tuple[bool, str]:
    """Whether the denoiser of a first stage of `size` px may be trained on views, crops of the pictures of which it is
    told, and the reason."""
    if pictures.trained >= FEW_PICTURES:
        return False, f"a gain only below {FEW_PICTURES:,} training pictures"
    if kind == "cascade" or captioned:
        return False, "tried only with latents of pictures without captions"
    if imported:
        return False, "encoding crops by an imported autoencoder takes long"
    if median(min(sides) for sides in some_sizes(pictures)) < LEAST_CROPPED * size:
        return False, f"most pictures have sides below {LEAST_CROPPED * size:.0f} px: crops would be soft"
    why = "crops keep the network from memorising few pictures; it is conditioned on their position"
    return True, f"one for each {SEEN_BY_VIEW} times that a picture is seen, at most {MOST_VIEWS}: {why}"
