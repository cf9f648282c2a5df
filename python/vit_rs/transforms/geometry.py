"""Crops, resizes and flips of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["CenterCrop", "RandomCrop", "RandomHorizontalFlip", "RandomResizedCrop", "RandomVerticalFlip", "Resize"]

Interpolation = Literal["bilinear", "bicubic", "lanczos"]
PaddingMode = Literal["constant", "edge", "reflect", "symmetric"]


def _check_antialias(antialias: Any) -> None:
    if antialias is not True and antialias is not None:
        raise ValueError(
            f"antialias must be True or None, got {antialias!r}: 8-bit images are resized with antialiasing, as PIL "
            "images always are"
        )


@dataclass(frozen=True)
class RandomResizedCrop(PixelTransform):
    """Crop a random part and resize it, antialiased.

    Source: torchvision.transforms.v2.RandomResizedCrop: area uniform in `scale`, log aspect ratio uniform in `ratio`,
    ten tries, then the middle. Pixels are bit-equal to torch's uint8 kernel on the same part.

    Args:
        size: side, or (height, width), pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.
        interpolation: "bilinear", "bicubic" or "lanczos", or torchvision's InterpolationMode.
        antialias: True, or None, which means the same; False is not offered for 8-bit images.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size, range or name that makes no sense.
    """

    size: int | Sequence[int]
    scale: Sequence[float] = (0.08, 1.0)
    ratio: Sequence[float] = (3 / 4, 4 / 3)
    interpolation: Interpolation = "bilinear"
    antialias: bool | None = True

    def __post_init__(self) -> None:
        _check_antialias(self.antialias)
        self._keep(
            size=check.sides("size", self.size),
            scale=check.two("scale", self.scale),
            ratio=check.two("ratio", self.ratio),
            interpolation=check.choice("interpolation", self.interpolation, check.RESIZING),
        )
        self._op()

    def _op(self) -> Op:
        scale, ratio = check.two("scale", self.scale), check.two("ratio", self.ratio)
        return _core.random_resized_crop(check.pair(self.size), scale, ratio, self.interpolation)


@dataclass(frozen=True)
class Resize(PixelTransform):
    """Resize, antialiased.

    Source: torchvision.transforms.v2.Resize; pixels are bit-equal to torch's uint8 kernel.

    Args:
        size: (height, width), or the length of the shorter side: the longer one keeps the aspect ratio, cut to a whole
            number of pixels. None: `max_size` is the length of the longer side.
        interpolation: "bilinear", "bicubic" or "lanczos", or torchvision's InterpolationMode.
        max_size: the longer side's greatest length, where `size` is the shorter side: it is kept where the longer one
            would exceed it, and the shorter one follows. None: no limit.
        antialias: True, or None, which means the same; False is not offered for 8-bit images.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size or name that makes no sense.
    """

    size: int | Sequence[int] | None
    interpolation: Interpolation = "bilinear"
    max_size: int | None = None
    antialias: bool | None = True

    def __post_init__(self) -> None:
        _check_antialias(self.antialias)
        self._keep(
            size=None if self.size is None else check.sides("size", self.size),
            interpolation=check.choice("interpolation", self.interpolation, check.RESIZING),
            max_size=None if self.max_size is None else check.whole("max_size", self.max_size, 1),
        )
        if self.size is None and self.max_size is None:
            raise ValueError("max_size must be an int where size is None, got None")
        if isinstance(self.size, tuple) and self.max_size is not None:
            raise ValueError(
                f"max_size must be None where size is (height, width), got {self.max_size!r} beside {self.size!r}"
            )
        self._op()

    def _op(self) -> Op:
        if self.size is None:
            return _core.resize_long_side(check.whole("max_size", self.max_size), self.interpolation)
        if isinstance(self.size, int):
            return _core.resize_short_side(self.size, self.interpolation, self.max_size)
        return _core.resize(check.pair(self.size), self.interpolation)


@dataclass(frozen=True)
class CenterCrop(PixelTransform):
    """Keep the middle; black where the image is smaller.

    Source: torchvision.transforms.v2.CenterCrop.

    Args:
        size: side, or (height, width), pixels.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size that makes no sense.
    """

    size: int | Sequence[int]

    def __post_init__(self) -> None:
        self._keep(size=check.sides("size", self.size))
        self._op()

    def _op(self) -> Op:
        return _core.center_crop(check.pair(self.size))


@dataclass(frozen=True)
class RandomCrop(PixelTransform):
    """Keep a random window of the padded image.

    Source: torchvision.transforms.v2.RandomCrop.

    Args:
        size: side, or (height, width), pixels.
        padding: pixels added on all sides, or (left and right, top and bottom), or (left, top, right, bottom).
        pad_if_needed: pad images that are smaller than the window, instead of raising when they come.
        fill: value, or (red, green, blue), 0..255, of the padding in mode "constant"; None: black.
        padding_mode: "constant", "edge", "reflect" or "symmetric".

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a size, padding, colour or name that makes no sense.
    """

    size: int | Sequence[int]
    padding: int | Sequence[int] | None = None
    pad_if_needed: bool = False
    fill: int | Sequence[int] | None = 0
    padding_mode: PaddingMode = "constant"

    def __post_init__(self) -> None:
        self._keep(
            size=check.sides("size", self.size),
            padding=check.padding(self.padding),
            pad_if_needed=check.flag("pad_if_needed", self.pad_if_needed),
            fill=check.colour(self.fill),
            padding_mode=check.choice("padding_mode", self.padding_mode, check.BORDERS),
        )
        self._op()

    def _op(self) -> Op:
        given = self.padding or 0
        padding = ([given] * 4 if isinstance(given, int) else list(given) * 2)[:4]
        fill = check.rgb(self.fill) or [0, 0, 0]
        return _core.random_crop(check.pair(self.size), padding, self.pad_if_needed, fill, self.padding_mode)


@dataclass(frozen=True)
class RandomHorizontalFlip(PixelTransform):
    """Mirror left and right with probability `p`.

    Source: torchvision.transforms.v2.RandomHorizontalFlip.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_horizontal_flip(self.p)


@dataclass(frozen=True)
class RandomVerticalFlip(PixelTransform):
    """Mirror top and bottom with probability `p`.

    Source: torchvision.transforms.v2.RandomVerticalFlip.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_vertical_flip(self.p)
