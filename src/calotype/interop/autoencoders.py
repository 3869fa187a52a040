"""Any autoencoder in the layout of diffusers that is known: its settings and its weights, by our names.

`AutoencoderKL` and that of FLUX.2 are networks of ours (`interop/diffusers.py`); the others are made of the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor, nn

from calotype.files import read_json
from calotype.interop import diffusers
from calotype.interop.folders import read_parts, require_package
from calotype.nets.deterministic import DcConfig, DeterministicConfig, RaeConfig, TinyConfig
from calotype.nets.kl import KlConfig
from calotype.nets.weights import ShapesOnly, check_weights
from calotype.types import UserError

DETERMINISTIC: dict[str, type[TinyConfig | DcConfig | RaeConfig]] = {
    config.class_name: config for config in (TinyConfig, DcConfig, RaeConfig)
}
ImportedConfig = KlConfig | DeterministicConfig
NETWORK = "network."
"""Where the network is in `DeterministicAutoencoder`."""


def read_autoencoder_config(path: Path) -> ImportedConfig:
    """Raises `UserError` where this is no autoencoder that is known."""
    file = diffusers.autoencoder_folder(path) / "config.json"
    settings = read_json(file)
    class_name = settings.get("_class_name") if isinstance(settings, dict) else None
    if not isinstance(class_name, str) or class_name not in DETERMINISTIC:
        return diffusers.read_kl_config(path)
    try:
        config = DETERMINISTIC[class_name].model_validate(known_settings(file, class_name, settings))
    except ValidationError as error:
        raise diffusers.wrong_setting(file, error) from None
    with ShapesOnly():
        open_network(config, file)
    return config


def known_settings(file: Path, class_name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Those that shape the network. Raises `UserError` for images that are not RGB, and for another factor."""
    fixed = {"in_channels": 3, "out_channels": 3, "num_channels": 3, "upsampling_scaling_factor": 2}
    for name, value in fixed.items():
        if settings.get(name, value) != value:
            raise UserError(f"{file}: {class_name}: {name} is {settings[name]!r:.40}, but must be {value}")
    fields = set(DETERMINISTIC[class_name].model_fields) - {"kind"}
    known = {name: value for name, value in settings.items() if name in fields}
    if class_name == RaeConfig.class_name and (mean := settings.get("latents_mean")) is not None:
        known["statistics"] = shape_of(mean)
    return known


def shape_of(values: object) -> list[int]:
    """Of nested lists of equal lengths."""
    shape = []
    while isinstance(values, list) and values:  # no recursion: a file may nest them as deeply as it likes
        shape.append(len(values))
        values = values[0]
    return shape


def open_network(config: DeterministicConfig, source: Path | None = None) -> nn.Module:
    """Of diffusers, with random weights; `source` is named where its settings do not fit. Raises `UserError`."""
    require_package("diffusers")
    if isinstance(config, RaeConfig):
        require_package("transformers")
    import diffusers as package

    if (network := getattr(package, config.class_name, None)) is None:
        raise UserError(f'the package diffusers has no {config.class_name}; try: pip install -U "calotype[diffusers]"')
    try:
        made: nn.Module = network(**config.arguments())
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"{source or 'the recipe'}: {config.class_name} cannot be made of this: {error}") from None
    return made


def read_autoencoder_weights(path: Path, config: ImportedConfig) -> dict[str, Tensor]:
    """By the names of our network, in float32. Raises `UserError` if they are not there, damaged, or of another."""
    if isinstance(config, KlConfig):
        return diffusers.read_kl_weights(path, config)
    file = diffusers.weights_file(path)
    tensors = {
        name: value.float() if value.is_floating_point() else value for name, value in read_parts([file]).items()
    }
    with ShapesOnly():
        checked = check_weights(open_network(config, file), tensors, str(file))
    return {f"{NETWORK}{name}": value for name, value in checked.items()}
