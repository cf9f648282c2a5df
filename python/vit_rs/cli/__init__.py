"""The command line `vit-rs`: one file for each command, or for a few that belong together."""

from __future__ import annotations

from vit_rs.cli.main import main

__all__ = ["main"]
