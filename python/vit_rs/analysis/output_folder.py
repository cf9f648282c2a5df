"""Folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["check_folder", "new_folder"]


def check_folder(path: str | os.PathLike[str], *, marker: str, overwrite: bool) -> None:
    """Raise where `new_folder` would.

    Raises:
        FileExistsError: there is a file, a folder that is not empty where nothing is to be overwritten, or one
            without the marker.
    """
    target = Path(path)
    if not target.exists():
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, expected a folder to write")
    if not any(target.iterdir()):
        return
    if not (target / marker).is_file():
        raise FileExistsError(f"{target} is not empty, and holds no {marker}: give another folder")
    if not overwrite:
        raise FileExistsError(f"{target} holds an earlier result: give another folder, or --overwrite")


@contextlib.contextmanager
def new_folder(path: str | os.PathLike[str], *, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """Give a folder to write into, which takes the name when the block ends, and is removed when it fails.

    Args:
        path: The folder's name. It may exist if it is empty, or, with `overwrite`, if it holds the marker.
        marker: The file by which an earlier result is known: no other folder is ever replaced.
        overwrite: Whether an earlier result is replaced.

    Raises:
        FileExistsError: As `check_folder`.
        OSError: The folder cannot be made.
    """
    check_folder(path, marker=marker, overwrite=overwrite)
    target = Path(os.path.realpath(path))
    work = target.with_name(f".{target.name[:50]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
    except OSError as error:  # of what was asked for, not of the temporary name
        raise OSError(error.errno, error.strerror, str(target)) from error
    old = work.with_suffix(".old")
    try:
        yield work
        check_folder(path, marker=marker, overwrite=overwrite)  # somebody else may have been faster
        if target.exists():
            target.rename(old)
        work.rename(target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
