"""What `dataset[i]` gives of a decoded image and its label."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch

from vit_rs.data.image_info import image_info

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

__all__ = ["item"]


def item(
    pixels: np.ndarray[Any, np.dtype[np.uint8]],
    label: int,
    transform: Callable[[Any], Any] | None = None,
    target_transform: Callable[[Any], Any] | None = None,
    *,
    encoded: bytes | None = None,
) -> tuple[Any, Any]:
    """Return (image, label) as torchvision's data sets do.

    Args:
        pixels: u8 RGB, (H, W, 3).
        label: its label.
        transform: gets a PIL image of mode RGB; without one the image is a u8 tensor, (3, H, W).
        target_transform: gets the label.
        encoded: what the pixels were decoded from; the PIL image gets its info from that.
    """
    target = label if target_transform is None else target_transform(label)
    if transform is None:
        return torch.from_numpy(pixels).permute(2, 0, 1), target
    # Pillow comes with torchvision, and is needed for its transforms only.
    image = importlib.import_module("PIL.Image").fromarray(pixels)
    if encoded is not None:
        image.info = image_info(encoded)
    return transform(image), target
