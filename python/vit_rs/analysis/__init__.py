"""Analysis: what a model has learnt, as arrays and as figures."""

from __future__ import annotations

from vit_rs.analysis.attention import (
    TokenGrid,
    attention_maps,
    attention_rollout,
    attention_weights,
    each_attention,
    output_attention,
    rollout,
    token_grid,
)
from vit_rs.analysis.attention_figures import attention_distance_figure, attention_heads_figure, rollout_figure
from vit_rs.analysis.curves import training_curves
from vit_rs.analysis.distance import attention_distance, grid_distances, mean_attention_distance
from vit_rs.analysis.embedding_figures import patch_filters_figure, position_similarity_figure, raw_filters_figure
from vit_rs.analysis.embeddings import (
    NeighbourSimilarity,
    PatchFilters,
    PositionTable,
    neighbour_similarity,
    patch_filters,
    position_note,
    position_similarity,
    position_tables,
)
from vit_rs.analysis.figures import image_batch_figure, save_figure
from vit_rs.analysis.images import ImageSet, choose_images
from vit_rs.analysis.overview import analyze

__all__ = [
    "ImageSet",
    "NeighbourSimilarity",
    "PatchFilters",
    "PositionTable",
    "TokenGrid",
    "analyze",
    "attention_distance",
    "attention_distance_figure",
    "attention_heads_figure",
    "attention_maps",
    "attention_rollout",
    "attention_weights",
    "choose_images",
    "each_attention",
    "grid_distances",
    "image_batch_figure",
    "mean_attention_distance",
    "neighbour_similarity",
    "output_attention",
    "patch_filters",
    "patch_filters_figure",
    "position_note",
    "position_similarity",
    "position_similarity_figure",
    "position_tables",
    "raw_filters_figure",
    "rollout",
    "rollout_figure",
    "save_figure",
    "token_grid",
    "training_curves",
]
