"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import io
import os
import secrets
import stat
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["atomic_write"]


def atomic_write(path: str | os.PathLike[str], content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that at every moment either the old one or the whole new one is there.

    The content goes to a temporary file in the same folder, is flushed to disk, and takes the name. Whatever
    stops the writing (an error, Ctrl-C), the temporary file is removed; only a killed process can leave one,
    whose name starts with a dot and ends in ".tmp". A symbolic link is followed; a file that is replaced leaves its
    permissions to the new one.

    Args:
        path: The file; its folder must exist.
        content: The bytes, or a function that writes them into the open binary file that it is given.

    Raises:
        FileNotFoundError: The folder does not exist.
        OSError: The file cannot be written (`filename` is then its path), or there is something that is no file, such
            as a pipe or a device.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"cannot write {target}: the folder {target.parent} does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"cannot write {target}: it is a folder")
    # Where the file is new the user's umask decides, as for any other; not `tempfile`, which asks nobody.
    mode, replaced = 0o666, target.exists()
    if replaced:
        found = target.stat().st_mode
        if not stat.S_ISREG(found):  # its name would be taken from a pipe or device that others use
            raise OSError(f"cannot write {target}: it is not a regular file")
        mode = stat.S_IMODE(found) & 0o777
    # Names have at most 255 bytes, letters of UTF-8 up to 4.
    temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0), mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    output, written = _Output(descriptor, "wb"), False
    try:
        with io.BufferedWriter(output) as file:
            if os.name == "posix" and replaced:
                with contextlib.suppress(OSError):  # by file systems without permissions
                    os.fchmod(descriptor, mode)
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            written = True
            os.fsync(descriptor)
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # What fails before all is written may have been the reading of another file, which names none either.
        failure = error if written else output.failure
        if isinstance(error, OSError | RuntimeError) and isinstance(failure, OSError) and failure.errno:
            raise OSError(failure.errno, failure.strerror, str(target)) from error
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class _Output(io.FileIO):
    """Remembers why it could not write: torch.save only says that its positions do not fit.

    Attributes:
        failure: The last error.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise
