"""A node of ComfyUI that draws pictures with a model that `calotype export --to onnx` has written.

Put this folder into `custom_nodes`, with `sample.py` of any exported model beside this file, and install onnxruntime.
The node runs that `sample.py`, and reads only data from the folders of models.
"""

from pathlib import Path

import numpy as np
import torch

from .sample import NULL_LABEL, Bundle, cleaned, normalized

OPENED = {}


def written(folder):
    """When the model's settings were written last, in nanoseconds; None where there are none."""
    settings = Path(folder, "calotype.json")
    return settings.stat().st_mtime_ns if settings.is_file() else None


def opened(folder):
    """The model in a folder; the last one stays open until another is exported there, or its settings are changed."""
    if (key := (folder, written(folder))) not in OPENED:
        OPENED.clear()
        OPENED[key] = Bundle(folder)
    return OPENED[key]


class CalotypeSample:
    """Pictures of a class, or of a prompt; variations of a picture where one is given."""

    CATEGORY, FUNCTION, RETURN_TYPES = "calotype", "sample", ("IMAGE",)
    DESCRIPTION = "Draws pictures with a model that calotype export --to onnx has written."

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 - as ComfyUI calls it
        return {
            "required": {
                "folder": ("STRING", {"default": "", "tooltip": "Folder that calotype export --to onnx has written."}),
                "label": ("STRING", {"default": "", "tooltip": "Class of the pictures; empty: each in turn."}),
                "prompt": ("STRING", {"default": "", "multiline": True}),
                "negative": ("STRING", {"default": "", "multiline": True}),
                "count": ("INT", {"default": 1, "min": 1, "max": 256}),
                "seed": ("INT", {"default": 0, "min": 0, "max": 2**62}),
                "guidance": ("FLOAT", {"default": -1.0, "min": -1.0, "max": 20.0, "tooltip": "Below 0: the model's."}),
            },
            "optional": {"image": ("IMAGE",), "strength": ("FLOAT", {"default": 0.6, "min": 0.01, "max": 1.0})},
        }

    @classmethod
    def IS_CHANGED(cls, folder, **_):  # noqa: N802 - so that ComfyUI draws again after another export
        return written(folder)

    def sample(self, folder, label, prompt, negative, count, seed, guidance, image=None, strength=0.6):
        if not folder:
            raise ValueError("folder is empty; give the folder that calotype export --to onnx has written")
        model = opened(folder)
        if label not in model.classes:  # perhaps in another normal form of Unicode
            label = {normalized(name): name for name in model.classes}.get(normalized(label), label)
        if label and label not in model.classes:
            raise ValueError(f"label {label!r} is unknown; this model knows {', '.join(model.classes) or 'none'}")
        if (prompt or negative) and model.about["text"] is None:
            raise ValueError("this model reads no prompt; leave prompt and negative empty")
        prompt, negative, classes = cleaned(prompt), cleaned(negative), model.classes
        in_turn = [
            index % len(classes) if classes and not prompt and image is None else NULL_LABEL for index in range(count)
        ]
        labels, stored = [classes.index(label)] * count if label else in_turn, model.stages[0]["sampling"]
        model.stages[0]["sampling"] = stored if guidance < 0 else {**stored, "guidance": guidance}
        picture = None if image is None else self.fitted(image[0], model.size)
        try:
            pictures = model.sample(
                labels, [prompt] * count, [negative] * count, seed, picture=picture, strength=strength
            )
        finally:
            model.stages[0]["sampling"] = stored
        return (torch.from_numpy(pictures.astype(np.float32) / 255),)

    @staticmethod
    def fitted(image, size):
        """The square in the middle of an image (height, width, 3 or 4) in [0, 1], as bytes of the model's size."""
        height, width, _ = image.shape  # a fourth channel is transparency
        side, top, left = min(height, width), (height - min(height, width)) // 2, (width - min(height, width)) // 2
        square = image[None, top : top + side, left : left + side, :3].permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True)
        return (resized[0].permute(1, 2, 0).clamp(0, 1) * 255).round().byte().cpu().numpy()


NODE_CLASS_MAPPINGS = {"CalotypeSample": CalotypeSample}
NODE_DISPLAY_NAME_MAPPINGS = {"CalotypeSample": "Calotype: sample"}
