"""Turns, shears, scalings and shifts of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs import _core
from vit_rs.transforms import _arguments as check
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
        TypeError: an argument of a wrong kind.
        ValueError: an angle, name, point or colour that makes no sense.
    """

    degrees: float | Sequence[float]
    interpolation: Sampling = "nearest"
    expand: bool = False
    center: Sequence[float] | None = None
    fill: int | Sequence[int] | None = 0

    def __post_init__(self) -> None:
        self._keep(
            degrees=check.number_or_range("degrees", self.degrees, "one number or 2 of them"),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            expand=check.flag("expand", self.expand),
            center=None if self.center is None else check.two("center", self.center),
            fill=check.colour(self.fill),
        )
        self._op()

    def _op(self) -> Op:
        center = None if self.center is None else check.two("center", self.center)
        (degrees,) = _ranges(self.degrees)
        return _core.random_rotation(degrees, self.interpolation, self.expand, center, check.rgb(self.fill))


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
        TypeError: an argument of a wrong kind.
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
        self._keep(
            degrees=check.number_or_range("degrees", self.degrees, "one number or 2 of them"),
            translate=None if self.translate is None else check.two("translate", self.translate),
            scale=None if self.scale is None else check.two("scale", self.scale),
            shear=None
            if self.shear is None
            else check.number_or_range("shear", self.shear, "one number or 2 or 4 of them", (2, 4)),
            interpolation=check.choice("interpolation", self.interpolation, check.SAMPLING),
            fill=check.colour(self.fill),
            center=None if self.center is None else check.two("center", self.center),
        )
        self._op()

    def _op(self) -> Op:
        (degrees,) = _ranges(self.degrees)
        return _core.random_affine(
            degrees,
            None if self.translate is None else check.two("translate", self.translate),
            None if self.scale is None else check.two("scale", self.scale),
            None if self.shear is None else (*_ranges(self.shear), (0.0, 0.0))[:2],
            self.interpolation,
            check.rgb(self.fill),
            None if self.center is None else check.two("center", self.center),
        )


def _ranges(value: float | Sequence[float]) -> list[tuple[float, float]]:
    """Return the ranges (smallest, largest) of one number, or of two or four."""
    if isinstance(value, (int, float)):
        return [(-value, value)]
    return list(zip(value[::2], value[1::2], strict=True))
