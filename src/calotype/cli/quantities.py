"""Times, speeds and sizes as people write them."""

import re

import typer

from calotype.bounds import LARGEST_SEED, seconds_in


def seconds(text: str | float) -> float:
    """A time such as `90`, `20s`, `10m`, `1h30m` or `2d`, above 0; a number is returned as it is."""
    if isinstance(text, float):
        return text
    try:
        return float(seconds_in(text))
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def seed_number(text: str | int) -> int:
    """A whole number of at most 2^62, below 0 too; a number is returned as it is."""
    try:
        seed = int(text)
    except ValueError:
        seed = LARGEST_SEED + 1
    if abs(seed) > LARGEST_SEED:
        raise typer.BadParameter(f"{text!r:.40} is not a whole number from {-LARGEST_SEED} to {LARGEST_SEED}")
    return seed


def speed(text: str | float) -> float:
    """Floating-point operations a second, such as `5e14`; a number is returned as it is."""
    try:
        flops = float(text)
    except ValueError:
        flops = 0.0
    if not 1e6 <= flops <= 1e21:
        raise typer.BadParameter(f"{text!r:.40} is not a number of operations a second from 1e6 to 1e21, such as 5e14")
    return flops


def byte_count(text: str | int) -> int:
    """Of a memory such as `80GB` or `512MB`, of which 1 GB is 2^30 bytes; a number is returned as it is."""
    if isinstance(text, int):
        return text
    match = re.fullmatch(r"(\d{1,6})(?:\.(\d{1,3}))?\s*([mgt])i?b?", text.strip().lower())
    count = float(f"{match[1]}.{match[2] or 0}") * 2 ** {"m": 20, "g": 30, "t": 40}[match[3]] if match else 0
    if not 0 < count <= 2**50:
        raise typer.BadParameter(f"{text!r:.40} is not a memory such as 80GB or 512MB, of at most 1,024 TB")
    return int(count)
