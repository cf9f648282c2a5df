"""From the settings of `data` to two sets of images, and to what the loader does with them."""

from __future__ import annotations

import errno
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch.utils.data import Subset

from vit_rs.data import ArrayDataset, ImageFolder, load_idx, sample_dataset
from vit_rs.exceptions import ConfigError, DatasetError
from vit_rs.transforms import (
    CenterCrop,
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToDtype,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from vit_rs.training.config import DataConfig
    from vit_rs.transforms import Transform

__all__ = [
    "Sources",
    "eval_transform",
    "first_of_each_class",
    "is_idx_folder",
    "open_sources",
    "split_by_class",
    "train_transform",
]

_HELD_OUT = ("val", "validation", "test")


class _Labelled(Protocol):
    """What ImageFolder and ArrayDataset have in common."""

    classes: list[str]
    targets: list[int]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]: ...


@dataclass(frozen=True)
class Sources:
    """The images of a run.

    Attributes:
        train: the training images.
        test: the images that the model is tested on.
        train_targets: the label of each training image.
        classes: the classes' names.
        channels: 1 or 3.
        side: height and width of every image where they all agree and are equal, else None.
        description: what the images are and how they were split, for people.
    """

    train: Subset[tuple[torch.Tensor, int]]
    test: Subset[tuple[torch.Tensor, int]]
    train_targets: list[int]
    classes: list[str]
    channels: int
    side: int | None
    description: str


def open_sources(config: DataConfig) -> Sources:
    """Return the training and test images that the settings name. Reads lists of files, no image of a folder.

    Raises:
        FileNotFoundError: if the folder or one of its parts is missing, or if it holds no images.
        NotADirectoryError: if it is a file.
        DatasetError: if a class of a folder is empty, or has too few images to hold one out; if there are
            fewer than two classes; if the test images have other classes.
        ConfigError: if mean and std do not fit the images' channels.
    """
    train: _Labelled
    test: _Labelled
    if config.path is None:
        name = "the bundled Fashion-MNIST subset"
        train, test = sample_dataset("train"), sample_dataset("test")
        train_indices, test_indices = _all(train), _all(test)
        split = "its own test images"
    else:
        root = Path(config.path)
        if not root.exists():
            raise FileNotFoundError(errno.ENOENT, "no such data folder", str(root))
        if not root.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, "expected a data folder, got a file", str(root))
        name = str(root)
        parted = _has_folders(root / "train")
        held_out = next((root / part for part in _HELD_OUT if (root / part).is_dir()), None)
        if is_idx_folder(root):
            train, test = load_idx(root, "train"), load_idx(root, "test")
            if len(test.classes) > len(train.classes):
                unknown = len(test.classes) - 1
                raise DatasetError(f"{name}: test label {unknown} is above all training labels")
            train_indices, test_indices = _all(train), _all(test)
            split = "its own test images"
        elif parted and held_out is not None:
            train, test = ImageFolder(root / "train"), ImageFolder(held_out)
            _check_same_classes(train, test, root / "train", held_out)
            train_indices, test_indices = _all(train), _all(test)
            split = f"those in {held_out.name}/"
        else:
            train = test = ImageFolder(root / "train" if parted else root)
            train_indices, test_indices = split_by_class(
                train.targets, train.classes, share=config.holdout, seed=config.split_seed
            )
            split = f"{config.holdout:.0%} of each class, held out by seed {config.split_seed}"
    if config.per_class is not None:
        train_indices = first_of_each_class(train.targets, train_indices, config.per_class)
    if len(train.classes) < 2:
        raise DatasetError(
            f"{name}: expected at least two classes, got {len(train.classes)}: {', '.join(train.classes)}"
        )
    channels, side = _shape(train, test)
    if len(config.mean) not in (1, channels):
        raise ConfigError(
            f"data.mean: the images have {channels} channel(s), got {len(config.mean)} values; expected one "
            "value, or one for each channel (and the same for data.std)"
        )
    description = (
        f"{name}: {len(train_indices):,} training and {len(test_indices):,} test images ({split}), "
        f"{len(train.classes)} classes"
    )
    return Sources(
        train=Subset(train, train_indices),  # type: ignore[arg-type]  # a map-style data set by protocol
        test=Subset(test, test_indices),  # type: ignore[arg-type]
        train_targets=[train.targets[i] for i in train_indices],
        classes=list(train.classes),
        channels=channels,
        side=side,
        description=description,
    )


def is_idx_folder(root: Path) -> bool:
    """Return whether a folder holds training images in MNIST's IDX files."""
    return any(root.glob("train-images-idx3-ubyte*"))


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
    held_out: list[int] = []
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if len(members) < 2:
            raise DatasetError(
                f"class {name!r} has {len(members)} image(s): at least 2 are needed to hold one out; "
                "add images, or give the folder train/ and val/"
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        held_out += np.random.default_rng((seed, label)).permutation(members)[:count].tolist()
    kept = np.setdiff1d(np.arange(len(labels)), held_out).tolist()
    return kept, sorted(held_out)


def first_of_each_class(targets: Sequence[int], indices: Iterable[int], count: int) -> list[int]:
    """Return those of the indices, in their order, that are among the first `count` of their class."""
    taken: Counter[int] = Counter()
    chosen = []
    for index in indices:
        if taken[targets[index]] < count:
            taken[targets[index]] += 1
            chosen.append(index)
    return chosen


def train_transform(config: DataConfig, size: int, side: int | None) -> Compose:
    """Return the augmentation at an image size.

    Args:
        config: the settings.
        size: side in pixels of what the model gets.
        side: side in pixels of every stored image, None where they differ.
    """
    if config.augment == "resized_crop":
        ratio = (1.0 / config.max_aspect, config.max_aspect)
        geometry: list[Transform] = [RandomResizedCrop(size, scale=(config.min_scale, 1.0), ratio=ratio)]
    else:
        padding = round(config.padding * size / config.img_size)
        geometry = [] if side == size else [Resize(size)]
        # A padding of 0 still needs the crop: a resized photograph is not square.
        geometry.append(RandomCrop(size, padding=padding or None))
    if config.flip > 0:
        geometry.append(RandomHorizontalFlip(config.flip))
    return Compose([*geometry, *_to_float(config)])


def eval_transform(config: DataConfig, size: int, side: int | None) -> Compose:
    """Return the test transform at an image size; arguments as in `train_transform`."""
    if side == size and config.eval_crop == 1.0:
        return Compose(_to_float(config))
    return Compose([Resize(round(size / config.eval_crop)), CenterCrop(size), *_to_float(config)])


def _to_float(config: DataConfig) -> list[Transform]:
    return [ToDtype(torch.float32, scale=True), Normalize(config.mean, config.std)]


def _shape(*sets: _Labelled) -> tuple[int, int | None]:
    """Return channels, and the common side of square images. A folder's images are RGB, of any size."""
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
