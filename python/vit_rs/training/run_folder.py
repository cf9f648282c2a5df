"""The folder of a run: created last, locked while in use, removed again where nothing came of it.

config.json          what was run, complete
metrics.jsonl        one record a line: training, evaluations, results
tensorboard/         the same for TensorBoard, where tensorboard=true asks for it
states/              everything needed to go on: weights, optimizer, positions, random numbers; see `states.py`
model.safetensors    the trained model; model-NNNpx.safetensors: the same fine-tuned at NNN pixels
model-best.safetensors   where it was asked for: the weights with the best test accuracy
summary.json, summary.md, figures/
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from vit_rs.exceptions import ConfigError
from vit_rs.training.config import TrainConfig

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["RUNS", "RunFolder", "newest_unfinished", "read_config"]

RUNS = Path("runs")

_CONFIG, _SUMMARY = "config.json", "summary.json"


class RunFolder:
    """A run's folder, held by this process until it is closed; a context manager.

    Make one with `create` or `reopen`. On systems with `flock` a second process is refused while the first
    holds the folder; elsewhere two processes in one folder are not noticed. Where several processes train together the
    first one holds it, and the others take part in it (`shared`).
    """

    def __init__(self, path: Path, *, created: list[Path], held: bool = True) -> None:
        self.path = path
        self._created = created  # outermost first
        self._held = held
        self._lock: int | None = None
        if held:
            self._acquire()

    @classmethod
    def create(cls, config: TrainConfig, out: Path | None) -> RunFolder:
        """Make the folder and write config.json.

        Args:
            config: what will be run.
            out: the folder, which must not exist or be empty; None takes the first free runs/<recipe>-NNN.

        Raises:
            ConfigError: if the folder is in use.
            NotADirectoryError: if it is a file.
        """
        path, created = _claim_next(config.recipe) if out is None else _claim(out)
        folder = cls(path, created=created)
        if not folder.is_empty():  # filled by another process between the look and the lock
            folder.close()
            raise _in_use(path)
        folder.write_text(_CONFIG, config.to_json())
        return folder

    @classmethod
    def reopen(cls, path: Path) -> RunFolder:
        """Take hold of the folder of an earlier run.

        Raises:
            FileNotFoundError: if there is no run in it.
            ConfigError: if another process works in it.
        """
        if not (path / _CONFIG).is_file():
            raise FileNotFoundError(errno.ENOENT, "no run to resume: there is no such file", str(path / _CONFIG))
        return cls(path, created=[])

    @classmethod
    def shared(cls, path: Path) -> RunFolder:
        """Return the folder that the first process of this run holds: for reading, nothing is written or removed."""
        return cls(path, created=[], held=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def states(self) -> Path:
        """Where the resumable states are."""
        return self.path / "states"

    @property
    def metrics(self) -> Path:
        """Where the records are."""
        return self.path / "metrics.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Where the records are for TensorBoard, if that is asked for."""
        return self.path / "tensorboard"

    @property
    def summary(self) -> Path:
        """Where the summary is; it is written last."""
        return self.path / _SUMMARY

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end."""
        return self.summary.is_file()

    def is_empty(self) -> bool:
        """Return whether nothing is in the folder."""
        return next(self.path.iterdir(), None) is None

    def write_text(self, name: str, text: str) -> None:
        """Write a file in the folder whole or not at all."""
        if not self._held:
            return
        from vit_rs.checkpoints.atomic import atomic_write  # noqa: PLC0415  (torch is needed only from here on)

        atomic_write(self.path / name, text.encode())

    def discard(self) -> None:
        """Remove what this run has made: the folder's contents, and the folders that did not exist before."""
        if not self._held:
            return
        for entry in self.path.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()
        self.close()
        for path in reversed(self._created):
            with contextlib.suppress(OSError):  # not empty: another run has come into runs/ meanwhile
                path.rmdir()

    def close(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _acquire(self) -> None:
        if fcntl is None:
            return
        # The folder itself is locked: no lock file is left behind, and the lock ends with the process.
        lock = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ConfigError(f"{self.path} is in use: another process is running in it") from None
        except OSError:  # a file system without locks
            os.close(lock)
            return
        self._lock = lock


def read_config(path: Path) -> TrainConfig:
    """Return the configuration of the run in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ConfigError: if it cannot be read.
    """
    file = path / _CONFIG
    if not file.is_file():
        raise FileNotFoundError(errno.ENOENT, "no run to resume: there is no such file", str(file))
    return TrainConfig.from_json(file.read_text(), source=str(file))


def newest_unfinished() -> Path:
    """Return the folder under runs/ of the run that was started last and has not come to its end.

    Raises:
        ConfigError: if there is none.
    """
    unfinished = [
        (config.stat().st_mtime_ns, config.parent)
        for config in RUNS.glob(f"*/{_CONFIG}")
        if not (config.parent / _SUMMARY).exists()
    ]
    if not unfinished:
        raise ConfigError(f"--resume: no unfinished run under {RUNS}{os.sep}; name its folder with --out")
    return max(unfinished)[1]


def _claim_next(recipe: str) -> tuple[Path, list[Path]]:
    """Make the first free runs/<recipe>-NNN; return it and the folders made."""
    created = _make(RUNS)
    pattern = re.compile(re.escape(recipe) + r"-(\d+)")
    taken = [int(match[1]) for entry in RUNS.iterdir() if (match := pattern.fullmatch(entry.name))]
    number = max(taken, default=0) + 1
    while True:
        path = RUNS / f"{recipe}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:  # taken by another process since
            number += 1
            continue
        return path, [*created, path]


def _claim(path: Path) -> tuple[Path, list[Path]]:
    """Make a folder that must be new or empty; return it and the folders made."""
    if path.is_dir():
        if next(path.iterdir(), None) is not None:
            raise _in_use(path)
        return path, []
    if path.exists():
        raise NotADirectoryError(errno.ENOTDIR, "--out is a file, expected a folder", str(path))
    return path, _make(path)


def _make(path: Path) -> list[Path]:
    """Make a folder and those above it; return the ones that did not exist, outermost first."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _in_use(path: Path) -> ConfigError:
    if (path / _CONFIG).is_file():
        return ConfigError(
            f"{path} is in use: it holds a run; choose another --out, or go on with it: --resume --out {path}"
        )
    return ConfigError(f"{path} is in use: it is not empty; choose another --out")
