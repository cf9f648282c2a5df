"""Images that are in memory already: one u8 array and its labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vit_rs.data.labels import class_names

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["ArrayDataset"]


class ArrayDataset:
    """A map-style data set over a u8 array, read by the Rust loader without a copy.

    Args:
        images: u8, (N, H, W, C) with C = 1 or 3, or (N, H, W) for gray; a numpy array or a CPU tensor. It is kept,
            not copied, when it is contiguous: do not write to it while a loader reads it.
        labels: integers, (N,). Negative ones belong to no class: -1 where a label is not known, or the ignore_index
            (-100) of torch's cross_entropy.
        classes: the classes' names, index = label; None names them "0", "1", ...

    Raises:
        TypeError: images are not u8, or labels are not integers.
        ValueError: a wrong shape, another number of labels than images, or a label outside the classes.
    """

    def __init__(self, images: Any, labels: Any, *, classes: Sequence[str] | None = None) -> None:
        pixels = images.numpy() if isinstance(images, torch.Tensor) else np.asarray(images)
        targets = labels.numpy() if isinstance(labels, torch.Tensor) else np.asarray(labels)
        if pixels.dtype != np.uint8:
            raise TypeError(f"images must be uint8 with values 0..255, got {pixels.dtype}")
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        if pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape[1:]:
            raise ValueError(
                f"images must be (N, H, W) or (N, H, W, C) with C = 1 or 3 and H, W > 0, got {tuple(np.shape(images))}"
            )
        if targets.dtype.kind not in "iu":
            raise TypeError(f"labels must be integers, got {targets.dtype}")
        if targets.shape != (len(pixels),):
            raise ValueError(f"labels must be ({len(pixels)},), one for each image, got {targets.shape}")
        highest = int(targets.max()) if targets.size else -1
        self.classes = class_names(highest, classes)
        self.images: np.ndarray[Any, np.dtype[np.uint8]] = np.ascontiguousarray(pixels)
        self.targets: list[int] = targets.astype(np.int64).tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return (image, label): image u8, (C, H, W), values 0..255."""
        return torch.from_numpy(self.images[index].copy()).permute(2, 0, 1), self.targets[index]

    def __repr__(self) -> str:
        count, height, width, channels = self.images.shape
        return f"ArrayDataset({count} images, {height}x{width}x{channels}, {len(self.classes)} classes)"
