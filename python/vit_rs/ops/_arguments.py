"""Checks that the public functions share."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

__all__ = [
    "Size",
    "check_choice",
    "check_integer",
    "check_number",
    "check_tensor",
    "pair",
    "shape_of",
    "tracing",
    "transformed",
]

Size: TypeAlias = int | Sequence[int]
"""One number for both sides, or (height, width)."""

# Typed as Any: torch leaves torch.jit untyped.
_JIT: Any = torch.jit


def tracing() -> bool:
    """Tell whether `torch.jit.trace` records what is called, as the older ONNX exporter has it do."""
    return bool(_JIT.is_tracing())


def check_tensor(value: object, name: str) -> None:
    """Raise a TypeError for what is not a tensor."""
    if not isinstance(value, Tensor):
        kinds = "a tensor or a numpy array" if name in {"images", "patches"} else "a tensor"
        raise TypeError(f"{name} must be {kinds}, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got {value.layout}")


def transformed(tensor: Tensor) -> bool:
    """Tell whether a transform of `torch.func`, or forward-mode differentiation, looks at what is done to a tensor.

    Operators defined in Python have a rule for reverse mode only: plain torch is called in their place.
    """
    if torch.compiler.is_compiling():
        return False
    wrapped: bool = torch._C._functorch.is_functorch_wrapped_tensor(tensor)  # noqa: SLF001  no public way to ask
    return wrapped or unpack_dual(tensor).tangent is not None  # type: ignore[no-untyped-call]


def check_choice(value: str, name: str, choices: tuple[str, ...]) -> None:
    """Raise a ValueError for a value that is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Give the shape as integers, or as a compiler's symbols of them."""
    if tracing():
        # A tracer's sizes are tensors. It warns where one becomes a number, but to check a shape is not to record it.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", _JIT.TracerWarning)
            return tuple(int(side) for side in tensor.shape)
    return tuple(tensor.shape)


def check_integer(value: object, name: str) -> None:
    """Raise a TypeError for what is no integer, nor a compiler's or a tracer's symbol of one."""
    if not _is_integer(value):
        raise TypeError(f"{name} must be an integer, got {value!r}")


def check_number(value: object, name: str, expected: str = "a number") -> None:
    """Raise a TypeError for what is no real number, nor a compiler's symbol of one."""
    if not isinstance(value, (int, float, np.integer, np.floating, torch.SymInt, torch.SymFloat)):
        raise TypeError(f"{name} must be {expected}, got {value!r}")


def pair(value: Size, name: str) -> tuple[int, int]:
    """Give one number for both sides, or two, as (height, width), both at least 1."""
    sides: Any = (value, value) if _is_integer(value) else value
    if not isinstance(sides, (tuple, list)):
        raise TypeError(f"{name} must be an integer or (height, width), got {value!r}")
    if len(sides) != 2:
        raise ValueError(f"{name} must be an integer or (height, width), got {value!r}")
    height, width = sides
    if not (_is_integer(height) and _is_integer(width)):
        raise TypeError(f"{name} must be an integer or (height, width), got {value!r}")
    if isinstance(height, Tensor) or isinstance(width, Tensor):
        height, width = int(height), int(width)
    if height < 1 or width < 1:
        raise ValueError(f"{name} must be at least 1, got {height}x{width}")
    return height, width


def _is_integer(value: object) -> bool:
    if isinstance(value, (int, np.integer, torch.SymInt)):
        return not isinstance(value, bool)
    # A tracer's sizes are tensors; it warns where one becomes a number.
    return isinstance(value, Tensor) and tracing() and not value.is_floating_point()
