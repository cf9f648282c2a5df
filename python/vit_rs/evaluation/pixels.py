"""Raw pixels as features: what a probe reaches without a model, to stand beside what it reaches with one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from vit_rs.data import ImageLoader
from vit_rs.data.splits import common_side
from vit_rs.evaluation.feature_bank import Features
from vit_rs.evaluation.features import extract_features
from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vit_rs.evaluation.preprocessing import Preprocessing

__all__ = ["pixel_features"]

# Beyond this the table of pixels is refused: 8 GiB of float32.
_MOST_VALUES = 2**31


class _Pixels(nn.Module):
    """The model that gives its images back."""

    def forward_features(self, x: Tensor) -> Tensor:
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:  # noqa: ARG002  (the protocol's)
        return x.flatten(1)


def pixel_features(
    source: Any,
    preprocessing: Preprocessing,
    *,
    channels: int,
    batch_size: int = 256,
    num_threads: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Features:
    """Return the pixels of all images of a data set as a model gets them, resized and normalised, as vectors.

    Args:
        source: An ImageFolder or ArrayDataset, or a torch Subset of one.
        preprocessing: A model's own, or `at_size` of it: fewer pixels are a cheaper baseline.
        channels: Of the images.
        batch_size: Images at once.
        num_threads: Of the image loader; None is one for each core.
        progress: Called with (images done, images).

    Returns:
        Features (N, C * H * W) float32 and labels (N,) int64, in the data set's order.

    Raises:
        ConfigError: The pixels are more than 8 GiB.
        DecodeError: An image cannot be decoded.
    """
    count = len(source)
    height, width = preprocessing.img_size
    values = count * channels * height * width
    if values > _MOST_VALUES:
        raise ConfigError(
            f"the pixels of {count:,} images of {height}x{width} take {values / 2**28:.0f} GiB, expected at most 8: "
            "ask for a smaller side"
        )
    with ImageLoader(
        source,
        preprocessing.transform(common_side(source)),
        batch_size=batch_size,
        num_threads=num_threads,
        rank=0,
        world_size=1,
    ) as loader:
        step = None if progress is None else lambda done: progress(done, count)
        return Features(*extract_features(_Pixels(), loader, count=count, progress=step))
