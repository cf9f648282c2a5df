"""The user's data, as the doctor reads it: the one place where kinds of sources are told apart."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vit_rs.data import ImageFolder, TarShards
from vit_rs.data.folder import visible_folder
from vit_rs.exceptions import DatasetError

__all__ = ["Files", "open_files"]

_SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Files:
    """Encoded images, and the loader's source over them."""

    data: str
    source: ImageFolder | TarShards

    def __len__(self) -> int:
        return len(self.source)

    @property
    def class_count(self) -> int | None:
        """Number of classes; None for shards, whose labels are not read."""
        return None if isinstance(self.source, TarShards) else len(self.source.classes)

    @property
    def empty_classes(self) -> tuple[str, ...]:
        """Names of the classes without an image; none of shards."""
        if isinstance(self.source, TarShards):
            return ()
        filled = set(self.source.targets)
        return tuple(name for label, name in enumerate(self.source.classes) if label not in filled)

    @property
    def shard_count(self) -> int | None:
        """Number of shards; None for a folder."""
        return len(self.source.shards) if isinstance(self.source, TarShards) else None

    def name(self, index: int) -> str:
        """Return what error messages call an image."""
        if isinstance(self.source, TarShards):
            return self.source.core_source.name(index)
        return self.source.samples[index][0]

    def read(self, index: int) -> bytes:
        """Return an image's encoded bytes.

        Raises:
            OSError: it cannot be read.
            VitRsError: its shard is damaged there.
        """
        if isinstance(self.source, TarShards):
            return self.source.core_source.encoded(index)
        return Path(self.name(index)).read_bytes()

    def start(self, index: int, most: int) -> tuple[bytes, int]:
        """Return an image's first bytes, at most `most` of them where that spares reading the others, and its size.

        Raises:
            OSError: it cannot be read.
            VitRsError: its shard is damaged there.
        """
        if isinstance(self.source, TarShards):
            data = self.read(index)
            return data, len(data)
        path = Path(self.name(index))
        with path.open("rb") as file:
            return file.read(most), path.stat().st_size

    def spread(self, count: int) -> npt.NDArray[np.int64]:
        """Return at most `count` indices, spread evenly over all."""
        return np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).round().astype(np.int64))


def open_files(data: str) -> Files:
    """Open an image folder or tar shards, named by a path or by one with braces.

    Classes may be empty, hidden folders are left out; shards need no labels.

    Raises:
        FileNotFoundError: no such folder or shard.
        NotADirectoryError: neither a folder nor a shard.
        DatasetError: no class folder in it, no image at all, or a damaged shard.
    """
    if data.lower().endswith(_SHARD_ENDINGS):
        return Files(data, TarShards(data, label_key=None))
    source = visible_folder(data, allow_empty=True)
    if not len(source):
        raise DatasetError(f"{data}: no image in {len(source.classes)} class folders")
    return Files(data, source)
