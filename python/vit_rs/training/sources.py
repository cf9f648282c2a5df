"""The images of a run, and what is done to them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vit_rs.data.splits import Splits, open_splits
from vit_rs.evaluation.preprocessing import Preprocessing
from vit_rs.exceptions import ConfigError
from vit_rs.training.augmentation import erasing, pixel_augmentations
from vit_rs.transforms import (
    Compose,
    Normalize,
    RandomCrop,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToDtype,
)

if TYPE_CHECKING:
    from vit_rs.training.config import DataConfig
    from vit_rs.transforms import Transform

__all__ = ["eval_transform", "open_sources", "preprocessing", "train_transform"]


def open_sources(config: DataConfig) -> Splits:
    """Return the training and test images that the settings name. Reads lists of files, no image of a folder.

    Raises:
        FileNotFoundError, NotADirectoryError, DatasetError: as `vit_rs.data.splits.open_splits`.
        ConfigError: if mean and std do not fit the images' channels.
    """
    splits = open_splits(config.path, holdout=config.holdout, split_seed=config.split_seed, per_class=config.per_class)
    if len(config.mean) not in (1, splits.channels):
        raise ConfigError(
            f"data.mean: the images have {splits.channels} channel(s), got {len(config.mean)} values; expected one "
            "value, or one for each channel (and the same for data.std)"
        )
    return splits


def train_transform(config: DataConfig, size: int, side: int | None) -> Compose:
    """Return the augmentation at an image size.

    Args:
        config: the settings.
        size: side in pixels of what the model gets.
        side: side in pixels of every stored image, None where they differ.
    """
    filters = config.interpolation
    if config.augment == "resized_crop":
        ratio = (1.0 / config.max_aspect, config.max_aspect)
        geometry: list[Transform] = [
            RandomResizedCrop(size, scale=(config.min_scale, 1.0), ratio=ratio, interpolation=filters)
        ]
    elif config.augment == "crop" and config.train_resize is not None:
        resized = round(config.train_resize * size / config.img_size)
        geometry = [] if side == resized else [Resize((resized, resized), filters)]
        geometry.append(RandomCrop(size))
    else:
        padding = round(config.padding * size / config.img_size)
        geometry = [] if side == size else [Resize(size, filters)]
        # A padding of 0 still needs the crop: a resized photograph is not square.
        geometry.append(RandomCrop(size, padding=padding or None))
    if config.flip > 0:
        geometry.append(RandomHorizontalFlip(config.flip))
    return Compose([*geometry, *pixel_augmentations(config), *_to_float(config), *erasing(config)])


def preprocessing(config: DataConfig, size: int) -> Preprocessing:
    """Return what is done to a test image, at an image size in pixels."""
    return Preprocessing(
        (size, size),
        resize=config.eval_resize,
        crop=config.eval_crop,
        interpolation=config.interpolation,
        mean=config.mean,
        std=config.std,
    )


def eval_transform(config: DataConfig, size: int, side: int | None) -> Compose:
    """Return the test transform at an image size; arguments as in `train_transform`."""
    return preprocessing(config, size).transform(side)


def _to_float(config: DataConfig) -> list[Transform]:
    if config.normalize_on == "device":
        return []  # 8-bit pixels leave the loader; test images come as floats all the same
    return [ToDtype(torch.float32, scale=True), Normalize(config.mean, config.std)]
