"""What the models' configurations share: the way to a dictionary and back, one spelling per value, and errors."""

from __future__ import annotations

import math
import operator
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, cast

from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Self

__all__ = ["Configuration", "choice", "flag", "integer", "number", "pair", "rate"]


class Configuration:
    """Base of the configurations, which are frozen dataclasses."""

    @classmethod
    def from_dict(cls, fields_by_name: Mapping[str, Any]) -> Self:
        """Return the configuration that `to_dict` wrote; fields that are not given take their defaults.

        Raises:
            ConfigError: A key is no field, or a value is out of range.
        """
        unknown = sorted(fields_by_name.keys() - {field.name for field in fields(cast("Any", cls))})
        if unknown:
            raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}")
        return cls(**fields_by_name)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary that JSON can hold."""
        return asdict(cast("Any", self))


def integer(name: str, value: object, least: int) -> int:
    """Return the value as an int of at least `least`, or raise a ConfigError."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} must be an integer, got {value!r}")
    whole = operator.index(value)
    if whole < least:
        raise ConfigError(f"{name} must be at least {least}, got {whole}")
    return whole


def number(name: str, value: object) -> float:
    """Return the value as a finite float, or raise a ConfigError."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def rate(name: str, value: object) -> float:
    """Return the value as a float in [0, 1), or raise a ConfigError."""
    if not 0.0 <= number(name, value) < 1.0:
        raise ConfigError(f"{name} must be in [0, 1), got {value}")
    return number(name, value)


def flag(name: str, value: object) -> bool:
    """Return the value if it is a bool, or raise a ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, got {value!r}")
    return value


def choice(name: str, value: object, known: tuple[str, ...]) -> str:
    """Return the value if it is one of the known names, or raise a ConfigError that lists them."""
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    return value


def pair(name: str, value: object, least: int = 1) -> tuple[int, int]:
    """Return one integer, or (height, width), as a pair of integers of at least `least`."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ConfigError(f"{name} must be one integer or (height, width), got {value!r}")
        return integer(name, value[0], least), integer(name, value[1], least)
    side = integer(name, value, least)
    return side, side
