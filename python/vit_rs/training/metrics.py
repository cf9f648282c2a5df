"""metrics.jsonl: one JSON object a line, cut back to the checkpoint when a run is resumed.

What depends on the clock stands under "time" in each record: everything else is the same for an interrupted
run as for an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import json
import os
from typing import IO, TYPE_CHECKING, Any

from vit_rs.exceptions import CheckpointError
from vit_rs.training.tensorboard import TensorBoard

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

__all__ = ["MetricsLog", "read_metrics", "unreadable_images"]


class MetricsLog:
    """Append-only records of a run.

    Args:
        path: the file; it is made where it does not exist.
        keep: number of records that the checkpoint knows of; later ones, and a torn last line, are cut off.
        tensorboard: folder where the records are written for TensorBoard too; None writes none.

    Raises:
        CheckpointError: if the file holds fewer whole records than the checkpoint knows of.
    """

    def __init__(self, path: Path, *, keep: int = 0, tensorboard: Path | None = None) -> None:
        path.touch()
        with path.open("rb+") as file:
            for kept in range(keep):
                if not file.readline().endswith(b"\n"):
                    raise CheckpointError(f"{path}: expected {keep} records as at the checkpoint, got {kept}")
            file.truncate(file.tell())
        self.count = keep
        # What is recorded of images that cannot be read: each is named once in a run.
        self.unreadable = unreadable_images(read_metrics(path)) if keep else set()
        self._path = path
        self._file: IO[str] = path.open("a", encoding="utf-8", newline="\n")
        self._board = None if tensorboard is None else TensorBoard(tensorboard, read_metrics(path))

    def append(self, record: dict[str, Any]) -> None:
        """Write one record; a reader sees it at once."""
        with self._named():
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        self.count += 1
        self.unreadable |= unreadable_images([record])
        if self._board is not None:
            self._board.append(record)

    def sync(self) -> None:
        """Wait until the records are on the disk: before a checkpoint that counts them is written."""
        with self._named():
            os.fsync(self._file.fileno())
        if self._board is not None:
            self._board.flush()

    def close(self) -> None:
        """Close the file."""
        with self._named():
            self._file.close()
        if self._board is not None:
            self._board.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in errors of writing, which name none: a full disk's."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from error


def unreadable_images(records: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return a line for each image that could not be read: what is wrong with which."""
    unreadable = (record for record in records if record.get("kind") == "unreadable")
    # Runs of older versions named ten of a record's.
    return {line for record in unreadable for line in record.get("new", record.get("examples", ()))}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole records of a file; a torn last line is left out.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: a line is no record.
    """
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:  # of JSON or of UTF-8
            raise CheckpointError(f"{path}: line {number} is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise CheckpointError(f"{path}: line {number}: expected a JSON object, got {line[:80]!r}")
        records.append(record)
    return records
