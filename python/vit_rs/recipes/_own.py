"""A user's own recipe: a Python file with `config()`, or the config.json of a run that is to be started again."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path
from types import ModuleType

from vit_rs.exceptions import ConfigError
from vit_rs.training.config import TrainConfig

__all__ = ["config_from_file", "is_file_name"]


def is_file_name(recipe: str) -> bool:
    """Return whether a recipe is given by the path of a file, and not by name."""
    return Path(recipe).suffix in (".py", ".json") or len(Path(recipe).parts) > 1


def config_from_file(path: Path) -> TrainConfig:
    """Return the configuration that a file holds.

    A Python file is run: like any program, it can do what it likes.

    Args:
        path: of a Python file whose function `config()` returns a `TrainConfig`, or of a run's config.json.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is a folder or another kind of file; it does not run, has no `config()`, or that does not
            return a `TrainConfig`; or the JSON is not that of a run of this version.
    """
    if path.is_dir():
        raise ConfigError(
            f"{path} is a folder, expected a recipe's name, a .py file with config(), or a config.json: "
            f"{path / 'config.json'} starts the same run again, --resume --out {path} goes on with it"
        )
    if path.suffix not in (".py", ".json"):
        raise ConfigError(f"{path}: expected a .py file with config(), or a run's config.json")
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such recipe", str(path))
    if path.suffix == ".json":
        return TrainConfig.from_json(_read(path), source=str(path))
    return _config_of(_run(path), path)


def _run(path: Path) -> ModuleType:
    # Not by the import system: nothing is written beside the user's file, no module of that name is hidden. It is known
    # under a name of its own, by which dataclasses and typing look up what annotations mean.
    module = ModuleType(f"{__name__}.{path.stem}")
    module.__file__ = str(path)
    text = _read(path)
    sys.modules[module.__name__] = module
    try:
        program = compile(text, str(path), "exec", dont_inherit=True)
        exec(program, module.__dict__)  # noqa: S102  (the user's own program)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: {_what_happened(error, path)}") from error
    return module


def _config_of(module: ModuleType, path: Path) -> TrainConfig:
    config = getattr(module, "config", None)
    if not callable(config):
        raise ConfigError(f"{path} has no function config(); expected one that returns a vit_rs.training.TrainConfig")
    try:
        value = config()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path}: config(): {_what_happened(error, path)}") from error
    if not isinstance(value, TrainConfig):
        raise ConfigError(f"{path}: config() returned {value!r:.80}, expected a vit_rs.training.TrainConfig")
    return value


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error


def _what_happened(error: BaseException, path: Path) -> str:
    """Return an exception in one line, with the last line of the user's file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    name = type(error).__name__
    text = str(error.msg if isinstance(error, SyntaxError) else error)
    return f"{f'line {line}: ' if line else ''}{name}{': ' if text else ''}{text}"
