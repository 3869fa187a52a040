"""Pieces of tensors that are sharded along their first dimension, one for each rank, and how checkpoints hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import safe_open
from torch import Tensor

from calotype.files import listed, read_as, read_manifest, read_tensors, reason_of, write_tensors
from calotype.nets.weights import local
from calotype.types import Config, UserError

PIECES = "pieces.json"
"""In a checkpoint: the shape of each sharded tensor, and where its pieces are."""


@dataclass(frozen=True)
class Piece:
    """Which piece of all tensors a rank has."""

    index: int = 0
    count: int = 1
    replica: int = 0
    """Where several ranks have the same piece (HSDP), the place of this one among them."""

    def rows(self, length: int) -> slice:
        """Of a tensor of so many rows, as `torch.chunk` divides them; the last pieces may be empty."""
        size = -(-length // self.count)
        return slice(min(length, self.index * size), min(length, (self.index + 1) * size))


ONLY_PIECE = Piece()


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a `DTensor`, whose module takes a second to import."""
    return hasattr(tensor, "device_mesh")


def piece_of(tensors: Iterable[Tensor]) -> Piece:
    """The piece that this rank has where tensors are sharded (`DTensor`), else the whole."""
    sharded = next(filter(is_sharded, tensors), None)
    if sharded is None:
        return ONLY_PIECE
    mesh = sharded.device_mesh  # type: ignore[attr-defined]
    *replica, index = mesh.get_coordinate()
    return Piece(index, mesh.size(-1), sum(replica))


def gather_rows(rows: Tensor, sharded: Tensor) -> Tensor:
    """The whole tensor of these rows of each rank, which are as those of `sharded`; without ranks the same."""
    if not is_sharded(sharded):
        return rows
    from torch.distributed.tensor import DTensor

    mesh, placements = sharded.device_mesh, sharded.placements  # type: ignore[attr-defined]
    whole: Tensor = DTensor.from_local(
        rows, mesh, placements, run_check=False, shape=sharded.shape, stride=sharded.stride()
    ).full_tensor()
    return whole


# -- Files -------------------------------------------------------------------------------------------------------------


class StoredPiece(Config):
    file: str
    offset: Annotated[int, Field(ge=0)]
    """The first row."""


class StoredTensor(Config):
    shape: list[Annotated[int, Field(ge=0)]]
    pieces: Annotated[list[StoredPiece], Field(min_length=1)]
    """In the order of their rows."""


PieceLayout = dict[str, StoredTensor]
"""By the name of a tensor."""


def piece_file(name: str, piece: Piece) -> str:
    return f"{name}-{piece.index + 1:05d}-of-{piece.count:05d}.safetensors"


def write_pieces(folder: Path, name: str, tensors: Mapping[str, Tensor]) -> None:
    """What this rank has of sharded tensors; the first writes what is not sharded, too. No rank has all in memory."""
    piece = piece_of(tensors.values())
    own = {key: local(value) for key, value in tensors.items() if is_sharded(value) or piece.index == 0}
    if piece.replica == 0:
        held = {key: value for key, value in own.items() if value.numel()}
        write_tensors(folder / piece_file(name, piece), held)


def layout_of(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """As JSON, `PieceLayout` of the files of all ranks."""
    count, layout = piece_of(tensors.values()).count, {}
    for key, value in tensors.items():
        pieces = [Piece(index, count) for index in range(count)] if is_sharded(value) else [Piece(0, count)]
        starts = {piece_file(name, piece): piece.rows(len(value)) for piece in pieces} if value.ndim else {}
        held = [{"file": file, "offset": rows.start} for file, rows in starts.items() if rows.start < rows.stop]
        layout[key] = {"shape": [*value.shape], "pieces": held or [{"file": piece_file(name, pieces[0]), "offset": 0}]}
    return layout


def read_pieces(folder: Path, name: str, piece: Piece = ONLY_PIECE) -> dict[str, Tensor]:
    """The tensors of a state in a checkpoint, sharded or not; of each no more than the rows of a piece.

    Raises `UserError` where a file is missing or damaged, or pieces do not make up their tensor.
    """
    layouts: dict[str, PieceLayout] = {}
    if PIECES in read_manifest(folder):
        layouts = read_as(listed(folder, PIECES), dict[str, PieceLayout])
    layout = layouts.get(name)
    if layout is None and piece.count == 1:
        return read_tensors(listed(folder, f"{name}.safetensors"))
    try:
        with ExitStack() as stack:

            def opened(file: str) -> Any:
                return stack.enter_context(safe_open(listed(folder, file), framework="pt"))

            if layout is None:
                layout = layout_of_file(file := f"{name}.safetensors", opened(file))
            files = {file: opened(file) for file in {held.file for each in layout.values() for held in each.pieces}}
            return {key: read_tensor(files, key, stored, piece) for key, stored in layout.items()}
    except UserError:
        raise
    except Exception as error:  # the package raises nothing narrower
        raise UserError(f"{folder / PIECES} does not fit its files ({reason_of(error):.120}); copy it again") from None


def layout_of_file(name: str, file: Any) -> PieceLayout:
    """Of an opened file with whole tensors."""
    whole = [StoredPiece(file=name, offset=0)]
    return {key: StoredTensor(shape=file.get_slice(key).get_shape(), pieces=whole) for key in file.keys()}  # noqa: SIM118


def read_tensor(files: Mapping[str, Any], key: str, stored: StoredTensor, piece: Piece) -> Tensor:
    """The rows of a piece, of the files that have them."""
    if not stored.shape:
        return files[stored.pieces[0].file].get_tensor(key)
    wanted, end, parts = piece.rows(stored.shape[0]), 0, list[Tensor]()
    for held in stored.pieces:
        part = files[held.file].get_slice(key)
        start, end = end, end + part.get_shape()[0]
        if held.offset != start:
            raise UserError(f"{held.file}: {key:.80} starts at row {held.offset}, but the rows before end at {start}")
        first, last = max(wanted.start, start) - start, min(wanted.stop, end) - start
        if first < last or not parts:  # also no rows have a shape
            parts.append(part[first : max(first, last)])
    if end != stored.shape[0]:
        raise UserError(f"{held.file}: {key:.80} ends at row {end}, but has {stored.shape[0]} rows")
    return torch.cat(parts)
