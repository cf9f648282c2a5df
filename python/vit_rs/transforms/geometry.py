"""Crops, resizes and flips of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs import _core
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["CenterCrop", "RandomCrop", "RandomHorizontalFlip", "RandomResizedCrop", "RandomVerticalFlip", "Resize"]

Interpolation = Literal["bilinear", "bicubic", "lanczos"]
PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]


def pair(name: str, value: int | Sequence[int]) -> tuple[int, int]:
    """Return (height, width) of a side or a pair of sides."""
    sides = (value, value) if isinstance(value, int) else tuple(value)
    if len(sides) == 1:
        sides = sides * 2
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"{name} must be a positive int or (height, width) of two, got {value!r}")
    return sides[0], sides[1]


def _antialiased(antialias: bool | None) -> None:
    if antialias is False:
        raise ValueError("antialias must be True: 8-bit images are resized with antialiasing, as PIL images always are")


@dataclass(frozen=True)
class RandomResizedCrop(PixelTransform):
    """Crop a random part and resize it, antialiased.

    Source: torchvision.transforms.v2.RandomResizedCrop: area uniform in `scale`, log aspect ratio uniform in `ratio`,
    ten tries, then the middle. Pixels are bit-equal to torch's uint8 kernel on the same part.

    Args:
        size: side, or (height, width), pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: "bilinear", "bicubic" or "lanczos".
        antialias: True; False is not offered for 8-bit images.

    Raises:
        ValueError: a size, range or name that makes no sense.
    """

    size: int | Sequence[int]
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool | None = True

    def __post_init__(self) -> None:
        _antialiased(self.antialias)
        self._op()

    def _op(self) -> Op:
        size = pair("size", self.size)
        return _core.random_resized_crop(size, self.scale, self.ratio, self.interpolation)


@dataclass(frozen=True)
class Resize(PixelTransform):
    """Resize, antialiased.

    Source: torchvision.transforms.v2.Resize; pixels are bit-equal to torch's uint8 kernel.

    Args:
        size: (height, width), or the length of the shorter side: the longer one keeps the aspect ratio, cut to a whole
            number of pixels.
        interpolation: "bilinear", "bicubic" or "lanczos".
        antialias: True; False is not offered for 8-bit images.

    Raises:
        ValueError: a size or name that makes no sense.
    """

    size: int | Sequence[int]
    interpolation: Interpolation = "bilinear"
    antialias: bool | None = True

    def __post_init__(self) -> None:
        _antialiased(self.antialias)
        self._op()

    def _op(self) -> Op:
        sides = pair("size", self.size)
        if isinstance(self.size, int) or len(self.size) == 1:
            return _core.resize_short_side(sides[0], self.interpolation)
        return _core.resize(sides, self.interpolation)


@dataclass(frozen=True)
class CenterCrop(PixelTransform):
    """Keep the middle; black where the image is smaller.

    Source: torchvision.transforms.v2.CenterCrop.

    Args:
        size: side, or (height, width), pixels.

    Raises:
        ValueError: a size that makes no sense.
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.center_crop(pair("size", self.size))


@dataclass(frozen=True)
class RandomCrop(PixelTransform):
    """Keep a random window of the padded image.

    Source: torchvision.transforms.v2.RandomCrop.

    Args:
        size: side, or (height, width), pixels.
        padding: pixels added on all sides, or (left and right, top and bottom), or (left, top, right, bottom).
        pad_if_needed: pad images that are smaller than the window, instead of raising when they come.
        fill: value, or (red, green, blue), 0..255, of the padding in mode "constant".
        padding_mode: "constant", "edge", "reflect" or "symmetric".

    Raises:
        ValueError: a size, padding, colour or name that makes no sense.
    """

    size: int | Sequence[int]
    padding: int | Sequence[int] | None = None
    pad_if_needed: bool = False
    fill: int | Sequence[int] = 0
    padding_mode: PaddingMode = "constant"

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        size = pair("size", self.size)
        return _core.random_crop(size, self._padding(), self.pad_if_needed, self._fill(), self.padding_mode)

    def _padding(self) -> list[int]:
        given = self.padding
        sides = [0] if given is None else [given] if isinstance(given, int) else list(given)
        if len(sides) not in (1, 2, 4) or not all(isinstance(side, int) and side >= 0 for side in sides):
            raise ValueError(f"padding must be an int >= 0, or 2 or 4 of them, got {given!r}")
        return (sides * 4)[:4]

    def _fill(self) -> list[int]:
        colour = [self.fill] * 3 if isinstance(self.fill, int) else list(self.fill)
        if len(colour) == 1:
            colour = colour * 3
        if len(colour) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in colour):
            raise ValueError(f"fill must be an int in 0..255, or three of them, got {self.fill!r}")
        return colour


@dataclass(frozen=True)
class RandomHorizontalFlip(PixelTransform):
    """Mirror left and right with probability `p`.

    Source: torchvision.transforms.v2.RandomHorizontalFlip.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def _op(self) -> Op:
        return _core.random_horizontal_flip(self.p)


@dataclass(frozen=True)
class RandomVerticalFlip(PixelTransform):
    """Mirror top and bottom with probability `p`.

    Source: torchvision.transforms.v2.RandomVerticalFlip.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        check_probability(self.p)

    def _op(self) -> Op:
        return _core.random_vertical_flip(self.p)


def check_probability(p: float) -> None:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"p must be a probability in 0..1, got {p!r}")
