"""Resizes and windows that make images of any shape fit a size, as timm's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op
    from vit_rs.transforms.geometry import Interpolation, PaddingMode

__all__ = ["CenterCropOrPad", "RandomCropOrPad", "ResizeKeepRatio", "TrimBorder"]


@dataclass(frozen=True)
class ResizeKeepRatio(PixelTransform):
    """Resize both sides by one factor, antialiased, so that the image fits a size; at random more, or unequally.

    Source: timm.data.transforms.ResizeKeepRatio. Sides are rounded to the nearest whole number, halves to even.

    Args:
        size: side, or (height, width), to fit, pixels.
        longest: 0: the image covers the size; 1: it lies inside the size; numbers between: between.
        interpolation: "bilinear", "bicubic" or "lanczos".
        random_scale_prob: how often the image is resized by another factor, 0..1.
        random_scale_range: smallest and largest of these factors, relative to the first one.
        random_scale_area: the range is of the share of the image's area that a window of this size keeps.
        random_aspect_prob: how often width and height are resized unequally, 0..1.
        random_aspect_range: smallest and largest change of width / height; log-uniform.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size, range or name that makes no sense; (on images) a side of less than one pixel.
    """

    size: int | Sequence[int]
    longest: float = 0.0
    interpolation: Interpolation = "bilinear"
    random_scale_prob: float = 0.0
    random_scale_range: Sequence[float] = (0.85, 1.05)
    random_scale_area: bool = False
    random_aspect_prob: float = 0.0
    random_aspect_range: Sequence[float] = (0.9, 1.11)

    def __post_init__(self) -> None:
        self._keep(
            size=check.sides("size", self.size),
            longest=check.number("longest", self.longest),
            interpolation=check.choice("interpolation", self.interpolation, check.RESIZING),
            random_scale_prob=check.probability(self.random_scale_prob, "random_scale_prob"),
            random_scale_range=check.two("random_scale_range", self.random_scale_range),
            random_scale_area=check.flag("random_scale_area", self.random_scale_area),
            random_aspect_prob=check.probability(self.random_aspect_prob, "random_aspect_prob"),
            random_aspect_range=check.two("random_aspect_range", self.random_aspect_range),
        )
        self._op()

    def _op(self) -> Op:
        return _core.resize_keep_ratio(
            check.pair(self.size),
            self.longest,
            self.interpolation,
            (self.random_scale_prob, check.two("random_scale_range", self.random_scale_range)),
            self.random_scale_area,
            (self.random_aspect_prob, check.two("random_aspect_range", self.random_aspect_range)),
        )


@dataclass(frozen=True)
class _CropOrPad(PixelTransform):
    """A window of one size, padded where the image is smaller."""

    size: int | Sequence[int]
    fill: int | Sequence[int] | None = 0
    padding_mode: PaddingMode = "constant"

    _at_random: ClassVar[bool]

    def __post_init__(self) -> None:
        self._keep(
            size=check.sides("size", self.size),
            fill=check.colour(self.fill),
            padding_mode=check.choice("padding_mode", self.padding_mode, check.BORDERS),
        )
        self._op()

    def _op(self) -> Op:
        fill = check.rgb(self.fill) or [0, 0, 0]
        return _core.crop_or_pad(check.pair(self.size), fill, self.padding_mode, self._at_random)


@dataclass(frozen=True)
class CenterCropOrPad(_CropOrPad):
    """Keep the middle; padding where the image is smaller.

    Source: timm.data.transforms.CenterCropOrPad.

    Args:
        size: side, or (height, width), pixels.
        fill: value, or (red, green, blue), 0..255, of the padding in mode "constant"; None: black.
        padding_mode: "constant", "edge", "reflect" or "symmetric".

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size, colour or name that makes no sense.
    """

    _at_random = False


@dataclass(frozen=True)
class RandomCropOrPad(_CropOrPad):
    """Keep a random window; along sides where the image is smaller, pad it at random.

    Source: timm.data.transforms.RandomCropOrPad.

    Args:
        size: side, or (height, width), pixels.
        fill: value, or (red, green, blue), 0..255, of the padding in mode "constant"; None: black.
        padding_mode: "constant", "edge", "reflect" or "symmetric".

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size, colour or name that makes no sense.
    """

    _at_random = True


@dataclass(frozen=True)
class TrimBorder(PixelTransform):
    """Cut pixels off at each edge.

    Source: timm.data.transforms.TrimBorder.

    Args:
        border_size: how many.

    Raises:
        TypeError: something that is not a whole number.
        ValueError: a negative number; (on images) one that leaves nothing.
    """

    border_size: int

    def __post_init__(self) -> None:
        self._keep(border_size=check.whole("border_size", self.border_size, 0))
        self._op()

    def _op(self) -> Op:
        return _core.trim_border(self.border_size)
