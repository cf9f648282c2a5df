"""The saved states of a run: the last few, each complete or not there.

states/step-000001234.pt     one file: one process, or several that each hold the whole model
states/step-000001234/       several that each hold a part: run.pt and torch.distributed.checkpoint's files

The number counts the steps of all stages. A state appears under its name when it is complete, and older ones go only
then. What a killed process leaves half-written begins with a dot, ends in ".tmp", and is removed by the next one.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from typing import TYPE_CHECKING, Any

from vit_rs.checkpoints.state import load_state, save_state
from vit_rs.exceptions import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from vit_rs.training.parallel import Parallel

__all__ = ["SavedStates"]

_NAME = re.compile(r"step-(\d{9,})(\.pt)?")
_RUN = "run.pt"


class SavedStates:
    """The states in a run's folder.

    Args:
        folder: states/ of the run; made with the first state.
        keep: how many are kept.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self.folder = folder
        self._keep = keep

    def paths(self) -> list[Path]:
        """Return the complete states, oldest first. At a stage's end a file follows the folder of the same step."""
        if not self.folder.is_dir():
            return []
        named = [(match, path) for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))]
        return [path for _, path in sorted(named, key=lambda item: (int(item[0][1]), item[0][2] is not None))]

    def newest(self) -> Path | None:
        """Return the state to go on from, None where nothing was saved."""
        return next(reversed(self.paths()), None)

    def clean(self) -> None:
        """Remove what an earlier process left half-written."""
        for path in self.folder.glob(".*.tmp"):
            _remove(path)

    def remove(self) -> None:
        """Remove all states: the run is finished."""
        if self.folder.is_dir():
            shutil.rmtree(self.folder)

    def load(self, path: Path) -> dict[str, Any]:
        """Read a state; of one in parts, what is not weights, optimizer or averaged weights.

        Raises:
            CheckpointError: it is damaged; the message says how to go on.
        """
        try:
            if not path.is_dir():
                return load_state(path)
            state = load_state(path / _RUN)
            _check_files(path, state.pop("files"))
        except (CheckpointError, FileNotFoundError) as error:
            raise self.unusable(path, error) from error
        return state

    def unusable(self, path: Path, error: BaseException) -> CheckpointError:
        """Return the error of a state that cannot be gone on from: what is wrong, and what to do."""
        older = [other for other in self.paths() if other != path]
        how = (
            f"delete {path} to go on from the state before it, {older[-1].name}"
            if older
            else "there is no other state (keep_states keeps more): train again in another folder"
        )
        return CheckpointError(f"{error}; {how}")

    def save(
        self, step: int, state: Mapping[str, Any], parallel: Parallel, *, parts: Callable[[Path], None] | None = None
    ) -> None:
        """Write a state, then remove those that are not kept any more. Every process calls it.

        Args:
            step: of all stages together.
            state: what `load` is to return; the first process's is written.
            parallel: the processes.
            parts: writes this process's part of the rest into a folder; None where all is in `state`.

        Raises:
            OSError, VitRsError: it cannot be written; those saved before are as they were.
        """
        name = f"step-{step:09}"
        if parts is None:
            with parallel.together():
                if parallel.is_main:
                    self.folder.mkdir(exist_ok=True)
                    save_state(self.folder / f"{name}.pt", state)
                    self._prune()
            return
        temporary = parallel.from_main(lambda: self._temporary(name))
        try:
            parts(temporary)
            with parallel.together():
                if parallel.is_main:
                    self._complete(temporary, self.folder / name, state)
                    self._prune()
        except BaseException:
            if parallel.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
            raise

    def _temporary(self, name: str) -> Path:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f".{name}.{secrets.token_hex(6)}.tmp"
        path.mkdir()
        return path

    def _complete(self, temporary: Path, path: Path, state: Mapping[str, Any]) -> None:
        files = {file.name: file.stat().st_size for file in temporary.iterdir()}
        save_state(temporary / _RUN, {**state, "files": files})
        if path.exists():  # of a run that went on from an earlier state than this one
            _remove(path)
        temporary.rename(path)
        if os.name == "posix":  # elsewhere a folder cannot be opened
            folder = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _prune(self) -> None:
        for path in self.paths()[: -self._keep]:
            _remove(path)


def _check_files(folder: Path, sizes: Mapping[str, int]) -> None:
    for name, size in sizes.items():
        file = folder / name
        found = file.stat().st_size if file.is_file() else "no file"
        if found != size:
            raise CheckpointError(f"{file}: damaged: expected {size} bytes, got {found}")


def _remove(path: Path) -> None:
    if path.is_dir():
        # Not a state any more from the first moment on, whatever stops the removal.
        gone = path if path.name.endswith(".tmp") else path.rename(path.with_name(f".{path.name}.tmp"))
        shutil.rmtree(gone)
    else:
        path.unlink()
