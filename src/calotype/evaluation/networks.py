"""Networks by which other papers measure, from local files: Inception v3 (FID), DINOv2 and CLIP."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from calotype.evaluation.features import FeatureNetwork, Lite0
from calotype.files import read_tensors, sha256
from calotype.interop.vision import VisionKind, open_vision
from calotype.nets.inception import FID_SIDE, Inception
from calotype.nets.weights import load_weights
from calotype.types import OtherImages, UserError

FeatureName = Literal["lite0", "inception", "dinov2", "clip"]
COUNTER = "num_batches_tracked"
"""Of batch normalisation: is in some files and not in others, and of no use."""
AT_ONCE = 16
"""Pictures; a large network at 224 px takes some 100 MB for each."""
MEANS_AND_DEVIATIONS = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
"""Of the colours, in [0, 1], that the networks were trained with."""


def open_features(name: FeatureName, weights: Path | None, device: torch.device) -> FeatureNetwork:
    """The network of this name. Raises `UserError` where its weights are missing, damaged or of another network."""
    if name == "lite0":
        if weights is not None:
            raise UserError("--features-weights is set without --features; the weights of Lite0 come in its package")
        return Lite0(device)
    if weights is None:
        what = "a safetensors file" if name == "inception" else "a folder of transformers"
        raise UserError(f"--features {name} needs {what}: --features-weights PATH (docs/how-to/compare.md)")
    return InceptionFeatures(weights, device) if name == "inception" else VisionFeatures(name, weights, device)


class InceptionFeatures:
    """The 2,048 features of FID, prepared as pytorch-fid does: 299 px, bilinear without antialiasing, in [-1, 1].

    `file` holds the weights of pytorch-fid as safetensors. Raises `UserError` for those of another Inception.
    """

    name = "Inception"
    preparation = f"{FID_SIDE} px, bilinear, not antialiased, as pytorch-fid"

    def __init__(self, file: Path, device: torch.device | str = "cpu") -> None:
        given = read_tensors(file)
        self.network = Inception()
        counters = {name: value for name, value in self.network.state_dict().items() if name.endswith(COUNTER)}
        load_weights(self.network, counters | given, str(file))
        self.network.eval().requires_grad_(False).to(device)
        self.device, self.weights = torch.device(device), sha256(file)

    def look(self, images: OtherImages) -> Float[Tensor, "_ 2048"]:
        def prepared(part: Tensor) -> Tensor:
            return F.interpolate(
                part.to(self.device).float(), size=(FID_SIDE, FID_SIDE), mode="bilinear", align_corners=False
            )

        return torch.cat([self.network.pooled(prepared(part)) for part in images.split(AT_ONCE)])


class VisionFeatures:
    """Features of DINOv2 (its class token) or CLIP (the embedding of the picture), from a folder of transformers."""

    def __init__(self, kind: VisionKind, folder: Path, device: torch.device | str = "cpu") -> None:
        self.encoder, self.device = open_vision(kind, folder), torch.device(device)
        self.encoder.network.to(self.device)
        self.mean, self.deviation = (
            torch.tensor(values, device=self.device)[:, None, None] for values in MEANS_AND_DEVIATIONS[kind]
        )
        self.name, self.weights = self.encoder.name, self.encoder.digest
        self.preparation = f"{self.encoder.side} px, bicubic, antialiased"

    def look(self, images: OtherImages) -> Float[Tensor, "_ _"]:
        return torch.cat([self.encoder(self.prepared(part)) for part in images.split(AT_ONCE)])

    def prepared(self, images: OtherImages) -> OtherImages:
        size = (self.encoder.side, self.encoder.side)
        resized = F.interpolate(images.to(self.device).float(), size=size, mode="bicubic", antialias=True)
        return (resized.clamp(-1, 1) / 2 + 0.5 - self.mean) / self.deviation
