"""The user's data, as the doctor reads it: the one place where kinds of sources are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_rs.data import ImageFolder
from vit_rs.exceptions import DatasetError

__all__ = ["Files", "open_files"]


@dataclass(frozen=True)
class Files:
    """Encoded images with labels, and the loader's source over them."""

    data: str
    source: ImageFolder

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_count(self) -> int:
        """Number of classes."""
        return len(self.source.classes)

    def name(self, index: int) -> str:
        """Return what error messages call an image."""
        return self.source.samples[index][0]

    def read(self, index: int) -> bytes:
        """Return an image's encoded bytes.

        Raises:
            OSError: it cannot be read.
        """
        return Path(self.name(index)).read_bytes()

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Return at most `count` indices, spread evenly over all."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))


def open_files(data: str) -> Files:
    """Open an image folder; classes may be empty.

    Raises:
        FileNotFoundError: no such folder.
        NotADirectoryError: not a folder.
        DatasetError: no class folder in it, or no image at all.
    """
    source = ImageFolder(data, allow_empty=True)
    if not len(source):
        raise DatasetError(f"{data}: no image in {len(source.classes)} class folders")
    return Files(data, source)
