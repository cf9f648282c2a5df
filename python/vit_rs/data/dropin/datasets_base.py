"""One data set with images of its own, taken apart: where its images are, its labels, its transforms."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_rs._core import Source
from vit_rs.data.dropin.places import UntranslatableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vit_rs.data.dropin.places import Place
    from vit_rs.data.order import Index
    from vit_rs.data.statistics import Reader

__all__ = ["REMEDY", "Base", "array_source", "file_source", "named"]

REMEDY = (
    "For Rust, vit_rs.data.EncodedDataset(dataset, transform=...) takes one that gives encoded images, ArrayDataset "
    "takes uint8 arrays; fallback='torch' gives torch's own DataLoader"
)

# Endings of formats that Pillow reads and Rust does not; a file's content decides, but nobody names a JPEG so.
_UNREADABLE = (
    *(".avif", ".bmp", ".gif", ".ico", ".jp2", ".pbm", ".pgm", ".pnm", ".ppm", ".tga", ".tif", ".tiff"),
    *(".npy", ".npz"),
)
_LONGEST_ENDING = 5


@dataclass(frozen=True)
class Base:
    """A data set's samples in its own order.

    Args:
        core: where the images come from.
        labels: as the data set gives them before its target_transform; int64, (N,), where they are plain integers.
        transform: what the data set does to each image.
        target_transform: what it does to each label.
        start: what an image is when `transform` gets it.
        describe: the data set in words.
        reader: who reads, as in LoaderStats.
        rows: index in `core` of each sample; None = all of it.
    """

    core: Source
    labels: np.ndarray[Any, np.dtype[np.int64]] | list[Any]
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None
    start: Place
    describe: str
    reader: Reader = "threads"
    rows: Index | None = None

    def __len__(self) -> int:
        return len(self.core) if self.rows is None else len(self.rows)


def named(thing: Any) -> str:
    """Return the full name of an object's class, or of a class or function."""
    kind = thing if hasattr(thing, "__qualname__") else type(thing)
    module = getattr(kind, "__module__", None)
    name = getattr(kind, "__qualname__", repr(kind))
    return name if module in (None, "builtins", "__main__") else f"{module}.{name}"


def file_source(paths: Sequence[Any], *, owner: str) -> Source:
    """Return image files as a source.

    Args:
        paths: str or path-like.
        owner: whose they are, for the message.

    Raises:
        UntranslatableError: some are in a format that Rust does not decode, by the endings of their names.
    """
    names = [path if type(path) is str else os.fsdecode(path) for path in paths]
    # There are as many endings as formats, or as last digits: looking at these costs less than at all names.
    if any(end.lower().endswith(_UNREADABLE) for end in {name[-_LONGEST_ENDING:] for name in names}):
        unreadable = [name for name in names if name.lower().endswith(_UNREADABLE)]
        raise UntranslatableError(
            f"{owner} has {len(unreadable):,} files of formats that Rust does not decode, the first one "
            f"{unreadable[0]}; it reads JPEG, PNG and WebP. Convert them, or pass fallback='torch'"
        )
    if getattr(sys.modules.get("PIL.ImageFile"), "LOAD_TRUNCATED_IMAGES", False):
        warnings.warn(
            f"PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, but truncated files of {owner} are errors (DecodeError) "
            "here: Rust does not make up what is missing. To have them read, take torch.utils.data.DataLoader",
            UserWarning,
            stacklevel=2,
        )
    return Source.files(names)


def array_source(pixels: Any, *, axes: str, channels: int, owner: str) -> Source:
    """Return images in memory as a source, without a copy.

    Args:
        pixels: u8, numpy array or CPU tensor.
        axes: its dimensions, "NHW", "NHWC" or "NCHW".
        channels: how many there must be.
        owner: whose they are, for the message.

    Raises:
        UntranslatableError: an array of another type or shape.
    """
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim != len(axes):
        raise UntranslatableError(
            f"the images of {owner} are {array.dtype} of shape {array.shape}, not uint8 ({', '.join(axes)}). {REMEDY}"
        )
    images = array[..., None] if axes == "NHW" else array.transpose([axes.index(axis) for axis in "NHWC"])
    if images.shape[3] != channels or 0 in images.shape[1:]:
        raise UntranslatableError(
            f"the images of {owner} are {images.shape[1]} x {images.shape[2]} with {images.shape[3]} channels, and not "
            f"{channels}. {REMEDY}"
        )
    return Source.array(images) if images.flags.c_contiguous else Source.strided(images)
