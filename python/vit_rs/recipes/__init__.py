"""Recipes: one readable file each.

The docstring gives command, hardware, time and expected result; `config()` returns the settings.
"""

from __future__ import annotations

from vit_rs.recipes._catalogue import recipe_config, recipe_names, recipe_summary

__all__ = ["recipe_config", "recipe_names", "recipe_summary"]
