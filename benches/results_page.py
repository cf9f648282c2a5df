"""docs/results.md has two parts, which two scripts write: on the bundled images, and on all of Fashion-MNIST."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any, Literal

import sklearn
import torch
from machine import commit, processor

import vit_rs

ROOT = Path(__file__).resolve().parent.parent
BETWEEN = "<!-- the bundled images above, all of Fashion-MNIST below -->"

Part = Literal["sample", "full"]


def write_part(path: Path, part: Part, text: str) -> None:
    """Replace one part of the page; the other one stays."""
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    sample, _, full = before.partition(BETWEEN)
    sample, full = (text, full) if part == "sample" else (sample, text)
    parts = [sample.strip(), *([BETWEEN, full.strip()] if full.strip() else [])]
    path.write_text("\n\n".join(parts).lstrip() + "\n", encoding="utf-8")


def settings_of(run: Path | dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of a run's folder, or a nested one: path of a setting -> value."""
    if isinstance(run, Path):
        run = json.loads((run / "config.json").read_text(encoding="utf-8"))
    found: dict[str, Any] = {}
    for name, value in run.items():
        if isinstance(value, dict):
            found |= {f"{name}.{path}": inner for path, inner in settings_of(value).items()}
        else:
            found[name] = value
    return found


def versions(threads: int) -> str:
    """Return a line about what measured a table."""
    return (
        f"vit-rs {vit_rs.__version__} at {commit()}, torch {torch.__version__}, scikit-learn {sklearn.__version__}, "
        f"Python {platform.python_version()}; {threads} torch threads, {processor()}."
    )
