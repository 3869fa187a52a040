"""`calotype export --to diffusers`: a folder that `DiffusionPipeline.from_pretrained` opens. It runs code in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from calotype.diffusion.stage import Sampling, Stage
from calotype.export.bundle import STANDALONE, in_float32, require_packages, write_readme
from calotype.export.check import Difference, between, checked_request, our_images
from calotype.export.sources import with_sources
from calotype.files import whole_folder, write_json, write_tensors, write_whole
from calotype.interop.diffusers import KL_WEIGHTS, write_autoencoder
from calotype.model import Model
from calotype.nets.deterministic import DeterministicAutoencoder, DeterministicConfig
from calotype.nets.frozen import FrozenConfig
from calotype.nets.kl import Kl
from calotype.nets.text import BytesConfig
from calotype.nets.vae import Vae, VaeConfig
from calotype.priors.stored import description
from calotype.recipe import DiffusionConfig
from calotype.spaces.latent import LatentSpace
from calotype.types import Progress, UserError, no_progress

MODELING, PIPELINE = "modeling", "model_index.json"
OPEN_PIPELINE = """
import json, sys
import numpy, torch
from diffusers import DiffusionPipeline

request = json.loads(sys.argv[1])
torch.set_num_threads(1)
pipeline = DiffusionPipeline.from_pretrained(request["folder"], trust_remote_code=True)
prompts = request["prompts"]
images = pipeline.stages.images(request["labels"], prompts, [""] * len(prompts), vae=pipeline.vae)
numpy.save(request["out"], images.numpy())
"""
PROVIDED = ("Config", "Field", "model_validator")
"""What the script has in place of pydantic."""

DIFFUSERS_README = """# A pipeline of diffusers

    pip install "diffusers>=0.38" safetensors torch

```python
from diffusers import DiffusionPipeline

pipeline = DiffusionPipeline.from_pretrained("FOLDER", trust_remote_code=True)
pictures = pipeline(num_images=4, seed=0).images
```

**`trust_remote_code=True` runs the Python files in this folder**, `pipeline.py` and `stages/modeling.py`: read them
first, or open only folders that you have made yourself. The weights are safetensors. Options: `label` (one of
`pipeline.classes`), `prompt` and `negative_prompt` where the model reads any, `num_inference_steps`, `guidance_scale`.
Equal seeds give the pictures of Calotype in float32, to a level of 8 bits.
"""


def export_diffusers(
    model: Model, folder: Path, progress: Progress = no_progress, card: Path | None = None
) -> Difference:
    """Writes the folder, and returns how far its pictures are from ours.

    Raises `UserError` where the text encoder is a pretrained one, and where pictures differ.
    """
    if isinstance(model.recipe.denoiser.text, FrozenConfig):
        raise UserError("a pipeline of diffusers reads no prompts with a pretrained text encoder; try --to onnx")
    require_packages("diffusers", extra="diffusers")
    model = in_float32(model)
    with whole_folder(folder) as path:
        write_pipeline(model, path)
        write_readme(path, DIFFUSERS_README, card)
        progress(1, 2)
        difference = difference_of_code(model, path).checked()
        progress(2, 2)
        return difference


def difference_of_code(model: Model, folder: Path) -> Difference:
    """In a process of its own, so that nothing in the folder runs in this one. Raises `UserError` where it fails."""
    labels, prompts = checked_request(model)
    with tempfile.TemporaryDirectory() as place:
        request = json.dumps(
            {"folder": str(folder), "labels": labels, "prompts": prompts, "out": f"{place}/images.npy"}
        )
        environment = {**os.environ, "HF_MODULES_CACHE": place, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-P", "-c", OPEN_PIPELINE, request],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no message"]
            raise UserError(f"diffusers cannot open the folder that was written ({last[0]:.200}); please report this")
        return between(our_images(model, labels, prompts), np.load(f"{place}/images.npy"))


def write_pipeline(model: Model, path: Path) -> None:
    """All files but the manifest."""
    space, stages = model.stages[0].space, path / "stages"
    index: dict[str, Any] = {"_class_name": ["pipeline", "CalotypePipeline"], "stages": [MODELING, "CalotypeStages"]}
    tensors = dict[str, Tensor]()
    for place, stage in enumerate(model.stages):
        tensors |= {f"denoisers.{place}.{name}": value for name, value in stage.denoiser.state_dict().items()}
    if isinstance(space, LatentSpace) and not isinstance(space.vae, Vae):
        index["vae"] = ["diffusers", write_imported(space, path / "vae")]
        tensors |= {"first_space.mean": space.mean, "first_space.spread": space.spread}
    elif isinstance(space, LatentSpace):
        tensors |= {f"first_space.{name}": value for name, value in space.state_dict().items()}
    write_tensors(stages / KL_WEIGHTS, tensors, {"format": "pt"})
    write_json(stages / "config.json", {"_class_name": "CalotypeStages", **stages_config(model)})
    script = with_sources((STANDALONE / "modeling.py").read_text("utf-8"), PROVIDED)
    write_whole(stages / f"{MODELING}.py", script)
    shutil.copy(STANDALONE / "pipeline.py", path / "pipeline.py")
    write_json(path / PIPELINE, index)


def write_imported(space: LatentSpace, folder: Path) -> str:
    """An autoencoder that was imported, in its own layout; returns the name of its class there."""
    if isinstance(space.vae, Kl):
        return write_autoencoder(folder, space.vae, space.mean, space.spread)
    assert isinstance(space.vae, DeterministicAutoencoder)
    space.vae.network.save_pretrained(folder)
    return space.vae.config.class_name


def stages_config(model: Model) -> dict[str, Any]:
    recipe, space = model.recipe, None
    if isinstance(first := model.stages[0].space, LatentSpace):
        config = first.vae.config
        space = dict[str, Any](kind=config.kind, channels=config.channels, reduction=config.reduction)
        if isinstance(config, VaeConfig):
            space["network"] = config.model_dump(mode="json")
        elif isinstance(config, DeterministicConfig):
            space["unit_range"] = config.unit_range
    configs: list[DiffusionConfig] = [recipe.denoiser, *(recipe.enlarging(size) for size in recipe.chain[1:])]
    parts = zip(model.stages, configs, model.samplings, strict=True)
    text = recipe.denoiser.text
    return {
        "classes": list(model.classes),
        "stages": [stage_config(*part) for part in parts],
        "space": space,
        "text": text.model_dump(mode="json") if isinstance(text, BytesConfig) else None,
    }


def stage_config(stage: Stage, config: DiffusionConfig, sampling: Sampling) -> dict[str, Any]:
    prior, conditioned = stage.denoiser.prior, stage.low_res_size is not None
    return {
        "size": stage.image_size,
        "low_res_size": stage.low_res_size,
        "channels": stage.space.channels,
        "inputs": 1 + (prior is not None) + conditioned,
        "backbone": config.backbone.model_dump(mode="json"),
        "schedule": config.schedule.model_dump(mode="json"),
        "augmentation": stage.augmentation.model_dump(mode="json"),
        "scaling": config.scaling,
        "sigma_data": stage.denoiser.sigma_data,
        "prior": None if prior is None else description(prior),
        "views": stage.denoiser.view is not None,
        "sampling": sampling.model_dump(mode="json"),
    }
