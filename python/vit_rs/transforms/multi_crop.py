"""Several views of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vit_rs.transforms import _arguments as check
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
        TypeError: a view that is not a transform, or a number of views that is not whole.
        ValueError: no views, a view that is not one of these, more than 1024, or a MultiCrop inside.

    Source: the multi-crop of SwAV (arXiv 2006.09882) and DINO (arXiv 2104.14294): two global and several local crops.
    """

    views: Sequence[Transform | tuple[Transform, int]]

    def __post_init__(self) -> None:
        self._keep(views=tuple(_view(view) for view in check.sequence("views", self.views, "a sequence of views")))
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


def _view(view: Any) -> Transform | tuple[Transform, int]:
    """Return a view as it is kept."""
    if not isinstance(view, (tuple, list)):
        chain, count = view, None
    elif len(view) == 2:
        chain, count = view
        count = check.whole("a number of views", count, 1)
    else:
        raise ValueError(f"a view must be a transform or (transform, number of views), got {view!r}")
    if not isinstance(chain, Transform):
        kind = type(chain)
        raise TypeError(f"a view must be a transform of vit_rs, got {kind.__module__}.{kind.__name__}")
    if any(isinstance(step, MultiCrop) for step in chain.steps()):
        raise ValueError("a MultiCrop cannot be a view of a MultiCrop")
    return chain if count is None else (chain, count)
