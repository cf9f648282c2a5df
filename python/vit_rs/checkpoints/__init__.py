"""Checkpoints: everybody's files of weights into our models, to other sizes, and into other projects' names."""

from __future__ import annotations

from vit_rs.checkpoints.atomic import atomic_write
from vit_rs.checkpoints.convert import convert
from vit_rs.checkpoints.model_files import load_model, save_checkpoint
from vit_rs.checkpoints.reports import ConvertReport, LoadReport, Resampling, ResizeReport
from vit_rs.checkpoints.resize import resize_checkpoint
from vit_rs.checkpoints.state import load_state, save_state
from vit_rs.checkpoints.transfer import load_pretrained

__all__ = [
    "ConvertReport",
    "LoadReport",
    "Resampling",
    "ResizeReport",
    "atomic_write",
    "convert",
    "load_model",
    "load_pretrained",
    "load_state",
    "resize_checkpoint",
    "save_checkpoint",
    "save_state",
]
