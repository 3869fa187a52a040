"""A model that Calotype has trained, as a pipeline of diffusers; see README.md."""

import unicodedata

import numpy as np
from diffusers import DiffusionPipeline, ImagePipelineOutput
from PIL import Image


class CalotypePipeline(DiffusionPipeline):
    """`pipeline(label="NAME", num_images=4, seed=0).images` are pictures; `pipeline.classes` are the labels."""

    _optional_components = ["vae"]  # noqa: RUF012 - a list in diffusers

    def __init__(self, stages, vae=None):
        super().__init__()
        self.register_modules(stages=stages, vae=vae)

    @property
    def classes(self):
        return list(self.stages.config.classes)

    def save_pretrained(self, *args, **options):
        raise NotImplementedError("diffusers would leave out the code of this pipeline; copy the folder as it is")

    def __call__(  # noqa: PLR0917 - as pipelines have it
        self, prompt=None, negative_prompt=None, label=None, num_images=1, seed=0, num_inference_steps=None,
        guidance_scale=None, sampler=None, output_type="pil", return_dict=True,
    ):  # fmt: skip
        """`label` is one of `classes`; without it and without a prompt, each is drawn in turn. Raises `ValueError`."""
        forms = {unicodedata.normalize("NFC", name): name for name in self.classes}
        if label is not None and label not in self.classes:
            label = forms.get(unicodedata.normalize("NFC", label), label)
        if label is not None and label not in self.classes:
            raise ValueError(f"label {label!r} is unknown; this model knows {', '.join(self.classes) or 'none'}")
        if not isinstance(prompt, str | None) or not isinstance(negative_prompt, str | None):
            raise ValueError("prompt and negative_prompt are one text each, for all pictures; call it for each")
        if (prompt or negative_prompt) and self.stages.config.text is None:
            raise ValueError("this model reads no prompt; leave prompt and negative_prompt out")
        if other := {str(each.dtype) for each in (self.stages, self.vae) if each} - {"torch.float32"}:
            raise ValueError(
                f"this model computes in torch.float32, but is in {other.pop()}; leave dtype (torch_dtype) out"
            )
        if num_images < 1:
            raise ValueError(f"num_images is {num_images}, but must be at least 1")
        in_turn = [i % len(self.classes) if self.classes and not prompt else -1 for i in range(num_images)]
        labels = in_turn if label is None else [self.classes.index(label)] * num_images
        changes = {"steps": num_inference_steps, "guidance": guidance_scale, "sampler": sampler}
        changes = {name: value for name, value in changes.items() if value is not None}
        texts = ([text or ""] * num_images for text in (prompt, negative_prompt))
        images = self.stages.images(labels, *texts, seed, self.vae, **changes)
        if output_type == "pt":
            return ImagePipelineOutput(images) if return_dict else (images,)
        pixels = ((images.float() + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
        pictures = [Image.fromarray(picture) for picture in pixels] if output_type == "pil" else pixels
        return ImagePipelineOutput(pictures) if return_dict else (pictures,)
