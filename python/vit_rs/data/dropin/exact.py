"""Which objects are exactly what a library made them: only those may be translated."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import nn

__all__ = ["change_of", "describe", "library_module", "name_of"]

_LIBRARIES = ("torchvision", "timm")
# Methods that only describe an object or make it.
_IRRELEVANT = frozenset({"__init__", "__repr__", "extra_repr"})


def library_module(kind: type, package: str) -> str | None:
    """Return the module under `package` that defines a class; None for every other class, subclasses too.

    The library is not imported: who has an object of it has loaded it.
    """
    name = kind.__module__
    if name != package and not name.startswith(f"{package}."):
        return None
    # A class that only says so is somebody else's.
    return name if getattr(sys.modules.get(name), kind.__qualname__, None) is kind else None


def change_of(transform: Any) -> str | None:
    """Return what makes an object behave unlike its class, for people; None if nothing does."""
    kind = type(transform)
    for name in vars(transform):
        # Tables and types beside methods; nn.Module has empty places for what its objects hold.
        if hasattr(kind, name) and (callable(getattr(kind, name)) or not hasattr(nn.Module, name)):
            return f"this {kind.__name__} has a {name} of its own"
    if (replaced := _replaced(kind)) is not None:
        return replaced
    if isinstance(transform, nn.Module):
        for hooks in ("_global_forward_hooks", "_global_forward_pre_hooks"):
            if getattr(torch.nn.modules.module, hooks, None):
                return f"torch has {hooks.strip('_').replace('_', ' ')} for all modules"
        # All hooks that a call runs; private, but there is no other way to ask.
        for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
            if getattr(transform, hooks, None):
                return f"this {kind.__name__} has {hooks.strip('_').replace('_', ' ')}"
    return None


def _replaced(kind: type) -> str | None:
    """Return which method of a library's class, or of its bases in that library, is somebody else's, for people."""
    library = kind.__module__.partition(".")[0]
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != library or base is nn.Module:
            continue
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            if not callable(function) or name in _IRRELEVANT:
                continue
            # Where it was written; a wrapper may bear the wrapped function's name.
            written: dict[str, Any] = getattr(function, "__globals__", {})
            module = str(written.get("__name__") or getattr(function, "__module__", None) or library)
            if module.partition(".")[0] != library:
                return f"{base.__name__}.{name} was replaced by {name_of(function)}"
    return None


def name_of(thing: Any) -> str:
    """Return a short name of a transform: torchvision.transforms.v2.Resize, mymodule.my_function."""
    if isinstance(thing, partial):
        return f"partial of {name_of(thing.func)}"
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    module = getattr(named, "__module__", None) or ""
    # Private modules and those that only sort a library's classes say nothing to its users.
    parts = [part for part in module.split(".") if not part.startswith("_")]
    if parts[:2] == ["torchvision", "transforms"]:
        parts = parts[: 3 if "v2" in parts else 2]
    return ".".join([*parts, named.__qualname__])


def describe(transform: Any) -> str:
    """Return why an object that no library's rules know stays in Python."""
    kind = type(transform)
    for base in kind.__mro__[1:]:
        if base.__module__.split(".")[0] in _LIBRARIES and base.__name__ not in ("Transform", "RandomTransforms"):
            return f"{name_of(transform)} is a subclass of {name_of(base)}: only the class itself is translated"
    if isinstance(transform, nn.Module) or not hasattr(transform, "__qualname__"):
        return f"{name_of(transform)} is not a transform that vit_rs knows"
    return f"{name_of(transform)} is a Python function"
