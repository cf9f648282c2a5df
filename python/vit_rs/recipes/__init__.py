"""Recipes: one readable file each.

The docstring gives command, hardware, time and expected result; `config()` returns the settings.
"""

from __future__ import annotations

from vit_rs.recipes._catalogue import recipe_config, recipe_names, recipe_summary
from vit_rs.recipes._own import config_from_file, is_file_name

__all__ = ["config_from_file", "is_file_name", "recipe_config", "recipe_names", "recipe_summary"]
