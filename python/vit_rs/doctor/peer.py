"""torchvision's part: transforms and a DataLoader as most people write them; and Pillow's, of decoding.

Both are optional: what is not installed is not compared with.
"""

from __future__ import annotations

import importlib
import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from vit_rs.doctor.files import Files

__all__ = ["TorchvisionLoader", "evaluation_transform", "open_image", "pillow_pixels", "training_transform", "version"]

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def version(package: str) -> str | None:
    """Return the version of a package; None where it is not installed, or cannot be imported."""
    try:
        return str(importlib.import_module(package).__version__)
    except (ImportError, RuntimeError):  # the second from a torchvision made for another torch
        return None


def pillow_pixels(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]] | None:
    """Return what Pillow decodes, RGB (H, W, 3); None where it cannot."""
    image = open_image(data)
    return None if image is None else np.array(image)


def open_image(data: bytes) -> Any:
    """Return the image that Pillow decodes, RGB; None where it cannot."""
    image = importlib.import_module("PIL.Image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on strange files, which are another section's business
        try:
            return image.open(io.BytesIO(data)).convert("RGB")
        except Exception:  # noqa: BLE001  (of damaged files and decompression bombs Pillow raises many kinds)
            return None


def training_transform() -> Callable[[Any], torch.Tensor]:
    """Return torchvision's RandomResizedCrop(224), flip and normalisation, for PIL images."""
    v2 = importlib.import_module("torchvision.transforms.v2")
    chain = [v2.RandomResizedCrop(224, antialias=True), v2.RandomHorizontalFlip(), v2.PILToTensor()]
    return v2.Compose([*chain, v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])  # type: ignore[no-any-return]


def evaluation_transform() -> Callable[[Any], torch.Tensor]:
    """Return torchvision's Resize(256), CenterCrop(224) and normalisation, for u8 tensors."""
    v2 = importlib.import_module("torchvision.transforms.v2")
    chain = [v2.Resize(256, antialias=True), v2.CenterCrop(224), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*chain, v2.Normalize(MEAN, STD)])  # type: ignore[no-any-return]


class _Images(Dataset[torch.Tensor]):
    def __init__(self, files: Files, indices: list[int]) -> None:
        self.files = files
        self.indices = indices
        self.transform = training_transform()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> torch.Tensor:
        return self.transform(open_image(self.files.read(self.indices[place])))


class TorchvisionLoader:
    """A DataLoader whose processes live on between epochs."""

    def __init__(self, files: Files, indices: list[int], *, batch_size: int, workers: int) -> None:
        self._batches: Iterable[torch.Tensor] | None = DataLoader(
            _Images(files, indices), batch_size=batch_size, num_workers=workers, persistent_workers=True
        )

    def run(self) -> int:
        """Take one epoch's batches, and return the number of images in them."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forks beside threads: the children use none of ours
            return sum(len(images) for images in self._batches or ())

    def close(self) -> None:
        """End the processes."""
        self._batches = None
