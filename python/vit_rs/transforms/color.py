"""Colours and sharpness of 8-bit images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_rs import _core
from vit_rs.transforms import _arguments as check
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
        TypeError: an argument of a wrong kind.
        ValueError: a negative number, or a range that is out of order or out of bounds.
    """

    brightness: float | Sequence[float] | None = None
    contrast: float | Sequence[float] | None = None
    saturation: float | Sequence[float] | None = None
    hue: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("brightness", "contrast", "saturation", "hue")}
        self._keep(**{name: check.number_or_range(name, value) for name, value in given.items() if value is not None})
        self._op()

    def _op(self) -> Op:
        return _core.color_jitter(
            _factors(self.brightness), _factors(self.contrast), _factors(self.saturation), _around(self.hue, 0.0)
        )


def _factors(value: float | Sequence[float] | None) -> tuple[float, float] | None:
    """Return the range of a factor that changes nothing at 1 and is not negative."""
    around = _around(value, 1.0)
    return (max(around[0], 0.0), around[1]) if around and isinstance(value, (int, float)) else around


def _around(value: float | Sequence[float] | None, center: float) -> tuple[float, float] | None:
    """Return the range that a number or a pair stands for; None where only `center` is in it."""
    if value is None:
        return None
    low, high = (center - value, center + value) if isinstance(value, (int, float)) else value
    return None if low == high == center else (low, high)


@dataclass(frozen=True)
class Grayscale(PixelTransform):
    """Give all three channels the gray value; images of one channel stay as they are.

    Source: torchvision.transforms.v2.Grayscale(num_output_channels=3).

    Args:
        num_output_channels: 3. The 1 that torchvision defaults to is not offered: images keep their channels.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: another number.
    """

    num_output_channels: int = 1

    def __post_init__(self) -> None:
        channels = check.whole("num_output_channels", self.num_output_channels)
        if channels != 3:
            raise ValueError(f"num_output_channels must be 3, got {channels}: images keep their channels")
        self._keep(num_output_channels=channels)

    def _op(self) -> Op:
        return _core.grayscale()


@dataclass(frozen=True)
class RandomGrayscale(PixelTransform):
    """Give all channels the gray value with probability `p`.

    Source: torchvision.transforms.v2.RandomGrayscale.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_color("grayscale", self.p)


@dataclass(frozen=True)
class RandomInvert(PixelTransform):
    """Replace values by 255 minus them with probability `p`.

    Source: torchvision.transforms.v2.RandomInvert.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
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
        TypeError: an argument of a wrong kind.
        ValueError: `bits` outside 0..8 or `p` outside 0..1.
    """

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(bits=check.whole("bits", self.bits, 0, 8), p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_posterize(self.bits, self.p)


@dataclass(frozen=True)
class RandomSolarize(PixelTransform):
    """Invert values from a threshold on with probability `p`.

    Source: torchvision.transforms.v2.RandomSolarize.

    Args:
        threshold: values equal or above are inverted, at most 255.
        p: how often, 0..1.

    Raises:
        TypeError: an argument of a wrong kind.
        ValueError: a threshold above 255 or `p` outside 0..1.
    """

    threshold: float
    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(threshold=check.number("threshold", self.threshold), p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_solarize(self.threshold, self.p)


@dataclass(frozen=True)
class RandomAutocontrast(PixelTransform):
    """Spread each channel's range over 0..255 with probability `p`.

    Source: torchvision.transforms.v2.RandomAutocontrast.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
        self._op()

    def _op(self) -> Op:
        return _core.random_color("autocontrast", self.p)


@dataclass(frozen=True)
class RandomEqualize(PixelTransform):
    """Make each channel's histogram flat with probability `p`.

    Source: torchvision.transforms.v2.RandomEqualize.

    Raises:
        TypeError: `p` that is not a number.
        ValueError: `p` outside 0..1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(p=check.probability(self.p))
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
        TypeError: an argument of a wrong kind.
        ValueError: a negative factor or `p` outside 0..1.
    """

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        self._keep(
            sharpness_factor=check.number("sharpness_factor", self.sharpness_factor), p=check.probability(self.p)
        )
        self._op()

    def _op(self) -> Op:
        return _core.random_adjust_sharpness(self.sharpness_factor, self.p)
