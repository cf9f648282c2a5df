"""Training states: torch's own format, restricted to what `weights_only` reads back."""

from __future__ import annotations

import io
import zipfile
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vit_rs.checkpoints.atomic import atomic_write
from vit_rs.checkpoints.container import existing_file, naming, printable
from vit_rs.checkpoints.torch_pickle import check_pickle
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["load_state", "save_state"]

_LEAVES = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype, torch.device)


def save_state(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write a training state: a dictionary of tensors, numbers, strings and containers of them, atomically.

    Args:
        path: The file; its folder must exist.
        state: What to keep. Only what `load_state` can read back is taken: dicts, lists and tuples of
            tensors, None, bool, int, float, str, bytes but empty ones, `torch.Size`, `torch.dtype` and
            `torch.device`.

    Raises:
        TypeError: A value is of another type; the message says which. Nothing has been written.
        FileNotFoundError: The folder does not exist.
    """
    _check_state(state, "state")
    atomic_write(path, lambda file: torch.save(state, file))


def load_state(path: str | os.PathLike[str], *, map_location: str | torch.device | None = "cpu") -> dict[str, Any]:
    """Read what `save_state` wrote; nothing in the file is executed (torch's `weights_only`).

    Args:
        path: The file.
        map_location: Device for the tensors; None brings each back to the device that it was saved from.

    Raises:
        FileNotFoundError: There is no such file.
        CheckpointError: The file is damaged, or holds something else.
    """
    file = existing_file(path)
    # Opened once, and here: by a path, recent versions of torch choose the format by the suffix.
    with naming(file), file.open("rb") as opened:
        with zipfile.ZipFile(opened) as archive:
            _check_archive(file, archive)
        opened.seek(0)
        state = torch.load(opened, map_location=map_location, weights_only=True)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: expected a dictionary, the file holds a {type(state).__name__}")
    return state


def _check_archive(file: Path, archive: zipfile.ZipFile) -> None:
    for info in archive.infolist():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise CheckpointError(f"{file}: refused: {printable(info.filename)} is compressed, torch's never are")
    # torch reads past the zip's checksums, so that a flipped bit would silently become another weight.
    damaged = archive.testzip()
    if damaged is not None:
        raise CheckpointError(f"{file}: damaged: the checksum of {printable(damaged)} does not match")
    for info in archive.infolist():
        if info.filename.rsplit("/", 1)[-1] == "data.pkl":
            check_pickle(file, io.BytesIO(archive.read(info)))


def _check_state(value: object, where: str) -> None:
    """Refuse what `weights_only` would refuse on the day of the resume, while it can still be mended."""
    if type(value) is bytes and not value:  # pickled as a call of bytes()
        raise TypeError(f"{where} is an empty bytes, which torch cannot read back: leave it out, or use None")
    if isinstance(value, Tensor) or type(value) in _LEAVES:
        return
    if isinstance(value, dict) and type(value) in (dict, OrderedDict):
        for key, item in value.items():
            if type(key) not in (str, int):
                raise TypeError(f"{where}: keys must be str or int, got {key!r} ({type(key).__name__})")
            _check_state(item, f"{where}[{key!r}]")
    elif isinstance(value, (list, tuple)) and type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check_state(item, f"{where}[{index}]")
    else:
        raise TypeError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, which cannot be read back "
            "safely: convert it to plain numbers, strings or tensors"
        )
