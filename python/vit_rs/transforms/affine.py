"""Turns, shears, scalings and shifts of 8-bit images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vit_rs import _core
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["RandomAffine", "RandomRotation"]

Sampling = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class RandomRotation(PixelTransform):
    """Turn by a random angle, counter-clockwise.

    Source: torchvision.transforms.v2.RandomRotation. Bilinear pixels are within 1 of it; nearest ones are equal, as
    coordinates are rounded in the same way. On PIL images both are Pillow's pixels, bit for bit.

    Args:
        degrees: smallest and largest angle, or one that stands for -degrees to degrees. Multiples of 90 move pixels
            only, as there.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        expand: make the result large enough for the whole turned image. Such images have different sizes: a batch needs
            a Resize or crop behind it.
        center: the point (x, y) that stays where it is, pixels from the upper left corner; None: the image's centre.
        fill: value, or (red, green, blue), 0..255, of what lies outside the image. None is black; with torch's kernels
            bilinear sampling then mixes black once into the image's border, with a colour twice, as in torchvision.

    Raises:
        ValueError: an angle, name, point or colour that makes no sense.
    """

    degrees: float | Sequence[float]
    interpolation: Sampling = "nearest"
    expand: bool = False
    center: Sequence[float] | None = None
    fill: int | Sequence[int] | None = 0

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        (degrees,) = angles("degrees", self.degrees, (2,))
        return _core.random_rotation(
            degrees, sampling(self.interpolation), self.expand, _point(self.center), colour(self.fill)
        )


@dataclass(frozen=True)
class RandomAffine(PixelTransform):
    """Turn, shift, scale and shear at random; the image keeps its size.

    Source: torchvision.transforms.v2.RandomAffine, with the same exactness as `RandomRotation`.

    Args:
        degrees: smallest and largest angle, clockwise, or one that stands for -degrees to degrees.
        translate: largest shift to both sides, as shares of width and height, 0..1; shifts are whole pixels. None: no
            shift.
        scale: smallest and largest factor. None: 1.
        shear: degrees along x: one number for -shear to shear, or smallest and largest; four: along x and along y.
            None: no shear.
        interpolation: "nearest" or "bilinear", or torchvision's InterpolationMode.
        fill: as in `RandomRotation`.
        center: the point (x, y) that turn, scaling and shear keep; None: the image's centre.

    Raises:
        ValueError: an angle, share, factor, name, point or colour that makes no sense.
    """

    degrees: float | Sequence[float]
    translate: Sequence[float] | None = None
    scale: Sequence[float] | None = None
    shear: float | Sequence[float] | None = None
    interpolation: Sampling = "nearest"
    fill: int | Sequence[int] | None = 0
    center: Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        (degrees,) = angles("degrees", self.degrees, (2,))
        shear = None if self.shear is None else angles("shear", self.shear, (2, 4))
        return _core.random_affine(
            degrees,
            None if self.translate is None else _two("translate", self.translate),
            None if self.scale is None else _two("scale", self.scale),
            None if shear is None else (*shear, (0.0, 0.0))[:2],
            sampling(self.interpolation),
            colour(self.fill),
            _point(self.center),
        )


def sampling(interpolation: Any) -> str:
    """Return the name of "nearest", "bilinear" or torchvision's InterpolationMode."""
    return str(getattr(interpolation, "value", interpolation))


def colour(fill: int | Sequence[int] | None) -> list[int] | None:
    """Return (red, green, blue) of a value or colour, 0..255; None for None."""
    if fill is None:
        return None
    values = [fill] if isinstance(fill, int) else list(fill)
    values = values * 3 if len(values) == 1 else values
    if len(values) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in values):
        raise ValueError(f"fill must be an int in 0..255, three of them or None, got {fill!r}")
    return values


def angles(name: str, value: float | Sequence[float], lengths: tuple[int, ...]) -> list[tuple[float, float]]:
    """Return the ranges (smallest, largest) of one angle, or of two or four."""
    if isinstance(value, (int, float)):
        if not value >= 0 or math.isinf(value):
            raise ValueError(f"{name} must not be negative if it is one number, got {value!r}")
        return [(-float(value), float(value))]
    if len(value) not in lengths:
        raise ValueError(f"{name} must be one number or {' or '.join(map(str, lengths))} of them, got {value!r}")
    numbers = [float(number) for number in value]
    return list(zip(numbers[::2], numbers[1::2], strict=True))


def _two(name: str, value: Sequence[float]) -> tuple[float, float]:
    if len(value) != 2:
        raise ValueError(f"{name} must be two numbers, got {value!r}")
    return float(value[0]), float(value[1])


def _point(center: Sequence[float] | None) -> tuple[float, float] | None:
    return None if center is None else _two("center", center)
