"""What every container of weights offers, and how what is wrong with one is said."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, NamedTuple, Protocol

from safetensors import SafetensorError

from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    import torch
    from torch import Tensor
    from typing_extensions import Self

__all__ = ["Container", "OpenedFile", "TensorInfo", "WeightsFile", "existing_file", "naming", "open_zip", "printable"]

# What the readers of torch, safetensors, numpy and zipfile raise, besides UnpicklingError, on a damaged file.
_DAMAGE = (
    RuntimeError,
    AssertionError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SyntaxError,
    DeprecationWarning,  # of pickletools, about a name with a backslash, where warnings are errors
    RecursionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
    SafetensorError,
)

_ZIP_END = 22  # bytes of the end of a zip, without its comment
_COPIED_AT_ONCE = 1 << 20  # bytes

Container = Literal["safetensors", "torch", "npz"]


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightsFile(Protocol):
    """An open file of weights; a context manager, which closes it.

    Attributes:
        path: The file.
        container: What kind of file it is.
        tensors: Every tensor by its key, in the file's order. A dictionary inside a dictionary of torch.save adds its
            name and a slash: "model/cls_token".
        others: Keys of what is no tensor (arguments, an epoch's number), with the name of its type.
        metadata: The text entries of a safetensors file; empty elsewhere.
    """

    path: Path
    container: Container
    tensors: Mapping[str, TensorInfo]
    others: Mapping[str, str]
    metadata: Mapping[str, str]

    def read(self, key: str) -> Tensor:
        """Return one tensor, on the CPU; it may share memory with the file, so nobody may write to it.

        Raises:
            KeyError: It is none of `tensors`.
            CheckpointError: The tensor is damaged, or of a kind that is refused; the message names file and key.
            ValueError: The file was closed.
        """
        ...

    def write_changed(self, file: IO[bytes], changes: Mapping[str, Tensor], metadata: Mapping[str, str] | None) -> None:
        """Write the file again, changed, into an empty one: `rewrite` once it has checked its arguments."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def existing_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file to read.

    Raises:
        FileNotFoundError: There is nothing.
        CheckpointError: It is not a file.
    """
    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"no such checkpoint: {file}")
    if not file.is_file():
        raise CheckpointError(f"{file}: not a file")
    return file


class OpenedFile:
    """A file that is opened once and stays open, so that whoever replaces its path changes nothing for its reader.

    Attributes:
        path: The file.
        raw: What was opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.raw: IO[bytes] = path.open("rb")
        self._before = _identity(os.fstat(self.raw.fileno()))

    def check_path(self) -> None:
        """Check that the path, which a library has just opened for itself, names this very file, unchanged.

        Raises:
            CheckpointError: It names another one, or the file was written to.
        """
        if _identity(self.path.stat()) != self._before:
            raise CheckpointError(f"{self.path}: it was changed while it was read")

    def check_unchanged(self) -> None:
        """Check that nobody has written to the file since it was opened.

        Raises:
            CheckpointError: Somebody has.
            ValueError: The file was closed.
        """
        self.check_open()
        if _identity(os.fstat(self.raw.fileno())) != self._before:
            raise CheckpointError(f"{self.path}: it was changed while it was read")

    def check_open(self) -> None:
        """Check that nobody has closed the file.

        Raises:
            ValueError: Somebody has.
        """
        if self.raw.closed:
            raise ValueError(f"{self.path}: the file was closed")

    def copy_to(self, target: IO[bytes], begin: int = 0, size: int | None = None) -> None:
        """Copy a part of the file, or all from `begin`.

        Raises:
            CheckpointError: The file has become shorter than the part.
        """
        self.raw.seek(begin)
        while size != 0:
            block = self.raw.read(_COPIED_AT_ONCE if size is None else min(size, _COPIED_AT_ONCE))
            if not block and size is not None:
                raise CheckpointError(f"{self.path}: it was changed while it was read")
            if not block:
                return
            target.write(block)
            size = None if size is None else size - len(block)

    def close(self) -> None:
        """Close the file."""
        self.raw.close()


def _identity(status: os.stat_result) -> tuple[int, int, int, int]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_zip(path: Path, file: IO[bytes]) -> zipfile.ZipFile:
    """Read a zip whose table of contents is whole: one damaged length in it hides the members that follow.

    Args:
        path: What messages call the file.
        file: The open file, which closing the archive leaves open.

    Raises:
        CheckpointError: The table is damaged, or has a name twice.
    """
    with naming(path):
        archive = zipfile.ZipFile(file)
        _check_table(path, archive, file)
    return archive


def _check_table(path: Path, archive: zipfile.ZipFile, file: IO[bytes]) -> None:
    names = archive.namelist()
    file.seek(-_ZIP_END - len(archive.comment), io.SEEK_END)
    end = file.read(_ZIP_END)
    count = int.from_bytes(end[10:12], "little")
    # 65535: more, or a large archive, whose count stands elsewhere.
    if end[:4] != b"PK\x05\x06" or count not in (len(names), 0xFFFF):
        raise CheckpointError(f"{path}: damaged: {len(names)} members are listed, expected {count}")
    [(name, times)] = Counter(names).most_common(1) or [("", 0)]
    if times > 1:
        raise CheckpointError(f"{path}: damaged: {times} members are called {printable(name)}")


@contextlib.contextmanager
def naming(path: Path, key: str | None = None) -> Iterator[None]:
    """Turn what a damaged or refused file makes readers raise into a `CheckpointError` that names file and key."""
    where = f"{path}: " if key is None else f"{path}: {printable(key)}: "
    try:
        yield
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        # torch's message goes on to recommend weights_only=False, which would run what the file says.
        raise CheckpointError(f"{where}refused or damaged: {_reason(error)}") from error
    except _DAMAGE as error:
        raise CheckpointError(f"{where}damaged: {_reason(error)}") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where a damaged table of contents points
            raise
        raise CheckpointError(f"{where}damaged: {_reason(error)}") from error


def printable(name: str) -> str:
    """Return a key or a text of a file as a message can show it: on one line, not endless."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _reason(error: Exception) -> str:
    lines = str(error).splitlines()
    # torch puts the reason behind a paragraph of advice.
    reason = next((line for line in lines if "Unsupported" in line or "unsupported" in line), None)
    return printable((reason or next(iter(lines), "") or type(error).__name__).strip())
