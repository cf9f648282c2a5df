"""Random erasing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vit_rs import _core
from vit_rs.transforms.base import PixelTransform

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs._core import Op

__all__ = ["RandomErasing"]


@dataclass(frozen=True)
class RandomErasing(PixelTransform):
    """Overwrite a random rectangle with a colour or with noise.

    Source: torchvision.transforms.v2.RandomErasing (arXiv 1708.04896): area uniform in `scale`, log aspect ratio
    uniform in `ratio`, ten tries for a rectangle that is smaller than the image on both sides, then none.

    Args:
        p: how often, 0..1.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest height / width.
        value: what the rectangle is filled with, in the units of the place where this stands: 0..255 on 8-bit pixels
            (fractions are cut off), normalised units behind Normalize. A number; one for each channel; or "random": a
            standard normal number for each value, which on 8-bit pixels is cut to a whole number and taken modulo 256,
            as there.

    Raises:
        TypeError: a `value` that is none of these.
        ValueError: a probability or range that makes no sense, or a value that is not finite; (in a Compose with
            ToDtype, or on images) a value outside 0..255 on 8-bit pixels; (on images) another number of values than
            channels.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | Sequence[float] | Literal["random"] = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.value, (list, tuple)):
            object.__setattr__(self, "value", tuple(self.value))
        self._op()

    def _op(self) -> Op:
        return _core.random_erasing(self.p, self.scale, self.ratio, _values(self.value))


def _values(value: float | Sequence[float] | str) -> list[float] | None:
    """Return a value for each channel, or one for all; None for random ones."""
    if value == "random":
        return None
    values = []
    for number in value if isinstance(value, tuple) else (value,):
        if not isinstance(number, (int, float)):
            raise TypeError(f"value must be a number, one for each channel, or 'random', got {value!r}")
        if not math.isfinite(number):
            raise ValueError(f"value must be finite, got {value!r}")
        values.append(float(number))
    return values
