"""Memory for results: large ones in huge pages, and where an earlier result was."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vit_rs import _core

__all__ = ["new_result"]

_LARGE = 1 << 20


def new_result(like: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate a contiguous result on the CPU; its content is unspecified.

    A fresh page costs more than filling it. So the engine allocates results of 1 MiB and more: aligned to 2 MiB, in
    huge pages where the system has them, and in the memory of an earlier result that nobody holds any more, of which
    it keeps up to 128 MiB.
    """
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE:
        return like.new_empty(shape, dtype=dtype)
    if size >= 2**63:
        raise MemoryError(f"no memory for {size} bytes")
    storage = torch.from_numpy(_core.allocate(size)).untyped_storage()
    # Not a view of the bytes: autograd would take it for one.
    result: Tensor = torch.empty(0, dtype=dtype).set_(storage, 0, shape)  # type: ignore[call-overload]
    return result
