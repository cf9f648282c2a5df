"""Random erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

from vit_rs import _core
from vit_rs.transforms import _arguments as check
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["RandomErasing"]


@dataclass(frozen=True)
class RandomErasing(PixelTransform):
    """Overwrite random rectangles with a colour or with noise.

    Source: torchvision.transforms.v2.RandomErasing (arXiv 1708.04896), and for `count` and "random_color"
    timm.data.random_erasing: area uniform in `scale`, log aspect ratio
    uniform in `ratio`, ten tries for a rectangle that is smaller than the image on both sides, then none.

    Args:
        p: how often, 0..1.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest height / width.
        value: what the rectangle is filled with, in the units of the place where this stands: 0..255 on 8-bit pixels
            (fractions are cut off), normalised units behind Normalize. A number; one for each channel; or "random": a
            standard normal number for each value, which on 8-bit pixels is cut to a whole number and taken modulo 256,
            as there; "random_color": such a number for each channel.
        count: how many rectangles, or (fewest, most), which share the area.

    Raises:
        TypeError: a `value` that is none of these, or an argument of another wrong kind.
        ValueError: a probability or range that makes no sense, or a value that is not finite; (in a Compose with
            ToDtype, or on images) a value outside 0..255 on 8-bit pixels; (on images) another number of values than
            channels.
    """

    p: float = 0.5
    scale: Sequence[float] = (0.02, 0.33)
    ratio: Sequence[float] = (0.3, 3.3)
    value: float | Sequence[float] | Literal["random", "random_color"] = 0.0
    count: int | Sequence[int] = 1

    def __post_init__(self) -> None:
        self._keep(
            p=check.probability(self.p),
            scale=check.two("scale", self.scale),
            ratio=check.two("ratio", self.ratio),
            value=_value(self.value),
            count=_count(self.count),
        )
        self._op()

    def _op(self) -> Op:
        value = [self.value] if isinstance(self.value, (int, float)) else self.value
        scale, ratio = check.two("scale", self.scale), check.two("ratio", self.ratio)
        fewest, most = check.pair(self.count)
        return _core.random_erasing(
            self.p,
            scale,
            ratio,
            None if isinstance(value, str) else list(value),
            color=value == "random_color",
            count=(fewest, most),
        )


def _value(value: Any) -> float | tuple[float, ...] | str:
    """Return a number, one for each channel, "random" or "random_color"."""
    expected = "a number, one for each channel, 'random' or 'random_color'"
    if isinstance(value, str) and value in ("random", "random_color"):
        return value
    single = isinstance(value, Real)
    values = (check.number("value", value, expected),) if single else check.numbers("value", value, expected)
    if not all(map(math.isfinite, values)):
        raise ValueError(f"value must be finite, got {value!r}")
    return values[0] if single else values


def _count(count: Any) -> int | tuple[int, int]:
    """Return a number of rectangles, or the fewest and the most."""
    return check.sides("count", count, "(fewest, most)")
