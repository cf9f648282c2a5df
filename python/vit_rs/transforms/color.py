"""Colours and sharpness of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_rs import _core
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = [
    "ColorJitter",
    "Grayscale",
    "RandomAdjustSharpness",
    "RandomAutocontrast",
    "RandomEqualize",
    "RandomGrayscale",
    "RandomInvert",
    "RandomPosterize",
    "RandomSolarize",
]


@dataclass(frozen=True)
class ColorJitter(PixelTransform):
    """Change brightness, contrast, saturation and hue, in an order drawn for each image.

    Source: torchvision.transforms.v2.ColorJitter. Images of one channel keep their values under saturation and hue.

    Args:
        brightness: factors are drawn uniformly from max(0, 1 - value)..1 + value, or from the given (min, max), >= 0.
        contrast: the same.
        saturation: the same.
        hue: shares of the circle are drawn from -value..value, or from (min, max), both in -0.5..0.5.

    Raises:
        ValueError: a negative number, or a range that is out of order or out of bounds.
    """

    brightness: float | Sequence[float] | None = None
    contrast: float | Sequence[float] | None = None
    saturation: float | Sequence[float] | None = None
    hue: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.color_jitter(
            _factors("brightness", self.brightness),
            _factors("contrast", self.contrast),
            _factors("saturation", self.saturation),
            _around("hue", self.hue, 0.0),
        )


def _factors(name: str, value: float | Sequence[float] | None) -> tuple[float, float] | None:
    """Return the range of a factor that changes nothing at 1 and is not negative."""
    around = _around(name, value, 1.0)
    return (max(around[0], 0.0), around[1]) if around and isinstance(value, (int, float)) else around


def _around(name: str, value: float | Sequence[float] | None, center: float) -> tuple[float, float] | None:
    """Return the range that a number or a pair stands for; None where only `center` is in it."""
    if value is None:
        return None
    if isinstance(value, (int, float)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative if it is a single number, got {value!r}")
        low, high = center - value, center + value
    elif len(value) == 2:
        low, high = float(value[0]), float(value[1])
    else:
        raise ValueError(f"{name} must be a number or (min, max), got {value!r}")
    return None if low == high == center else (low, high)


@dataclass(frozen=True)
class Grayscale(PixelTransform):
    """Give all three channels the gray value; images of one channel stay as they are.

    Source: torchvision.transforms.v2.Grayscale(num_output_channels=3).

    Args:
        num_output_channels: 3. The 1 that torchvision defaults to is not offered: images keep their channels.

    Raises:
        ValueError: another number.
    """

    num_output_channels: int = 1

    def __post_init__(self) -> None:
        if self.num_output_channels != 3:
            raise ValueError(
                f"num_output_channels must be 3, got {self.num_output_channels!r}: images keep their channels"
            )

    def _op(self) -> Op:
        return _core.grayscale()


@dataclass(frozen=True)
class RandomGrayscale(PixelTransform):
    """Give all channels the gray value with probability `p`.

    Source: torchvision.transforms.v2.RandomGrayscale.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_color("grayscale", self.p)


@dataclass(frozen=True)
class RandomInvert(PixelTransform):
    """Replace values by 255 minus them with probability `p`.

    Source: torchvision.transforms.v2.RandomInvert.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_color("invert", self.p)


@dataclass(frozen=True)
class RandomPosterize(PixelTransform):
    """Keep the upper bits of each value with probability `p`.

    Source: torchvision.transforms.v2.RandomPosterize on tensors, which knows 0 bits (black) too.

    Args:
        bits: how many, 0..8.
        p: how often, 0..1.

    Raises:
        ValueError: `bits` outside 0..8 or `p` outside 0..1.
    """

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        if not isinstance(self.bits, int) or not 0 <= self.bits <= 8:
            raise ValueError(f"bits must be an int in 0..8, got {self.bits!r}")
        return _core.random_posterize(self.bits, self.p)


@dataclass(frozen=True)
class RandomSolarize(PixelTransform):
    """Invert values from a threshold on with probability `p`.

    Source: torchvision.transforms.v2.RandomSolarize.

    Args:
        threshold: values equal or above are inverted, at most 255.
        p: how often, 0..1.

    Raises:
        ValueError: a threshold above 255 or `p` outside 0..1.
    """

    threshold: float
    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_solarize(self.threshold, self.p)


@dataclass(frozen=True)
class RandomAutocontrast(PixelTransform):
    """Spread each channel's range over 0..255 with probability `p`.

    Source: torchvision.transforms.v2.RandomAutocontrast.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_color("autocontrast", self.p)


@dataclass(frozen=True)
class RandomEqualize(PixelTransform):
    """Make each channel's histogram flat with probability `p`.

    Source: torchvision.transforms.v2.RandomEqualize.

    Raises:
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_color("equalize", self.p)


@dataclass(frozen=True)
class RandomAdjustSharpness(PixelTransform):
    """Blend with the smoothed image with probability `p`.

    Source: torchvision.transforms.v2.RandomAdjustSharpness.

    Args:
        sharpness_factor: 0 is smooth, 1 the image, 2 sharper; >= 0.
        p: how often, 0..1.

    Raises:
        ValueError: a negative factor or `p` outside 0..1.
    """

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        self._op()

    def _op(self) -> Op:
        return _core.random_adjust_sharpness(self.sharpness_factor, self.p)
