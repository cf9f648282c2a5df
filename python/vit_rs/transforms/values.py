"""What becomes of the pixels' values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import Transform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["Normalize", "PILToTensor", "ToDtype", "ToTensor"]

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class PILToTensor(Transform):
    """Make a tensor of a PIL image; no value changes.

    Source: torchvision.transforms.v2.PILToTensor, and ToImage there. In a chain that is called on a PIL image, and in a
    `Compose(..., kernels="pillow")`, what stands before it gives the pixels that torchvision gives on PIL images, what
    stands behind it those on uint8 tensors; the PIL image comes out as such a tensor (C, H, W). In other chains, and
    behind another one or ToDtype, it does nothing.
    """


@dataclass(frozen=True)
class ToTensor(Transform):
    """Convert to a float32 tensor (C, H, W), values divided by 255.

    Source: torchvision.transforms.ToTensor; ConvertImageDtype(torch.float32) of the same, older half of torchvision
    divides too. ToDtype with `scale` multiplies by 1/255: of the 256 values, 126 become another float. Transforms that
    follow work on float32, as behind ToDtype.
    """

    @property
    def dtype(self) -> torch.dtype:
        """The type of the values afterwards: torch.float32."""
        return torch.float32


@dataclass(frozen=True)
class ToDtype(Transform):
    """Convert the values' type.

    Source: torchvision.transforms.v2.ToDtype. With `scale`, 8-bit values are multiplied by 1/255 in float32, as there.
    Transforms that follow work on float32, within 1e-5 of torchvision's on such tensors (hue, blur and bilinear maps
    1e-4; posterize, equalize and thresholds may bin a value on a border differently). Fills are in the values' units.

    Args:
        dtype: torch.float32, torch.float16, torch.bfloat16, or torch.uint8 (which leaves images as they are). A half
            type is rounded once, after everything that follows was computed in float32.
        scale: bring 0..255 to 0..1.

    Raises:
        TypeError: something that is not a torch.dtype, or a `scale` that is not a truth value.
        ValueError: another type.
    """

    dtype: torch.dtype
    scale: bool = False

    def __post_init__(self) -> None:
        expected = "torch.float32, float16, bfloat16 or uint8"
        if not isinstance(self.dtype, torch.dtype):
            raise TypeError(f"dtype must be {expected}, got {self.dtype!r}")
        if self.dtype not in (*_FLOATS, torch.uint8):
            raise ValueError(f"dtype must be {expected}, got {self.dtype}")
        self._keep(scale=check.flag("scale", self.scale))


@dataclass(frozen=True)
class Normalize(Transform):
    """Subtract a mean and divide by a standard deviation, channel by channel.

    Source: torchvision.transforms.v2.Normalize; the same float32 roundings in the same order.

    Args:
        mean: one value for each channel, or a single one for all, in the units of the values when they come here.
        std: the same; not 0.

    Raises:
        TypeError: something that is not a sequence of numbers.
        ValueError: no or different numbers of values, a value that is not finite, or a std of 0.
    """

    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        expected = "a sequence of numbers, one for each channel"
        self._keep(mean=check.numbers("mean", self.mean, expected), std=check.numbers("std", self.std, expected))
        if not len(self.mean) or len(self.mean) != len(self.std):
            raise ValueError(f"mean and std need one value for each channel, got {self.mean!r} and {self.std!r}")
        if not all(map(math.isfinite, (*self.mean, *self.std))) or not all(self.std):
            raise ValueError(f"mean must be finite and std finite and not 0, got {self.mean!r} and {self.std!r}")

    def _op(self) -> Op:
        return _core.normalize(list(self.mean), list(self.std))
