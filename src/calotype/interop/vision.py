"""Image encoders of transformers from a local folder: DINOv2 (arXiv 2304.07193) and CLIP's image tower (2103.00020).

Read are config.json and safetensors alone: no pickle, no code from the folder, no hub.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from calotype.files import read_json, sha256
from calotype.interop.folders import config_folder, weights_files
from calotype.interop.transformers import ENCODER_PARTS, ENCODER_WEIGHTS, load_network
from calotype.types import OtherImages, UserError

VisionKind = Literal["dinov2", "clip"]
MODEL_TYPES = {"dinov2": "dinov2", "clip": "clip", "clip_vision_model": "clip"}
"""By `model_type` of config.json."""
CLASS_NAMES = {"dinov2": "Dinov2Model", "clip": "CLIPVisionModelWithProjection"}
SIZE_LETTERS = {384: "S", 768: "B", 1024: "L", 1280: "H", 1536: "g"}
"""What the papers call a vision transformer of a width."""


@dataclass(frozen=True)
class VisionEncoder:
    """Pictures, normalised and of `side` px, to a row of features each."""

    name: str
    """With its size, as in DINOv2-L14 or CLIP-B32."""
    digest: str
    side: int
    network: nn.Module

    def __call__(self, images: OtherImages) -> Float[Tensor, "_ _"]:
        output = self.network(pixel_values=images)
        return output.image_embeds if self.name.startswith("CLIP") else output.pooler_output


def open_vision(kind: VisionKind, folder: Path) -> VisionEncoder:
    """Raises `UserError` where the folder holds no such encoder, a part is missing, or transformers is."""
    if importlib.util.find_spec("transformers") is None:
        raise UserError(f'--features {kind} needs the package transformers; try: pip install "calotype[transformers]"')
    folder = config_folder("--features-weights", folder, f"{ENCODER_WEIGHTS} of {kind}")
    settings = vision_settings(kind, folder / "config.json")
    files = [folder / "config.json", *weights_files(folder, ENCODER_WEIGHTS, ENCODER_PARTS)]
    digest = hashlib.sha256(" ".join(map(sha256, files)).encode()).hexdigest()
    network = load_network(folder, kind, CLASS_NAMES[kind], settings).eval().requires_grad_(False)
    config: Any = network.config
    side = config.image_size if kind == "clip" else 224  # DINOv2 was trained at 518 px, and is compared at 224
    size = SIZE_LETTERS.get(config.hidden_size, f"{config.hidden_size}x")
    title = {"dinov2": "DINOv2", "clip": "CLIP"}[kind]
    return VisionEncoder(f"{title}-{size}{config.patch_size}", digest, side, network)


def vision_settings(kind: VisionKind, file: Path) -> dict[str, Any]:
    """Those of the image encoder. Raises `UserError` where the file is of something else."""
    settings = read_json(file)
    given = settings.get("model_type") if isinstance(settings, dict) else None
    if not isinstance(given, str) or MODEL_TYPES.get(given) != kind:
        raise UserError(f"{file}: model_type is {given!r:.40}, but --features {kind} needs a folder of {kind}")
    if given != "clip":
        return dict(settings)
    tower = settings.get("vision_config")
    if not isinstance(tower, Mapping):
        raise UserError(f"{file}: vision_config is {tower!r:.40}, but must hold the settings of the image encoder")
    return {"projection_dim": settings.get("projection_dim", 512), **tower}
