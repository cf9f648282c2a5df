"""Comparisons of changes to one image in memory, u8, 224 x 224: each variant shows its pixels before it is timed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from comparison import Comparison, Run, Variant
from torch import Tensor

Array = np.ndarray[Any, np.dtype[np.uint8]]
Change = Callable[[Any], Any]
"""From an image to an image of the same kind: a tensor, a PIL image, an array, or kornia-rs's Image."""

TRIES = 64  # draws in which a random change must change something


@dataclass(frozen=True)
class Bound:
    """How far a picture may be from torchvision's, in units of 1/255: at every value, and on average."""

    largest: float
    mean: float


@dataclass(frozen=True, kw_only=True)
class Changing(Variant):
    """A variant whose `plain` form, without randomness, gives torchvision's picture within `bound`."""

    plain: Callable[[], Any] | None = None
    bound: Bound = Bound(0, 0)


@dataclass(frozen=True, kw_only=True)
class Augmentation(Comparison):
    """Variants of the same change of one image; what they draw differs from call to call."""

    image: Callable[[], Array]  # (H, W, 3)
    expected: Callable[[], Array] | None = None  # picture of the plain form, by torchvision's tensor kernels

    def check(self, variant: Variant, run: Run) -> None:
        """Raise AssertionError unless results are images that are changed, and the plain one is right."""
        image = self.image()
        if variant.role == "floor":
            return
        if isinstance(variant, Changing) and variant.plain is not None and self.expected is not None:
            compare(variant.name, pixels(variant.plain()), self.expected(), variant.bound)
        for _ in range(TRIES):
            result = pixels(run())
            if result.shape != image.shape or result.dtype != np.uint8:
                raise AssertionError(f"{variant.name}: expected u8 {image.shape}, got {result.dtype} {result.shape}")
            if not np.array_equal(result, image):
                return
        raise AssertionError(f"{variant.name}: {TRIES} runs changed nothing")


def compare(name: str, picture: Array, expected: Array, bound: Bound) -> None:
    """Raise AssertionError unless a picture is the one expected, within the bound."""
    difference = np.abs(picture.astype(np.int16) - expected)
    if difference.max() > bound.largest or difference.mean() > bound.mean:
        raise AssertionError(
            f"{name}: expected a picture within {bound.largest} of torchvision's and {bound.mean} on average, got "
            f"{difference.max()} and {difference.mean():.3f}"
        )


class Draws:
    """Call a change `count` times on the same image, and return its last result."""

    def __init__(self, change: Change, image: Any, count: int) -> None:
        self.change, self.image, self.count = change, image, count

    def __call__(self) -> Any:
        """Return the last result."""
        for _ in range(self.count):
            result = self.change(self.image)
        return result


def pixels(image: Any) -> Array:
    """Return (H, W, 3) of any kind of image."""
    if isinstance(image, Tensor):
        return image.permute(1, 2, 0).numpy()
    return np.asarray(image.numpy() if hasattr(image, "numpy") else image)
