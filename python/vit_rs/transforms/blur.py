"""Gaussian blur of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["GaussianBlur"]


@dataclass(frozen=True)
class GaussianBlur(PixelTransform):
    """Convolve with a Gaussian whose standard deviation is drawn uniformly, one for both directions.

    Source: torchvision.transforms.v2.GaussianBlur, which convolves in float32 and rounds. Here rows come first, then
    columns: a value in about 10,000 rounds to the other side, by 1. An image smaller than half the kernel, which
    torchvision refuses, is mirrored repeatedly.

    Args:
        kernel_size: side, or (width, height) as in torchvision, odd, pixels.
        sigma: standard deviation, or its smallest and largest, pixels.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a kernel that is not odd and positive, or a sigma that is not positive and in order.
    """

    kernel_size: int | Sequence[int]
    sigma: float | Sequence[float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        self._keep(
            kernel_size=check.sides("kernel_size", self.kernel_size, "(width, height)"),
            sigma=check.number_or_range("sigma", self.sigma, lengths=(1, 2)),
        )
        self._op()

    def _op(self) -> Op:
        width, height = check.pair(self.kernel_size)
        sigma = (self.sigma,) if isinstance(self.sigma, (int, float)) else self.sigma
        return _core.gaussian_blur((height, width), (sigma[0], sigma[-1]))
