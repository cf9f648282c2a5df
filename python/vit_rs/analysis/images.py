"""Which images a model is looked into with: any folder or files, no labels are needed.

Letters: C channels.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch.utils.data import Subset

from vit_rs.data.folder import image_files
from vit_rs.data.splits import has_shards, is_idx_folder, open_splits
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

__all__ = ["ImageSet", "choose_images", "spread"]


class ImageSet(NamedTuple):
    """Images to look into a model with.

    Attributes:
        source: what an `ImageLoader` reads.
        names: of each image, for people: its path below the folder that was given.
        channels: of the images as they are read.
        description: what they are, for people.
    """

    source: Any
    names: tuple[str, ...]
    channels: int
    description: str


def choose_images(paths: Sequence[str | os.PathLike[str]] | None, count: int) -> ImageSet:
    """Return so many images, at even distances in the order of all, so that all classes of sorted folders take part.

    Args:
        paths: image files; folders with images at any depth; or one folder of IDX files or of tar shards, of which the
            test images are taken, as by `vit_rs.data.splits.open_splits`. None is the bundled test images.
        count: how many; fewer where there are fewer.

    Raises:
        FileNotFoundError: a path does not exist.
        DatasetError: there is no image; see also `open_splits`.
        ValueError: `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"at least 1 image is needed, got {count}")
    splitting = paths is None or (len(paths) == 1 and (is_idx_folder(Path(paths[0])) or has_shards(Path(paths[0]))))
    if splitting:
        splits = open_splits(None if paths is None else paths[0])
        places = spread(len(splits.test), count)
        labels = [splits.classes[splits.test_targets[place]] for place in places]
        return ImageSet(
            source=Subset(splits.test, places),
            names=tuple(f"test image {place} ({label})" for place, label in zip(places, labels, strict=True)),
            channels=splits.channels,
            description=f"{len(places):,} test images of {splits.description}",
        )
    files: list[tuple[str, str]] = []  # path, and name for people
    for path in paths or ():
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(errno.ENOENT, "no such image or folder", str(path))
        found = image_files(root) if root.is_dir() else [str(path)]
        if not found:
            raise DatasetError(f"{path}: no image in this folder")
        files += [(file, str(Path(file).relative_to(root)) if root.is_dir() else root.name) for file in found]
    chosen = [files[place] for place in spread(len(files), count)]
    where = ", ".join(str(path) for path in paths or ())
    return ImageSet(
        source=[(file, 0) for file, _ in chosen],
        names=tuple(name for _, name in chosen),
        channels=3,
        description=f"{len(chosen):,} of {len(files):,} images of {where}",
    )


def spread(total: int, count: int) -> list[int]:
    """Return so many of the numbers 0..total-1 at even distances, all of them where there are fewer."""
    count = min(total, count)
    return [place * total // count for place in range(count)]
