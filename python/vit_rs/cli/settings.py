"""`vit-rs train --settings`: every setting with its value, what it takes, and what it means."""

from __future__ import annotations

import dataclasses
import inspect
import re
from typing import TYPE_CHECKING, Any

from vit_rs.training.values import describe_type, get_setting, leaves, type_hints, write_value

if TYPE_CHECKING:
    from vit_rs.training.config import TrainConfig

__all__ = ["settings_page"]


def settings_page(config: TrainConfig) -> str:
    """Return a configuration's settings as `--set` takes them, each with the comment above its field in the source.

    Fields that share a comment stand together under it.
    """
    meanings = _meanings(type(config), "")
    shown: list[str] = []
    lines: list[str] = []
    for path, hint in leaves(type(config)):
        if path == "recipe":  # chosen by name, not set
            continue
        meaning = meanings[path]
        if meaning != shown:
            lines += ["", *(f"# {line}" for line in meaning)]
        shown = meaning
        lines.append(f"{path + '=' + write_value(get_setting(config, path), hint):<44}  ({describe_type(hint)})")
    return "\n".join(lines[1:])


def _meanings(cls: Any, prefix: str) -> dict[str, list[str]]:
    """Return path -> lines of the comment above the field, or above the nearest field before it that has one."""
    comments = _comments(cls)
    found: dict[str, list[str]] = {}
    for name, hint in type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            found |= _meanings(hint, f"{prefix}{name}.")
        else:
            found[prefix + name] = comments[name]
    return found


def _comments(cls: Any) -> dict[str, list[str]]:
    """Return field -> comment of a dataclass, read from its source: what explains a field is written once, there."""
    comment: list[str] = []
    comments: dict[str, list[str]] = {}
    complete = False  # the comment's field has come: the next comment line begins another
    for line in map(str.strip, inspect.getsource(cls).splitlines()):
        if line.startswith("#"):
            comment = [*([] if complete else comment), line.removeprefix("#").strip()]
            complete = False
        elif field := re.match(r"(\w+): ", line):
            comments.setdefault(field[1], comment)
            complete = True
    return comments
