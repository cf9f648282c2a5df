"""Values of settings: from a command line's text or from JSON, by the type of the dataclass field."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vit_rs.training.config import TrainConfig

__all__ = [
    "apply_settings",
    "convert_json",
    "describe_type",
    "get_setting",
    "leaves",
    "parse_settings",
    "parse_value",
    "setting_names",
    "type_hints",
    "write_value",
]

Config = TypeVar("Config")


def type_hints(cls: Any) -> dict[str, Any]:
    """Return the resolved type of every field of a dataclass, in the order of the fields."""
    hints = typing.get_type_hints(cls)
    return {item.name: hints[item.name] for item in dataclasses.fields(cls)}


def parse_settings(config: TrainConfig, settings: Sequence[str]) -> dict[str, Any]:
    """Return path -> value for texts like "optim.lr=3e-4", each parsed by its field's type.

    Raises:
        ConfigError: if a text has no "=", names an unknown setting (near names are listed), names one twice,
            or if its value does not have the field's type.
    """
    known = dict(leaves(type(config)))
    del known["recipe"]  # chosen by name, not set
    values: dict[str, Any] = {}
    for setting in settings:
        path, equals, text = setting.partition("=")
        path = path.strip()
        if not equals:
            raise ConfigError(f"--set {setting}: expected NAME=VALUE, for example --set optim.lr=3e-4")
        if path not in known:
            raise ConfigError(f"--set {setting}: unknown setting {path!r}; {_suggest(path, list(known))}")
        if path in values:
            raise ConfigError(f"--set {setting}: {path} is set twice")
        values[path] = parse_value(text.strip(), known[path], f"--set {path}")
    return values


def setting_names(cls: Any) -> list[str]:
    """Return the path of every setting of a configuration class."""
    return [path for path, _ in leaves(cls)]


def apply_settings(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return `config` with the settings at the given paths replaced."""
    for path, value in values.items():
        config = _replaced(config, path.split("."), value)
    return config


def get_setting(config: TrainConfig, path: str) -> Any:
    """Return the value at a path such as "optim.lr"."""
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value


def parse_value(text: str, hint: Any, where: str) -> Any:
    """Return the value that `text` writes for a field of type `hint`.

    "none" or "null" is None where that is allowed ("none" may be a field's own word, as in model.pos_embed: "null" then
    is None); a tuple is written with commas.

    Raises:
        ConfigError: naming `where`, what was got and what was expected.
    """
    whole, (hint, optional) = hint, _required(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    words = arguments if origin is Literal else ()
    if text in words:
        return text
    if optional and text.lower() in ("none", "null"):
        return None
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        if arguments[-1] is Ellipsis or len(parts) == len(arguments):
            return tuple(parse_value(part, arguments[0], where) for part in parts)
    elif hint is str:
        if text:
            return text
    elif hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    elif not words:
        value = _number(text, hint)
        if value is not None:
            return value
    raise ConfigError(f"{where}: expected {describe_type(whole)}, got {text!r}")


def convert_json(value: Any, hint: Any, where: str) -> Any:
    """Return a JSON value as the field type `hint` wants it: lists become tuples, whole numbers floats.

    Tuples may be tuples already, as in a dataclass; numbers are finite.

    Raises:
        ConfigError: naming `where`, what was got and what was expected.
    """
    whole, (hint, optional) = hint, _required(hint)
    if value is None and optional:
        return None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list | tuple) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(convert_json(part, arguments[0], where) for part in value)
    elif hint is float:
        number = None if isinstance(value, bool) or not isinstance(value, int | float) else _number(value, float)
        if number is not None:
            return number
    elif type(value) is hint:  # not isinstance: True is an int
        return value
    raise ConfigError(f"{where}: expected {describe_type(whole)}, got {value!r}")


def _number(written: str | float, hint: Any) -> float | int | None:
    """Return a text or number as a finite number of the type, or None."""
    try:
        value: float | int = hint(written)
    except (ValueError, OverflowError):  # the latter of integers beyond every float
        return None
    return value if math.isfinite(value) else None


def _required(hint: Any) -> tuple[Any, bool]:
    """Return a field's type without None, and whether it may be None."""
    if typing.get_origin(hint) not in (typing.Union, types.UnionType):
        return hint, False
    options = typing.get_args(hint)
    return next(option for option in options if option is not type(None)), type(None) in options


def describe_type(hint: Any) -> str:
    """Return what a field of type `hint` takes, in words: "an integer or none"."""
    hint, optional = _required(hint)
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        text = "one of " + ", ".join(arguments)
    elif origin is tuple:
        element = {int: "integers", float: "numbers", str: "texts"}[arguments[0]]
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        text = f"{count}{element} with commas between them"
    else:
        text = names[hint]
    if optional:
        return text + (" or null" if origin is Literal and "none" in arguments else " or none")
    return text


def write_value(value: Any, hint: Any) -> str:
    """Return a value as `parse_value` reads it for a field of type `hint`."""
    if value is None:
        return "null" if "none" in typing.get_args(_required(hint)[0]) else "none"
    if isinstance(value, tuple):
        return ",".join(write_value(part, typing.get_args(_required(hint)[0])[0]) for part in value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def leaves(cls: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, type) of every setting of a configuration class that is not itself a group of settings."""
    for name, hint in type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from leaves(hint, f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _suggest(path: str, known: list[str]) -> str:
    """Return near names: by spelling, or with the same last part, or those of the same group."""
    last = path.rsplit(".", 1)[-1]
    near = difflib.get_close_matches(path, known, n=3, cutoff=0.7)
    near += [name for name in known if name.rsplit(".", 1)[-1] == last and name not in near]
    near += [name for name in known if name.startswith(path + ".") and name not in near]
    if not near:
        near = difflib.get_close_matches(path, known, n=3, cutoff=0.4)
    if near:
        return "near names: " + ", ".join(near)
    return "groups: " + ", ".join(sorted({name.split(".")[0] for name in known}))


def _replaced(config: Config, path: list[str], value: Any) -> Config:
    name, *rest = path
    inner = _replaced(getattr(config, name), rest, value) if rest else value
    return dataclasses.replace(config, **{name: inner})  # type: ignore[type-var]
