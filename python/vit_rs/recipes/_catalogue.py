"""Finding recipes by name: they are the modules of this package, and nothing has to be registered."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import TYPE_CHECKING

from vit_rs.exceptions import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from vit_rs.training.config import TrainConfig

__all__ = ["recipe_config", "recipe_names", "recipe_summary"]


def recipe_names() -> list[str]:
    """Return the names of all recipes, sorted: the modules beside this one without an underscore in front."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(module.name for module in modules if not module.name.startswith("_"))


def recipe_config(name: str) -> TrainConfig:
    """Return a recipe's configuration.

    Raises:
        ConfigError: if there is no such recipe; the message lists them.
    """
    names = recipe_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"unknown recipe {name!r}: expected one of {', '.join(names)}{meant}")
    config: TrainConfig = _module(name).config()
    return config


def recipe_summary(name: str) -> str:
    """Return the first line of a recipe's docstring."""
    return (_module(name).__doc__ or "").strip().partition("\n")[0]


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"vit_rs.recipes.{name}")
