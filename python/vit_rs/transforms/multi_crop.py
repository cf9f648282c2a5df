"""Several views of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vit_rs.transforms.base import Transform

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["MultiCrop"]


@dataclass(frozen=True)
class MultiCrop(Transform):
    """Make several views of each image, each by a chain of its own; the image is read and decoded once.

    Views are drawn independently. An `ImageLoader` yields ((view, ...), labels), one tensor a view; called on an image,
    it returns a tuple of views.

    Args:
        views: for each view a transform, or (transform, number of views made by it).

    Raises:
        TypeError: a view that is not a transform.
        ValueError: no views, more than 1024, or a MultiCrop inside.

    Source: the multi-crop of SwAV (arXiv 2006.09882) and DINO (arXiv 2104.14294): two global and several local crops.
    """

    views: Sequence[Transform | tuple[Transform, int]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "views", tuple(self.views))
        for chain, count in self.counted():
            if not isinstance(chain, Transform):
                kind = type(chain)
                raise TypeError(f"a view must be a transform of vit_rs, got {kind.__module__}.{kind.__name__}")
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"a number of views must be an int of at least 1, got {count!r}")
            if any(isinstance(step, MultiCrop) for step in chain.steps()):
                raise ValueError("a MultiCrop cannot be a view of a MultiCrop")
        total = sum(count for _, count in self.counted())
        if not 1 <= total <= 1024:
            raise ValueError(f"1 to 1024 views can be made, got {total}")

    def counted(self) -> Iterator[tuple[Transform, int]]:
        """Yield each chain and the number of views that it makes."""
        for view in self.views:
            if isinstance(view, tuple):
                chain, count = view
                yield chain, count
            else:
                yield view, 1
