"""Which images of a folder a model is trained on, and which it is tested on."""

from __future__ import annotations

import errno
import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from torch.utils.data import Subset

from vit_rs.data.array import ArrayDataset
from vit_rs.data.folder import visible_folder
from vit_rs.data.sample import load_idx, sample_dataset
from vit_rs.data.tar import TarShards
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    import torch
    from numpy.typing import NDArray

__all__ = [
    "Splits",
    "common_side",
    "first_of_each_class",
    "has_shards",
    "image_channels",
    "is_idx_folder",
    "members_of_classes",
    "open_splits",
    "split_by_class",
]

_HELD_OUT = ("val", "validation", "test")
_SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz")


class _Labelled(Protocol):
    """What ImageFolder, ArrayDataset and TarShards have in common."""

    classes: list[str]
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...


@dataclass(frozen=True)
class Splits:
    """Training and test images.

    Attributes:
        train: the training images.
        test: the images that a model is tested on.
        train_targets: the label of each training image.
        test_targets: the label of each test image.
        classes: the classes' names.
        channels: 1 or 3.
        side: height and width of every image where they all agree and are equal, else None.
        description: what the images are and how they were split, for people.
        seeded: whether the test images were held out of the training images by a seed.
        numbered: whether the classes' names are only their numbers: IDX files and tar shards have no others.
    """

    train: Subset[tuple[torch.Tensor, int]]
    test: Subset[tuple[torch.Tensor, int]]
    train_targets: list[int]
    test_targets: list[int]
    classes: list[str]
    channels: int
    side: int | None
    description: str
    seeded: bool
    numbered: bool


def open_splits(
    path: str | os.PathLike[str] | None = None,
    *,
    holdout: float = 0.2,
    split_seed: int = 0,
    per_class: int | None = None,
) -> Splits:
    """Return the training and test images of a folder. Reads lists of files, no image of a folder.

    What lies in hidden folders, whose names begin with a dot, is left out.

    Args:
        path: folder of class sub-folders, of train/ and val/ (or validation/, test/) with such, of IDX files, or of tar
            shards: train-*.tar and val-*.tar, or train/*.tar and val/*.tar, see `TarShards`. None is the bundled
            Fashion-MNIST subset.
        holdout: share of each class that is held out for testing where the folder has no val/, 0 < holdout < 1.
        split_seed: seed of that split.
        per_class: use the first so many training images of each class; None uses all.

    Raises:
        FileNotFoundError: the folder or one of its parts is missing, or it holds no images.
        NotADirectoryError: it is a file.
        DatasetError: a class of a folder is empty, or has too few images to hold one out; there are fewer than two
            classes; the test images have other classes; a shard is damaged, or has a sample without a label.
        ValueError: a number is out of its range.
    """
    if not 0 < holdout < 1:
        raise ValueError(f"holdout must be above 0 and below 1, got {holdout}")
    if split_seed < 0:
        raise ValueError(f"split_seed must be 0 or more, got {split_seed}")
    if per_class is not None and per_class < 1:
        raise ValueError(f"per_class must be 1 or more, got {per_class}")
    train: _Labelled
    test: _Labelled
    seeded = numbered = False
    if path is None:
        name = "the bundled Fashion-MNIST subset"
        train, test = sample_dataset("train"), sample_dataset("test")
        train_indices, test_indices = _all(train), _all(test)
        split = "its own test images"
    else:
        root = Path(path)
        if not root.exists():
            raise FileNotFoundError(errno.ENOENT, "no such data folder", str(root))
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "expected a data folder, got a file", str(root))
        name = str(root)
        parted = _has_folders(root / "train")
        held_out = next((root / part for part in _HELD_OUT if (root / part).is_dir()), None)
        shards = _shards(root, "train")
        if is_idx_folder(root):
            train, test = load_idx(root, "train"), load_idx(root, "test")
            if len(test.classes) > len(train.classes):
                unknown = len(test.classes) - 1
                raise DatasetError(f"{name}: test label {unknown} is above all training labels")
            train_indices, test_indices = _all(train), _all(test)
            split = "its own test images"
            numbered = True
        elif shards:
            train, numbered = TarShards(shards), True
            part = next((part for part in _HELD_OUT if _shards(root, part)), None)
            if part is None:
                test, seeded = train, True
                train_indices, test_indices = split_by_class(
                    train.targets, train.classes, share=holdout, seed=split_seed
                )
                split = _held_out(holdout, split_seed)
            else:
                test = TarShards(_shards(root, part))
                if len(test.classes) > len(train.classes):
                    unknown = len(test.classes) - 1
                    raise DatasetError(f"{name}: the label {unknown} in {part} is above all training labels")
                train_indices, test_indices = _all(train), _all(test)
                split = f"the shards of {part}"
        elif parted and held_out is not None:
            train, test = visible_folder(root / "train"), visible_folder(held_out)
            _check_same_classes(train, test, root / "train", held_out)
            train_indices, test_indices = _all(train), _all(test)
            split = f"those in {held_out.name}/"
        else:
            train = test = visible_folder(root / "train" if parted else root)
            train_indices, test_indices = split_by_class(train.targets, train.classes, share=holdout, seed=split_seed)
            seeded = True
            split = _held_out(holdout, split_seed)
    if per_class is not None:
        train_indices = first_of_each_class(train.targets, train_indices, per_class)
    if len(train.classes) < 2:
        raise DatasetError(
            f"{name}: expected at least two classes, got {len(train.classes)}: {', '.join(train.classes)}"
        )
    channels, side = _shape(train, test)
    description = (
        f"{name}: {len(train_indices):,} training and {len(test_indices):,} test images ({split}), "
        f"{len(train.classes)} classes"
    )
    return Splits(
        train=Subset(train, train_indices),  # type: ignore[arg-type]  # a map-style data set by protocol
        test=Subset(test, test_indices),  # type: ignore[arg-type]
        train_targets=[train.targets[i] for i in train_indices],
        test_targets=[test.targets[i] for i in test_indices],
        classes=list(train.classes),
        channels=channels,
        side=side,
        description=description,
        seeded=seeded,
        numbered=numbered,
    )


def common_side(source: Any) -> int | None:
    """Return height and width of all images of a data set, or of a Subset of one, where it is known and one number."""
    while isinstance(source, Subset):
        source = source.dataset
    if not isinstance(source, ArrayDataset):
        return None
    height, width = source.images.shape[1:3]
    return height if height == width else None


def image_channels(source: Any) -> int:
    """Return the channels, 1 or 3, of the images of a data set, or of a Subset of one; a folder's are RGB."""
    while isinstance(source, Subset):
        source = source.dataset
    return source.images.shape[3] if isinstance(source, ArrayDataset) else 3


def is_idx_folder(root: Path) -> bool:
    """Return whether a folder holds training images in MNIST's IDX files."""
    return any(root.glob("train-images-idx3-ubyte*"))


def has_shards(root: Path) -> bool:
    """Return whether a folder holds training images in tar shards, as `open_splits` finds them."""
    return bool(_shards(root, "train"))


def split_by_class(
    targets: Sequence[int], classes: Sequence[str], *, share: float, seed: int
) -> tuple[list[int], list[int]]:
    """Return (training, held-out) indices.

    Of each class the share is held out, at least one image and at most all but one. A class's held-out
    images depend on the seed and on its own number of images alone.

    Args:
        targets: label of each image.
        classes: names of the labels.
        share: of the images that is held out, above 0 and below 1.
        seed: names the split.

    Raises:
        DatasetError: if a class has fewer than two images.
    """
    labels = np.asarray(targets)
    held_out = np.zeros(len(labels), dtype=bool)
    for label, (name, members) in enumerate(zip(classes, members_of_classes(labels, len(classes)), strict=True)):
        if len(members) < 2:
            raise DatasetError(
                f"class {name!r} has {len(members)} image(s): at least 2 are needed to hold one out; "
                "add images, or give the folder train/ and val/"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out[np.random.default_rng((seed, label)).permutation(members)[:count]] = True
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()


def members_of_classes(labels: NDArray[np.integer], num_classes: int) -> list[NDArray[np.int64]]:
    """Return the indices of each class's images, increasing; of labels (N,). One sort, however many classes."""
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(num_classes + 1))
    return [order[start:end] for start, end in itertools.pairwise(bounds)]


def first_of_each_class(targets: Sequence[int], indices: Iterable[int], count: int) -> list[int]:
    """Return those of the indices, in their order, that are among the first `count` of their class."""
    taken: Counter[int] = Counter()
    chosen = []
    for index in indices:
        if taken[targets[index]] < count:
            taken[targets[index]] += 1
            chosen.append(index)
    return chosen


def _shards(root: Path, part: str) -> list[str]:
    """Return the tar shards of "train" or another part: those called PART-..., or else those in PART/, sorted."""
    beside = [path for path in root.glob(f"{part}-*") if path.name.lower().endswith(_SHARD_ENDINGS)]
    inside = [path for path in (root / part).glob("*") if path.name.lower().endswith(_SHARD_ENDINGS)]
    return sorted(str(path) for path in (beside or inside))


def _held_out(share: float, seed: int) -> str:
    return f"{share:.0%} of each class, held out by seed {seed}"


def _shape(*sets: _Labelled) -> tuple[int, int | None]:
    """Return channels, and the common side of square images. Images of folders and shards are RGB, of any size."""
    shapes = {source.images.shape[1:] for source in sets if isinstance(source, ArrayDataset)}
    if not shapes:
        return 3, None
    if len(shapes) > 1:
        raise DatasetError(f"training and test images differ in shape (H, W, C): {sorted(shapes)}")
    height, width, channels = shapes.pop()
    return channels, height if height == width else None


def _check_same_classes(train: _Labelled, test: _Labelled, train_root: Path, test_root: Path) -> None:
    if train.classes != test.classes:
        missing = sorted(set(train.classes) - set(test.classes)) or "none"
        extra = sorted(set(test.classes) - set(train.classes)) or "none"
        raise DatasetError(
            f"{test_root} and {train_root} have different class folders: expected the same; "
            f"missing {missing}, unexpected {extra}"
        )


def _all(source: _Labelled) -> list[int]:
    return list(range(len(source)))


def _has_folders(path: Path) -> bool:
    return path.is_dir() and any(entry.is_dir() and not entry.name.startswith(".") for entry in path.iterdir())
