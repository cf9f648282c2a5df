"""Chains of transforms, and what the Rust loader is told of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Union

import torch

from vit_rs.transforms.geometry import (
    CenterCrop,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomVerticalFlip,
    Resize,
)
from vit_rs.transforms.values import Normalize, ToDtype

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vit_rs._core import Op

__all__ = ["Compose", "Lowered", "Transform", "lower"]

Geometry = RandomResizedCrop | Resize | CenterCrop | RandomCrop | RandomHorizontalFlip | RandomVerticalFlip
Transform = Union[Geometry, ToDtype, Normalize, "Compose"]

_GEOMETRY = (RandomResizedCrop, Resize, CenterCrop, RandomCrop, RandomHorizontalFlip, RandomVerticalFlip)


@dataclass(frozen=True)
class Compose:
    """Several transforms, one after another.

    Source: torchvision.transforms.v2.Compose.

    Args:
        transforms: geometry first (crops, resizes, flips, on 8-bit images), then at most one ToDtype and one Normalize.

    Raises:
        TypeError: something that is not a transform of vit_rs.
        ValueError: an order that cannot be carried out, such as Normalize before ToDtype.
    """

    transforms: Sequence[Transform]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", tuple(self.transforms))
        lower(self)


@dataclass(frozen=True)
class Lowered:
    """A chain as the Rust loader takes it."""

    ops: list[Op]
    to_dtype: ToDtype | None
    normalize: Normalize | None

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values at the chain's end."""
        return torch.uint8 if self.to_dtype is None else self.to_dtype.dtype


def lower(transform: Transform | None) -> Lowered:
    """Split a chain into operations on 8-bit pixels and what happens to the values at last.

    Raises:
        TypeError: something that is not a transform of vit_rs.
        ValueError: an order that cannot be carried out.
    """
    ops: list[Op] = []
    to_dtype: ToDtype | None = None
    normalize: Normalize | None = None
    for step in _flat(transform):
        if isinstance(step, ToDtype):
            if to_dtype is not None or normalize is not None:
                raise ValueError(f"{step} is a second conversion; one ToDtype is possible, before Normalize")
            to_dtype = None if step.dtype == torch.uint8 else step
        elif isinstance(step, Normalize):
            if to_dtype is None:
                raise ValueError(f"{step} needs float values: put ToDtype(torch.float32, scale=True) before it")
            if normalize is not None:
                raise ValueError(f"{step} is a second Normalize")
            normalize = step
        else:
            if to_dtype is not None:
                raise ValueError(f"{step} works on 8-bit images: put it before {to_dtype}")
            ops.append(step._op())  # noqa: SLF001  (a method of this subpackage's own classes)
    return Lowered(ops, to_dtype, normalize)


def _flat(transform: Transform | None) -> Iterator[Geometry | ToDtype | Normalize]:
    if transform is None:
        return
    if isinstance(transform, Compose):
        for step in transform.transforms:
            yield from _flat(step)
    elif isinstance(transform, (*_GEOMETRY, ToDtype, Normalize)):
        yield transform
    else:
        raise TypeError(
            f"expected a transform of vit_rs.transforms, got {type(transform).__module__}.{type(transform).__name__}"
        )
