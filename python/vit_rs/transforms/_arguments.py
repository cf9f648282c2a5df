"""Checks of the transforms' arguments: each returns the value as it is kept.

What is kept cannot change: sequences become tuples, numpy's numbers Python's. A wrong kind is a TypeError, a wrong
value a ValueError. Ranges that the engine checks are left to it, so that each has one text.
"""

from __future__ import annotations

import math
import numbers as kinds
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = [
    "BORDERS",
    "RESIZING",
    "SAMPLING",
    "choice",
    "colour",
    "flag",
    "number",
    "number_or_range",
    "numbers",
    "padding",
    "pair",
    "probability",
    "rgb",
    "sequence",
    "sides",
    "two",
    "whole",
]

BORDERS = ("constant", "edge", "reflect", "symmetric")
RESIZING = ("bilinear", "bicubic", "lanczos")
SAMPLING = ("nearest", "bilinear")
# What the engine's whole numbers can hold.
_LARGEST = 2**63 - 1


def _integer(value: Any) -> int | None:
    """Return an int, also of numpy; None for anything else, truth values too."""
    if isinstance(value, (bool, np.bool_)):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def _real(value: Any) -> float | None:
    """Return a float, also of numpy or an int; None for anything else, truth values too."""
    if isinstance(value, bool) or not isinstance(value, kinds.Real):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if operator.gt(value, 0) else -math.inf


def _items(value: Any) -> tuple[Any, ...] | None:
    """Return a sequence's items, also of an array or a tensor; None for anything else, text too."""
    given = value.tolist() if hasattr(value, "tolist") else value
    return tuple(given) if isinstance(given, Sequence) and not isinstance(given, (str, bytes, bytearray)) else None


def _integers(value: Any) -> tuple[int, ...] | None:
    """Return the items of a sequence of whole numbers, or a single one; None for anything else."""
    single = _integer(value)
    items = _items(value) if single is None else (single,)
    found = [_integer(item) for item in items or ()]
    integers = tuple(item for item in found if item is not None)
    return integers if items is not None and len(integers) == len(items) else None


def _wrong_kind(name: str, expected: str, value: Any) -> TypeError:
    return TypeError(f"{name} must be {expected}, got {value!r}")


def _wrong(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"{name} must be {expected}, got {value!r}")


def whole(name: str, value: Any, least: int | None = None, most: int = _LARGEST) -> int:
    """Return a whole number, at least `least` and at most `most`."""
    expected = "an int" if least is None else f"an int of at least {least}"
    if least is not None and most < _LARGEST:
        expected = f"an int in {least}..{most}"
    given = _integer(value)
    if given is None:
        raise _wrong_kind(name, expected, value)
    if abs(given) > _LARGEST:
        raise _wrong(name, f"{expected} that fits 64 bits", value)
    if given > most or (least is not None and given < least):
        raise _wrong(name, expected, value)
    return given


def number(name: str, value: Any, expected: str = "a number") -> float:
    """Return a number."""
    given = _real(value)
    if given is None:
        raise _wrong_kind(name, expected, value)
    return given


def probability(value: Any, name: str = "p") -> float:
    """Return a probability; the engine checks its range, with the same words."""
    return number(name, value, "a probability in 0..=1")


def flag(name: str, value: Any) -> bool:
    """Return a truth value."""
    if not isinstance(value, (bool, np.bool_)):
        raise _wrong_kind(name, "True or False", value)
    return bool(value)


def choice(name: str, value: Any, names: tuple[str, ...]) -> str:
    """Return one of some names, given as it is or as the value of an enumeration of torchvision."""
    given = getattr(value, "value", value)
    if not isinstance(given, str) or given not in names:
        *others, last = map(repr, names)
        raise _wrong(name, f"{', '.join(others)} or {last}", given)
    return str(given)


def sequence(name: str, value: Any, expected: str) -> tuple[Any, ...]:
    """Return the items of anything that can be iterated over but text."""
    if not isinstance(value, (str, bytes, bytearray)):
        try:
            items = iter(value)
        except TypeError:
            pass
        else:
            return tuple(items)
    raise _wrong_kind(name, expected, value)


def numbers(name: str, value: Any, expected: str, lengths: tuple[int, ...] = ()) -> tuple[float, ...]:
    """Return a sequence of numbers, so many of them as `lengths` allows; without it any number."""
    items = _items(value)
    found = [_real(item) for item in items or ()]
    if items is None or None in found:
        raise _wrong_kind(name, expected, value)
    if lengths and len(items) not in lengths:
        raise _wrong(name, expected, value)
    return tuple(item for item in found if item is not None)


def two(name: str, value: Any) -> tuple[float, float]:
    """Return two numbers."""
    first, second = numbers(name, value, "two numbers", (2,))
    return first, second


def number_or_range(
    name: str, value: Any, expected: str = "a number or (min, max)", lengths: tuple[int, ...] = (2,)
) -> float | tuple[float, ...]:
    """Return a number that is not negative, or a sequence of numbers."""
    single = _real(value)
    if single is None:
        return numbers(name, value, expected, lengths)
    if not single >= 0:
        raise ValueError(f"{name} must not be negative if it is a single number, got {value!r}")
    return single


def sides(name: str, value: Any, order: str = "(height, width)") -> int | tuple[int, int]:
    """Return a side in pixels, or two; of a sequence of one its side."""
    expected = f"a positive int or {order} of two"
    given = _integers(value)
    if given is None:
        raise _wrong_kind(name, expected, value)
    if len(given) not in (1, 2) or min(given) < 1 or max(given) > _LARGEST:
        raise _wrong(name, f"{expected} that fit 64 bits" if given and max(given) > _LARGEST else expected, value)
    return given[0] if len(given) == 1 else (given[0], given[1])


def pair(kept: Any) -> tuple[int, int]:
    """Return both of what `sides` returned."""
    return (kept, kept) if isinstance(kept, int) else (kept[0], kept[1])


def colour(fill: Any) -> int | tuple[int, ...] | None:
    """Return a value or (red, green, blue), 0..255, or None; of a sequence of one its value."""
    expected = "an int in 0..255, three of them or None"
    if fill is None:
        return None
    given = _integers(fill)
    if given is None:
        raise _wrong_kind("fill", expected, fill)
    if len(given) not in (1, 3) or not all(0 <= value <= 255 for value in given):
        raise _wrong("fill", expected, fill)
    return given[0] if len(given) == 1 else given


def rgb(kept: Any) -> list[int] | None:
    """Return (red, green, blue) of what `colour` returned; None for None."""
    return None if kept is None else [kept] * 3 if isinstance(kept, int) else list(kept)


def padding(value: Any) -> int | tuple[int, ...] | None:
    """Return the pixels of all sides, of two directions or of four sides; None for none."""
    expected = "an int >= 0, or 2 or 4 of them"
    if value is None:
        return None
    given = _integers(value)
    if given is None:
        raise _wrong_kind("padding", expected, value)
    if len(given) not in (1, 2, 4) or not all(0 <= side <= _LARGEST for side in given):
        raise _wrong("padding", expected, value)
    return given[0] if len(given) == 1 else given
