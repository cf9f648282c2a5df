"""The data set that a user gives to DataLoader, as the engine's source, and what Python still does to its samples."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from vit_rs._core import Source
from vit_rs.data.array import ArrayDataset
from vit_rs.data.dropin.datasets_base import REMEDY, Base, named
from vit_rs.data.dropin.datasets_torchvision import ATTRIBUTES, read_torchvision
from vit_rs.data.dropin.places import Place, UntranslatableError
from vit_rs.data.encoded import EncodedDataset, Feeder
from vit_rs.data.folder import ImageFolder
from vit_rs.data.sources import Opened, open_source, open_table
from vit_rs.data.table import ImageTable
from vit_rs.data.tar import TarShards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vit_rs.data.order import Index

__all__ = ["Fingerprint", "OpenedDataset", "open_dataset"]

# Labels are numbers, or rows of numbers; an image has more dimensions, and its pixels are not copied.
_MOST_DIMENSIONS_OF_LABELS = 2
# Attributes that samples come from, of all data sets that are known.
_READ = (*ATTRIBUTES, "images", "dataset", "core_source", "rows")
_OWN = (ArrayDataset, EncodedDataset, ImageFolder, ImageTable, TarShards)


@dataclass(frozen=True)
class OpenedDataset:
    """A data set whose images Rust threads read.

    Args:
        opened: images and labels. The labels are int64; none at all where they come with the samples; all -1 where
            they are in `targets`.
        transform: what the data set does to each image, a `start`; None = nothing.
        target_transform: what it does to each label.
        start: what an image is before `transform`.
        targets: each sample's label before `target_transform`, where not all of them are Python's integers.
        describe: the data set in words.
        fingerprint: of the data set as it was opened.
    """

    opened: Opened
    transform: Callable[[Any], Any] | None
    target_transform: Callable[[Any], Any] | None
    start: Place
    targets: list[Any] | None
    describe: str
    fingerprint: Fingerprint


def open_dataset(dataset: Any) -> OpenedDataset:
    """Return a data set's images, labels and transforms, so that Rust can read it in Python's place.

    Known are torchvision's data sets of images and labels, vit_rs.data's own, and torch's Subset and ConcatDataset of
    them, as far as the result is that of `dataset[i]`. Nothing is read but what the object holds.

    Raises:
        UntranslatableError: Python must read this one; the text says why, and what to do.
    """
    leaves, subset = _flattened(dataset)
    if any(type(leaf) is EncodedDataset for leaf in leaves):
        return _fed(leaves, subset, Fingerprint(dataset))
    read: dict[int, Base] = {}
    for leaf in leaves:
        if id(leaf) not in read:
            read[id(leaf)] = _base(leaf)
    parts = [read[id(leaf)] for leaf in leaves]
    for number, part in enumerate(parts):
        _check_equal(parts[0], part, number)
    labels, targets = _joined([part.labels for part in parts], subset)
    core = parts[0].core if len(parts) == 1 else Source.concat([part.core for part in parts])
    return OpenedDataset(
        Opened(core, _rows(parts, subset), len(labels), labels, reader=parts[0].reader),
        parts[0].transform,
        parts[0].target_transform,
        parts[0].start,
        targets,
        _described([part.describe for part in parts], subset),
        Fingerprint(dataset),
    )


def _rows(parts: list[Base], subset: Index | None) -> Index | None:
    """Return the index of each sample in the parts' sources, one behind the other; None = all."""
    if all(part.rows is None for part in parts):
        return subset
    rows = _joined_indices([(part.rows, len(part.core)) for part in parts])
    return rows if subset is None else rows[subset]


def _joined_indices(parts: list[tuple[Index | None, int]]) -> Index:
    """Return indices into several things, one behind the other, of indices (None = all) into each and its length."""
    starts = accumulate([0, *(length for _, length in parts)])
    indices = [
        np.arange(start, start + length, dtype=np.uint64) if chosen is None else chosen + np.uint64(start)
        for (chosen, length), start in zip(parts, starts, strict=False)
    ]
    return np.concatenate(indices)


def _fed(leaves: list[Any], subset: Index | None, fingerprint: Fingerprint) -> OpenedDataset:
    """Open EncodedDatasets: one feed serves them all, and labels come with the samples."""
    other = [leaf for leaf in leaves if type(leaf) is not EncodedDataset]
    if other:
        raise UntranslatableError(
            f"a ConcatDataset of EncodedDataset and {named(other[0])} mixes data sets that Python and that Rust reads: "
            "make all of them EncodedDatasets, or pass fallback='torch'"
        )
    for number, leaf in enumerate(leaves):
        _check_equal(leaves[0], leaf, number)
    inner = [leaf.dataset for leaf in leaves]
    feeder = Feeder(inner[0] if len(inner) == 1 else ConcatDataset(inner), keep_errors=True)
    samples = sum(map(len, leaves)) if subset is None else len(subset)
    opened = Opened(Source.feed(feeder.feed), subset, samples, np.empty(0, np.int64), feeder, "data set")
    describe = _described([repr(leaf) for leaf in leaves], subset)
    transforms = leaves[0].transform, leaves[0].target_transform
    return OpenedDataset(opened, *transforms, _start(leaves[0]), None, describe, fingerprint)


def _flattened(dataset: Any) -> tuple[list[Any], Index | None]:
    """Return the data sets with images of their own, and which of all their samples, in order, are used; None = all."""
    if getattr(dataset, "__dict__", {}).get("__getitems__"):
        raise UntranslatableError(
            f"{named(dataset)} has a __getitems__ that was put on the object, which only Python can run. {REMEDY}"
        )
    if type(dataset) is Subset:
        leaves, inner = _flattened(dataset.dataset)
        chosen = _chosen(dataset.indices, sum(map(len, leaves)) if inner is None else len(inner))
        return leaves, chosen if inner is None else inner[chosen]
    if type(dataset) is ConcatDataset:
        parts = [_flattened(part) for part in dataset.datasets]
        sizes = [sum(map(len, leaves)) if subset is None else len(subset) for leaves, subset in parts]
        if list(accumulate(sizes)) != dataset.cumulative_sizes:
            raise UntranslatableError(
                "a ConcatDataset's parts have other lengths now than when it was made: make it anew"
            )
        joined = [leaf for leaves, _ in parts for leaf in leaves]
        if all(subset is None for _, subset in parts):
            return joined, None
        return joined, _joined_indices([(subset, sum(map(len, leaves))) for leaves, subset in parts])
    _check_map_style(dataset)
    return [dataset], None


def _chosen(indices: Sequence[int], length: int) -> Index:
    """Return a Subset's indices as positions in its data set."""
    chosen = np.asarray(indices)
    if chosen.ndim != 1 or (chosen.size and chosen.dtype.kind not in "iu"):
        raise UntranslatableError(
            f"the indices of a Subset are {chosen.dtype} of shape {chosen.shape}, not a list of integers"
        )
    chosen = chosen.astype(np.int64)
    if chosen.size and not (-length <= chosen.min() and chosen.max() < length):
        raise UntranslatableError(f"a Subset has indices {chosen.min()}..{chosen.max()} into {length} samples")
    # As in Python, negative ones count from the end.
    return np.where(chosen < 0, chosen + length, chosen).astype(np.uint64)


def _base(leaf: Any) -> Base:
    """Return a data set with images of its own, taken apart."""
    base = _own(leaf) if type(leaf) in _OWN else read_torchvision(leaf)
    if base is None:
        raise UntranslatableError(_why_not(leaf))
    if len(base) != len(leaf):
        raise UntranslatableError(f"{named(leaf)} says that it has {len(leaf)} samples, and has {len(base)}. {REMEDY}")
    return base


def _own(leaf: Any) -> Base:
    """Return one of vit_rs.data's own: its items are u8 tensors, or what a table's transform makes of a PIL image."""
    if isinstance(leaf, ImageTable):
        opened = open_table(leaf, None)
        labels, transforms = opened.labels, (leaf.transform, leaf.target_transform)
        return Base(opened.core, labels, *transforms, _start(leaf), repr(leaf), rows=opened.subset)
    opened = open_source(leaf, keep_errors=True)
    channels = leaf.images.shape[3] if isinstance(leaf, ArrayDataset) else 3
    return Base(opened.core, opened.labels, None, None, Place("tensor", channels=channels), repr(leaf), opened.reader)


def _start(leaf: EncodedDataset | ImageTable) -> Place:
    return Place("tensor" if leaf.transform is None else "pil")


def _check_map_style(dataset: Any) -> None:
    if isinstance(dataset, IterableDataset):
        raise UntranslatableError(
            f"{named(dataset)} is an IterableDataset: it has no samples that threads could ask for. "
            "For tar shards there is vit_rs.data.TarShards; else pass fallback='torch'"
        )
    if not hasattr(dataset, "__len__"):
        raise UntranslatableError(f"{named(dataset)} has no length. {REMEDY}")


def _why_not(leaf: Any) -> str:
    """Return why a data set must be read by Python, and what its user can do."""
    if isinstance(leaf, (list, tuple)):
        return f"a {type(leaf).__name__} gives its items as they are: only Python knows what they are. {REMEDY}"
    if isinstance(leaf, (Subset, ConcatDataset)):
        return f"{named(leaf)} is a subclass, which may choose its samples in its own way. {REMEDY}"
    if type(leaf).__module__.split(".")[0] in ("datasets", "pyarrow"):
        # Of Hugging Face, or what lies below.
        return (
            f"the images of {named(leaf)} are in a table: write vit_rs.data.ImageTable(dataset, image='image', "
            "label='label', transform=transform) for dataset, whose items are (image, label), or pass fallback='torch'"
        )
    if type(leaf).__module__.startswith("timm.data."):
        return (
            f"{named(leaf)} is timm's, which opens images in Python: torchvision.datasets.ImageFolder reads the same "
            "folders, or pass fallback='torch'"
        )
    known = [kind.__name__ for kind in _OWN if isinstance(leaf, kind)]
    what = f"is a subclass of {known[0]}" if known else "has a __getitem__ of its own"
    return f"{named(leaf)} {what}, which only Python can run. {REMEDY}"


def _check_equal(first: Base | EncodedDataset, part: Base | EncodedDataset, number: int) -> None:
    """Check that parts of a ConcatDataset go the same way."""
    for what in ("transform", "target_transform"):
        if getattr(first, what) is not getattr(part, what):
            raise UntranslatableError(
                f"parts 0 and {number} of the ConcatDataset have different {what}s: give both the same object, or pass "
                "fallback='torch'"
            )
    if isinstance(first, Base) and isinstance(part, Base) and first.start != part.start:
        raise UntranslatableError(
            f"parts 0 and {number} of the ConcatDataset have different images ({first.start} and {part.start}): "
            "give each a loader, or pass fallback='torch'"
        )


def _joined(
    parts: list[np.ndarray[Any, np.dtype[np.int64]] | list[Any]], subset: Index | None
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], list[Any] | None]:
    """Return the labels of the samples that are used: int64, and a list where that cannot hold them."""
    arrays = [_integers(part) for part in parts]
    known = [array for array in arrays if array is not None]
    if len(known) == len(parts):
        labels = np.concatenate(known) if len(known) > 1 else known[0]
        return labels if subset is None else labels[subset], None
    listed = [label for part in parts for label in (part if isinstance(part, list) else part.tolist())]
    targets = listed if subset is None else [listed[index] for index in subset.tolist()]
    return np.full(len(targets), -1, np.int64), targets


def _integers(labels: np.ndarray[Any, np.dtype[np.int64]] | list[Any]) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """Return labels as int64; None where some are no Python integers: collation tells numpy's from them."""
    if isinstance(labels, np.ndarray):
        return labels
    if not set(map(type, labels)) <= {int}:
        return None
    try:
        return np.fromiter(labels, np.int64, len(labels))
    except OverflowError:
        return None


def _described(parts: list[str], subset: Index | None) -> str:
    whole = " + ".join(parts)
    return whole if subset is None else f"{len(subset):,} samples of {whole}"


class Fingerprint:
    """What a data set consists of, to find out later whether it is still that: `Fingerprint(dataset) == earlier`.

    The objects that it holds (transforms, arrays of pixels) are compared by identity, its lists, indices and labels
    item by item. Changed pixels are no change: they are read anew. Costs 0.1 s for a million files.
    """

    def __init__(self, dataset: Any) -> None:
        self._seen = tuple(_Seen(value) for value in _contents(dataset))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Fingerprint):
            return NotImplemented
        return len(self._seen) == len(other._seen) and all(map(_Seen.equals, self._seen, other._seen))

    __hash__ = None  # type: ignore[assignment]


class _Seen:
    """One object of a data set, and what was in it."""

    def __init__(self, value: Any) -> None:
        # Held: no other object can have its address.
        self._value = value
        self._content: Any = None
        # Items that can change in their place: samples that are lists.
        self._items: list[tuple[Any, ...]] = []
        if type(value) in (list, tuple):
            self._content = tuple(value)
            if list in set(map(type, value)):
                self._items = [tuple(item) for item in value if type(item) is list]
        elif isinstance(value, torch.Tensor):
            pixels = value.ndim > _MOST_DIMENSIONS_OF_LABELS
            self._content = (
                (value.data_ptr(), value.shape, value.stride()) if pixels else value.detach().cpu().numpy().copy()
            )
        elif isinstance(value, np.ndarray):
            pixels = value.ndim > _MOST_DIMENSIONS_OF_LABELS
            self._content = (value.ctypes.data, value.shape, value.strides) if pixels else value.copy()

    def equals(self, other: _Seen) -> bool:
        if type(self._value) is int:
            return type(other._value) is int and self._value == other._value
        if self._value is not other._value:
            return False
        mine, others = self._content, other._content
        if type(self._value) in (list, tuple):
            return _identical(mine, others) and all(map(_identical, self._items, other._items))
        if isinstance(mine, np.ndarray):
            return np.array_equal(mine, others)
        return bool(mine == others)


def _identical(some: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(some) == len(others) and all(map(operator.is_, some, others))


def _contents(dataset: Any) -> Iterator[Any]:
    """Return all that samples of a data set come from."""
    yield dataset
    yield len(dataset)
    if type(dataset) is Subset:
        yield dataset.indices
        yield from _contents(dataset.dataset)
    elif type(dataset) is ConcatDataset:
        yield dataset.datasets
        for part in dataset.datasets:
            yield from _contents(part)
    else:
        held = vars(dataset)
        # One list may have two names.
        yield from {id(held[name]): held[name] for name in _READ if name in held}.values()
        # torchvision keeps transforms in one more object, of two attributes.
        yield from vars(held["transforms"]).values() if hasattr(held.get("transforms"), "__dict__") else ()
