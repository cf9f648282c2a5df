"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import re

__all__ = ["natural", "numbers", "positive", "size_pair"]


def numbers(text: str) -> tuple[float, ...]:
    """Return "0.5,1" as floating point numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None


def positive(text: str) -> int:
    """Return "16" as a number, 1 to 65535."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """Return "16" as a number, 0 to 65535."""
    return _whole(text, 0)


def size_pair(text: str) -> tuple[int, int]:
    """Return "384" or "240x640" as (height, width)."""
    match = re.fullmatch(r"([1-9][0-9]{0,5})(?:x([1-9][0-9]{0,5}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected N or HEIGHTxWIDTH in pixels, got {text!r}")
    return int(match[1]), int(match[2] or match[1])


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal() and least <= int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"expected a whole number from {least} to 65535, got {text!r}")
    return int(text)
