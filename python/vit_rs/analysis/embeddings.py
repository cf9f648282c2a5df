"""What the learned embeddings look like (arXiv 2010.11929, section 4.5 and figure 7).

Letters: N patches (gh x gw of them), D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["position_similarity"]


@torch.no_grad()
def position_similarity(pos_embed: Tensor, grid: tuple[int, int], num_prefix_tokens: int = 1) -> Tensor:
    """Return the cosine similarity of every patch's position embedding with every other's.

    Source: arXiv 2010.11929, figure 7 (centre); the class token's entry is left out.

    Args:
        pos_embed: (1, num_prefix_tokens + N, D) or (num_prefix_tokens + N, D), floating point.
        grid: (gh, gw) with gh * gw = N.
        num_prefix_tokens: Entries before the patches' own.

    Returns:
        (gh, gw, gh, gw) float32 on the CPU, in -1..1: element [i, j] is the map of patch (row i, column j) to
        all patches. A position of length zero has similarity 0 to all.

    Raises:
        ValueError: The shape does not fit the grid.
    """
    table = pos_embed[0] if pos_embed.ndim == 3 and pos_embed.shape[0] == 1 else pos_embed
    gh, gw = grid
    if table.ndim != 2 or table.shape[0] != num_prefix_tokens + gh * gw:
        raise ValueError(
            f"expected a position embedding (1, {num_prefix_tokens} + {gh}*{gw}, D), got {tuple(pos_embed.shape)}"
        )
    directions = F.normalize(table[num_prefix_tokens:].detach().cpu().double(), dim=1)  # (N, D)
    similarity = (directions @ directions.T).clamp(-1.0, 1.0)  # rounding only: 1 + 2e-16 is no cosine
    return similarity.float().reshape(gh, gw, gh, gw)
