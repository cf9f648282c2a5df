"""Checkpoints: atomic files, our own model files, and weights that move to another resolution."""

from __future__ import annotations

from vit_rs.checkpoints.io import (
    Weights,
    atomic_write,
    load_model,
    load_state,
    read_weights,
    save_checkpoint,
    save_state,
)
from vit_rs.checkpoints.transfer import LoadReport, Resampling, load_pretrained

__all__ = [
    "LoadReport",
    "Resampling",
    "Weights",
    "atomic_write",
    "load_model",
    "load_pretrained",
    "load_state",
    "read_weights",
    "save_checkpoint",
    "save_state",
]
