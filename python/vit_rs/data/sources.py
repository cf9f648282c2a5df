"""What an ImageLoader reads from: the data set that the user gave, as the engine's source, labels and subset."""

from __future__ import annotations

import operator
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Union, cast

import numpy as np
from torch.utils.data import Subset

from vit_rs._core import Source
from vit_rs.data.array import ArrayDataset
from vit_rs.data.encoded import EncodedDataset, Feeder
from vit_rs.data.folder import ImageFolder
from vit_rs.data.labels import label_array
from vit_rs.data.table import ImageTable
from vit_rs.data.tar import TarShards

if TYPE_CHECKING:
    from collections.abc import Sequence

    from vit_rs.data.order import Index
    from vit_rs.data.statistics import Reader

__all__ = ["ImageSource", "Opened", "open_source", "open_table"]

ImageSource = Union[
    ImageFolder, ArrayDataset, TarShards, ImageTable, EncodedDataset, "Sequence[tuple[Any, int]]", "Subset[Any]"
]


@dataclass(frozen=True)
class Opened:
    """A data set that is ready for the engine.

    Args:
        core: where samples come from.
        subset: index in `core` of each sample that is used; None = all.
        samples: number of samples that are used.
        labels: of each of them; none at all where they come with the samples.
        feeder: serves `core`, where Python reads the samples.
        reader: who reads, as in LoaderStats.
    """

    core: Source
    subset: Index | None
    samples: int
    labels: np.ndarray[Any, np.dtype[np.int64]]
    feeder: Feeder | None = None
    reader: Reader = "threads"


def open_source(source: ImageSource, *, keep_errors: bool) -> Opened:
    """Return the engine's view of a data set.

    Args:
        source: as ImageLoader takes it.
        keep_errors: whether exceptions of a Python data set will be raised.

    Raises:
        TypeError: a source of another kind, or a list with something else than (path or bytes, label).
        ValueError: a Subset with an index outside its data set, a label that does not fit 64 bits, or a data set with
            transforms of its own.
    """
    base, subset = _flatten(source)
    own = (base.transform, base.target_transform) if isinstance(base, (EncodedDataset, ImageTable)) else ()
    if any(transform is not None for transform in own):
        raise ValueError(f"ImageLoader takes the transform itself: make the {type(base).__name__} without one")
    if isinstance(base, EncodedDataset):
        feeder = Feeder(base.dataset, keep_errors=keep_errors)
        count = len(base) if subset is None else len(subset)
        return Opened(Source.feed(feeder.feed), subset, count, np.empty(0, np.int64), feeder, "data set")
    reader: Reader = "threads"
    if isinstance(base, ArrayDataset):
        core, labels = Source.array(base.images), base.targets
    elif isinstance(base, TarShards):
        core, labels = base.core_source, base.targets
        reader = "inflation" if base.gzipped else "threads"
    elif isinstance(base, ImageTable):
        return open_table(base, subset)
    elif isinstance(base, ImageFolder):
        # As torchvision, from the samples: lists that a user filtered agree with their files.
        core = Source.files([path for path, _ in base.samples])
        labels = [label for _, label in base.samples]
    else:
        entries, labels = _listed(base)
        core = Source.mixed(entries)
    targets = label_array(labels)
    targets = targets if subset is None else targets[subset]
    return Opened(core, subset, len(targets), targets, reader=reader)


def open_table(table: ImageTable, subset: Index | None) -> Opened:
    """Return the engine's view of a table's images and labels, whatever transforms it has.

    Args:
        table: the data set.
        subset: those of its samples that are used; None = all.

    Raises:
        DatasetError: its targets are not one for each of its rows.
    """
    table.check_targets()
    labels = label_array(table.targets)
    if subset is None:
        return Opened(table.core_source, table.rows, len(labels), labels)
    rows = subset if table.rows is None else table.rows[subset]
    return Opened(table.core_source, rows, len(rows), labels[subset])


def _flatten(source: ImageSource) -> tuple[Any, Index | None]:
    """Return the data set under any Subsets, and the indices that they leave."""
    indices: Index | None = None
    while type(source) is Subset:
        chosen = np.asarray(source.indices)
        if chosen.size and chosen.dtype.kind not in "iu":
            raise TypeError(f"the indices of a Subset must be integers, got {chosen.dtype}")
        chosen = chosen.astype(np.int64)
        length = len(source.dataset)  # type: ignore[arg-type]  # torch's Dataset does not promise a length
        if chosen.size and not (chosen.min() >= 0 and chosen.max() < length):
            raise ValueError(f"a Subset has indices {chosen.min()}..{chosen.max()} into {length} samples")
        indices = chosen.astype(np.uint64) if indices is None else chosen.astype(np.uint64)[indices]
        source = cast("ImageSource", source.dataset)
    if not isinstance(source, (ImageFolder, ArrayDataset, TarShards, ImageTable, EncodedDataset, list, tuple)):
        raise TypeError(
            "source must be a vit_rs.data.ImageFolder, ArrayDataset, TarShards, ImageTable or EncodedDataset, a list "
            "of (path or bytes, label), or a torch Subset of one, "
            f"got {type(source).__module__}.{type(source).__name__}"
        )
    return source, indices


def _listed(samples: Sequence[Any]) -> tuple[list[str | bytes], list[int]]:
    """Return images and labels of a list, checked."""
    entries: list[str | bytes] = []
    labels = []
    for number, sample in enumerate(samples):
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise TypeError(f"sample {number} must be (path or bytes, label), got {type(sample).__name__}")
        image, label = sample
        try:
            entries.append(image if isinstance(image, bytes) else os.fsdecode(image))
            labels.append(operator.index(label))
        except TypeError:
            got = f"({type(image).__name__}, {type(label).__name__})"
            raise TypeError(f"sample {number} must be (path or bytes, label as an integer), got {got}") from None
    return entries, labels
