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
    "get_setting",
    "parse_settings",
    "parse_value",
    "setting_names",
    "type_hints",
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
    known = dict(_leaves(type(config), ""))
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
    return [path for path, _ in _leaves(cls, "")]


def apply_settings(config: TrainConfig, values: dict[str, Any]) -> TrainConfig:
    """Return `config` with the settings at the given paths replaced.

    A named `model.size` brings its width, depth and heads along, unless they are set too; setting one of
    these three alone makes the size "custom".
    """
    size = values.get("model.size")
    if size is not None:
        config = dataclasses.replace(config, model=config.model.resized(size))
    elif values.keys() & {"model.embed_dim", "model.depth", "model.num_heads"}:
        config = dataclasses.replace(config, model=config.model.resized("custom"))
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

    "none" is None where that is allowed; a tuple is written with commas.

    Raises:
        ConfigError: naming `where`, what was got and what was expected.
    """
    options = _union(hint)
    if type(None) in options and text.lower() == "none":
        return None
    hint = next(option for option in options if option is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if text in arguments:
            return text
    elif origin is tuple:
        parts = [part.strip() for part in text.strip("()[] ").split(",") if part.strip()]
        if arguments[-1] is Ellipsis or len(parts) == len(arguments):
            return tuple(parse_value(part, arguments[0], where) for part in parts)
    elif hint is str:
        return text
    elif hint is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
    else:
        value = _number(text, hint)
        if value is not None:
            return value
    raise ConfigError(f"{where}: expected {_describe(hint, options)}, got {text!r}")


def convert_json(value: Any, hint: Any, where: str) -> Any:
    """Return a JSON value as the field type `hint` wants it: lists become tuples, whole numbers floats.

    Raises:
        ConfigError: naming `where`, what was got and what was expected.
    """
    options = _union(hint)
    if value is None and type(None) in options:
        return None
    hint = next(option for option in options if option is not type(None))
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in arguments:
            return value
    elif origin is tuple:
        if isinstance(value, list) and (arguments[-1] is Ellipsis or len(value) == len(arguments)):
            return tuple(convert_json(part, arguments[0], where) for part in value)
    elif hint is float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:  # not isinstance: True is an int
        return value
    raise ConfigError(f"{where}: expected {_describe(hint, options)}, got {value!r}")


def _number(text: str, hint: Any) -> float | int | None:
    """Return `text` as a finite number of the type, or None."""
    try:
        value: float | int = hint(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _union(hint: Any) -> tuple[Any, ...]:
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _describe(hint: Any, options: tuple[Any, ...]) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        text = "one of " + ", ".join(arguments)
    elif origin is tuple:
        element = {int: "integers", float: "numbers"}[arguments[0]]
        count = "" if arguments[-1] is Ellipsis else f"{len(arguments)} "
        text = f"{count}{element} with commas between them"
    else:
        text = names[hint]
    return f"{text} or none" if type(None) in options else text


def _leaves(cls: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield (path, type) of every setting that is not itself a group of settings."""
    for name, hint in type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, f"{prefix}{name}.")
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
