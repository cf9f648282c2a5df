"""Tables of encoded images: Hugging Face data sets, Arrow tables, Parquet and Arrow files."""

from __future__ import annotations

import importlib
import json
import operator
import os
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_rs._core import Source, decode_image
from vit_rs.data.items import item
from vit_rs.data.labels import class_names
from vit_rs.data.tar import expand_braces
from vit_rs.exceptions import DatasetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from vit_rs.data.order import Index

__all__ = ["ImageTable"]

_PARQUET = b"PAR1"
_ARROW_FILE = b"ARROW1"
_PARQUET_ROWS = 256
_MOST_LISTED = 20


class ImageTable:
    """A map-style data set over a table with a column of encoded images and one of labels.

    Rust threads read the images straight from Arrow's memory: nothing is copied, and a memory-mapped table stays mapped
    (its file must not be shortened meanwhile). A Parquet file is read when this is made, into as much memory as its
    images have bytes; for one that is too large, let `datasets.load_dataset("parquet", data_files=...)` make a mapped
    table of it.

    Args:
        table: a Hugging Face `datasets.Dataset` (shuffled, selected and split ones too), a `pyarrow.Table`, or the
            paths of Parquet and Arrow files, told by content; "train-{000..099}.parquet" stands for several.
        image: the column of images: {"bytes", "path"} as Hugging Face's Image feature stores them, whether it decodes
            or not; or bytes; or paths. Where there are no bytes the path is read: one in a Parquet or Arrow file begins
            in the file's folder, any other in the working directory.
        label: the column of labels, integers; None = there are none, and all are -1.
        transform: what `table[i]` does to the image, a PIL image of mode RGB, as in torchvision's data sets; the
            drop-in DataLoader does the same. ImageLoader has a transform of its own.
        target_transform: the same for the label, a Python int.
        classes: the classes' names, index = label; None = the table's own (of a Hugging Face ClassLabel), or "0", ...

    Raises:
        TypeError: a table of another kind, or columns of another type.
        DatasetError: no such column, an image or a label that is null, a damaged file, a path that is an address, or
            files that name their classes differently and no `classes`.
        ValueError: a label outside the classes, or a Hugging Face data set with a transform of its own.
        FileNotFoundError: a file does not exist.
        ImportError: pyarrow is not installed; `pip install "vit-rs[table]"` does it.

    An image's EXIF orientation is not applied, as in torchvision and other than in Hugging Face's decoding.
    """

    def __init__(
        self,
        table: Any,
        image: str = "image",
        label: str | None = "label",
        *,
        transform: Callable[[Any], Any] | None = None,
        target_transform: Callable[[Any], Any] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        if isinstance(table, (str, os.PathLike)):
            table = [table]
        if isinstance(table, (list, tuple)):
            table = [path for entry in table for path in expand_braces(os.fspath(entry))]
        self.table = table
        self.columns = (image, label)
        self.transform = transform
        self.target_transform = target_transform
        parts = self._open()
        self.targets: list[int] = np.concatenate([_labels(part, label) for part in parts]).tolist()
        if classes is None:
            classes = _common_classes(parts, label)
        self.classes: list[str] = class_names(max(self.targets, default=-1), classes)

    def _open(self) -> list[_Part]:
        """Find the images; returns the tables that they are in."""
        image, label = self.columns
        parts = list(_parts(self.table, [image] if label is None else [image, label]))
        if not parts:
            raise ValueError("the list of paths must name at least one file")
        # Rows of the table that the data set has, in its order; None = all.
        self.rows: Index | None = parts[0].rows
        sources = [_source(part, image) for part in parts]
        # All rows of the table.
        self.core_source = sources[0] if len(sources) == 1 else Source.concat(sources)
        self._rows = (parts[0].name, sum(map(len, parts)))
        return parts

    def check_targets(self) -> None:
        """Check that there is a target for each row, where somebody may have changed them.

        Raises:
            DatasetError: there are more, or fewer.
        """
        name, count = self._rows
        if len(self.targets) != count:
            raise DatasetError(f"ImageTable ({name}, ...) has {len(self.targets):,} targets for {count:,} rows")

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        """Return (image, label).

        image: u8 RGB, (3, H, W), values 0..255; with a transform, what that makes of a PIL image of mode RGB.

        Raises:
            DecodeError: the image is not readable; the message names its row.
        """
        label = self.targets[operator.index(index)]
        index = range(len(self))[index]
        row = index if self.rows is None else int(self.rows[index])
        encoded = self.core_source.encoded(row)
        pixels = decode_image(encoded, name=self.core_source.name(row))
        return item(pixels, label, self.transform, self.target_transform, encoded=encoded)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("core_source", "rows")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._open()
        # The files may be others by now.
        self.check_targets()

    def __repr__(self) -> str:
        return f"ImageTable({len(self)} images, {len(self.classes)} classes)"


class _Part:
    """One Arrow table.

    Args:
        columns: a pyarrow.Table.
        name: what messages call it.
        folder: where its paths begin.
        rows: those of its rows that are used, in order; None = all.
    """

    def __init__(self, columns: Any, name: str, folder: str = "", rows: Index | None = None) -> None:
        self.columns = columns
        self.name = name
        self.folder = folder
        self.rows = rows

    def __len__(self) -> int:
        """Return the number of rows that are used."""
        return self.columns.num_rows if self.rows is None else len(self.rows)

    def column(self, name: str) -> Any:
        """Return a column, a pyarrow.ChunkedArray.

        Raises:
            DatasetError: there is none of that name.
        """
        _check_column(name, self.columns.column_names, self.name)
        return self.columns.column(name)

    def check_none(self, wrong: np.ndarray[Any, np.dtype[np.bool_]], reason: str) -> None:
        """Check that no row that is used is wrong.

        Raises:
            DatasetError: one is.
        """
        used = wrong if self.rows is None else wrong[self.rows]
        if used.any():
            row = int(used.argmax()) if self.rows is None else int(self.rows[used.argmax()])
            raise DatasetError(f"{self.name}: row {row}: {reason} (one of {np.count_nonzero(used):,} such rows)")

    def classes(self, label: str | None) -> list[str] | None:
        """Return the names in Hugging Face's description of a table, which its files have too."""
        described = (self.columns.schema.metadata or {}).get(b"huggingface")
        if described is None or label is None:
            return None
        try:
            names = json.loads(described)["info"]["features"][label]["names"]
        except (ValueError, KeyError, TypeError):
            return None
        return [str(name) for name in names] if isinstance(names, list) else None


def _common_classes(parts: list[_Part], label: str | None) -> list[str] | None:
    """Return the names that all tables give their classes; None if none names them.

    Raises:
        DatasetError: two differ, so that a label may mean different classes.
    """
    first, *others = ((part.name, part.classes(label)) for part in parts)
    for other in others:
        if other[1] != first[1]:
            (one, names), (another, other_names) = first, other
            raise DatasetError(
                f"{one} names its classes {_listed(names)}, and {another} {_listed(other_names)}: the same "
                "label may mean different classes; if it does not, give classes="
            )
    return first[1]


def _listed(names: list[str] | None) -> str:
    if names is None:
        return "not at all"
    return str(names) if len(names) <= _MOST_LISTED else f"[{', '.join(map(repr, names[:_MOST_LISTED]))}, ...]"


def _check_column(name: str, names: list[str], table: str) -> None:
    if names.count(name) != 1:
        listed = ", ".join(map(repr, names)) or "none at all"
        raise DatasetError(f"{table}: no column {name!r}, or several; the columns are {listed}")


def _pyarrow(module: str = "pyarrow") -> Any:
    """Return pyarrow, or a module of it.

    Raises:
        ImportError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError('ImageTable needs pyarrow: pip install "vit-rs[table]"') from error


def _parts(table: Any, wanted: list[str]) -> Iterator[_Part]:
    """Return the Arrow tables that a data set is made of, of a file only the columns that are wanted."""
    if isinstance(table, list):
        for path in table:
            yield _read(path, wanted)
        return
    datasets = sys.modules.get("datasets")
    if datasets is not None and isinstance(table, getattr(datasets, "Dataset", ())):
        yield _hugging_face(table)
    elif isinstance(table, _pyarrow().Table):
        yield _Part(table, "table")
    else:
        kind = f"{type(table).__module__}.{type(table).__qualname__}"
        raise TypeError(f"table must be a datasets.Dataset, a pyarrow.Table or paths of files, got {kind}")


def _hugging_face(dataset: Any) -> _Part:
    """Return the table and rows under a datasets.Dataset."""
    if dataset.format["type"] == "custom":
        raise ValueError(
            "the data set has a transform of its own (set_transform); give ImageTable(..., transform=) that"
        )
    columns = getattr(dataset.data, "table", dataset.data)
    if not hasattr(dataset, "_indices"):
        raise TypeError("this version of datasets hides which rows are used: pass dataset.flatten_indices().data.table")
    indices = dataset._indices  # noqa: SLF001  (selecting by it anew would copy all images)
    rows = None if indices is None else indices.column(0).to_numpy().astype(np.uint64)
    return _Part(columns, "data set", rows=rows)


def _read(path: str, wanted: list[str]) -> _Part:
    """Return the table in a file; one of Arrow is mapped, one of Parquet is read.

    Raises:
        FileNotFoundError: there is no such file.
        DatasetError: it is neither, is damaged, or lacks a column.
    """
    with open(path, "rb") as file:  # noqa: PTH123  (a path as the user gave it)
        start = file.read(len(_ARROW_FILE))
    arrow = _pyarrow()
    try:
        if start.startswith(_PARQUET):
            table = _read_parquet(path, wanted)
        else:
            mapped = arrow.memory_map(path)
            opened = arrow.ipc.open_file(mapped) if start == _ARROW_FILE else arrow.ipc.open_stream(mapped)
            table = opened.read_all()
    except (arrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: not a readable Parquet or Arrow file: {error}") from error
    return _Part(table, path, os.path.dirname(path))  # noqa: PTH120


def _read_parquet(path: str, wanted: list[str]) -> Any:
    with _pyarrow("pyarrow.parquet").ParquetFile(path) as file:
        schema = file.schema_arrow
        for name in wanted:
            _check_column(name, schema.names, path)
        fields = [schema.field(name) for name in wanted]
        # A few rows at a time: pyarrow cannot read structs of more than 2 GB at once.
        batches = list(file.iter_batches(_PARQUET_ROWS, columns=wanted))
    arrow = _pyarrow()
    return arrow.Table.from_batches(batches, arrow.schema(fields, schema.metadata)).select(wanted)


def _source(part: _Part, name: str) -> Source:
    """Return the images of a table.

    Raises:
        TypeError: the column holds something else.
        DatasetError: a row that is used has no image, or an address in place of a path.
    """
    arrow, compute = _pyarrow(), _pyarrow("pyarrow.compute")
    kinds = arrow.types
    column = part.column(name)
    column = arrow.chunked_array([chunk for chunk in column.chunks if len(chunk)], column.type)
    binary, text = (kinds.is_binary, kinds.is_large_binary), (kinds.is_string, kinds.is_large_string)
    if kinds.is_struct(column.type):
        images, paths = _field(column, "bytes", binary), _field(column, "path", text)
    else:
        images = column if any(is_kind(column.type) for is_kind in binary) else None
        paths = column if any(is_kind(column.type) for is_kind in text) else None
    if images is None and paths is None:
        raise TypeError(
            f"{part.name}: column {name!r} must hold images as {{'bytes': binary, 'path': string}}, as binary, or as "
            f"string (paths), and is {column.type}"
        )
    no_bytes = np.ones(len(column), np.bool_) if images is None else compute.is_null(images).to_numpy()
    no_path = np.ones(len(column), np.bool_) if paths is None else compute.is_null(paths).to_numpy()
    part.check_none(no_bytes & no_path, f"the image in column {name!r} is null")
    if paths is not None and no_bytes.any():
        address = compute.fill_null(compute.match_substring(paths, "://"), False).to_numpy()
        part.check_none(no_bytes & address, f"the path in column {name!r} is an address, and no file of this machine")
    chunks = [(len(chunk), _arrays(images, at), _arrays(paths, at)) for at, chunk in enumerate(column.chunks)]
    return Source.table(part.name, part.folder, chunks)


def _field(column: Any, name: str, kinds: Sequence[Callable[[Any], bool]]) -> Any:
    """Return a field of a column of structs, null where the struct is; None if there is none of these kinds."""
    at = column.type.get_field_index(name)
    if at < 0 or not any(is_kind(column.type.field(at).type) for is_kind in kinds):
        return None
    field = _pyarrow("pyarrow.compute").struct_field
    return _pyarrow().chunked_array([field(chunk, name) for chunk in column.chunks], column.type.field(at).type)


def _arrays(values: Any, number: int) -> tuple[Any, Any, bool, Any, int] | None:
    """Return the memory of a column's chunk as Source.table takes it; None if there is no column."""
    if values is None:
        return None
    chunk = values.chunk(number)
    kinds = _pyarrow().types
    wide = kinds.is_large_binary(chunk.type) or kinds.is_large_string(chunk.type)
    valid, offsets, data = (
        np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8) for buffer in chunk.buffers()
    )
    return valid if chunk.null_count else None, offsets, wide, data, chunk.offset


def _labels(part: _Part, name: str | None) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return the labels of the rows that are used.

    Raises:
        TypeError: they are no integers.
        DatasetError: one is null.
        ValueError: one does not fit 64 bits.
    """
    if name is None:
        return np.full(len(part), -1, np.int64)
    column = part.column(name)
    arrow, compute = _pyarrow(), _pyarrow("pyarrow.compute")
    if not arrow.types.is_integer(column.type):
        raise TypeError(f"{part.name}: column {name!r} must hold labels as integers, and is {column.type}")
    part.check_none(compute.is_null(column).to_numpy(), f"the label in column {name!r} is null")
    try:
        labels = compute.cast(compute.fill_null(column, 0), arrow.int64()).to_numpy()
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{part.name}: a label in column {name!r} does not fit 64 bits: {error}") from error
    return labels if part.rows is None else labels[part.rows]  # type: ignore[no-any-return]
