"""Messages between the server and a sampling process: JSON and bytes, each with its length, and never a pickle."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Sequence
from typing import Any, BinaryIO

HEADER = struct.Struct("<II")
LENGTH = struct.Struct("<I")
MAX_PARTS, MAX_PART = 512, 2**27
"""Of a message: how many pieces of bytes, and bytes of one."""
Packet = tuple[dict[str, Any], list[bytes]]


def packed(about: dict[str, Any], parts: Sequence[bytes] = ()) -> bytes:
    text = json.dumps(about).encode()
    pieces = [HEADER.pack(len(text), len(parts)), text]
    for part in parts:
        pieces += [LENGTH.pack(len(part)), part]
    return b"".join(pieces)


def unpack(stream: BinaryIO) -> Packet | None:
    """The next message; None at the end of the stream."""
    header = stream.read(HEADER.size)
    if len(header) < HEADER.size:
        return None
    length, count = HEADER.unpack(header)
    about = json.loads(stream.read(length))
    return about, [stream.read(LENGTH.unpack(stream.read(LENGTH.size))[0]) for _ in range(count)]


async def receive_packet(stream: asyncio.StreamReader) -> Packet:
    """Raises `asyncio.IncompleteReadError` where the stream ends, and `ValueError` for what is no message."""
    length, count = HEADER.unpack(await stream.readexactly(HEADER.size))
    if length > MAX_PART or count > MAX_PARTS:
        raise ValueError("the sampling process has sent what is no message")
    about = json.loads(await stream.readexactly(length))
    parts = []
    for _ in range(count):
        size = LENGTH.unpack(await stream.readexactly(LENGTH.size))[0]
        if size > MAX_PART:
            raise ValueError("the sampling process has sent what is no message")
        parts.append(await stream.readexactly(size))
    return about, parts
