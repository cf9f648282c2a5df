"""Analysis: what a model has learnt, as arrays and as figures."""

from __future__ import annotations

from vit_rs.analysis.curves import training_curves
from vit_rs.analysis.embeddings import position_similarity
from vit_rs.analysis.figures import (
    image_batch_figure,
    position_similarity_figure,
    save_figure,
)

__all__ = [
    "image_batch_figure",
    "position_similarity",
    "position_similarity_figure",
    "save_figure",
    "training_curves",
]
