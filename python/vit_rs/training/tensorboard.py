"""The records of a run for TensorBoard: a copy of metrics.jsonl, each stage in a folder of its own.

tensorboard, which torch writes these files by, is imported only where it is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoard", "check_tensorboard"]

# What says where a record belongs, and what does not change.
_PLACES = frozenset(("step", "epoch", "steps", "epochs", "size", "parameters", "test_images", "shots", "seconds"))


def check_tensorboard() -> None:
    """Raise where `TensorBoard` cannot be used.

    Raises:
        ConfigError: the package is missing or broken.
    """
    try:
        import torch.utils.tensorboard  # noqa: F401, PLC0415
    except Exception as error:  # protobuf raises a TypeError where its version does not fit
        raise ConfigError(
            f'tensorboard: the package tensorboard cannot be imported ({error}): pip install "vit-rs[tensorboard]" '
            "installs it, tensorboard=false does without"
        ) from error


class TensorBoard:
    """Writes records as scalars: tag train_loss for {"train_loss": 2.3}, time/wait_share for one inside "time".

    Steps are those of the stage. Where a stage's folder exists already, from before an interruption, what it holds of
    steps that are done again is marked as void, so that TensorBoard shows each step once.

    Args:
        folder: where a folder for each stage is made.
        kept: the records that were written before and stay.
    """

    def __init__(self, folder: Path, kept: Sequence[Mapping[str, Any]] = ()) -> None:
        self._folder = folder
        self._kept = kept
        self._writers: dict[str, SummaryWriter] = {}

    def append(self, record: Mapping[str, Any]) -> None:
        """Write one record's numbers."""
        stage = str(record.get("stage", ""))
        if stage not in self._writers:
            self._writers[stage] = self._open(stage)
        _write(self._writers[stage], record)

    def flush(self) -> None:
        """Hand everything to the operating system."""
        for writer in self._writers.values():
            writer.flush()

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _open(self, stage: str) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415

        path = self._folder / stage
        if not path.exists():
            return SummaryWriter(str(path))
        # A test that comes after the state was saved has the last kept step too: void from there on, and what is kept
        # of that step is written again.
        kept = [record for record in self._kept if record.get("stage", "") == stage]
        last = max(map(_step, kept), default=0)
        writer = SummaryWriter(str(path), purge_step=last)
        for record in kept:
            if _step(record) == last:
                _write(writer, record)
        return writer


def _write(writer: SummaryWriter, record: Mapping[str, Any]) -> None:
    for tag, value in _numbers(record, ""):
        writer.add_scalar(tag, value, _step(record))


def _step(record: Mapping[str, Any]) -> int:
    """Return the step of a record; a stage's result has the number of all."""
    return int(record.get("step", record.get("steps", 0)))


def _numbers(record: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, float]]:
    for name, value in record.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{name}/")
        elif name not in _PLACES and isinstance(value, int | float) and math.isfinite(value):
            yield prefix + name, float(value)
